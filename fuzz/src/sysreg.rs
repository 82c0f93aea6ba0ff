//! Instructions and tables of a guest, as the traps of GICv3's system registers read them.

use vgic_kvm::sysreg::walk::{Physical, Regime, walk};
use vgic_kvm::sysreg::{Direction, decode};

#[path = "../../kvm-glue/tests/sysreg/reference.rs"]
mod reference;

fn words<const N: usize>(data: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    data.chunks_exact(N).filter_map(|chunk| chunk.try_into().ok())
}

/// Decodes each word of an input as an instruction, and compares the result with the reference's.
/// Returns the number of accesses.
///
/// # Panics
/// If the decoder and the reference disagree.
pub fn decode_all(data: &[u8]) -> usize {
    let mut found = 0;
    for word in words(data).map(u32::from_le_bytes) {
        let decoded = decode(word).map(|access| {
            let reg = access.reg;
            let name = format!("S{}_{}_C{}_C{}_{}", reg.op0, reg.op1, reg.crn, reg.crm, reg.op2);
            (access.direction == Direction::Read, name, access.rt.number().unwrap_or(31))
        });
        let expected = reference::instruction(word).map(|(read, name, rt)| (read, name.into(), rt));
        assert_eq!(decoded, expected, "{word:#x}");
        found += usize::from(decoded.is_some());
    }
    found
}

/// Memory that repeats the same few words everywhere. Some of the words are missing.
struct Memory(Vec<[u8; 8]>);

impl Physical for Memory {
    fn word(&self, _: u64) -> Option<[u8; 4]> {
        None
    }

    fn double_word(&self, address: u64) -> Option<[u8; 8]> {
        assert_eq!(address % 8, 0);
        let index = (address / 8).checked_rem(self.0.len() as u64)?;
        Some(self.0[index as usize]).filter(|word| *word != [0xff; 8])
    }
}

/// Takes SCTLR_EL1, TCR_EL1, both TTBRs, four addresses and the contents of memory from an input.
/// Returns how many of the addresses can be translated. These must be the addresses that the
/// reference translates, with the same results.
///
/// # Panics
/// If the walk and the reference disagree.
pub fn walk_all(data: &[u8]) -> usize {
    let mut words = words(data);
    let mut next = || words.next().unwrap_or_default();
    let registers = [next(), next(), next(), next()].map(u64::from_le_bytes);
    let addresses = [next(), next(), next(), next()].map(u64::from_le_bytes);
    let memory = Memory(words.collect());
    let [sctlr, tcr, ttbr0, ttbr1] = registers;
    let regime = Regime { sctlr, tcr, ttbr: [ttbr0, ttbr1] };
    let mut found = 0;
    for va in addresses {
        let expected = reference::translate(&|at| memory.double_word(at), registers, va);
        let walked = walk(&memory, &regime, va).ok();
        assert_eq!(walked.map(|to| (to.address, to.size)), expected, "{va:#x} {regime}");
        found += usize::from(expected.is_some());
    }
    found
}
