//! The registers of GICv3 by frame: their offsets and access sizes. The file of each frame
//! implements their behavior.
//!
//! Section numbers are those of IHI 0069: 12.9 for GICD, 12.11 for GICR. Registers within them are
//! in alphabetical order.

use crate::arch::ids::{EPPI_BASE, ESPI_BASE, PRIVATE_INTIDS, SGIS};
use crate::frames::mmio::{Reg, Width};

/// A register with a field for each interrupt. The distributor and the redistributors share these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Field {
    /// One bit: 1 for Group 1, 0 for Group 0.
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    /// A byte for each interrupt.
    Priority,
    /// Two bits for each interrupt. The upper bit is set if the interrupt is edge-triggered.
    Trigger,
}

/// The registers of the distributor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gicd {
    Ctlr,
    Typer,
    Iidr,
    Statusr,
    /// A write makes an SPI pending.
    SetSpi,
    /// A write undoes a write to [`Gicd::SetSpi`].
    ClrSpi,
    /// A register with a field for each interrupt from this INTID up.
    Irqs(Field, u32),
    /// A doubleword for each SPI from this INTID up.
    Router(u32),
    /// The identification registers PIDR4 to CIDR3.
    Id,
    /// Reads as zero and ignores writes.
    Raz,
}

/// The registers of a redistributor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gicr {
    Ctlr,
    Iidr,
    Typer,
    Statusr,
    Waker,
    Setlpir,
    Clrlpir,
    Invlpir,
    Invallr,
    Syncr,
    Propbaser,
    Pendbaser,
    /// A register with a field for each interrupt from this INTID up.
    Irqs(Field, u32),
    /// The identification registers PIDR4 to CIDR3.
    Id,
    /// Reads as zero and ignores writes.
    Raz,
}

