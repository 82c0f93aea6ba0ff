//! LPIs: an ITS with one device, an event for each LPI, and a collection for each CPU.

use vgic_core::ids::{DeviceId, EventId, Intid};
use vgic_core::its::{CollectionId, Command, RdBase};

use super::generate::Lpi;
use super::steps::{CPUS, Step};
use super::style::{LPIS, MEMBERS, WIRED, own_priority};
use super::v3::redistributor;
use crate::target::GITS;

/// The address of the memory that both machines have for the LPI and ITS tables.
pub(super) const MEMORY: u64 = 0x4200_0000;
/// The size of this memory in bytes.
pub(super) const MEMORY_SIZE: u64 = 0x8_0000;

const PROPERTIES: u64 = MEMORY;
pub(super) const QUEUE: u64 = MEMORY + 0x4_0000;
pub(super) const QUEUE_SIZE: u64 = 0x1_0000;
const DEVICES: u64 = MEMORY + 0x5_0000;
const COLLECTIONS: u64 = MEMORY + 0x6_0000;
const ITT: u64 = MEMORY + 0x7_0000;
const PENDING_SIZE: u64 = 0x2000;

const VALID: u64 = 1 << 63;
/// The IDbits field for 16 bits of INTID.
const ID_BITS: u64 = 15;
const PTZ: u64 = 1 << 62;
/// The DeviceID that QEMU assigns to a CPU's own writes of GITS_TRANSLATER.
const DEVICE: DeviceId = DeviceId(0);

fn pending_table(cpu: u8) -> u64 {
    MEMORY + 0x2_0000 + 0x1_0000 * u64::from(cpu)
}

/// The known state of the LPIs.
#[derive(Clone, Default, Debug)]
pub(super) struct Lpis {
    /// The offset in the queue of the next command.
    tail: u64,
    /// The collection that each LPI is mapped to.
    mapped: [Option<u8>; LPIS.end - LPIS.start],
    on: [bool; CPUS],
}

impl Lpis {
    pub(super) fn prologue(&mut self) -> Vec<Step> {
        let mut steps = vec![Step::clear(MEMORY, MEMORY_SIZE)];
        for member in LPIS {
            steps.push(property(0, member, true, 0));
        }
        for cpu in 0..CPUS as u8 {
            let base = redistributor(cpu);
            steps.push(Step::write(0, 8, base + 0x70, PROPERTIES | ID_BITS));
            steps.push(Step::write(0, 8, base + 0x78, pending_table(cpu) | PTZ));
            steps.push(Step::write(0, 4, base, 1));
            self.on[usize::from(cpu)] = true;
        }
        steps.push(Step::write(0, 8, GITS + 0x80, VALID | QUEUE | (QUEUE_SIZE / 0x1000 - 1)));
        steps.push(Step::write(0, 8, GITS + 0x88, 0));
        steps.push(Step::write(0, 8, GITS + 0x100, VALID | DEVICES));
        steps.push(Step::write(0, 8, GITS + 0x108, VALID | COLLECTIONS));
        steps.push(Step::write(0, 4, GITS, 1));
        for cpu in 0..CPUS as u16 {
            let (collection, rdbase) = (CollectionId(cpu), RdBase(cpu.into()));
            steps.extend(self.command(0, Command::Mapc { collection, valid: true, rdbase }));
        }
        steps.extend(
            self.command(0, Command::Mapd { device: DEVICE, valid: true, size: 4, itt: ITT }),
        );
        for member in LPIS {
            steps.extend(self.map(0, member, (member % CPUS) as u8));
        }
        steps
    }

