//! The payloads' library. Payloads run on one or more arm64 vCPUs at EL1, without an operating
//! system.

#![no_std]

pub mod check;
pub mod checks;
pub mod doorbell;
pub mod exceptions;
pub mod fdt;
pub mod gic;
pub mod gicv2;
pub mod gicv3;
pub mod its;
pub mod mem;
pub mod mmio;
pub mod mmu;
pub mod psci;
pub mod record;
pub mod semihosting;
pub mod smp;
pub mod start;
pub mod timer;
pub mod uart;
pub mod wire;

use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("FAIL panic: cpu {}: {info}", smp::cpu());
    psci::system_off()
}
