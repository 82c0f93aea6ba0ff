//! The registers that are compared: their addresses, their access widths, and the bits that must be
//! equal.
//!
//! `differences.md` gives the reason for each bit that is left out of [`Reg::compared`].

use crate::target::{GICC, GICD, GICR, GITS, Model};

/// The kind of a register, as far as the rules and the generator distinguish it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An identification register or the like: read-only, or written without an effect that matters
    /// here.
    Fixed,
    /// GICD_CTLR.
    DistCtlr,
    /// Group registers, one bit for each INTID.
    Group,
    /// Set-enable registers, one bit for each INTID.
    SetEnable,
    /// Clear-enable registers, one bit for each INTID.
    ClearEnable,
    /// Set-pending registers, one bit for each INTID.
    SetPending,
    /// Clear-pending registers, one bit for each INTID.
    ClearPending,
    /// Set-active registers, one bit for each INTID.
    SetActive,
    /// Clear-active registers, one bit for each INTID.
    ClearActive,
    /// Priority registers, one byte for each INTID.
    Priority,
    /// Configuration registers, two bits for each INTID.
    Config,
    /// GICD_SGIR of GICv2.
    Sgir,
    /// GICD_CPENDSGIR of GICv2, one byte for each SGI.
    ClearSgi,
    /// GICD_SPENDSGIR of GICv2, one byte for each SGI.
    SetSgi,
    /// GICD_IROUTER.
    Router,
    /// GICR_WAKER.
    Waker,
    /// GICR_PROPBASER and GICR_PENDBASER.
    Table,
    /// GICC_CTLR.
    CpuCtlr,
    /// GICC_PMR.
    Mask,
    /// GICC_BPR and GICC_ABPR. The minimum of GICC_ABPR is one higher.
    BinaryPoint,
    /// GICC_IAR.
    Acknowledge,
    /// GICC_EOIR.
    End,
    /// GICC_DIR.
    Deactivate,
    /// GICC_HPPIR.
    HighestPending,
}

/// A run of registers of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Reg {
    /// The name in the architecture.
    pub name: &'static str,
    /// The address of the first register.
    pub address: u64,
    /// The size of all registers together, in bytes.
    pub len: u64,
    /// The permitted access widths in bytes: the sum of some of 1, 4 and 8.
    pub widths: u8,
    /// The bits of each word that must be equal, or of each doubleword if 8-byte accesses are
    /// permitted.
    pub compared: u64,
    /// The kind of the registers.
    pub kind: Kind,
    /// The INTID of the first bit or field. For redistributors it is a number of [`private`].
    pub first: u32,
    /// The CPU of the redistributor that the registers are in.
    pub cpu: u32,
    /// The weight with which the generator picks the registers.
    pub weight: u32,
}

impl Reg {
    /// Whether a read has no side effect and returns a meaningful value.
    pub fn is_plain(&self) -> bool {
        !matches!(self.kind, Kind::Acknowledge | Kind::End | Kind::Deactivate | Kind::Sgir)
    }

    /// The width, in bytes, that reads a register as a whole.
    pub fn read_bytes(&self) -> u8 {
        if self.widths & 8 != 0 { 8 } else { 4 }
    }

    /// Returns the bits of an access that are compared.
    pub fn mask(&self, address: u64, bytes: u8) -> u64 {
        let skip = (address - self.address) % u64::from(self.read_bytes());
        self.compared >> (8 * skip) & low(bytes)
    }
}

/// Returns a mask of the low `bytes` bytes.
pub fn low(bytes: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(bytes))
}

/// The number of CPUs of the GICv3 machine. GICv2 has one.
pub const CPUS: u32 = 2;
/// The number that stands for INTID 0 of CPU 1, see [`private`].
pub const FIRST_OF_CPU_1: u32 = 288;

const ALL: u64 = u64::MAX;

const fn reg(
    name: &'static str,
    address: u64,
    len: u64,
    compared: u64,
    kind: Kind,
    weight: u32,
) -> Reg {
    Reg { name, address, len, widths: 4, compared, kind, first: 0, cpu: 0, weight }
}

const fn of(first: u32, reg: Reg) -> Reg {
    Reg { first, ..reg }
}

const fn wide(widths: u8, reg: Reg) -> Reg {
    Reg { widths, ..reg }
}

