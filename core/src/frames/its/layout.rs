//! The registers of an ITS: their offsets and permitted accesses (IHI 0069, 12.18 and 12.19).

use crate::frames::mmio::{Reg, Width};

/// The registers of the control frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gits {
    Ctlr,
    Iidr,
    Typer,
    Statusr,
    Cbaser,
    Cwriter,
    Creadr,
    /// One register for each table.
    Baser,
    /// PIDR4 to CIDR3.
    Id,
    /// A register that reads as zero and ignores writes.
    Raz,
}

/// The layout of the control frame, 64 KiB.
pub(crate) const GITS: &[Reg<Gits>] = &[
    Reg::word(0x0000, Gits::Ctlr, "GITS_CTLR"),
    Reg::word(0x0004, Gits::Iidr, "GITS_IIDR").ro(),
    Reg::doubles(0x0008, 1, Gits::Typer, "GITS_TYPER").ro(),
    // There is no MPAM, and there are no vPEs.
    Reg::word(0x0010, Gits::Raz, "GITS_MPAMIDR").ro(),
    Reg::word(0x0014, Gits::Raz, "GITS_PARTIDR"),
    Reg::word(0x0018, Gits::Raz, "GITS_MPIDR").ro(),
    Reg::word(0x0040, Gits::Statusr, "GITS_STATUSR"),
    // GITS_TYPER.UMSI is 0.
    Reg::doubles(0x0048, 1, Gits::Raz, "GITS_UMSIR").ro(),
    Reg::doubles(0x0080, 1, Gits::Cbaser, "GITS_CBASER"),
    Reg::doubles(0x0088, 1, Gits::Cwriter, "GITS_CWRITER"),
    Reg::doubles(0x0090, 1, Gits::Creadr, "GITS_CREADR").ro(),
    Reg::doubles(0x0100, 8, Gits::Baser, "GITS_BASER<n>"),
    Reg::words(0xffd0, 12, Gits::Id, "GITS_PIDR, GITS_CIDR").ro(),
];

/// The layout of the translation frame, 64 KiB.
pub(crate) const TRANSLATION: &[Reg<()>] =
    // Half-word writes are permitted, too. Bits 31:16 are then 0 (12.19, GITS_TRANSLATER).
    &[Reg::word(0x0040, (), "GITS_TRANSLATER").wo().also(Width::Half)];
