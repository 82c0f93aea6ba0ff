//! The decoder against a list of the registers, as the architecture names and encodes them.

use std::collections::HashMap;

use proptest::prelude::*;
use vgic_kvm::core::gic::SysReg;
use vgic_kvm::sysreg::{Access, Direction, Rt, decode};

use crate::reference::{REGISTERS, instruction};

fn parse(name: &str) -> SysReg {
    let numbers: Vec<u8> = name[1..]
        .split('_')
        .map(|part| part.trim_start_matches('C').parse().expect("a number"))
        .collect();
    SysReg::new(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4])
}

/// MRS and MSR of a register, put together from the fields of the manual's diagram, as strings of bits.
fn assemble(read: bool, reg: SysReg, rt: u8) -> u32 {
    let bits = format!(
        "1101010100{}{:02b}{:03b}{:04b}{:04b}{:03b}{:05b}",
        u8::from(read),
        reg.op0,
        reg.op1,
        reg.crn,
        reg.crm,
        reg.op2,
        rt
    );
    u32::from_str_radix(&bits, 2).unwrap()
}

/// Every instruction that is to be decoded, and as what.
fn reference() -> HashMap<u32, Access> {
    let mut all = HashMap::new();
    for reg in REGISTERS.iter().map(|name| parse(name)) {
        for rt in 0..32 {
            for (read, direction) in [(true, Direction::Read), (false, Direction::Write)] {
                let access = Access { direction, rt: Rt::new(rt).unwrap(), reg };
                all.insert(assemble(read, reg, rt), access);
            }
        }
    }
    all
}

/// The 2^15 encodings from op0 (2 or 3) to op2, each way, with all Rt; and what stands where op0 would be 0 or 1, which are
/// other instructions.
#[test]
fn every_move_of_a_system_register() {
    let reference = reference();
    assert_eq!(reference.len(), REGISTERS.len() * 64);
    let mut found = 0;
    for low in 0..1 << 22 {
        let instruction = 0xd500_0000 | low;
        let decoded = decode(instruction);
        assert_eq!(decoded.as_ref(), reference.get(&instruction), "{instruction:#x}");
        found += usize::from(decoded.is_some());
    }
    assert_eq!(found, reference.len());
}

#[test]
fn what_assemblers_make_of_it() {
    let x = |n| Rt::new(n).unwrap();
    let read = |rt, reg| Some(Access { direction: Direction::Read, rt, reg });
    let write = |rt, reg| Some(Access { direction: Direction::Write, rt, reg });
    // mrs x0, icc_iar1_el1; msr icc_eoir1_el1, x0; msr icc_pmr_el1, x17; msr icc_sgi1r_el1, xzr; mrs xzr, icc_rpr_el1
    assert_eq!(decode(0xd538_cc00), read(x(0), SysReg::ICC_IAR1_EL1));
    assert_eq!(decode(0xd518_cc20), write(x(0), SysReg::ICC_EOIR1_EL1));
    assert_eq!(decode(0xd518_4611), write(x(17), SysReg::ICC_PMR_EL1));
    assert_eq!(decode(0xd518_cbbf), write(Rt::XZR, SysReg::ICC_SGI1R_EL1));
    assert_eq!(decode(0xd538_cb7f), read(Rt::XZR, SysReg::ICC_RPR_EL1));
    // nop; udf #0; brk #1; mrs x0, vbar_el1; msr daifset, #2; msr s1_0_c12_c12_0, x0 (sys)
    for other in [0xd503_201f, 0, 0xd420_0020, 0xd538_c000, 0xd503_42df, 0xd508_cc00] {
        assert_eq!(decode(other), None, "{other:#x}");
    }
    assert_eq!((Rt::XZR.number(), x(30).number(), Rt::new(32)), (None, Some(30), None));
}

proptest! {
    #[test]
    fn any_word(word: u32) {
        prop_assert_eq!(decode(word), reference().get(&word).copied());
        prop_assert_eq!(decode(word).is_some(), instruction(word).is_some());
    }

    /// One bit away from an access, what is left is another access or none.
    #[test]
    fn one_bit_away(index in 0..REGISTERS.len(), rt in 0..32u8, read: bool, bit in 0..32u32) {
        let word = assemble(read, parse(REGISTERS[index]), rt) ^ 1 << bit;
        let found = decode(word);
        prop_assert_eq!(found, reference().get(&word).copied());
        let read_back = instruction(word).map(|(read, name, rt)| {
            let direction = if read { Direction::Read } else { Direction::Write };
            Access { direction, rt: Rt::new(rt).unwrap(), reg: parse(name) }
        });
        prop_assert_eq!(found, read_back);
    }

    /// What is not one of the CPU interface's at EL1.
    #[test]
    fn registers_of_others(rt in 0..32u8, read: bool) {
        // ICC_SRE_EL2, ICC_SRE_EL3, ISR_EL1, ICH_HCR_EL2, RMR_EL1.
        for name in ["S3_4_C12_C9_5", "S3_6_C12_C12_5", "S3_0_C12_C1_0", "S3_4_C12_C11_0", "S3_0_C12_C0_2"] {
            prop_assert_eq!(decode(assemble(read, parse(name), rt)), None);
        }
    }
}