/// The registers of GICv2 (IHI 0048B, 4.1), with 256 SPIs.
const V2: &[Reg] = &[
    reg("GICD_CTLR", GICD, 4, ALL, Kind::DistCtlr, 2),
    reg("GICD_TYPER", GICD + 4, 4, ALL, Kind::Fixed, 1),
    reg("GICD_IIDR", GICD + 8, 4, 0, Kind::Fixed, 1),
    reg("GICD_IGROUPR", GICD + 0x80, 36, ALL, Kind::Group, 4),
    reg("GICD_ISENABLER", GICD + 0x100, 36, ALL, Kind::SetEnable, 14),
    reg("GICD_ICENABLER", GICD + 0x180, 36, ALL, Kind::ClearEnable, 3),
    reg("GICD_ISPENDR", GICD + 0x200, 36, ALL, Kind::SetPending, 24),
    reg("GICD_ICPENDR", GICD + 0x280, 36, ALL, Kind::ClearPending, 5),
    reg("GICD_ISACTIVER", GICD + 0x300, 36, ALL, Kind::SetActive, 2),
    reg("GICD_ICACTIVER", GICD + 0x380, 36, ALL, Kind::ClearActive, 6),
    wide(1 | 4, reg("GICD_IPRIORITYR", GICD + 0x400, 288, ALL, Kind::Priority, 8)),
    wide(1 | 4, reg("GICD_ITARGETSR", GICD + 0x800, 288, ALL, Kind::Fixed, 2)),
    reg("GICD_ICFGR", GICD + 0xc00, 72, ALL, Kind::Config, 4),
    reg("GICD_SGIR", GICD + 0xf00, 4, 0, Kind::Sgir, 14),
    wide(1 | 4, reg("GICD_CPENDSGIR", GICD + 0xf10, 16, ALL, Kind::ClearSgi, 3)),
    wide(1 | 4, reg("GICD_SPENDSGIR", GICD + 0xf20, 16, ALL, Kind::SetSgi, 6)),
    reg("GICD_ICPIDR2", GICD + 0xfe8, 4, 0xf0, Kind::Fixed, 1),
    reg("GICC_CTLR", GICC, 4, !0x1e0, Kind::CpuCtlr, 4),
    reg("GICC_PMR", GICC + 4, 4, ALL, Kind::Mask, 2),
    reg("GICC_BPR", GICC + 8, 4, ALL, Kind::BinaryPoint, 2),
    reg("GICC_IAR", GICC + 0xc, 4, ALL, Kind::Acknowledge, 48),
    reg("GICC_EOIR", GICC + 0x10, 4, 0, Kind::End, 40),
    reg("GICC_RPR", GICC + 0x14, 4, ALL, Kind::Fixed, 1),
    reg("GICC_HPPIR", GICC + 0x18, 4, ALL, Kind::HighestPending, 1),
    reg("GICC_ABPR", GICC + 0x1c, 4, ALL, Kind::BinaryPoint, 2),
    reg("GICC_IIDR", GICC + 0xfc, 4, 0xf_0000, Kind::Fixed, 1),
    reg("GICC_DIR", GICC + 0x1000, 4, 0, Kind::Deactivate, 20),
];

/// GICD_TYPER without IDbits, RSS, No1N, A3V and MBIS.
const V3_TYPER: u64 = !(0x1f << 19 | 1 << 26 | 1 << 25 | 1 << 24 | 1 << 16);
/// GICR_TYPER without DirectLPI and CommonLPIAff.
const V3_REDIST_TYPER: u64 = !(1 << 3 | 3 << 24);
/// The affinity in GICD_IROUTER.
pub const AFFINITY: u64 = 0xff_00ff_ffff;
const SGI_BASE: u64 = GICR + 0x1_0000;

