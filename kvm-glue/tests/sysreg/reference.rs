//! The decoder and the walker once more, the way the manual's figures show it: an instruction is read as an assembler's
//! text; a register is a string of bits, an address is cut into its indices first, and the levels are gone through from a list.

/// The assembler's names of registers without a name: S<op0>_<op1>_C<CRn>_C<CRm>_<op2>.
pub(crate) const REGISTERS: [&str; 27] = [
    "S3_0_C4_C6_0",   // ICC_PMR_EL1
    "S3_0_C12_C8_0",  // ICC_IAR0_EL1
    "S3_0_C12_C8_1",  // ICC_EOIR0_EL1
    "S3_0_C12_C8_2",  // ICC_HPPIR0_EL1
    "S3_0_C12_C8_3",  // ICC_BPR0_EL1
    "S3_0_C12_C8_4",  // ICC_AP0R0_EL1
    "S3_0_C12_C8_5",  // ICC_AP0R1_EL1
    "S3_0_C12_C8_6",  // ICC_AP0R2_EL1
    "S3_0_C12_C8_7",  // ICC_AP0R3_EL1
    "S3_0_C12_C9_0",  // ICC_AP1R0_EL1
    "S3_0_C12_C9_1",  // ICC_AP1R1_EL1
    "S3_0_C12_C9_2",  // ICC_AP1R2_EL1
    "S3_0_C12_C9_3",  // ICC_AP1R3_EL1
    "S3_0_C12_C9_5",  // ICC_NMIAR1_EL1
    "S3_0_C12_C11_1", // ICC_DIR_EL1
    "S3_0_C12_C11_3", // ICC_RPR_EL1
    "S3_0_C12_C11_5", // ICC_SGI1R_EL1
    "S3_0_C12_C11_6", // ICC_ASGI1R_EL1
    "S3_0_C12_C11_7", // ICC_SGI0R_EL1
    "S3_0_C12_C12_0", // ICC_IAR1_EL1
    "S3_0_C12_C12_1", // ICC_EOIR1_EL1
    "S3_0_C12_C12_2", // ICC_HPPIR1_EL1
    "S3_0_C12_C12_3", // ICC_BPR1_EL1
    "S3_0_C12_C12_4", // ICC_CTLR_EL1
    "S3_0_C12_C12_5", // ICC_SRE_EL1
    "S3_0_C12_C12_6", // ICC_IGRPEN0_EL1
    "S3_0_C12_C12_7", // ICC_IGRPEN1_EL1
];

/// What a disassembler makes of an access: whether it is an MRS, the register, and the number of Rt.
pub(crate) fn instruction(word: u32) -> Option<(bool, &'static str, u8)> {
    let bits = format!("{word:032b}");
    let number = |from: usize, to: usize| u8::from_str_radix(&bits[from..to], 2).ok();
    let read = match &bits[..11] {
        "11010101001" => true,
        "11010101000" => false,
        _ => return None,
    };
    let [op0, op1, crn, crm, op2] =
        [number(11, 13)?, number(13, 16)?, number(16, 20)?, number(20, 24)?, number(24, 27)?];
    let name = format!("S{op0}_{op1}_C{crn}_C{crm}_{op2}");
    let known = REGISTERS.into_iter().find(|known| *known == name)?;
    Some((read, known, number(27, 32)?))
}

/// SCTLR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1.
pub(crate) type Registers = [u64; 4];

/// Bit `high` down to bit `low`, as a number.
fn slice(value: u64, high: u32, low: u32) -> u64 {
    (low..=high).rev().fold(0, |number, bit| number * 2 + u64::from(value & 1 << bit != 0))
}

/// The guest physical address, and of how many bits the page or block is; `None` for any fault. `read` reads eight bytes of the
/// guest's memory.
pub(crate) fn translate(
    read: &dyn Fn(u64) -> Option<[u8; 8]>,
    [sctlr, tcr, ttbr0, ttbr1]: Registers,
    va: u64,
) -> Option<(u64, u32)> {
    if sctlr % 2 == 0 {
        return (slice(va, 63, 52) == 0).then_some((va, 52));
    }
    let upper = slice(va, 55, 55) == 1;
    let (ttbr, txsz, epd) = if upper {
        (ttbr1, slice(tcr, 21, 16), slice(tcr, 23, 23))
    } else {
        (ttbr0, slice(tcr, 5, 0), slice(tcr, 7, 7))
    };
    let kib = if upper {
        [0, 16, 4, 64][slice(tcr, 31, 30) as usize]
    } else {
        [4, 64, 16, 0][slice(tcr, 15, 14) as usize]
    };
    if epd == 1 || kib == 0 {
        return None;
    }
    let lpa2 = kib != 64 && slice(tcr, 59, 59) == 1;
    let lpa = kib == 64 && slice(tcr, 34, 32) >= 6;
    let oldest = if kib == 64 || lpa2 { 12 } else { 16 };
    let most = if kib == 64 { 47 } else { 48 };
    if txsz < oldest || txsz > most {
        return None;
    }
    let va_bits = 64 - txsz as u32;
    // Nothing but copies of bit 55 above.
    if (va_bits..64).any(|bit| (va & 1 << bit != 0) != upper) {
        return None;
    }
    let pa_bits = match [32, 36, 40, 42, 44, 48, 52, 52][slice(tcr, 34, 32) as usize] {
        52 if !lpa && !lpa2 => 48,
        bits => bits,
    };
    let fits = |pa: u64| (pa_bits..64).all(|bit| pa & 1 << bit == 0);

    // Level, and the bits of the address that it resolves: from the last one up.
    let page = match kib {
        4 => 12,
        16 => 14,
        _ => 16,
    };
    let mut levels = Vec::new();
    let (mut low, mut level) = (page, 3);
    while low < va_bits {
        levels.push((level, u32::min(low + page - 3, va_bits) - 1, low));
        (low, level) = (low + page - 3, level - 1);
    }

    let &(_, high, low) = levels.last()?;
    let entries = 1_u64 << (high - low + 1);
    let mut table = if lpa || lpa2 {
        slice(ttbr, 5, 2) << 48 | slice(ttbr, 47, 6) << 6
    } else {
        slice(ttbr, 47, 0) & !1
    };
    table -= table % (entries * 8);
    if !fits(table) {
        return None;
    }
    while let Some((level, high, low)) = levels.pop() {
        let bytes = read(table + slice(va, high, low) * 8)?;
        let entry = match slice(sctlr, 25, 25) {
            1 => u64::from_be_bytes(bytes),
            _ => u64::from_le_bytes(bytes),
        };
        let address = |lowest: u32| {
            if lpa2 {
                slice(entry, 9, 8) << 50 | slice(entry, 49, lowest) << lowest
            } else if kib == 64 {
                slice(entry, 15, 12) << 48 | slice(entry, 47, lowest) << lowest
            } else {
                slice(entry, 47, lowest) << lowest
            }
        };
        let block = match (kib, level) {
            (4, 1 | 2) | (16 | 64, 2) => true,
            (4, 0) | (16, 1) => lpa2,
            (64, 1) => lpa,
            _ => false,
        };
        let is_table = match slice(entry, 1, 0) {
            3 => level < 3,
            1 if block => false,
            _ => return None,
        };
        let lowest = if is_table { page } else { low };
        if !fits(address(lowest)) {
            return None;
        }
        if !is_table {
            return Some((address(low) + slice(va, low - 1, 0), low));
        }
        table = address(page);
    }
    None
}
