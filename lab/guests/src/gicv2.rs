//! GICv2: a distributor, and a memory-mapped CPU interface. All interrupts are in group 0.

use crate::gic::Gic;
use crate::mmio::{read32, write8, write32};

pub const GICD: u64 = 0x0800_0000;
const GICC: u64 = 0x0801_0000;
/// The frame that turns writes into SPIs.
pub const V2M: u64 = 0x0802_0000;
pub const V2M_TYPER: u64 = V2M + 0x008;
pub const V2M_SETSPI: u64 = V2M + 0x040;

const GICD_CTLR: u64 = GICD;
const GICD_TYPER: u64 = GICD + 4;
const GICD_ITARGETSR: u64 = GICD + 0x800;
const GICD_SGIR: u64 = GICD + 0xf00;
const GICD_CPENDSGIR: u64 = GICD + 0xf10;
const GICD_SPENDSGIR: u64 = GICD + 0xf20;

const GICC_CTLR: u64 = GICC;
const GICC_PMR: u64 = GICC + 0x04;
const GICC_BPR: u64 = GICC + 0x08;
const GICC_IAR: u64 = GICC + 0x0c;
const GICC_EOIR: u64 = GICC + 0x10;
const GICC_RPR: u64 = GICC + 0x14;
const GICC_HPPIR: u64 = GICC + 0x18;
const GICC_DIR: u64 = GICC + 0x1000;
const CTLR_EOIMODE: u32 = 1 << 9;

pub struct GicV2;

impl Gic for GicV2 {
    const GROUP: bool = false;

    fn frame(_: u32) -> u64 {
        GICD
    }
    fn settle(_: u32) {}
    fn forward(on: bool) {
        write32(GICD_CTLR, on.into());
    }
    fn interrupts() -> u32 {
        ((read32(GICD_TYPER) & 0x1f) + 1) * 32
    }
    fn init_cpu() {
        write32(GICC_PMR, 0xff);
        write32(GICC_BPR, 0);
        write32(GICC_CTLR, 1);
    }
    fn acknowledge() -> u32 {
        read32(GICC_IAR)
    }
    fn end(iar: u32) {
        write32(GICC_EOIR, iar);
    }
    fn deactivate(iar: u32) {
        write32(GICC_DIR, iar);
    }
    fn highest_pending() -> u32 {
        read32(GICC_HPPIR)
    }
    fn running_priority() -> u32 {
        read32(GICC_RPR)
    }
    fn set_mask(priority: u8) {
        write32(GICC_PMR, priority.into());
    }
    fn set_group_bits(lowest: u32) {
        write32(GICC_BPR, lowest.saturating_sub(1));
    }
    fn set_split_end(on: bool) {
        write32(GICC_CTLR, 1 | if on { CTLR_EOIMODE } else { 0 });
    }
    fn route(spi: u32, cpu: usize) {
        set_targets(spi, 1 << cpu);
    }
    fn send_sgi(sgi: u32, cpu: usize) {
        send(sgi, Filter::List(1 << cpu));
    }
    fn intid(iar: u32) -> u32 {
        iar & 0x3ff
    }
}

/// The targets of an SGI.
#[derive(Clone, Copy)]
pub enum Filter {
    List(u8),
    Others,
    Myself,
}

pub fn send(sgi: u32, to: Filter) {
    let filter = match to {
        Filter::List(cpus) => u32::from(cpus) << 16,
        Filter::Others => 1 << 24,
        Filter::Myself => 2 << 24,
    };
    write32(GICD_SGIR, filter | sgi);
}

/// Returns the CPU that sent the SGI.
pub fn sender(iar: u32) -> usize {
    (iar >> 10 & 7) as usize
}

pub fn set_targets(spi: u32, cpus: u8) {
    write8(GICD_ITARGETSR + u64::from(spi), cpus);
}

/// Returns the target register of one of the first 32 interrupts, which names the CPU that reads
/// it.
pub fn own_target() -> u8 {
    read32(GICD_ITARGETSR) as u8
}

/// Returns the CPUs from which this SGI is pending at the calling CPU.
pub fn senders(sgi: u32) -> u8 {
    (read32(GICD_SPENDSGIR + u64::from(sgi & !3)) >> (sgi % 4 * 8)) as u8
}

pub fn set_senders(sgi: u32, cpus: u8) {
    write8(GICD_SPENDSGIR + u64::from(sgi), cpus);
}

pub fn clear_senders(sgi: u32, cpus: u8) {
    write8(GICD_CPENDSGIR + u64::from(sgi), cpus);
}

/// Returns the GICv2m frame's first SPI, and the number of its SPIs.
pub fn v2m_spis() -> (u32, u32) {
    let typer = read32(V2M_TYPER);
    (typer >> 16 & 0x3ff, typer & 0x3ff)
}
