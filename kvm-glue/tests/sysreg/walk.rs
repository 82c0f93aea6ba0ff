//! The walker: against tables that were built to map what is known, and against the reference on tables that hold anything.

use std::cell::Cell;
use std::collections::HashMap;

use proptest::prelude::*;
use vgic_kvm::sysreg::walk::{Fault, Mapping, Physical, Regime, walk};

use crate::reference::translate;

/// Memory by doubleword. What is not there is given by a rule, or is not there.
#[derive(Default)]
struct Memory {
    words: HashMap<u64, u64>,
    seed: Option<u64>,
    big_endian: bool,
    reads: Cell<usize>,
}

impl Memory {
    fn get(&self, address: u64) -> Option<[u8; 8]> {
        assert_eq!(address % 8, 0);
        let word = self.words.get(&address).copied().or_else(|| self.random(address))?;
        Some(if self.big_endian { word.to_be_bytes() } else { word.to_le_bytes() })
    }

    /// Any descriptor, but mostly such as lead on: tables and blocks at small addresses. A twentieth of memory is missing.
    fn random(&self, address: u64) -> Option<u64> {
        let mut x = self.seed? ^ address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for shift in [30, 27, 31] {
            x = (x ^ x >> shift).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        let address_bits = match x % 8 {
            0 => u64::MAX,
            1 => 0x0000_ffff_ffff_fcff,
            2 => 0x000f_ffff_ffff_f0ff,
            _ => 0x0000_00ff_ffff_00ff,
        };
        let kind = [3, 3, 3, 3, 1, 1, 0, 2][(x >> 8 & 7) as usize];
        (x >> 16 & 0xff >= 13).then_some(x.rotate_left(20) & address_bits & !3 | kind)
    }
}

impl Physical for Memory {
    fn word(&self, _: u64) -> Option<[u8; 4]> {
        unreachable!("a walk reads descriptors")
    }

    fn double_word(&self, address: u64) -> Option<[u8; 8]> {
        self.reads.set(self.reads.get() + 1);
        self.get(address)
    }
}

/// How a guest may set one half of its address space up.
#[derive(Clone, Copy, Debug)]
struct Shape {
    page: u32,
    va_bits: u32,
    pa_bits: u32,
    lpa2: bool,
    upper: bool,
    big_endian: bool,
}

impl Shape {
    fn wide(&self) -> bool {
        self.pa_bits == 52
    }

    fn tcr(&self) -> u64 {
        let size = u64::from(64 - self.va_bits);
        let ips = [32, 36, 40, 42, 44, 48, 52].iter().position(|&bits| bits == self.pa_bits);
        let granule = match (self.page, self.upper) {
            (12, false) => 0,
            (14, false) => 2 << 14,
            (16, false) => 1 << 14,
            (12, true) => 2 << 30,
            (14, true) => 1 << 30,
            _ => 3 << 30,
        };
        // The other half is disabled.
        let rest = if self.upper { size << 16 | 1 << 7 } else { size | 1 << 23 };
        granule | rest | (ips.unwrap() as u64) << 32 | u64::from(self.lpa2) << 59
    }

    /// An address as descriptors hold it.
    fn pack(&self, address: u64) -> u64 {
        let low = address & 0x0000_ffff_ffff_ffff;
        if self.lpa2 {
            address & 0x0003_ffff_ffff_ffff | (address >> 50) << 8
        } else if self.page == 16 {
            low | (address >> 48) << 12
        } else {
            low
        }
    }

    fn pack_root(&self, address: u64) -> u64 {
        address & 0x0000_ffff_ffff_ffff | (address >> 48) << 2
    }

    /// Shifts from the last level up.
    fn shifts(&self) -> Vec<u32> {
        (0..).map(|n| self.page + n * (self.page - 3)).take_while(|&s| s < self.va_bits).collect()
    }

