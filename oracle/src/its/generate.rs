//! Random operations on an ITS. Devices, events, collections and LPIs are few, so that operations
//! meet.

use vgic_core::ids::{DeviceId, EventId, Intid};
use vgic_core::its::{CollectionId, Command, RdBase};

use super::registers;
use super::world::{Form, Op};
use crate::generate::Random;
use crate::target::{Action, GITS, VCPUS};

/// DeviceIDs. The first is that of a CPU's own writes of GITS_TRANSLATER. Some are at the ends of
/// tables.
pub const DEVICES: [u32; 12] = [0, 1, 2, 7, 511, 512, 513, 1535, 2048, 8191, 8192, 65535];
const NO_DEVICES: [u32; 3] = [65536, 1 << 20, u32::MAX];
/// Collection IDs.
pub const COLLECTIONS: [u16; 9] = [0, 1, 2, 3, 511, 512, 1536, 8191, 65535];
const EVENTS: [u32; 12] = [0, 1, 2, 3, 4, 7, 8, 15, 16, 255, 8192, 8200];
const NO_EVENTS: [u32; 3] = [1 << 16, 1 << 31, u32::MAX];
/// INTIDs of LPIs.
pub const LPIS: [u32; 12] =
    [8192, 8193, 8194, 8195, 8200, 8207, 8208, 8255, 16383, 16384, 16385, 65535];
const NO_LPIS: [u32; 6] = [0, 31, 1023, 8191, 65536, u32::MAX];

/// A generator of random operations.
pub struct Generator(Random);

impl Generator {
    /// Creates a generator for a seed.
    pub fn new(seed: u64) -> Self {
        Self(Random::new(seed ^ 0x1751_7517))
    }

    /// Generates `count` operations.
    pub fn sequence(&mut self, count: usize) -> Vec<Op> {
        let mut ops: Vec<Op> = (0..count.min(40)).map(|_| self.access()).collect();
        ops.extend(self.open());
        ops.truncate(count);
        while ops.len() < count {
            ops.push(self.op());
        }
        ops
    }

