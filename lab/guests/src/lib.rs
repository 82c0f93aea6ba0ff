//! What the payloads share: they run on one or more arm64 vCPUs at EL1, without a system.

#![no_std]

pub mod check;
pub mod exceptions;
pub mod fdt;
pub mod mem;
pub mod mmio;
pub mod mmu;
pub mod psci;
pub mod smp;
pub mod start;
pub mod timer;
pub mod uart;

use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("FAIL panic: cpu {}: {info}", smp::cpu());
    psci::system_off()
}
