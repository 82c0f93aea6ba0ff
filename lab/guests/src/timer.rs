//! Time: the generic timer's counter, and the virtual timer.

use crate::{mmio, mrs, msr};

/// The virtual timer's PPI.
pub const INTID: u32 = 27;

/// Returns the number of counter ticks per second.
pub fn frequency() -> u64 {
    mrs!("cntfrq_el0")
}

/// Returns the present value of the counter.
pub fn now() -> u64 {
    mmio::isb();
    mrs!("cntvct_el0")
}

/// Returns whether `done` becomes true within `ms` milliseconds.
pub fn within(ms: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = now() + ms * (frequency() / 1000);
    loop {
        if done() {
            return true;
        }
        if now() >= end {
            return done();
        }
        mmio::relax();
    }
}

/// Waits for `ms` milliseconds. Interrupts may arrive during the wait.
pub fn pass(ms: u64) {
    within(ms, || false);
}

/// Arms the virtual timer: its line rises in `ticks`.
pub fn arm(ticks: u64) {
    msr!("cntv_cval_el0", now() + ticks);
    msr!("cntv_ctl_el0", 1);
    mmio::isb();
}

/// Turns the virtual timer off: its line falls.
pub fn disarm() {
    msr!("cntv_ctl_el0", 0);
    mmio::isb();
}

/// Masks the line of the running timer.
pub fn mask() {
    msr!("cntv_ctl_el0", 3);
    mmio::isb();
}
