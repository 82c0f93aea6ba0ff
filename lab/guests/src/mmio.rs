//! Device registers.

use core::arch::asm;

/// Reads a 32-bit register.
///
/// By an explicit instruction: a hypervisor can only emulate accesses that it gets a syndrome for, which compilers' choices
/// (post-indexed, pairs) do not have.
pub fn read32(address: u64) -> u32 {
    let value: u32;
    // SAFETY: payloads name device addresses only; the device answers or the access faults, which is reported.
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

/// Every access before it is complete before any after it, for everyone.
pub fn dsb() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}

/// Says that this CPU waits for another one, which an emulator may have on the same thread.
pub fn relax() {
    // SAFETY: a hint.
    unsafe { asm!("yield", options(nostack)) };
}

/// What comes after it sees the system registers that were written before.
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack)) };
}

/// Reads a system register.
#[macro_export]
macro_rules! mrs {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: payloads read registers that EL1 has; another would be undefined, which is reported.
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
        // SAFETY: as for `mrs`; what the registers do is the payload's business.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack));
        }
    }};
}