/// The distributor (12.9). One frame of 64 KiB.
pub(crate) const GICD: &[Reg<Gicd>] = &[
    Reg::word(0x0000, Gicd::Ctlr, "GICD_CTLR"),
    Reg::word(0x0004, Gicd::Typer, "GICD_TYPER").ro(),
    Reg::word(0x0008, Gicd::Iidr, "GICD_IIDR").ro(),
    Reg::word(0x000c, Gicd::Raz, "GICD_TYPER2").ro(),
    Reg::word(0x0010, Gicd::Statusr, "GICD_STATUSR"),
    // Halfwords as well (12.1.3): the data of an MSI.
    Reg::word(0x0040, Gicd::SetSpi, "GICD_SETSPI_NSR").wo().also(Width::Half),
    Reg::word(0x0048, Gicd::ClrSpi, "GICD_CLRSPI_NSR").wo().also(Width::Half),
    // Write-ignored with one security state.
    Reg::word(0x0050, Gicd::Raz, "GICD_SETSPI_SR").wo().also(Width::Half),
    Reg::word(0x0058, Gicd::Raz, "GICD_CLRSPI_SR").wo().also(Width::Half),
    Reg::words(0x0080, 32, Gicd::Irqs(Field::Group, 0), "GICD_IGROUPR<n>"),
    Reg::words(0x0100, 32, Gicd::Irqs(Field::SetEnable, 0), "GICD_ISENABLER<n>"),
    Reg::words(0x0180, 32, Gicd::Irqs(Field::ClearEnable, 0), "GICD_ICENABLER<n>"),
    Reg::words(0x0200, 32, Gicd::Irqs(Field::SetPending, 0), "GICD_ISPENDR<n>"),
    Reg::words(0x0280, 32, Gicd::Irqs(Field::ClearPending, 0), "GICD_ICPENDR<n>"),
    Reg::words(0x0300, 32, Gicd::Irqs(Field::SetActive, 0), "GICD_ISACTIVER<n>"),
    Reg::words(0x0380, 32, Gicd::Irqs(Field::ClearActive, 0), "GICD_ICACTIVER<n>"),
    Reg::bytes(0x0400, 1020, Gicd::Irqs(Field::Priority, 0), "GICD_IPRIORITYR<n>"),
    // RAZ/WI with affinity routing.
    Reg::bytes(0x0800, 1020, Gicd::Raz, "GICD_ITARGETSR<n>"),
    Reg::words(0x0c00, 64, Gicd::Irqs(Field::Trigger, 0), "GICD_ICFGR<n>"),
    // RES0 with one security state.
    Reg::words(0x0d00, 32, Gicd::Raz, "GICD_IGRPMODR<n>"),
    Reg::words(0x0e00, 64, Gicd::Raz, "GICD_NSACR<n>"),
    // RES0 with affinity routing.
    Reg::word(0x0f00, Gicd::Raz, "GICD_SGIR").wo(),
    Reg::bytes(0x0f10, 16, Gicd::Raz, "GICD_CPENDSGIR<n>"),
    Reg::bytes(0x0f20, 16, Gicd::Raz, "GICD_SPENDSGIR<n>"),
    Reg::words(0x1000, 32, Gicd::Irqs(Field::Group, ESPI_BASE), "GICD_IGROUPR<n>E"),
    Reg::words(0x1200, 32, Gicd::Irqs(Field::SetEnable, ESPI_BASE), "GICD_ISENABLER<n>E"),
    Reg::words(0x1400, 32, Gicd::Irqs(Field::ClearEnable, ESPI_BASE), "GICD_ICENABLER<n>E"),
    Reg::words(0x1600, 32, Gicd::Irqs(Field::SetPending, ESPI_BASE), "GICD_ISPENDR<n>E"),
    Reg::words(0x1800, 32, Gicd::Irqs(Field::ClearPending, ESPI_BASE), "GICD_ICPENDR<n>E"),
    Reg::words(0x1a00, 32, Gicd::Irqs(Field::SetActive, ESPI_BASE), "GICD_ISACTIVER<n>E"),
    Reg::words(0x1c00, 32, Gicd::Irqs(Field::ClearActive, ESPI_BASE), "GICD_ICACTIVER<n>E"),
    Reg::bytes(0x2000, 1024, Gicd::Irqs(Field::Priority, ESPI_BASE), "GICD_IPRIORITYR<n>E"),
    Reg::words(0x3000, 64, Gicd::Irqs(Field::Trigger, ESPI_BASE), "GICD_ICFGR<n>E"),
    Reg::words(0x3400, 32, Gicd::Raz, "GICD_IGRPMODR<n>E"),
    Reg::words(0x3600, 64, Gicd::Raz, "GICD_NSACR<n>E"),
    // The first register is that of n = 32.
    Reg::doubles(0x6100, 988, Gicd::Router(PRIVATE_INTIDS), "GICD_IROUTER<n>"),
    Reg::doubles(0x8000, 1024, Gicd::Router(ESPI_BASE), "GICD_IROUTER<n>E"),
    Reg::words(0xffd0, 12, Gicd::Id, "GICD_PIDR, GICD_CIDR").ro(),
];