    fn command(&mut self, by: u8, command: Command) -> Vec<Step> {
        let raw = command.encode();
        let words = raw
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b)));
        let at = QUEUE + self.tail;
        let mut steps: Vec<Step> =
            (0..).zip(words).map(|(n, word)| Step::write(by, 8, at + 8 * n, word)).collect();
        self.tail = (self.tail + 32) % QUEUE_SIZE;
        steps.push(Step::write(by, 8, GITS + 0x88, self.tail));
        steps.push(Step::read(by, 8, GITS + 0x90));
        steps
    }

    fn map(&mut self, by: u8, member: usize, to: u8) -> Vec<Step> {
        self.mapped[member - WIRED] = Some(to);
        let (intid, collection) = (Intid(MEMBERS[member]), CollectionId(to.into()));
        self.command(by, Command::Mapti { device: DEVICE, event: event(member), intid, collection })
    }

    pub(super) fn change(&mut self, by: u8, member: usize, lpi: Lpi) -> Option<Vec<Step>> {
        let mapped = self.mapped[member - WIRED];
        let event = event(member);
        let at = mapped.map_or(usize::MAX, usize::from);
        let is_on = |cpu: usize| self.on.get(cpu).copied().unwrap_or(true);
        Some(match lpi {
            // A mapped event is not mapped again, which would be UNPREDICTABLE (IHI 0069, 5.3,
            // MAPTI).
            Lpi::Map(to) => {
                if mapped.is_some() {
                    return None;
                }
                self.map(by, member, to)
            }
            // The specification leaves open how this affects the pending bit where LPIs are not
            // enabled.
            Lpi::Discard | Lpi::Clear | Lpi::Move(_) if !is_on(at) => return None,
            Lpi::Discard => {
                self.mapped[member - WIRED] = None;
                self.command(by, Command::Discard(DEVICE, event))
            }
            Lpi::Clear => self.command(by, Command::Clear(DEVICE, event)),
            Lpi::Move(to) => {
                if !is_on(to.into()) {
                    return None;
                }
                if let Some(at) = &mut self.mapped[member - WIRED] {
                    *at = to;
                }
                let collection = CollectionId(to.into());
                self.command(by, Command::Movi { device: DEVICE, event, collection })
            }
            Lpi::Send(true) => self.command(by, Command::Int(DEVICE, event)),
            Lpi::Send(false) => vec![Step::write(by, 4, GITS + 0x1_0040, event.0.into())],
            Lpi::Configure { enabled, priority, all } => {
                let collection = CollectionId(mapped?.into());
                // Until the configuration is invalidated, either the old or the new one may be in
                // effect.
                let mut steps = vec![property(by, member, enabled, priority)];
                steps.extend(self.command(
                    by,
                    if all { Command::Invall(collection) } else { Command::Inv(DEVICE, event) },
                ));
                let last = steps.len() - 1;
                steps[..last].iter_mut().for_each(|step| step.lines = false);
                steps
            }
        })
    }

    pub(super) fn off(&mut self, by: u8, of: u8) -> Option<Vec<Step>> {
        let on = std::mem::take(&mut self.on[usize::from(of)]);
        let address = redistributor(of);
        on.then(|| vec![Step::write(by, 4, address, 0), Step::read(by, 4, address).masked(1)])
    }

    pub(super) fn on(&mut self, by: u8, of: u8, preset: u8) -> Option<Vec<Step>> {
        if std::mem::replace(&mut self.on[usize::from(of)], true) {
            return None;
        }
        let table = pending_table(of);
        let mut steps = vec![Step::clear(table, PENDING_SIZE)];
        // Sets pending bits only for LPIs that are mapped to this CPU.
        let here = LPIS.filter(|&m| self.mapped[m - WIRED] == Some(of));
        let set: Vec<u32> =
            here.filter(|&m| preset >> (m - WIRED) & 1 != 0).map(|m| MEMBERS[m]).collect();
        let mut words: Vec<u32> = set.iter().map(|intid| intid / 64).collect();
        words.dedup();
        for word in words {
            let bits = set.iter().filter(|&&intid| intid / 64 == word);
            let value = bits.fold(0, |value, intid| value | 1_u64 << (intid % 64));
            steps.push(Step::write(by, 8, table + 8 * u64::from(word), value));
        }
        let ptz = if set.is_empty() { PTZ } else { 0 };
        steps.push(Step::write(by, 8, redistributor(of) + 0x78, table | ptz));
        steps.push(Step::write(by, 4, redistributor(of), 1));
        Some(steps)
    }
}

fn event(member: usize) -> EventId {
    EventId((member - WIRED) as u32)
}

/// Writes an LPI's byte of the configuration table.
fn property(by: u8, member: usize, enabled: bool, pick: u8) -> Step {
    let address = PROPERTIES + u64::from(MEMBERS[member] - 8192);
    let byte = own_priority(member, pick) | u8::from(enabled);
    Step::write(by, 1, address, byte.into())
}