    fn full(&self, va: u64) -> u64 {
        let mask = (1_u64 << self.va_bits) - 1;
        if self.upper { va | !mask } else { va & mask }
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let parts =
        (0..3usize, any::<bool>(), any::<[bool; 3]>(), 0..7usize, any::<prop::sample::Index>());
    parts.prop_map(|(granule, wide, [lpa2, upper, big_endian], ips, va)| {
        let page = [12, 14, 16][granule];
        let lpa2 = lpa2 && page != 16;
        let sizes: Vec<u32> = match (page, lpa2) {
            (16, _) | (_, true) => vec![52, 50, 49, 48, 47, 42, 39, 36, 30, 25, 17],
            _ => vec![48, 47, 42, 39, 36, 30, 25, 16],
        };
        let va_bits = if wide { sizes[0] } else { sizes[va.index(sizes.len())] };
        let pa_bits = match [32, 36, 40, 42, 44, 48, 52][ips] {
            52 if page != 16 && !lpa2 => 48,
            bits => bits,
        };
        Shape { page, va_bits, pa_bits, lpa2, upper, big_endian }
    })
}

/// Tables that are built by mapping one page or block after the other.
struct Builder {
    shape: Shape,
    memory: Memory,
    next: u64,
    root: u64,
    /// By their first address.
    mapped: HashMap<u64, (u64, u32)>,
}

impl Builder {
    /// Tables go to `tables` and further up.
    fn new(shape: Shape, tables: u64) -> Self {
        let memory = Memory { big_endian: shape.big_endian, ..Memory::default() };
        let size = 1 << shape.page;
        let room = (1_u64 << shape.pa_bits) - 64 * size;
        let root = tables % room / size * size;
        Self { shape, memory, next: root + size, root, mapped: HashMap::new() }
    }

    fn regime(&self) -> Regime {
        let sctlr = 1 | u64::from(self.shape.big_endian) << 25;
        let root = self.shape.pack_root(self.root) | 0x1234 << 48;
        let ttbr = if self.shape.upper { [1, root] } else { [root, 1] };
        Regime { sctlr, tcr: self.shape.tcr(), ttbr }
    }

    /// Maps what is around `va` to what is around `pa`, by a descriptor that is `up` levels above the last one.
    fn map(&mut self, va: u64, pa: u64, up: usize) {
        let shifts = self.shape.shifts();
        let up = up.min(shifts.len() - 1);
        let blocks = match (self.shape.page, self.shape.lpa2) {
            (12, false) => 2,
            (12, true) => 3,
            (14, false) => 1,
            (14, true) => 2,
            _ => {
                if self.shape.wide() {
                    2
                } else {
                    1
                }
            }
        };
        let up = up.min(blocks);
        let va = va & ((1 << self.shape.va_bits) - 1);
        let pa = pa & ((1 << self.shape.pa_bits) - 1);
        let mut table = self.root;
        for (n, &shift) in shifts.iter().enumerate().rev() {
            let entries = (self.shape.va_bits - shift).min(self.shape.page - 3);
            let at = table + (va >> shift & ((1 << entries) - 1)) * 8;
            let old = self.memory.words.get(&at).copied();
            if n == up {
                if old.is_none() {
                    let kind = if n == 0 { 3 } else { 1 };
                    // Attributes all around the address.
                    let attributes =
                        0x0060_0000_0000_0000 | if self.shape.lpa2 { 0x404 } else { 0x704 };
                    let target = self.shape.pack(pa >> shift << shift);
                    self.memory.words.insert(at, attributes | target | kind);
                    self.mapped.insert(va >> shift << shift, (pa >> shift << shift, shift));
                }
                return;
            }
            match old {
                None => {
                    self.memory
                        .words
                        .insert(at, 0x7800_0000_0000_0003 | self.shape.pack(self.next));
                    table = self.next;
                    self.next += 1 << self.shape.page;
                }
                Some(old) if old & 3 == 3 => {
                    // Found again by what it was made of.
                    let unpack =
                        |address: u64| self.shape.pack(address) == old & !0x7800_0000_0000_0003;
                    let step = 1_usize << self.shape.page;
                    table = (self.root..self.next).step_by(step).find(|&a| unpack(a)).unwrap();
                }
                // A block is there.
                Some(_) => return,
            }
        }
    }

