//! An identity map with 4 KiB pages: devices and RAM in blocks, and the image's first 2 MiB in
//! pages.
//!
//! The image is in pages so that a walk of a payload's tables has all three levels.

use core::arch::asm;
use core::cell::UnsafeCell;

use crate::{mmio, msr};

#[repr(C, align(4096))]
struct Table(UnsafeCell<[u64; 512]>);

// SAFETY: only CPU 0 writes, before another CPU runs.
unsafe impl Sync for Table {}

static LEVEL1: Table = Table(UnsafeCell::new([0; 512]));
static LEVEL2: Table = Table(UnsafeCell::new([0; 512]));
static LEVEL3: Table = Table(UnsafeCell::new([0; 512]));

const RAM: u64 = 0x4000_0000;
const BLOCK: u64 = 0b01;
const TABLE: u64 = 0b11;
const PAGE: u64 = 0b11;
/// Attribute 0: normal, write-back; accessed, inner shareable.
const NORMAL: u64 = 1 << 10 | 0b11 << 8;
/// Attribute 1: device nGnRnE; accessed, never executed.
const DEVICE: u64 = 1 << 10 | 1 << 2 | 1 << 54 | 1 << 53;

const MAIR: u64 = 0x00ff;
/// 39-bit addresses through TTBR0, cacheable and inner shareable walks, no TTBR1, 40-bit physical
/// addresses.
const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32;

/// Fills the tables.
pub fn build() {
    let table = |to: &Table| to.0.get() as u64 | TABLE;
    // SAFETY: only CPU 0 runs, and nothing else refers to the tables yet.
    let (one, two, three) =
        unsafe { (&mut *LEVEL1.0.get(), &mut *LEVEL2.0.get(), &mut *LEVEL3.0.get()) };
    one[0] = DEVICE | BLOCK;
    one[1] = table(&LEVEL2);
    for (entry, address) in two.iter_mut().zip((RAM..).step_by(2 << 20)) {
        *entry = address | NORMAL | BLOCK;
    }
    two[0] = table(&LEVEL3);
    for (entry, address) in three.iter_mut().zip((RAM..).step_by(4096)) {
        *entry = address | NORMAL | PAGE;
    }
}

/// Enables the MMU and the caches of this CPU.
pub fn enable() {
    msr!("mair_el1", MAIR);
    msr!("tcr_el1", TCR);
    msr!("ttbr0_el1", LEVEL1.0.get() as u64);
    mmio::dsb();
    mmio::isb();
    // SAFETY: this is an identity map, so no address changes its meaning. Sets M, C and I.
    unsafe {
        asm!("tlbi vmalle1", "dsb sy", "isb", "mrs {t}, sctlr_el1", "orr {t}, {t}, {b}",
             "msr sctlr_el1, {t}", "isb", t = out(reg) _, b = in(reg) 0x1005_u64, options(nostack));
    }
}
