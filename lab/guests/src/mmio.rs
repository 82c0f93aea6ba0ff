//! Accesses to device registers.

use core::arch::asm;

/// Reads a 32-bit register.
///
/// Uses an explicit instruction. A hypervisor can emulate only accesses with a syndrome, and the
/// forms that compilers may choose (post-indexed, pairs) have none.
pub fn read32(address: u64) -> u32 {
    let value: u32;
    // SAFETY: payloads name device addresses only. The device answers, or the access faults, which
    // is reported.
    unsafe { asm!("ldr {v:w}, [{a}]", v = out(reg) value, a = in(reg) address, options(nostack)) };
    value
}

/// Writes a 32-bit register.
pub fn write32(address: u64, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("str {v:w}, [{a}]", v = in(reg) value, a = in(reg) address, options(nostack)) };
}

/// Writes one byte of a register that allows it.
pub fn write8(address: u64, value: u8) {
    // SAFETY: as above.
    unsafe {
        asm!("strb {v:w}, [{a}]", v = in(reg) u32::from(value), a = in(reg) address, options(nostack))
    };
}

/// Reads a 64-bit register.
pub fn read64(address: u64) -> u64 {
    let value: u64;
    // SAFETY: as above.
    unsafe { asm!("ldr {v}, [{a}]", v = out(reg) value, a = in(reg) address, options(nostack)) };
    value
}

/// Writes a 64-bit register.
pub fn write64(address: u64, value: u64) {
    // SAFETY: as above.
    unsafe { asm!("str {v}, [{a}]", v = in(reg) value, a = in(reg) address, options(nostack)) };
}

/// Completes all earlier accesses before any later one, for all observers.
pub fn dsb() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}

/// Hints that this CPU waits for another one, which an emulator may run on the same thread.
pub fn relax() {
    // SAFETY: a hint.
    unsafe { asm!("yield", options(nostack)) };
}

/// Makes earlier writes to system registers visible to later instructions.
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack)) };
}

/// Reads a system register.
#[macro_export]
macro_rules! mrs {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: payloads read registers of EL1. Any other one is undefined, which is reported.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack));
        }
        value
    }};
}

/// Writes a system register.
#[macro_export]
macro_rules! msr {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: as for `mrs`. The payload is responsible for the register's effects.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack));
        }
    }};
}