    fn expected(&self, va: u64) -> Option<Mapping> {
        let va = va & ((1 << self.shape.va_bits) - 1);
        self.mapped.iter().find_map(|(&from, &(to, size))| {
            let offset = va.checked_sub(from)?;
            (offset < 1 << size).then_some(Mapping { address: to + offset, size })
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// What is mapped is found, and nothing else is.
    #[test]
    fn tables_that_are_built(
        shape in shapes(),
        tables: u64,
        pages in prop::collection::vec((any::<u64>(), any::<u64>(), 0..4usize), 1..8),
        elsewhere: u64,
    ) {
        let mut builder = Builder::new(shape, tables);
        for &(va, pa, up) in &pages {
            builder.map(va, pa, up);
        }
        let regime = builder.regime();
        for va in pages.iter().map(|page| page.0).chain([elsewhere]) {
            let va = shape.full(va);
            let found = walk(&builder.memory, &regime, va);
            prop_assert_eq!(found.ok(), builder.expected(va), "{:x} {}", va, regime);
            // Only the one half, and nothing between them.
            prop_assert!(walk(&builder.memory, &regime, va ^ 1 << 55).is_err());
            prop_assert!(walk(&builder.memory, &regime, va ^ 1 << 63).is_err());
        }
        // The MMU is off.
        let flat = Regime { sctlr: 0x30d0_0800, ..regime };
        let low = elsewhere >> 12;
        prop_assert_eq!(walk(&builder.memory, &flat, low), Ok(Mapping { address: low, size: 52 }));
        prop_assert_eq!(walk(&builder.memory, &flat, low | 1 << 52), Err(Fault::AddressSize(0)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    /// Any registers and any tables: as the reference has it, and in five reads at most.
    #[test]
    fn tables_that_hold_anything(
        shape in shapes(),
        noise in prop::option::weighted(0.3, any::<u64>()),
        roots: [u64; 2],
        seed: u64,
        va: u64,
        canonical in prop::bool::weighted(0.9),
    ) {
        let va = if canonical { shape.full(va) } else { va };
        let sctlr = 1 | u64::from(shape.big_endian) << 25;
        let tcr = shape.tcr() ^ noise.unwrap_or(0) & 0x0800_0007_c0bf_c0bf;
        let ttbr = roots.map(|root| if noise.is_some() { root } else { root & 0xffff_0000_3fff_ffff });
        let regime = Regime { sctlr, tcr, ttbr };
        let memory = Memory { seed: Some(seed), big_endian: shape.big_endian, ..Memory::default() };
        let found = walk(&memory, &regime, va).ok().map(|to| (to.address, to.size));
        let registers = [sctlr, tcr, ttbr[0], ttbr[1]];
        let expected = translate(&|address| memory.get(address), registers, va);
        prop_assert_eq!(found, expected, "{:x} {}", va, regime);
        prop_assert!(memory.reads.get() <= 5);
    }
}

/// The two sides above agree on something often enough to mean it.
#[test]
fn random_tables_lead_somewhere() {
    let mut found = 0;
    for seed in 0..2_000 {
        let memory = Memory { seed: Some(seed), ..Memory::default() };
        let regime = Regime { sctlr: 1, tcr: 16 | 5 << 32, ttbr: [0x4000_0000, 0] };
        found += usize::from(walk(&memory, &regime, seed << 20).is_ok());
    }
    assert!((200..1_800).contains(&found), "{found}");
}

/// A table that names itself at every level.
#[test]
fn a_table_that_is_its_own() {
    let regime = Regime { sctlr: 1, tcr: 16 | 5 << 32, ttbr: [0x1000, 0] };
    let words = (0..512).map(|n| (0x1000 + n * 8, 0x1003)).collect();
    let memory = Memory { words, ..Memory::default() };
    assert_eq!(walk(&memory, &regime, 0x5678), Ok(Mapping { address: 0x1678, size: 12 }));
    assert_eq!(memory.reads.get(), 4);
}

#[test]
fn why_not() {
    let good = Regime { sctlr: 1, tcr: 16 | 16 << 16 | 2 << 30 | 2 << 32, ttbr: [0x1000, 0x2000] };
    let words = [(0x1000, 3), (0x1008, 1), (0x1010, 0x4003), (0x1018, 0x1_0000_0000_4003)];
    let memory = Memory { words: words.into(), ..Memory::default() };
    let fault = |regime: &Regime, va| walk(&memory, regime, va).unwrap_err();
    let level0 = |n: u64| n << 39;
    assert_eq!(fault(&good, level0(0)), Fault::NoMemory(1));
    assert_eq!(fault(&good, level0(1)), Fault::Translation(0));
    assert_eq!(fault(&good, level0(2)), Fault::NoMemory(1));
    // Bit 48 is not part of an address of 48 bits.
    assert_eq!(fault(&good, level0(3)), Fault::NoMemory(1));
    assert_eq!(fault(&good, u64::MAX), Fault::NoMemory(0));
    assert_eq!(fault(&good, 1 << 48), Fault::Outside);
    assert_eq!(fault(&Regime { tcr: good.tcr | 1 << 7, ..good }, 0), Fault::Outside);
    assert_eq!(fault(&Regime { tcr: good.tcr | 3 << 14, ..good }, 0), Fault::Control);
    assert_eq!(fault(&Regime { tcr: good.tcr & !63 | 12, ..good }, 0), Fault::Control);
    assert_eq!(fault(&Regime { ttbr: [1 << 40, 0], ..good }, 0), Fault::AddressSize(0));
}
