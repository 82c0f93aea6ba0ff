//! Counts heap bytes on request.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use anyhow::Result;

use crate::machine::{Kind, Machine};

/// The system's allocator, with a count that is off by default, so that timed code does not pay for
/// it.
pub struct Counting;

static ON: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicI64 = AtomicI64::new(0);

fn count(bytes: i64) {
    // Relaxed: one thread allocates while this is on.
    if ON.load(Ordering::Relaxed) {
        BYTES.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: all calls go to the system allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Returns the heap bytes of `lpis` LPIs. Each is delivered once, as arm_vgic keeps a record of an
/// LPI from then on.
pub fn of_machine(lpis: u32) -> Result<u64> {
    let bytes = |lpis: u32| -> Result<i64> {
        BYTES.store(0, Ordering::Relaxed);
        ON.store(true, Ordering::Relaxed);
        let machine = Machine::new(lpis, Kind::First).and_then(|mut machine| {
            machine.each_once()?;
            machine.forget_queue();
            Ok(machine)
        });
        ON.store(false, Ordering::Relaxed);
        drop(machine?);
        Ok(BYTES.load(Ordering::Relaxed))
    };
    Ok((bytes(lpis)? - bytes(1)?).max(0) as u64 * u64::from(lpis) / u64::from(lpis - 1).max(1))
}
