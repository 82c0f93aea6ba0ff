//! A program that links the core without std. It is built, never run.
//!
//! The program has its own panic handler. std has one too, and only one is allowed. So if vgic-core
//! or a dependency uses std, this program does not build.
#![no_std]

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;
use core::ptr;

use vgic_core::Vgic;
use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::{Config, Engine, Injected, Injector, Kick, LpiConfig, MsiControl, Vcpu};
use vgic_core::ids::{DeviceId, EventId, Intid, VcpuId};
use vgic_core::wait::WaitCell;

extern crate alloc;

/// A host that leaves a token.
struct Token(WaitCell);

impl Kick for Token {
    fn kick(&self, _: VcpuId) {
        let _ = self.0.kick();
    }
}

/// Handles one LPI, from the device to the end of interrupt.
fn cycle(vcpus: u16) -> Option<bool> {
    let vgic: Vgic =
        Vgic::new(&Config::with_vcpus(vcpus), alloc::sync::Arc::new(Token(WaitCell::new())))
            .ok()?;
    let mut msi = vgic.msi().ok()?;
    let (device, event, intid) = (DeviceId(1), EventId(2), Intid(8192));
    msi.map(device, event, intid, VcpuId(0), LpiConfig::enabled(0xa0)).ok()?;
    let mut vcpu = vgic.vcpu(VcpuId(0)).ok()?;
    vcpu.open();
    let pending = vgic.injector().ok()?.inject(&msi.domain(), device, event) == Injected::Pending;
    let mut cpu = CpuInterface::new(4)?;
    vcpu.flush(&mut cpu);
    let taken = cpu.iar1();
    let _ = cpu.eoir1(taken);
    vcpu.fold(&mut cpu);
    Some(pending && taken == intid)
}

/// Calls into the core, so that its code is generated and linked, not only checked.
#[unsafe(no_mangle)]
pub extern "C" fn probe(vcpus: u16) -> bool {
    cycle(vcpus) == Some(true)
}

/// An allocator without memory. It is enough for the link, and proves that the core needs nothing
/// from its host but an allocator.
struct NoMemory;

// SAFETY: null is the valid answer for "no memory", so there is never anything to deallocate.
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