    /// Initializes the ITS as a driver does. From a reset, random operations alone would take long
    /// to do so.
    fn open(&mut self) -> Vec<Op> {
        let mut ops = vec![self.install(), Op::Enable(true)];
        for n in 0..4 {
            let collection = CollectionId(COLLECTIONS[n]);
            let rdbase = RdBase((n % usize::from(VCPUS)) as u64);
            ops.push(tell(Command::Mapc { collection, valid: true, rdbase }));
            let device = DeviceId(DEVICES[n]);
            ops.push(tell(Command::Mapd { device, valid: true, size: 13, itt: 0 }));
        }
        ops
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.0.below(all.len() as u64) as usize]
    }

    /// Picks mostly one of the first few of `good`, and seldom one of `bad`, which do not exist.
    fn mixed(&mut self, good: &[u32], bad: &[u32]) -> u32 {
        match self.0.below(32) {
            0 => self.of(bad),
            1..=8 => self.of(good),
            _ => self.of(&good[..4]),
        }
    }

    fn device(&mut self) -> DeviceId {
        DeviceId(self.mixed(&DEVICES, &NO_DEVICES))
    }

    fn event(&mut self) -> EventId {
        EventId(self.mixed(&EVENTS, &NO_EVENTS))
    }

    fn collection(&mut self) -> CollectionId {
        if self.0.one_in(6) {
            return CollectionId(self.of(&COLLECTIONS));
        }
        CollectionId(self.of(&COLLECTIONS[..4]))
    }

    fn rdbase(&mut self) -> RdBase {
        RdBase(match self.0.below(24) {
            0 => u64::from(VCPUS),
            1 => 0xffff,
            n => n % u64::from(VCPUS),
        })
    }

    fn op(&mut self) -> Op {
        match self.0.below(100) {
            0..=5 => self.access(),
            6..=25 => {
                let event = if self.0.one_in(4) { self.event().0 } else { self.0.below(8) as u32 };
                Op::Message { event, half: self.0.one_in(4) }
            }
            26..=27 => Op::Enable(false),
            28..=31 => Op::Enable(true),
            32 => Op::Queue { slot: self.0.below(4) as u8, pages: self.0.below(3) as u8 },
            33..=34 => Op::Migrate { from: self.rd(), to: self.rd() },
            39 => Op::Bounce { from: self.rd(), to: self.rd() },
            35 => Op::Beyond(self.0.number() as u16),
            36 if self.0.one_in(8) => self.install(),
            36 | 37 => Op::Property { intid: self.of(&LPIS), byte: self.0.number() as u8 },
            _ => {
                let command = self.command();
                let mapi = self.0.one_in(6) && matches!(command, Command::Mapti { .. });
                let form = match self.0.below(64) {
                    0 => Form::Unknown(self.0.number()),
                    _ if mapi => Form::Mapi,
                    1..=12 => Form::Plain,
                    _ => Form::Mapped(self.0.number() as u16),
                };
                Op::Command { command, form, tell: !self.0.one_in(3) }
            }
        }
    }

    fn rd(&mut self) -> u16 {
        self.0.below(VCPUS.into()) as u16
    }

    fn install(&mut self) -> Op {
        Op::Install(self.0.number())
    }

    fn command(&mut self) -> Command {
        let (device, event, collection) = (self.device(), self.event(), self.collection());
        match self.0.below(100) {
            0..=2 => {
                let size = self.of(&[0, 2, 3, 3, 3, 7, 13, 15, 16, 31]);
                Command::Mapd { device, valid: !self.0.one_in(4), size, itt: 0 }
            }
            3..=8 => {
                let (valid, rdbase) = (!self.0.one_in(4), self.rdbase());
                Command::Mapc { collection, valid, rdbase }
            }
            9..=38 => {
                let intid = Intid(self.mixed(&LPIS, &NO_LPIS));
                Command::Mapti { device, event, intid, collection }
            }
            39..=48 => Command::Movi { device, event, collection },
            49..=50 => Command::Movall { from: self.rdbase(), to: self.rdbase() },
            51..=56 => Command::Discard(device, event),
            57..=75 => Command::Int(device, event),
            76..=90 => Command::Clear(device, event),
            91..=93 => Command::Inv(device, event),
            94..=96 => Command::Invall(collection),
            _ => Command::Sync(self.rdbase()),
        }
    }

    /// Accesses a register, or an address without one.
    fn access(&mut self) -> Op {
        if self.0.one_in(10) {
            let address = GITS + self.0.below(0x2_0000) / 4 * 4;
            return Op::Access(Action::Read { address, bytes: 4 });
        }
        let regs = registers();
        let total: u64 = regs.iter().map(|reg| u64::from(reg.weight)).sum();
        let mut pick = self.0.below(total);
        let reg = regs.iter().find(|reg| {
            let here = pick < reg.weight.into();
            pick = pick.wrapping_sub(reg.weight.into());
            here
        });
        let reg = reg.unwrap_or(&regs[0]);
        let bytes = if reg.widths & 8 != 0 && !self.0.one_in(3) { 8 } else { 4 };
        let offset = self.0.below(reg.len) / u64::from(bytes) * u64::from(bytes);
        let address = reg.address + offset;
        if self.0.one_in(4) {
            return Op::Access(Action::Read { address, bytes });
        }
        let value = match self.0.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.0.below(64),
            _ => self.0.number(),
        };
        Op::Access(Action::Write { address, bytes, value })
    }
}

fn tell(command: Command) -> Op {
    Op::Command { command, form: Form::Plain, tell: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        let sequence = |seed| Generator::new(seed).sequence(200);
        assert_eq!(sequence(1), sequence(1));
        assert_ne!(sequence(1), sequence(2));
    }

    #[test]
    fn accesses_are_aligned() {
        for op in Generator::new(7).sequence(20_000) {
            if let Op::Access(
                Action::Read { address, bytes } | Action::Write { address, bytes, .. },
            ) = op
            {
                assert!(address.is_multiple_of(bytes.into()), "{op:x?}");
            }
        }
    }
}
