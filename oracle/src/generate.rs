//! Random operations: registers by weight, with values that are likely to have an effect.

use crate::regs::{self, Kind, Reg};
use crate::rules::{Op, POOL, own_priority};
use crate::target::{Action, GICC, GICD, Model};

/// Pseudo-random numbers (splitmix64), reproducible from the seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Creates a sequence of numbers for a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// Returns true one time in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// The weight of input line changes, compared with those of the registers.
const LINE_WEIGHT: u64 = 30;

/// A generator of random operations for one model.
pub struct Generator {
    model: Model,
    random: Random,
}

impl Generator {
    /// Creates a generator for a seed.
    pub fn new(model: Model, seed: u64) -> Self {
        Self { model, random: Random::new(seed) }
    }

    /// Generates `count` operations.
    pub fn sequence(&mut self, count: usize) -> Vec<Op> {
        let mut ops = self.open();
        ops.truncate(count);
        while ops.len() < count {
            ops.push(self.op());
        }
        ops
    }

    /// Lets interrupts through. From a reset, random operations alone would take long to do so.
    fn open(&self) -> Vec<Op> {
        let word = |address, value| Op::Do(Action::Write { address, bytes: 4, value });
        if self.model == Model::V3 {
            return vec![word(GICD, 3)];
        }
        let mut ops = vec![word(GICD, 3), word(GICC, 7), word(GICC + 4, 0xf8)];
        ops.extend((0..9).map(|n| word(GICD + 0x100 + 4 * n, u64::MAX)));
        ops
    }

    fn op(&mut self) -> Op {
        let regs = regs::of_model(self.model);
        let total: u64 = regs.iter().map(|reg| u64::from(reg.weight)).sum();
        let mut pick = self.random.below(total + LINE_WEIGHT);
        for reg in regs {
            match pick.checked_sub(reg.weight.into()) {
                Some(left) => pick = left,
                None => return self.access(reg),
            }
        }
        self.line()
    }

    fn line(&mut self) -> Op {
        let last = if self.model == Model::V2 { 287 } else { 255 };
        if self.model == Model::V3 && self.random.one_in(6) {
            let intid = regs::private(1, self.any(16, 31));
            return Op::Do(Action::Line { intid, high: self.random.one_in(2) });
        }
        let intid = loop {
            let intid = if self.random.one_in(8) { self.any(16, last) } else { self.member() };
            if (16..=last).contains(&intid) {
                break intid;
            }
        };
        Op::Do(Action::Line { intid, high: self.random.one_in(2) })
    }

    fn any(&mut self, first: u32, last: u32) -> u32 {
        first + self.random.below(u64::from(last - first) + 1) as u32
    }

    fn member(&mut self) -> u32 {
        POOL[self.random.below(POOL.len() as u64) as usize]
    }

    fn access(&mut self, reg: &Reg) -> Op {
        match reg.kind {
            Kind::Acknowledge => return Op::Do(Action::Read { address: GICC + 0xc, bytes: 4 }),
            Kind::End => return Op::End,
            Kind::Deactivate => return Op::Deactivate(self.random.number() as u8),
            _ => {}
        }
        let widths: Vec<u8> = [1, 4, 8].into_iter().filter(|w| reg.widths & w != 0).collect();
        let bytes = widths[self.random.below(widths.len() as u64) as usize];
        let address = reg.address + self.offset(reg, bytes);
        if reg.is_plain() && self.random.one_in(6) {
            return Op::Do(Action::Read { address, bytes });
        }
        let value = self.value(reg, address, bytes);
        Op::Do(Action::Write { address, bytes, value })
    }

