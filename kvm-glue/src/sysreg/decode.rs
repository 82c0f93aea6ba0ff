//! Decoding of accesses to the CPU interface (ARM DDI 0487, C6.2: MRS, MSR (register)).

use vgic_core::gic::SysReg;

/// The general-purpose register of an instruction: X0 to X30, or XZR.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rt(u8);

impl Rt {
    /// The zero register: it reads as zero, and writes to it are ignored.
    pub const XZR: Self = Self(31);

    /// Returns register `number`, where 31 is XZR. `None`: there is no such register.
    pub const fn new(number: u8) -> Option<Self> {
        if number < 32 { Some(Self(number)) } else { None }
    }

    /// Returns the number of X0 to X30. `None` for XZR.
    pub const fn number(self) -> Option<u8> {
        if self.0 == 31 { None } else { Some(self.0) }
    }
}

/// The direction of an access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Direction {
    /// MRS: reads the system register.
    Read,
    /// MSR: writes the system register.
    Write,
}

/// An access to one of the registers `ICC_*_EL1`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Access {
    /// The direction of the access.
    pub direction: Direction,
    /// The general-purpose register that the value comes from or goes to.
    pub rt: Rt,
    /// The system register. The CPU interface decides whether it exists and allows this direction.
    pub reg: SysReg,
}

/// The bits of an A64 instruction that make it an MRS or MSR (register), and their values. Bit 21
/// is the direction. Bit 20 is set, so that op0 is 2 or 3.
const MOVE: (u32, u32) = (0xffd0_0000, 0xd510_0000);
/// Bit 21: the instruction is an MRS.
const READ: u32 = 1 << 21;

/// Decodes an access to the CPU interface. Returns `None` for any other instruction.
pub fn decode(instruction: u32) -> Option<Access> {
    if instruction & MOVE.0 != MOVE.1 {
        return None;
    }
    let field = |shift: u32, bits: u32| (instruction >> shift & ((1 << bits) - 1)) as u8;
    let reg = SysReg::new(field(19, 2), field(16, 3), field(12, 4), field(8, 4), field(5, 3));
    if !is_icc(reg) {
        return None;
    }
    let direction = if instruction & READ != 0 { Direction::Read } else { Direction::Write };
    Some(Access { direction, rt: Rt(field(0, 5)), reg })
}

/// Whether a register is one of the architecture's `ICC_*_EL1` (IHI 0069, 12.2).
const fn is_icc(reg: SysReg) -> bool {
    if reg.op0 != 3 || reg.op1 != 0 {
        return false;
    }
    match (reg.crn, reg.crm) {
        // PMR.
        (4, 6) => reg.op2 == 0,
        // IAR0, EOIR0, HPPIR0, BPR0, AP0R0 to AP0R3; IAR1, EOIR1, HPPIR1, BPR1, CTLR, SRE, IGRPEN0,
        // IGRPEN1.
        (12, 8 | 12) => true,
        // AP1R0 to AP1R3, NMIAR1.
        (12, 9) => matches!(reg.op2, 0..=3 | 5),
        // DIR, RPR, SGI1R, ASGI1R, SGI0R.
        (12, 11) => matches!(reg.op2, 1 | 3 | 5 | 6 | 7),
        _ => false,
    }
}
