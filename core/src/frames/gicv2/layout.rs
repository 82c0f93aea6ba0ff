//! The registers of GICv2 by frame: their offsets and access sizes.
//!
//! The architecture requires word accesses to all registers, and byte accesses to registers that
//! have a byte for each interrupt (IHI 0048B, 4.1.4). The distributor accepts every narrower access
//! that is aligned, except to GICD_SGIR: guests of emulated distributors have come to rely on this,
//! and each part of a register stands for its own interrupts. The CPU interface does not: half of
//! an acknowledge has no meaning.

use crate::frames::mmio::{Reg, Width};

/// A register of the distributor, for each interrupt or for all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dist {
    /// GICD_CTLR (4.3.1).
    Ctlr,
    /// GICD_TYPER (4.3.2).
    Typer,
    /// GICD_IIDR (4.3.3).
    Iidr,
    /// GICD_IGROUPR (4.3.4): a bit for each interrupt, as in the registers up to
    /// [`Dist::Icactiver`].
    Igroupr,
    /// GICD_ISENABLER (4.3.5).
    Isenabler,
    /// GICD_ICENABLER (4.3.6).
    Icenabler,
    /// GICD_ISPENDR (4.3.7).
    Ispendr,
    /// GICD_ICPENDR (4.3.8).
    Icpendr,
    /// GICD_ISACTIVER (4.3.9).
    Isactiver,
    /// GICD_ICACTIVER (4.3.10).
    Icactiver,
    /// GICD_IPRIORITYR (4.3.11): a byte for each interrupt.
    Ipriorityr,
    /// GICD_ITARGETSR (4.3.12): a byte for each interrupt.
    Itargetsr,
    /// GICD_ICFGR (4.3.13): two bits for each interrupt.
    Icfgr,
    /// GICD_SGIR (4.3.15).
    Sgir,
    /// GICD_CPENDSGIR (4.3.16): a byte for each SGI.
    Cpendsgir,
    /// GICD_SPENDSGIR (4.3.17): a byte for each SGI.
    Spendsgir,
    /// The identification registers (4.3.18): PIDR4 to PIDR7, PIDR0 to PIDR3, CIDR0 to CIDR3.
    Id,
}

/// A word, or an array of words, accessed whole or in parts.
const fn parts(offset: u32, count: u32, kind: Dist, name: &'static str) -> Reg<Dist> {
    Reg::words(offset, count, kind, name).also(Width::Half).also(Width::Byte)
}

const fn bytes(offset: u32, count: u32, kind: Dist, name: &'static str) -> Reg<Dist> {
    Reg::bytes(offset, count, kind, name).also(Width::Half)
}

/// GICD (IHI 0048B, table 4-1). Offsets that are not listed are RAZ/WI. GICD_NSACR (4.3.14) is not
/// listed: it is RAZ/WI without the Security Extensions.
pub(crate) const DIST: &[Reg<Dist>] = &[
    parts(0x000, 1, Dist::Ctlr, "GICD_CTLR"),
    parts(0x004, 1, Dist::Typer, "GICD_TYPER").ro(),
    parts(0x008, 1, Dist::Iidr, "GICD_IIDR").ro(),
    parts(0x080, 32, Dist::Igroupr, "GICD_IGROUPR"),
    parts(0x100, 32, Dist::Isenabler, "GICD_ISENABLER"),
    parts(0x180, 32, Dist::Icenabler, "GICD_ICENABLER"),
    parts(0x200, 32, Dist::Ispendr, "GICD_ISPENDR"),
    parts(0x280, 32, Dist::Icpendr, "GICD_ICPENDR"),
    parts(0x300, 32, Dist::Isactiver, "GICD_ISACTIVER"),
    parts(0x380, 32, Dist::Icactiver, "GICD_ICACTIVER"),
    bytes(0x400, 1020, Dist::Ipriorityr, "GICD_IPRIORITYR"),
    bytes(0x800, 1020, Dist::Itargetsr, "GICD_ITARGETSR"),
    parts(0xc00, 64, Dist::Icfgr, "GICD_ICFGR"),
    Reg::word(0xf00, Dist::Sgir, "GICD_SGIR").wo(),
    bytes(0xf10, 16, Dist::Cpendsgir, "GICD_CPENDSGIR"),
    bytes(0xf20, 16, Dist::Spendsgir, "GICD_SPENDSGIR"),
    parts(0xfd0, 12, Dist::Id, "GICD_PIDR, GICD_CIDR").ro(),
];

