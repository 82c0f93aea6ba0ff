//! Power control: PSCI calls through HVC.

use core::arch::asm;

const CPU_ON: u64 = 0xc400_0003;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;

fn call(function: u64, a: u64, b: u64, c: u64) -> i64 {
    let result: i64;
    // SAFETY: PSCI preserves all registers except x0 to x17, which are declared as clobbered.
    unsafe {
        asm!("hvc #0", inout("x0") function => result, inout("x1") a => _, inout("x2") b => _,
             inout("x3") c => _, out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _,
             out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _,
             out("x15") _, out("x16") _, out("x17") _, options(nostack));
    }
    result
}

/// Starts another CPU at `entry` with `context` in x0. Returns PSCI's result.
pub fn cpu_on(mpidr: u64, entry: u64, context: u64) -> i64 {
    call(CPU_ON, mpidr, entry, context)
}

/// Ends the machine.
pub fn system_off() -> ! {
    last(SYSTEM_OFF)
}

/// Resets the machine, which boots again.
pub fn system_reset() -> ! {
    last(SYSTEM_RESET)
}

fn last(function: u64) -> ! {
    call(function, 0, 0, 0);
    loop {
        // SAFETY: only waits. Not reached on a machine with PSCI.
        unsafe { asm!("wfi") };
    }
}