    /// Picks the offset of an access, mostly that of a pool member's bit or field.
    fn offset(&mut self, reg: &Reg, bytes: u8) -> u64 {
        let bits = match reg.kind {
            Kind::Priority | Kind::ClearSgi | Kind::SetSgi => 8,
            Kind::Config => 2,
            Kind::Router => 64,
            _ => 1,
        };
        let first = reg.first - regs::private(reg.cpu, 0);
        let member = self.member().checked_sub(first).map(|n| u64::from(n) * bits / 8);
        let offset = match member.filter(|&offset| offset < reg.len) {
            Some(offset) if !self.random.one_in(8) => offset,
            _ => self.random.below(reg.len),
        };
        offset - offset % u64::from(bytes)
    }

    fn value(&mut self, reg: &Reg, address: u64, bytes: u8) -> u64 {
        let offset = (address - reg.address) as u32;
        match reg.kind {
            Kind::Priority => (0..u32::from(bytes))
                .map(|n| u64::from(self.priority(reg.first + offset + n)) << (8 * n))
                .sum(),
            Kind::Sgir => self.random.below(3) << 24 | self.random.below(4) << 16 | self.sgi(),
            // Usually enables both groups, so that interrupts are delivered.
            Kind::DistCtlr => [3, 3, 3, 3, 1, 0, u64::MAX, u64::MAX][self.random.below(8) as usize],
            Kind::CpuCtlr => {
                let enables = [3, 3, 3, 3, 3, 3, 1, 0][self.random.below(8) as usize];
                let modes = [4, 0xc, 0x204, 0x20c, 0x214, 0x1c, 0, 0xc];
                enables | modes[self.random.below(8) as usize]
            }
            Kind::Mask => {
                [0xf8, 0xf8, 0xf8, 0xf0, 0xf8, 0x80, 0x40, 0][self.random.below(8) as usize]
            }
            // Mostly small values, with which interrupts nest.
            Kind::BinaryPoint => [2, 2, 3, 3, 4, 5, 6, 7][self.random.below(8) as usize],
            Kind::Router => match self.random.below(4) {
                0 => self.random.number(),
                n => n - 1,
            },
            _ => self.bits(reg.first - regs::private(reg.cpu, 0) + offset * 8),
        }
    }

    fn sgi(&mut self) -> u64 {
        if self.random.one_in(8) {
            self.random.below(16)
        } else {
            [0, 3, 15][self.random.below(3) as usize]
        }
    }

    fn priority(&mut self, intid: u32) -> u8 {
        let pick = self.random.number() as u32;
        match POOL.iter().position(|&member| member == intid) {
            Some(member) if self.model == Model::V2 => own_priority(member as u32, pick),
            _ => pick as u8 & 0xf8,
        }
    }

    /// Picks one bit, usually that of a pool member, or many bits.
    fn bits(&mut self, first: u32) -> u64 {
        let here = POOL.map(|member| member.wrapping_sub(first)).into_iter().filter(|&n| n < 32);
        let here: Vec<u32> = here.collect();
        match self.random.below(16) {
            0 => self.random.number(),
            1 => u64::MAX,
            2 => 1 << self.random.below(32),
            3 | 4 => here.iter().fold(0, |bits, n| bits | 1 << n),
            _ if here.is_empty() => 1 << self.random.below(32),
            _ => 1 << here[self.random.below(here.len() as u64) as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        let sequence = |seed| Generator::new(Model::V2, seed).sequence(200);
        assert_eq!(sequence(1), sequence(1));
        assert_ne!(sequence(1), sequence(2));
    }

    #[test]
    fn accesses_are_aligned_and_in_a_register_that_allows_them() {
        for model in [Model::V2, Model::V3] {
            for op in Generator::new(model, 7).sequence(20_000) {
                let Op::Do(Action::Read { address, bytes } | Action::Write { address, bytes, .. }) =
                    op
                else {
                    continue;
                };
                let reg = regs::find(model, address).unwrap();
                assert!(reg.widths & bytes != 0, "{op:x?}");
                assert!(address.is_multiple_of(bytes.into()), "{op:x?}");
                assert!(address + u64::from(bytes) <= reg.address + reg.len, "{op:x?}");
            }
        }
    }
}