/// The distributor of GICv3 with one security state and affinity routing (IHI 0069, 12.9 and
/// 12.11), with 224 SPIs.
const DIST: &[Reg] = &[
    reg("GICD_CTLR", GICD, 4, !0x80, Kind::DistCtlr, 4),
    reg("GICD_TYPER", GICD + 4, 4, V3_TYPER, Kind::Fixed, 1),
    reg("GICD_IIDR", GICD + 8, 4, 0, Kind::Fixed, 1),
    reg("GICD_TYPER2", GICD + 0xc, 4, ALL, Kind::Fixed, 1),
    reg("GICD_IGROUPR0", GICD + 0x80, 4, ALL, Kind::Fixed, 1),
    of(32, reg("GICD_IGROUPR", GICD + 0x84, 28, ALL, Kind::Group, 6)),
    reg("GICD_ISENABLER0", GICD + 0x100, 4, ALL, Kind::Fixed, 1),
    of(32, reg("GICD_ISENABLER", GICD + 0x104, 28, ALL, Kind::SetEnable, 8)),
    of(32, reg("GICD_ICENABLER", GICD + 0x184, 28, ALL, Kind::ClearEnable, 6)),
    reg("GICD_ISPENDR0", GICD + 0x200, 4, ALL, Kind::Fixed, 1),
    of(32, reg("GICD_ISPENDR", GICD + 0x204, 28, ALL, Kind::SetPending, 10)),
    of(32, reg("GICD_ICPENDR", GICD + 0x284, 28, ALL, Kind::ClearPending, 8)),
    of(32, reg("GICD_ISACTIVER", GICD + 0x304, 28, ALL, Kind::SetActive, 8)),
    of(32, reg("GICD_ICACTIVER", GICD + 0x384, 28, ALL, Kind::ClearActive, 8)),
    wide(1 | 4, reg("GICD_IPRIORITYR0-7", GICD + 0x400, 32, ALL, Kind::Fixed, 1)),
    of(32, wide(1 | 4, reg("GICD_IPRIORITYR", GICD + 0x420, 224, ALL, Kind::Priority, 12))),
    wide(1 | 4, reg("GICD_ITARGETSR", GICD + 0x800, 256, ALL, Kind::Fixed, 1)),
    reg("GICD_ICFGR0-1", GICD + 0xc00, 8, ALL, Kind::Fixed, 1),
    of(32, reg("GICD_ICFGR", GICD + 0xc08, 56, ALL, Kind::Config, 6)),
    reg("GICD_IGRPMODR", GICD + 0xd00, 32, ALL, Kind::Fixed, 1),
    reg("GICD_NSACR", GICD + 0xe00, 64, ALL, Kind::Fixed, 1),
    of(32, wide(4 | 8, reg("GICD_IROUTER", GICD + 0x6100, 1792, AFFINITY, Kind::Router, 8))),
    reg("GICD_PIDR2", GICD + 0xffe8, 4, 0xf0, Kind::Fixed, 1),
];

/// The registers of CPU 0's redistributor.
const REDIST: &[Reg] = &[
    reg("GICR_CTLR", GICR, 4, !6, Kind::Fixed, 1),
    reg("GICR_IIDR", GICR + 4, 4, 0, Kind::Fixed, 1),
    wide(4 | 8, reg("GICR_TYPER", GICR + 8, 8, V3_REDIST_TYPER, Kind::Fixed, 1)),
    reg("GICR_WAKER", GICR + 0x14, 4, 6, Kind::Waker, 2),
    wide(4 | 8, reg("GICR_PROPBASER", GICR + 0x70, 8, 0xf_ffff_ffff_f01f, Kind::Table, 3)),
    wide(4 | 8, reg("GICR_PENDBASER", GICR + 0x78, 8, 0xf_ffff_ffff_0000, Kind::Table, 3)),
    reg("GICR_SYNCR", GICR + 0xc0, 4, 1, Kind::Fixed, 1),
    reg("GICR_PIDR2", GICR + 0xffe8, 4, 0xf0, Kind::Fixed, 1),
    reg("GICR_IGROUPR0", SGI_BASE + 0x80, 4, ALL, Kind::Group, 4),
    reg("GICR_ISENABLER0", SGI_BASE + 0x100, 4, ALL, Kind::SetEnable, 8),
    reg("GICR_ICENABLER0", SGI_BASE + 0x180, 4, ALL, Kind::ClearEnable, 6),
    reg("GICR_ISPENDR0", SGI_BASE + 0x200, 4, ALL, Kind::SetPending, 8),
    reg("GICR_ICPENDR0", SGI_BASE + 0x280, 4, ALL, Kind::ClearPending, 6),
    reg("GICR_ISACTIVER0", SGI_BASE + 0x300, 4, ALL, Kind::SetActive, 6),
    reg("GICR_ICACTIVER0", SGI_BASE + 0x380, 4, ALL, Kind::ClearActive, 6),
    wide(1 | 4, reg("GICR_IPRIORITYR", SGI_BASE + 0x400, 32, ALL, Kind::Priority, 8)),
    reg("GICR_ICFGR", SGI_BASE + 0xc00, 8, ALL, Kind::Config, 4),
    reg("GICR_IGRPMODR0", SGI_BASE + 0xd00, 4, ALL, Kind::Fixed, 1),
    reg("GICR_NSACR", SGI_BASE + 0xe00, 4, ALL, Kind::Fixed, 1),
];

