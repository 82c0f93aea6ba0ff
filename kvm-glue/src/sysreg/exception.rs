//! Emulated exception entry to EL1 (ARM DDI 0487, D1.3.5).

/// The bits of an SPSR, and of PSTATE in the format of an SPSR.
pub(super) mod pstate {
    /// M[4]: the state is AArch32.
    pub(in super::super) const AARCH32: u64 = 1 << 4;
    /// M[3:2]: the exception level.
    pub(in super::super) const EL: u64 = 3 << 2;
    /// The value of M[3:2] for EL1.
    pub(in super::super) const EL1: u64 = 1 << 2;
    /// M[0]: the exception level uses its own stack pointer.
    pub(in super::super) const SP: u64 = 1;
    /// The exception masks D, A, I and F.
    pub(in super::super) const MASKS: u64 = 0xf << 6;
    pub(in super::super) const BTYPE: u64 = 3 << 10;
    pub(in super::super) const SSBS: u64 = 1 << 12;
    pub(in super::super) const ALLINT: u64 = 1 << 13;
    pub(in super::super) const SS: u64 = 1 << 21;
    pub(in super::super) const PAN: u64 = 1 << 22;
    pub(in super::super) const DIT: u64 = 1 << 24;
    pub(in super::super) const TCO: u64 = 1 << 25;
    pub(in super::super) const NZCV: u64 = 0xf << 28;
}

use pstate::{AARCH32, ALLINT, DIT, EL, EL1, MASKS, NZCV, PAN, SP, SSBS, TCO};

const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;
const SCTLR_SPINTMASK: u64 = 1 << 62;

/// Offsets of the synchronous exceptions in a vector table.
pub(super) const FROM_EL1T: u64 = 0;
pub(super) const FROM_EL1H: u64 = 0x200;
const FROM_EL0_64: u64 = 0x400;
const FROM_EL0_32: u64 = 0x600;

/// PSTATE.M[1], which is 0 in every AArch64 mode.
const RESERVED: u64 = 2;

/// Whether `pstate` is that of A64 code at EL1. A reserved mode is not: a guest can write any value
/// into SPSR_EL1, and KVM refuses a mode that does not exist.
pub(super) const fn at_el1(pstate: u64) -> bool {
    pstate & (AARCH32 | EL | RESERVED) == EL1
}

/// The offset from VBAR_EL1 of the vector of a synchronous exception to EL1.
pub(super) const fn vector(pstate: u64) -> u64 {
    match (pstate & AARCH32 != 0, at_el1(pstate)) {
        (true, _) => FROM_EL0_32,
        (false, false) => FROM_EL0_64,
        (false, true) if pstate & SP != 0 => FROM_EL1H,
        (false, true) => FROM_EL1T,
    }
}

/// Returns PSTATE after an exception to EL1 that was taken with PSTATE `old`. All bits that are not
/// computed here become 0: UAO, BTYPE, IL, SS, and the bits that only AArch32 has.
///
/// `pfr1` is ID_AA64PFR1_EL1. If a feature is not implemented, its bits in SCTLR_EL1 are RES0, or
/// RES1 (SPAN), so its bits in PSTATE stay 0. PSTATE.EXLOCK (FEAT_GCS) is not handled.
pub(super) const fn entry_pstate(old: u64, sctlr: u64, pfr1: u64) -> u64 {
    // The mode is EL1h, with all exceptions masked.
    let mut new = old & (NZCV | DIT | PAN) | MASKS | EL1 | SP;
    if sctlr & SCTLR_SPAN == 0 {
        new |= PAN;
    }
    if sctlr & SCTLR_DSSBS != 0 {
        new |= SSBS;
    }
    // FEAT_MTE, FEAT_NMI.
    if pfr1 >> 8 & 15 != 0 {
        new |= TCO;
    }
    if pfr1 >> 36 & 15 != 0 && sctlr & SCTLR_SPINTMASK == 0 {
        new |= ALLINT;
    }
    new
}

/// The first instruction of a vector, if it is one that is emulated here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum First {
    /// `sub sp, sp, #n` makes room for the registers. The value is `n`.
    Room(u64),
    /// `b` goes to code that does not fit into a vector. The value is the offset.
    Branch(u64),
    /// `nop`, or another hint that has no effect here.
    Nothing,
}

impl First {
    /// Decodes an instruction. Returns `None` for any instruction that is not emulated.
    pub(super) const fn decode(instruction: u32) -> Option<Self> {
        if instruction & 0xff80_03ff == 0xd100_03ff {
            let shift = if instruction & 1 << 22 != 0 { 12 } else { 0 };
            Some(Self::Room(((instruction >> 10 & 0xfff) as u64) << shift))
        } else if instruction >> 26 == 5 {
            Some(Self::Branch(((instruction << 6) as i32 >> 4) as i64 as u64))
        // NOP, and BTI with any targets, which has no effect because BTYPE is 0.
        } else if instruction == 0xd503_201f || instruction & 0xffff_ff3f == 0xd503_241f {
            Some(Self::Nothing)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_exceptions_go() {
        // EL1h, EL1t, EL0t, User, User in T32.
        assert_eq!([5, 4, 0, 0x10, 0x30].map(vector), [0x200, 0, 0x400, 0x600, 0x600]);
        assert_eq!([5, 4, 0, 0x10, 0x13].map(at_el1), [true, true, false, false, false]);
        assert_eq!([6, 7].map(at_el1), [false, false]);
    }

    #[test]
    fn pstate_after_an_exception() {
        let linux = SCTLR_SPAN | 1;
        assert_eq!(entry_pstate(0, linux, 0), 0x3c5);
        // The flags and DIT stay. Q, UAO, IL, SS, BTYPE, SSBS, and the T32 state are cleared.
        assert_eq!(entry_pstate(0xf9b0_1c30, linux, 0), 0xf100_03c5);
        assert_eq!(entry_pstate(0x0040_0005, linux, 0), 0x0040_03c5);
        assert_eq!(entry_pstate(0, 0, 0), 0x0040_03c5);
        assert_eq!(entry_pstate(0, linux | SCTLR_DSSBS, 0), 0x13c5);
        assert_eq!(entry_pstate(0, linux, 0x100), 0x0200_03c5);
        assert_eq!(entry_pstate(0, linux, 1 << 36), 0x23c5);
        assert_eq!(entry_pstate(0, linux | SCTLR_SPINTMASK, 1 << 36), 0x3c5);
    }

    #[test]
    fn first_instructions() {
        // sub sp, sp, #0x150; sub sp, sp, #1, lsl #12; b .+8; b .-4; nop; bti j
        assert_eq!(First::decode(0xd105_43ff), Some(First::Room(0x150)));
        assert_eq!(First::decode(0xd140_07ff), Some(First::Room(0x1000)));
        assert_eq!(First::decode(0x1400_0002), Some(First::Branch(8)));
        assert_eq!(First::decode(0x17ff_ffff), Some(First::Branch(4_u64.wrapping_neg())));
        assert_eq!(First::decode(0xd503_201f), Some(First::Nothing));
        assert_eq!(First::decode(0xd503_249f), Some(First::Nothing));
        // sub sp, sp, #0x150 without the 64-bit flag; subs; sub sp, x0; sub x0, sp; bl; wfi; stp
        // x0, x1, [sp, #-16]!; udf
        for other in [
            0x5105_43ff,
            0xf105_43ff,
            0xd105_401f,
            0xd105_43e0,
            0x9400_0001,
            0xd503_207f,
            0xa9bf_07e0,
            0,
        ] {
            assert_eq!(First::decode(other), None, "{other:#x}");
        }
    }
}
