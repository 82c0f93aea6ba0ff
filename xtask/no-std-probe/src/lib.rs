//! A program of the core without std. It is built, never run.
//!
//! It has a panic handler of its own. std has one too, and there can be one only: as soon as
//! vgic-core or any dependency brings std in, this does not build.
#![no_std]

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;
use core::ptr;

use vgic_core::engine::Config;
use vgic_core::wait::WaitCell;

/// Calls into the core, so that its code is generated and linked, not just checked.
#[unsafe(no_mangle)]
pub extern "C" fn probe(vcpus: u16) -> bool {
    let cell = WaitCell::new();
    Config::with_vcpus(vcpus).check().is_ok() && !cell.kick() && cell.take()
}

/// Has no memory: what matters is that an allocator is all that the core asks of its host.
struct NoMemory;

// SAFETY: null is the answer that says there is no memory; so there is nothing to deallocate.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: NoMemory = NoMemory;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}