/// GITS_TYPER without ITT_entry_size, CIDbits and CIL.
const ITS_TYPER: u64 = !(0xf << 4 | 0x1f << 32);
/// The defined fields of GITS_CBASER.
const QUEUE_FIELDS: u64 = 1 << 63 | 7 << 59 | 7 << 53 | 0xf_ffff_ffff_0000 | 0xcff;
const BASER_FIELDS: u64 = u64::MAX;

/// The registers of an ITS (IHI 0069, 12.19 and 12.18).
const ITS: &[Reg] = &[
    reg("GITS_CTLR", GITS, 4, 1 << 31 | 1, Kind::Fixed, 4),
    reg("GITS_IIDR", GITS + 4, 4, 0, Kind::Fixed, 1),
    wide(4 | 8, reg("GITS_TYPER", GITS + 8, 8, ITS_TYPER, Kind::Fixed, 2)),
    reg("GITS_MPAMIDR", GITS + 0x10, 4, ALL, Kind::Fixed, 1),
    reg("GITS_PARTIDR", GITS + 0x14, 4, ALL, Kind::Fixed, 1),
    reg("GITS_MPIDR", GITS + 0x18, 4, ALL, Kind::Fixed, 1),
    wide(4 | 8, reg("GITS_CBASER", GITS + 0x80, 8, QUEUE_FIELDS, Kind::Fixed, 6)),
    wide(4 | 8, reg("GITS_CWRITER", GITS + 0x88, 8, 0xf_ffe0, Kind::Fixed, 6)),
    wide(4 | 8, reg("GITS_CREADR", GITS + 0x90, 8, 0xf_ffe1, Kind::Fixed, 2)),
    wide(4 | 8, reg("GITS_BASER0", GITS + 0x100, 8, BASER_FIELDS, Kind::Fixed, 6)),
    wide(4 | 8, reg("GITS_BASER1", GITS + 0x108, 8, BASER_FIELDS, Kind::Fixed, 6)),
    wide(4 | 8, reg("GITS_BASER2-7", GITS + 0x110, 48, ALL, Kind::Fixed, 3)),
    reg("GITS_PIDR2", GITS + 0xffe8, 4, 0xf0, Kind::Fixed, 1),
    reg("GITS_TRANSLATER", GITS + 0x1_0040, 4, ALL, Kind::Fixed, 1),
];

/// All registers of GICv3: the distributor's, and those of a redistributor for each CPU.
const V3: [Reg; DIST.len() + CPUS as usize * REDIST.len()] = {
    let mut all = [DIST[0]; DIST.len() + CPUS as usize * REDIST.len()];
    let mut n = 0;
    while n < all.len() {
        all[n] = match n.checked_sub(DIST.len()) {
            None => DIST[n],
            Some(n) => of_cpu((n / REDIST.len()) as u32, REDIST[n % REDIST.len()]),
        };
        n += 1;
    }
    all
};

const fn of_cpu(cpu: u32, reg: Reg) -> Reg {
    let address = reg.address + cpu as u64 * 0x2_0000;
    Reg { cpu, address, first: private(cpu, reg.first), ..reg }
}

/// Returns the number that stands for a private INTID of a CPU: the INTID itself for CPU 0, and
/// numbers after all INTIDs for other CPUs.
pub const fn private(cpu: u32, intid: u32) -> u32 {
    match cpu.checked_sub(1) {
        None => intid,
        Some(n) => FIRST_OF_CPU_1 + 32 * n + intid,
    }
}

/// Returns all registers of a model.
pub fn of_model(model: Model) -> &'static [Reg] {
    match model {
        Model::V2 => V2,
        Model::V3 => &V3,
        Model::Its => ITS,
    }
}

/// Returns the register at an address.
pub fn find(model: Model, address: u64) -> Option<&'static Reg> {
    of_model(model).iter().find(|r| (r.address..r.address + r.len).contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_do_not_overlap() {
        for model in [Model::V2, Model::V3, Model::Its] {
            let regs = of_model(model);
            for reg in regs {
                assert_eq!(reg.len % u64::from(reg.read_bytes()), 0, "{}", reg.name);
                let here =
                    |r: &&Reg| r.address < reg.address + reg.len && reg.address < r.address + r.len;
                assert_eq!(regs.iter().filter(here).count(), 1, "{}", reg.name);
            }
        }
    }

    #[test]
    fn masks_follow_the_access() {
        let router = find(Model::V3, GICD + 0x6104).unwrap();
        assert_eq!(router.mask(GICD + 0x6104, 4), 0xff);
        assert_eq!(router.mask(GICD + 0x6100, 4), 0xff_ffff);
        assert_eq!(router.mask(GICD + 0x6108, 8), AFFINITY);
    }
}
