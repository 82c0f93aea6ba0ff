//! The system registers of the CPU interface, `ICC_*_EL1` (IHI 0069, 12.2).
//!
//! The virtual CPU interface implements the registers that have a counterpart there. This module
//! maps encodings to registers, and sends SGIs. The registers are those of an implementation with
//! one active-priorities register for each group. All others are UNDEFINED, as are reads of
//! write-only registers and writes to read-only ones.

use crate::arch::ids::{Group, Intid, LPI_BASE, SPI_END, SPURIOUS, VcpuId};
use crate::engine::{Injector, Wired};
use crate::frames::cpu_host::CpuHost;

/// A system register by its encoding.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SysReg {
    /// The Op0 field.
    pub op0: u8,
    /// The Op1 field.
    pub op1: u8,
    /// The CRn field.
    pub crn: u8,
    /// The CRm field.
    pub crm: u8,
    /// The Op2 field.
    pub op2: u8,
}

macro_rules! registers {
    ($($name:ident = $crn:literal, $crm:literal, $op2:literal, $what:literal;)*) => {
        /// The registers of the CPU interface at EL1: op0 is 3, op1 is 0 (IHI 0069, 12.2).
        impl SysReg {
            $(#[doc = concat!($what, ".")]
            pub const $name: Self = Self::new(3, 0, $crn, $crm, $op2);)*
        }
    };
}

registers! {
    ICC_PMR_EL1 = 4, 6, 0, "Priority mask, read-write";
    ICC_IAR0_EL1 = 12, 8, 0, "Acknowledges a Group 0 interrupt, read-only";
    ICC_EOIR0_EL1 = 12, 8, 1, "Ends a Group 0 interrupt, write-only";
    ICC_HPPIR0_EL1 = 12, 8, 2, "Highest priority pending Group 0 interrupt, read-only";
    ICC_BPR0_EL1 = 12, 8, 3, "Binary point of Group 0, read-write";
    ICC_AP0R0_EL1 = 12, 8, 4, "Active priorities of Group 0, read-write";
    ICC_AP1R0_EL1 = 12, 9, 0, "Active priorities of Group 1, read-write";
    ICC_DIR_EL1 = 12, 11, 1, "Deactivates an interrupt, write-only";
    ICC_RPR_EL1 = 12, 11, 3, "Running priority, read-only";
    ICC_SGI1R_EL1 = 12, 11, 5, "Sends an SGI of Group 1, or of Group 0 where its target has it there, write-only";
    ICC_ASGI1R_EL1 = 12, 11, 6, "Sends an SGI of the other security state, and so a Group 0 SGI, write-only";
    ICC_SGI0R_EL1 = 12, 11, 7, "Sends a Group 0 SGI, write-only";
    ICC_IAR1_EL1 = 12, 12, 0, "Acknowledges a Group 1 interrupt, read-only";
    ICC_EOIR1_EL1 = 12, 12, 1, "Ends a Group 1 interrupt, write-only";
    ICC_HPPIR1_EL1 = 12, 12, 2, "Highest priority pending Group 1 interrupt, read-only";
    ICC_BPR1_EL1 = 12, 12, 3, "Binary point of Group 1, read-write";
    ICC_CTLR_EL1 = 12, 12, 4, "Control, read-write";
    ICC_SRE_EL1 = 12, 12, 5, "System register enable, which reads as 7 and ignores writes";
    ICC_IGRPEN0_EL1 = 12, 12, 6, "Enable of Group 0, read-write";
    ICC_IGRPEN1_EL1 = 12, 12, 7, "Enable of Group 1, read-write";
}

impl SysReg {
    /// Creates a register from the fields of an MRS or MSR instruction, in their order there. A
    /// value that does not fit its field gives no existing register.
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self { op0, op1, crn, crm, op2 }
    }
}

/// ICC_SRE_EL1.{DIB, DFB, SRE}: there is no bypass, and access is through system registers only.
const SRE: u64 = 7;
/// ICC_CTLR_EL1.EOImode.
const EOI_MODE: u32 = 1 << 1;
/// ICC_CTLR_EL1.RSS: affinity level 0 of an SGI's target can be 0 to 255.
const RSS: u64 = 1 << 18;
/// ICC_CTLR_EL1.ExtRange: there are extended SPIs and PPIs.
const EXT_RANGE: u64 = 1 << 19;
/// INTID, bits 23:0 of EOIR and DIR.
const INTID: u64 = 0xff_ffff;