/// The two frames of a redistributor, of 64 KiB each (12.11).
pub(crate) const GICR: &[Reg<Gicr>] = &[
    // RD_base.
    Reg::word(0x0000, Gicr::Ctlr, "GICR_CTLR"),
    Reg::word(0x0004, Gicr::Iidr, "GICR_IIDR").ro(),
    Reg::doubles(0x0008, 1, Gicr::Typer, "GICR_TYPER").ro(),
    Reg::word(0x0010, Gicr::Statusr, "GICR_STATUSR"),
    Reg::word(0x0014, Gicr::Waker, "GICR_WAKER"),
    Reg::word(0x0018, Gicr::Raz, "GICR_MPAMIDR").ro(),
    Reg::word(0x001c, Gicr::Raz, "GICR_PARTIDR"),
    Reg::doubles(0x0040, 1, Gicr::Setlpir, "GICR_SETLPIR").wo(),
    Reg::doubles(0x0048, 1, Gicr::Clrlpir, "GICR_CLRLPIR").wo(),
    Reg::doubles(0x0070, 1, Gicr::Propbaser, "GICR_PROPBASER"),
    Reg::doubles(0x0078, 1, Gicr::Pendbaser, "GICR_PENDBASER"),
    Reg::doubles(0x00a0, 1, Gicr::Invlpir, "GICR_INVLPIR").wo(),
    Reg::doubles(0x00b0, 1, Gicr::Invallr, "GICR_INVALLR").wo(),
    Reg::word(0x00c0, Gicr::Syncr, "GICR_SYNCR").ro(),
    Reg::words(0xffd0, 12, Gicr::Id, "GICR_PIDR, GICR_CIDR").ro(),
    // SGI_base.
    Reg::word(0x1_0080, Gicr::Irqs(Field::Group, 0), "GICR_IGROUPR0"),
    Reg::words(0x1_0084, 2, Gicr::Irqs(Field::Group, EPPI_BASE), "GICR_IGROUPR<n>E"),
    Reg::word(0x1_0100, Gicr::Irqs(Field::SetEnable, 0), "GICR_ISENABLER0"),
    Reg::words(0x1_0104, 2, Gicr::Irqs(Field::SetEnable, EPPI_BASE), "GICR_ISENABLER<n>E"),
    Reg::word(0x1_0180, Gicr::Irqs(Field::ClearEnable, 0), "GICR_ICENABLER0"),
    Reg::words(0x1_0184, 2, Gicr::Irqs(Field::ClearEnable, EPPI_BASE), "GICR_ICENABLER<n>E"),
    Reg::word(0x1_0200, Gicr::Irqs(Field::SetPending, 0), "GICR_ISPENDR0"),
    Reg::words(0x1_0204, 2, Gicr::Irqs(Field::SetPending, EPPI_BASE), "GICR_ISPENDR<n>E"),
    Reg::word(0x1_0280, Gicr::Irqs(Field::ClearPending, 0), "GICR_ICPENDR0"),
    Reg::words(0x1_0284, 2, Gicr::Irqs(Field::ClearPending, EPPI_BASE), "GICR_ICPENDR<n>E"),
    Reg::word(0x1_0300, Gicr::Irqs(Field::SetActive, 0), "GICR_ISACTIVER0"),
    Reg::words(0x1_0304, 2, Gicr::Irqs(Field::SetActive, EPPI_BASE), "GICR_ISACTIVER<n>E"),
    Reg::word(0x1_0380, Gicr::Irqs(Field::ClearActive, 0), "GICR_ICACTIVER0"),
    Reg::words(0x1_0384, 2, Gicr::Irqs(Field::ClearActive, EPPI_BASE), "GICR_ICACTIVER<n>E"),
    Reg::bytes(0x1_0400, 32, Gicr::Irqs(Field::Priority, 0), "GICR_IPRIORITYR<n>"),
    Reg::bytes(0x1_0420, 64, Gicr::Irqs(Field::Priority, EPPI_BASE), "GICR_IPRIORITYR<n>E"),
    // SGIs are edge-triggered.
    Reg::word(0x1_0c00, Gicr::Irqs(Field::Trigger, 0), "GICR_ICFGR0").ro(),
    Reg::word(0x1_0c04, Gicr::Irqs(Field::Trigger, SGIS), "GICR_ICFGR1"),
    Reg::words(0x1_0c08, 4, Gicr::Irqs(Field::Trigger, EPPI_BASE), "GICR_ICFGR<n>E"),
    // RES0 with one security state.
    Reg::words(0x1_0d00, 3, Gicr::Raz, "GICR_IGRPMODR0, GICR_IGRPMODR<n>E"),
    Reg::word(0x1_0e00, Gicr::Raz, "GICR_NSACR"),
];

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn check<K>(layout: &[Reg<K>], size: u32) {
        for pair in layout.windows(2) {
            assert!(pair[0].offset + pair[0].len <= pair[1].offset, "{:?}, {:?}", pair[0], pair[1]);
        }
        for reg in layout {
            let element = reg.element.bytes();
            assert!(
                reg.offset.is_multiple_of(element) && reg.len.is_multiple_of(element),
                "{reg:?}"
            );
            assert!(reg.offset + reg.len <= size, "{reg:?}");
        }
    }

    #[test]
    fn registers_are_in_order_and_do_not_overlap() {
        check(GICD, 0x1_0000);
        check(GICR, 0x2_0000);
    }
}