/// A register of the CPU interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cpu {
    /// GICC_CTLR (4.4.1).
    Ctlr,
    /// GICC_PMR (4.4.2).
    Pmr,
    /// GICC_BPR (4.4.3).
    Bpr,
    /// GICC_IAR (4.4.4).
    Iar,
    /// GICC_EOIR (4.4.5).
    Eoir,
    /// GICC_RPR (4.4.6).
    Rpr,
    /// GICC_HPPIR (4.4.7).
    Hppir,
    /// GICC_ABPR (4.4.8).
    Abpr,
    /// GICC_AIAR (4.4.9).
    Aiar,
    /// GICC_AEOIR (4.4.10).
    Aeoir,
    /// GICC_AHPPIR (4.4.11).
    Ahppir,
    /// GICC_APR (4.4.12).
    Apr,
    /// GICC_NSAPR (4.4.13).
    Nsapr,
    /// GICC_IIDR (4.4.14).
    Iidr,
    /// GICC_DIR (4.4.15).
    Dir,
}

/// GICC (IHI 0048B, table 4-2).
pub(crate) const CPU: &[Reg<Cpu>] = &[
    Reg::word(0x00, Cpu::Ctlr, "GICC_CTLR"),
    Reg::word(0x04, Cpu::Pmr, "GICC_PMR"),
    Reg::word(0x08, Cpu::Bpr, "GICC_BPR"),
    Reg::word(0x0c, Cpu::Iar, "GICC_IAR").ro(),
    Reg::word(0x10, Cpu::Eoir, "GICC_EOIR").wo(),
    Reg::word(0x14, Cpu::Rpr, "GICC_RPR").ro(),
    Reg::word(0x18, Cpu::Hppir, "GICC_HPPIR").ro(),
    Reg::word(0x1c, Cpu::Abpr, "GICC_ABPR"),
    Reg::word(0x20, Cpu::Aiar, "GICC_AIAR").ro(),
    Reg::word(0x24, Cpu::Aeoir, "GICC_AEOIR").wo(),
    Reg::word(0x28, Cpu::Ahppir, "GICC_AHPPIR").ro(),
    Reg::words(0xd0, 4, Cpu::Apr, "GICC_APR"),
    Reg::words(0xe0, 4, Cpu::Nsapr, "GICC_NSAPR"),
    Reg::word(0xfc, Cpu::Iidr, "GICC_IIDR").ro(),
    Reg::word(0x1000, Cpu::Dir, "GICC_DIR").wo(),
];

/// A register of a GICv2m frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Msi {
    /// The range of SPIs of the frame.
    Typer,
    /// The register that devices write to send an MSI.
    SetSpi,
    Iidr,
}

/// A GICv2m frame (Server Base System Architecture, ARM-DEN-0029, appendix E). Its identification
/// registers at 0xFD0 are not implemented, and read as zero.
pub(crate) const MSI: &[Reg<Msi>] = &[
    Reg::word(0x008, Msi::Typer, "MSI_TYPER").ro(),
    // An MSI is a write of 16 bits or more: PCI devices write words, others may write halfwords.
    Reg::word(0x040, Msi::SetSpi, "MSI_SETSPI_NS").wo().also(Width::Half),
    Reg::word(0xfcc, Msi::Iidr, "MSI_IIDR").ro(),
];

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn sorted_and_within<K: Copy>(layout: &[Reg<K>], size: u32) {
        for pair in layout.windows(2) {
            assert!(pair[0].offset + pair[0].len <= pair[1].offset, "{:?}", pair[1]);
        }
        for reg in layout {
            assert!(reg.offset % reg.element.bytes() == 0 && reg.len % reg.element.bytes() == 0);
            assert!(reg.offset + reg.len <= size, "{reg:?}");
        }
    }

    #[test]
    fn registers_are_sorted_and_do_not_overlap() {
        sorted_and_within(DIST, 0x1000);
        sorted_and_within(CPU, 0x2000);
        sorted_and_within(MSI, 0x1000);
    }
}