pub(crate) fn read(host: &mut impl CpuHost, reg: SysReg) -> Option<u64> {
    let machine = host.machine();
    let extended = machine.eppis > 0 || machine.espis > 0;
    let cpu = host.cpu_interface();
    let value = match reg {
        SysReg::ICC_PMR_EL1 => cpu.pmr(),
        SysReg::ICC_IAR0_EL1 => cpu.iar0().0,
        SysReg::ICC_HPPIR0_EL1 => cpu.hppir0().0,
        SysReg::ICC_BPR0_EL1 => cpu.bpr0(),
        SysReg::ICC_AP0R0_EL1 => cpu.ap0r(0)?,
        SysReg::ICC_AP1R0_EL1 => cpu.ap1r(0)?,
        SysReg::ICC_RPR_EL1 => cpu.rpr(),
        SysReg::ICC_IAR1_EL1 => cpu.iar1().0,
        SysReg::ICC_HPPIR1_EL1 => cpu.hppir1().0,
        SysReg::ICC_BPR1_EL1 => cpu.bpr1(),
        SysReg::ICC_CTLR_EL1 => {
            let ext_range = if extended { EXT_RANGE } else { 0 };
            return Some(u64::from(cpu.ctlr()) | RSS | ext_range);
        }
        SysReg::ICC_SRE_EL1 => return Some(SRE),
        SysReg::ICC_IGRPEN0_EL1 => cpu.igrpen0(),
        SysReg::ICC_IGRPEN1_EL1 => cpu.igrpen1(),
        _ => return None,
    };
    Some(value.into())
}

pub(crate) fn write(host: &mut impl CpuHost, reg: SysReg, value: u64) -> Option<()> {
    let cpu = host.cpu_interface();
    // The upper bits of all but the SGI registers are RES0.
    let (low, intid) = (value as u32, Intid((value & INTID) as u32));
    match reg {
        SysReg::ICC_PMR_EL1 => cpu.set_pmr(low),
        SysReg::ICC_EOIR0_EL1 => {
            let done = cpu.eoir0(intid);
            host.ended(intid, done);
        }
        SysReg::ICC_BPR0_EL1 => cpu.set_bpr0(low),
        SysReg::ICC_AP0R0_EL1 => cpu.set_ap0r(0, low)?,
        SysReg::ICC_AP1R0_EL1 => cpu.set_ap1r(0, low)?,
        SysReg::ICC_DIR_EL1 => {
            // Ignored in the cases in which the virtual interface ignores its own DIR (IHI 0069,
            // 12.2, ICC_DIR_EL1).
            let special = (SPI_END..=SPURIOUS).contains(&intid.0) || intid.0 >= LPI_BASE;
            if cpu.ctlr() & EOI_MODE != 0 && !special {
                host.deactivate(intid, intid);
            }
        }
        SysReg::ICC_SGI1R_EL1 => send_sgi(host, value, true),
        SysReg::ICC_ASGI1R_EL1 | SysReg::ICC_SGI0R_EL1 => send_sgi(host, value, false),
        SysReg::ICC_EOIR1_EL1 => {
            let done = cpu.eoir1(intid);
            host.ended(intid, done);
        }
        SysReg::ICC_BPR1_EL1 => cpu.set_bpr1(low),
        SysReg::ICC_CTLR_EL1 => cpu.set_ctlr(low),
        SysReg::ICC_SRE_EL1 => {}
        SysReg::ICC_IGRPEN0_EL1 => cpu.set_igrpen0(low),
        SysReg::ICC_IGRPEN1_EL1 => cpu.set_igrpen1(low),
        _ => return None,
    }
    Some(())
}

/// A value written to `ICC_SGI<n>R_EL1` (IHI 0069, 12.2, ICC_SGI1R_EL1).
struct Sgi(u64);

impl Sgi {
    /// The INTID, bits 27:24.
    fn intid(&self) -> Intid {
        Intid((self.0 >> 24 & 0xf) as u32)
    }

    /// IRM, bit 40: the SGI goes to all vCPUs but the sender.
    fn to_all_others(&self) -> bool {
        self.0 >> 40 & 1 != 0
    }

    /// Whether the value names an affinity, given in the form of [`crate::gic::Affinity`]. The
    /// fields are Aff3 to Aff1, bits 55:48, 39:32 and 23:16; the range of 16 values of Aff0, bits
    /// 47:44; and a list of the values in that range, bits 15:0.
    fn names(&self, affinity: u32) -> bool {
        let field = |shift: u32| (self.0 >> shift) as u32;
        let upper = (field(48) & 0xff) << 24 | (field(32) & 0xff) << 16 | (field(16) & 0xff) << 8;
        let range = upper | (field(44) & 0xf) << 4;
        affinity & !0xf == range && self.0 >> (affinity & 0xf) & 1 != 0
    }
}

/// Sends an SGI to the named vCPUs. Skips vCPUs that do not exist. If `group1_allowed` is false,
/// skips vCPUs that have the SGI in Group 1.
///
/// With one security state, Group 1's register generates an SGI in the group that each target has
/// configured for it. Group 0's register generates SGIs of Group 0, and so does the alternate
/// register, as there is no other Group 1 (IHI 0069, 12.1.10, forwarding an SGI to a target PE).
fn send_sgi(host: &impl CpuHost, value: u64, group1_allowed: bool) {
    let (sgi, injector) = (Sgi(value), host.injector());
    for (n, affinity) in host.machine().affinities.iter().enumerate() {
        let target = VcpuId(n as u16);
        let named = match sgi.to_all_others() {
            true => target != host.id(),
            false => sgi.names(affinity.0),
        };
        if !named {
            continue;
        }
        let irq = Wired::Private(target, sgi.intid());
        // A vCPU's SGIs always exist, so there are no errors.
        if injector.config(irq).is_ok_and(|c| group1_allowed || c.group == Group::Group0) {
            let _ = injector.pulse(irq);
        }
    }
}
