//! Decides which operations on an ITS have one right outcome.
//!
//! [`World`] follows a sequence by the rules of the architecture: which IDs are mapped, and which
//! LPIs are pending at which redistributor. When an operation is due, it turns the operation into
//! actions, and passes over operations with more than one right outcome (`differences.md`). It does
//! not judge the answers.

use std::collections::{BTreeMap, BTreeSet};

use vgic_core::ids::{DeviceId, EventId, Intid};
use vgic_core::its::{CollectionId, Command, RdBase};

use super::generate::{DEVICES, LPIS};
use crate::compare::Judge;
use crate::regs::{self, low};
use crate::target::{Action, Answer, GICR, GITS, Model, RAM, VCPUS};

const CTLR: u64 = GITS;
const CBASER: u64 = GITS + 0x80;
const CWRITER: u64 = GITS + 0x88;
const BASERS: [u64; 2] = [GITS + 0x100, GITS + 0x108];
const TRANSLATER: u64 = GITS + 0x1_0040;

const VALID: u64 = 1 << 63;
const INDIRECT: u64 = 1 << 62;

/// The address of the LPI configuration table.
const PROPERTIES: u64 = RAM + 0x10_0000;
/// Returns the address of a queue.
fn queue(slot: u8) -> u64 {
    RAM + 0x30_0000 + 0x2_0000 * u64::from(slot % 4)
}
/// The addresses of the device table and the collection table. [`LEVEL2`] has those of their second
/// levels.
const TABLES: [u64; 2] = [RAM + 0x40_0000, RAM + 0x60_0000];
const LEVEL2: [u64; 2] = [RAM + 0x50_0000, RAM + 0x70_0000];
/// The size of each table, and of its second level, in bytes.
const TABLE_SIZE: u64 = 0x10_0000;
/// Returns the address of a device's interrupt translation table. It has room for 16 bits of
/// EventID, at QEMU's 12 bytes for each entry.
fn itt(device: u32) -> u64 {
    let n = DEVICES.iter().position(|&d| d == device).unwrap_or(DEVICES.len());
    RAM + 0x100_0000 + ITT_SIZE * n as u64
}
const ITT_SIZE: u64 = 0x10_0000;
/// LPIs that are pending at the start. They are spread over the redistributors in turn.
const PRESET: [u32; 3] = [LPIS[7], LPIS[9], LPIS[11]];
const EVENT_BITS: u8 = 16;
const LPI_END: u32 = 1 << 16;

/// Returns the address of a redistributor's LPI pending table.
pub fn pending_table(rd: u16) -> u64 {
    RAM + 0x20_0000 + 0x1_0000 * u64::from(rd)
}

/// Offsets of the doublewords in a pending table that have the bits of [`LPIS`].
pub const LPI_WORDS: [u64; 4] = [1024, 2040, 2048, 8184];

/// The form in which a command is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// The command is written unchanged.
    Plain,
    /// The command is changed to use a mapped event, or a mapped device and collection. The number
    /// selects it.
    Mapped(u16),
    /// MAPTI is written as MAPI, with the EventID as the INTID.
    Mapi,
    /// The command number is replaced by one that does not exist.
    Unknown(u64),
}

/// An operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// A register access, unchanged.
    Access(Action),
    /// Installs empty tables and a queue. The number selects their shape.
    Install(u64),
    /// Writes GITS_CTLR.Enabled.
    Enable(bool),
    /// Installs another queue.
    Queue {
        /// Selects the queue's address.
        slot: u8,
        /// One less than the queue's size in pages.
        pages: u8,
    },
    /// Queues a command.
    Command {
        /// The command.
        command: Command,
        /// The form in which the command is written.
        form: Form,
        /// Whether GITS_CWRITER is written at once. If not, a later operation writes it.
        tell: bool,
    },
    /// Moves all collections of a redistributor, and its pending LPIs, to another redistributor.
    Migrate {
        /// The old redistributor.
        from: u16,
        /// The new redistributor.
        to: u16,
    },
    /// Moves the pending LPIs of a redistributor to another one. Then maps the first
    /// redistributor's collections again to the first redistributor.
    Bounce {
        /// The old redistributor.
        from: u16,
        /// The new redistributor.
        to: u16,
    },
    /// Writes GITS_TRANSLATER.
    Message {
        /// The EventID.
        event: u32,
        /// Whether to write a half-word.
        half: bool,
    },
    /// Writes a byte of the LPI configuration table.
    Property {
        /// The LPI's INTID.
        intid: u32,
        /// The new value.
        byte: u8,
    },
    /// Writes GITS_CWRITER with an offset beyond the end of the queue.
    Beyond(u16),
}

/// Counts of the events of a sequence. They show that a comparison is not empty.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Coverage {
    /// Operations that were performed, not passed over.
    pub performed: u64,
    /// Commands that were queued.
    pub commands: u64,
    /// Commands that were wrong.
    pub wrong: u64,
    /// Interrupts that became pending.
    pub pending: u64,
    /// Interrupts that moved while pending.
    pub moved: u64,
}

impl Coverage {
    /// Adds the counts of another sequence.
    pub fn add(&mut self, other: Self) {
        self.performed += other.performed;
        self.commands += other.commands;
        self.wrong += other.wrong;
        self.pending += other.pending;
        self.moved += other.moved;
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Table {
    page: u64,
    pages: u64,
    indirect: bool,
    /// A bit mask of the second-level tables that exist, indexed by their number modulo 64.
    level2: u64,
}

impl Table {
    fn new(random: u64) -> Self {
        let page = [0x1000, 0x4000, 0x1_0000][(random % 3) as usize];
        // All or some of the second-level tables exist.
        let level2 = if random >> 4 & 3 == 0 { random >> 8 | 1 } else { u64::MAX };
        Self { page, pages: 1 + (random >> 2) % 3, indirect: random >> 6 & 1 != 0, level2 }
    }

    fn baser(self, base: u64, random: u64) -> u64 {
        let size = match self.page {
            0x1000 => 0,
            0x4000 => 1,
            _ => 2,
        };
        // Random values for the attributes and the read-only fields.
        let others = random & (7 << 59 | 7 << 56 | 0x1f << 48 | 1 << 10);
        let indirect = if self.indirect { INDIRECT } else { 0 };
        VALID | indirect | others | base | size << 8 | (self.pages - 1)
    }

    /// Whether an entry is within the table's size.
    fn has(self, index: u32) -> bool {
        let direct = self.pages * self.page / 8;
        let entries = if self.indirect { direct * (self.page / 8) } else { direct };
        u64::from(index) < entries.min(1 << 16)
    }

    fn has_level2(self, n: u64) -> bool {
        self.level2 >> (n % 64) & 1 != 0
    }

    /// Whether an entry is within the table's size and its second-level table, if any, exists.
    fn holds(self, index: u32) -> bool {
        self.has(index) && (!self.indirect || self.has_level2(u64::from(index) / (self.page / 8)))
    }

    /// Clears the table and its second level, and writes the first-level entries.
    fn make(self, base: u64, level2: u64, actions: &mut Vec<Action>) {
        actions.push(Action::Zero { address: base, len: TABLE_SIZE });
        actions.push(Action::Zero { address: level2, len: TABLE_SIZE });
        if self.indirect {
            let all = (1 << 16) / (self.page / 8);
            for n in (0..all).filter(|&n| self.has_level2(n)) {
                let value = VALID | (level2 + n * self.page);
                actions.push(Action::Write { address: base + 8 * n, bytes: 8, value });
            }
        }
    }
}

struct Device {
    bits: u8,
    /// INTID and collection by EventID.
    events: BTreeMap<u32, (u32, u16)>,
}

/// The known state of both machines. Commands count as performed when they are queued.
pub struct World {
    installed: bool,
    enabled: bool,
    tables: [Table; 2],
    queue: u64,
    queue_size: u64,
    /// The offset in the queue of the next command.
    tail: u64,
    /// The last value of GITS_CWRITER, or `None` if it was beyond the end of the queue.
    told: Option<u64>,
    /// The offset in the queue of the first command that has not been performed.
    head: u64,
    devices: BTreeMap<u32, Device>,
    collections: BTreeMap<u16, u16>,
    pending: [BTreeSet<u32>; VCPUS as usize],
    coverage: Coverage,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

fn word(address: u64, value: u64) -> Action {
    Action::Write { address, bytes: 4, value }
}

fn double(address: u64, value: u64) -> Action {
    Action::Write { address, bytes: 8, value }
}

/// The expected effect of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    /// The command takes effect.
    Right,
    /// The command is wrong, and has no effect.
    Wrong,
}

impl World {
    /// Creates the state after the prologue.
    pub fn new() -> Self {
        let mut pending: [BTreeSet<u32>; VCPUS as usize] = Default::default();
        for (n, &lpi) in PRESET.iter().enumerate() {
            pending[n % usize::from(VCPUS)].insert(lpi);
        }
        Self {
            installed: false,
            enabled: false,
            tables: [Table::default(); 2],
            queue: 0,
            queue_size: 0,
            tail: 0,
            told: Some(0),
            head: 0,
            devices: BTreeMap::new(),
            collections: BTreeMap::new(),
            pending,
            coverage: Coverage::default(),
        }
    }

    /// Returns the first actions of a sequence. They enable LPIs at all redistributors, with some
    /// that are pending already. They write the register fields that are UNKNOWN after a reset.
    pub fn prologue() -> Vec<Action> {
        let mut actions = Vec::new();
        for (n, lpi) in (0..).zip(PRESET) {
            let address = pending_table(n % VCPUS) + u64::from(lpi / 64 * 8);
            actions.push(double(address, 1 << (lpi % 64)));
        }
        for rd in 0..VCPUS {
            let base = GICR + 0x2_0000 * u64::from(rd);
            actions.push(double(base + 0x70, PROPERTIES | 15));
            actions.push(double(base + 0x78, pending_table(rd)));
            actions.push(word(base, 1));
        }
        actions.extend(BASERS.map(|baser| double(baser, 0)));
        actions.extend([double(CBASER, 0), double(CWRITER, 0)]);
        actions
    }

    /// Returns the counts of the sequence so far.
    pub fn coverage(&self) -> Coverage {
        self.coverage
    }

    /// Returns the actions of an operation in the present state. If there are none, the operation
    /// is passed over.
    pub fn admit(&mut self, op: Op) -> Vec<Action> {
        let actions = match op {
            Op::Access(action) => self.access(action),
            Op::Install(random) => self.install(random),
            Op::Enable(on) => self.enable(on),
            Op::Queue { slot, pages } => self.set_queue(slot, pages),
            Op::Command { command, form, tell } => self.command(command, form, tell),
            Op::Migrate { from, to } => self.migrate(from, to),
            Op::Bounce { from, to } => self.bounce(from, to),
            Op::Message { event, half } => self.message(event, half),
            Op::Property { intid, byte } => {
                let address = PROPERTIES + u64::from(intid - 8192);
                vec![Action::Write { address, bytes: 1, value: byte.into() }]
            }
            Op::Beyond(by) => {
                let beyond = self.queue_size + 32 * u64::from(by);
                if self.installed && beyond < 1 << 20 {
                    self.told = None;
                    vec![double(CWRITER, beyond)]
                } else {
                    Vec::new()
                }
            }
        };
        self.coverage.performed += u64::from(!actions.is_empty());
        actions
    }

    fn access(&mut self, action: Action) -> Vec<Action> {
        let Action::Write { address, bytes, value } = action else {
            let Action::Read { address, .. } = action else { return Vec::new() };
            // An optional register, which only this project has.
            return if address == GITS + 0x40 { Vec::new() } else { vec![action] };
        };
        let value = value & low(bytes);
        let write = Action::Write { address, bytes, value };
        let Some(reg) = regs::find(Model::Its, address) else { return Vec::new() };
        match reg.name {
            // `Op::Enable` and `Op::Message` write these registers.
            "GITS_CTLR" | "GITS_TRANSLATER" => Vec::new(),
            // QEMU lets software write this register, and this project does not.
            "GITS_CREADR" => Vec::new(),
            "GITS_CWRITER" if self.installed => Vec::new(),
            // The architecture leaves open whether mappings survive this.
            "GITS_BASER0" | "GITS_BASER1" if self.installed && !self.enabled => Vec::new(),
            "GITS_CBASER" if self.installed && !self.enabled => Vec::new(),
            // The queue is empty after this. GITS_CWRITER may have had any value.
            "GITS_CBASER" if !self.enabled => vec![write, double(CWRITER, 0)],
            _ => vec![write],
        }
    }

    /// Whether all commands have been performed.
    fn is_done(&self) -> bool {
        self.head == self.tail
    }

    /// Writes GITS_CWRITER, so that the ITS performs all commands if it is enabled.
    fn tell(&mut self, actions: &mut Vec<Action>) {
        self.told = Some(self.tail);
        if self.enabled {
            self.head = self.tail;
        }
        actions.push(double(CWRITER, self.tail));
    }

    /// Has all commands performed, if the ITS is enabled. Returns whether all have been performed.
    fn finish(&mut self, actions: &mut Vec<Action>) -> bool {
        if self.enabled && !self.is_done() {
            self.tell(actions);
        }
        self.is_done()
    }

    fn install(&mut self, random: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        let mapped: BTreeSet<u32> = self.events().map(|(_, _, (intid, _))| intid).collect();
        // The architecture leaves open whether LPIs that are mapped and pending stay so.
        let stays = self.pending.iter().all(|pending| pending.is_disjoint(&mapped));
        if !stays || !self.finish(&mut actions) {
            return actions;
        }
        actions.push(word(CTLR, 0));
        actions.extend(BASERS.map(|baser| double(baser, 0)));
        self.tables = [Table::new(random), Table::new(random >> 20)];
        for n in 0..2 {
            self.tables[n].make(TABLES[n], LEVEL2[n], &mut actions);
            let value = self.tables[n].baser(TABLES[n], random.rotate_right(11));
            if random >> 40 & 1 == 0 {
                actions.push(double(BASERS[n], value));
            } else {
                actions.push(word(BASERS[n] + 4, value >> 32));
                actions.push(word(BASERS[n], value & low(4)));
            }
        }
        self.devices.clear();
        self.collections.clear();
        self.installed = true;
        self.enabled = false;
        actions.extend(self.set_queue((random >> 50) as u8, (random >> 52) as u8));
        actions
    }

    fn enable(&mut self, on: bool) -> Vec<Action> {
        if !self.installed {
            return Vec::new();
        }
        self.enabled = on;
        if let (true, Some(told)) = (on, self.told) {
            self.head = told;
        }
        vec![word(CTLR, on.into())]
    }

    fn set_queue(&mut self, slot: u8, pages: u8) -> Vec<Action> {
        // Otherwise commands would be lost.
        if !self.installed || self.enabled || !self.is_done() {
            return Vec::new();
        }
        self.queue = queue(slot);
        self.queue_size = 0x1000 * (1 + u64::from(pages % 3));
        (self.tail, self.told, self.head) = (0, Some(0), 0);
        let value = VALID | self.queue | u64::from(pages % 3);
        vec![double(CBASER, value), double(CWRITER, 0)]
    }

    fn events(&self) -> impl Iterator<Item = (u32, u32, (u32, u16))> {
        self.devices
            .iter()
            .flat_map(|(&d, device)| device.events.iter().map(move |(&e, &to)| (d, e, to)))
    }

    /// Makes room in the queue for some commands. Returns whether there is room.
    fn room(&mut self, commands: u64, actions: &mut Vec<Action>) -> bool {
        let used = (self.tail + self.queue_size - self.head) % self.queue_size;
        used + 32 * commands < self.queue_size || self.finish(actions)
    }

    fn put(&mut self, raw: [u8; 32], actions: &mut Vec<Action>) {
        for (n, bytes) in (0..).zip(raw.chunks_exact(8)) {
            let value = bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
            actions.push(double(self.queue + self.tail + 8 * n, value));
        }
        self.tail = (self.tail + 32) % self.queue_size;
    }

    fn command(&mut self, command: Command, form: Form, tell: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.installed || !self.room(1, &mut actions) {
            return actions;
        }
        let (command, raw) = match form {
            Form::Plain => {
                let command = with_itt(command);
                (Some(command), command.encode())
            }
            Form::Mapped(n) => {
                let command = with_itt(self.mapped(command, n.into()).unwrap_or(command));
                (Some(command), command.encode())
            }
            Form::Mapi => {
                let Command::Mapti { device, event, collection, intid } = command else {
                    return actions;
                };
                let mut raw = command.encode();
                // MAPI has no INTID field.
                raw[0] = 0x0b;
                raw[12..16].copy_from_slice(&intid.0.to_le_bytes());
                let intid = Intid(event.0);
                (Some(Command::Mapti { device, event, collection, intid }), raw)
            }
            Form::Unknown(random) => {
                let mut raw = command.encode();
                raw[0] = [0x00, 0x02, 0x06, 0x07, 0x10, 0x20, 0x25, 0x2a, 0x80, 0xff]
                    [(random % 10) as usize];
                (None, raw)
            }
        };
        if let Some(Command::Mapd { device, valid: true, .. }) = command
            && self.tables[0].holds(device.0)
        {
            // The device's table has to be empty when MAPD is performed. Earlier commands may
            // change the table, so they are performed first.
            if !self.finish(&mut actions) {
                return actions;
            }
        }
        let verdict = match command {
            Some(command) => self.apply(command),
            None => Some(Verdict::Wrong),
        };
        let Some(verdict) = verdict else { return actions };
        if let (Some(Command::Mapd { device, valid: true, .. }), Verdict::Right) =
            (command, verdict)
        {
            actions.push(Action::Zero { address: itt(device.0), len: ITT_SIZE });
        }
        self.coverage.commands += 1;
        self.coverage.wrong += u64::from(verdict == Verdict::Wrong);
        self.put(raw, &mut actions);
        if tell {
            self.tell(&mut actions);
        }
        actions
    }

    /// Returns a command changed to use mapped IDs, or `None` if nothing suitable is mapped.
    fn mapped(&self, command: Command, n: usize) -> Option<Command> {
        let events: Vec<_> = self.events().collect();
        let collections: Vec<_> = self.collections.keys().collect();
        let devices: Vec<_> = self.devices.keys().collect();
        let collection = |n: usize| CollectionId(*collections[n % collections.len()]);
        if let Command::Mapti { intid, event, .. } = command {
            if devices.is_empty() || collections.is_empty() {
                return None;
            }
            let (device, collection) = (DeviceId(*devices[n % devices.len()]), collection(n / 16));
            return Some(Command::Mapti { device, event, intid, collection });
        }
        let &(device, event, _) = events.get(n % events.len().max(1))?;
        let (device, event) = (DeviceId(device), EventId(event));
        Some(match command {
            Command::Int(..) => Command::Int(device, event),
            Command::Clear(..) => Command::Clear(device, event),
            Command::Discard(..) => Command::Discard(device, event),
            Command::Inv(..) => Command::Inv(device, event),
            Command::Movi { .. } if !collections.is_empty() => {
                Command::Movi { device, event, collection: collection(n / 16) }
            }
            other => other,
        })
    }

    /// Returns the collections that are mapped to a redistributor.
    fn collections_at(&self, rd: u16) -> Vec<u16> {
        let there = self.collections.iter().filter(|&(_, &at)| at == rd);
        there.map(|(&collection, _)| collection).collect()
    }

    fn put_mapc(&mut self, collection: u16, rd: u16, actions: &mut Vec<Action>) {
        let (collection, rdbase) = (CollectionId(collection), RdBase(rd.into()));
        self.put(Command::Mapc { collection, valid: true, rdbase }.encode(), actions);
        self.coverage.commands += 1;
    }

    fn put_movall(&mut self, from: u16, to: u16, actions: &mut Vec<Action>) {
        self.move_pending(from, to);
        let (from, to) = (RdBase(from.into()), RdBase(to.into()));
        self.put(Command::Movall { from, to }.encode(), actions);
        self.coverage.commands += 1;
    }

    fn migrate(&mut self, from: u16, to: u16) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.installed || from == to || !self.room(16, &mut actions) {
            return actions;
        }
        for collection in self.collections_at(from) {
            self.collections.insert(collection, to);
            self.put_mapc(collection, to, &mut actions);
        }
        self.put_movall(from, to, &mut actions);
        self.tell(&mut actions);
        actions
    }

    fn bounce(&mut self, from: u16, to: u16) -> Vec<Action> {
        let mut actions = Vec::new();
        // Otherwise these LPIs would be pending at a redistributor other than the one of their
        // collection.
        let pending = self.events().any(|(_, _, (intid, collection))| {
            self.collections.get(&collection) == Some(&from) && self.is_pending(intid)
        });
        if !self.installed || from == to || pending || !self.room(16, &mut actions) {
            return actions;
        }
        self.put_movall(from, to, &mut actions);
        for collection in self.collections_at(from) {
            self.put_mapc(collection, from, &mut actions);
        }
        self.tell(&mut actions);
        actions
    }

    fn move_pending(&mut self, from: u16, to: u16) {
        let moved = std::mem::take(&mut self.pending[usize::from(from)]);
        self.coverage.moved += moved.len() as u64;
        self.pending[usize::from(to)].extend(moved);
    }

    fn message(&mut self, event: u32, half: bool) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.enabled {
            self.finish(&mut actions);
            let event = if half { event & 0xffff } else { event };
            if let Some((intid, collection)) = self.event(DEVICES[0], event) {
                self.set_pending(intid, collection);
            }
        }
        let bytes = if half { 2 } else { 4 };
        let value = u64::from(event) & low(bytes);
        actions.push(Action::Write { address: TRANSLATER, bytes, value });
        actions
    }

    fn event(&self, device: u32, event: u32) -> Option<(u32, u16)> {
        self.devices.get(&device)?.events.get(&event).copied()
    }

    fn set_pending(&mut self, intid: u32, collection: u16) {
        if let Some(&rd) = self.collections.get(&collection) {
            self.coverage.pending += u64::from(self.pending[usize::from(rd)].insert(intid));
        }
    }

    /// Whether an LPI is pending at a redistributor other than `rd`.
    fn is_pending_but_at(&self, rd: u16, intid: u32) -> bool {
        (0..).zip(&self.pending).any(|(n, pending)| n != rd && pending.contains(&intid))
    }

    fn is_pending(&self, intid: u32) -> bool {
        self.pending.iter().any(|pending| pending.contains(&intid))
    }

    /// Updates the state with the effect of a command. Returns `None` if the command has more than
    /// one right outcome.
    fn apply(&mut self, command: Command) -> Option<Verdict> {
        match command {
            Command::Mapd { device: DeviceId(device), valid, size, .. } => {
                if !self.tables[0].holds(device) {
                    return Some(Verdict::Wrong);
                }
                if size >= EVENT_BITS {
                    // Without V, Size has no meaning, but QEMU requires a valid Size.
                    return valid.then_some(Verdict::Wrong);
                }
                // The architecture leaves open whether LPIs of the device's events stay pending.
                let old = self.devices.get(&device).into_iter();
                if old.flat_map(|d| d.events.values()).any(|&(intid, _)| self.is_pending(intid)) {
                    return None;
                }
                self.devices.remove(&device);
                if valid {
                    let events = BTreeMap::new();
                    self.devices.insert(device, Device { bits: size + 1, events });
                }
            }
            Command::Mapc { collection: CollectionId(collection), valid, rdbase } => {
                if !self.tables[1].holds(collection.into()) {
                    return Some(Verdict::Wrong);
                }
                if !valid {
                    self.collections.remove(&collection);
                    return Some(Verdict::Right);
                }
                let rd = rdbase.0 as u16;
                if rd >= VCPUS {
                    return Some(Verdict::Wrong);
                }
                // An LPI that is pending at another redistributor may stay there or move along.
                let stays =
                    |(_, _, (intid, c))| c == collection && self.is_pending_but_at(rd, intid);
                if self.events().any(stays) {
                    return None;
                }
                self.collections.insert(collection, rd);
            }
            Command::Mapti { device, event, intid: Intid(intid), collection } => {
                let CollectionId(collection) = collection;
                let lpi = (8192..LPI_END).contains(&intid);
                let known = self.devices.get(&device.0);
                let fits = known.is_some_and(|d| u64::from(event.0) >> d.bits == 0);
                if !(fits && lpi && self.tables[1].has(collection.into())) {
                    return Some(Verdict::Wrong);
                }
                let mapped = self.event(device.0, event.0).is_some();
                // An LPI belongs to one collection.
                let shared = self.events().any(|(_, _, (i, c))| i == intid && c != collection);
                let rd = self.collections.get(&collection);
                let elsewhere = rd.is_some_and(|&rd| self.is_pending_but_at(rd, intid));
                if mapped || shared || elsewhere {
                    return None;
                }
                self.devices.get_mut(&device.0)?.events.insert(event.0, (intid, collection));
            }
            Command::Movi { device, event, collection: CollectionId(collection) } => {
                let Some((intid, old)) = self.event(device.0, event.0) else {
                    return Some(Verdict::Wrong);
                };
                let from = self.collections.get(&old).copied();
                let to = self.collections.get(&collection).copied();
                let (Some(from), Some(to)) = (from, to) else { return Some(Verdict::Wrong) };
                let shared = self.events().filter(|&(_, _, (i, _))| i == intid).count() > 1;
                if shared && old != collection {
                    return None;
                }
                if self.pending[usize::from(from)].remove(&intid) {
                    self.pending[usize::from(to)].insert(intid);
                    self.coverage.moved += u64::from(from != to);
                }
                let events = &mut self.devices.get_mut(&device.0)?.events;
                events.insert(event.0, (intid, collection));
            }
            Command::Movall { from, to } => {
                if from.0 >= VCPUS.into() || to.0 >= VCPUS.into() {
                    return Some(Verdict::Wrong);
                }
                let (from, to) = (from.0 as u16, to.0 as u16);
                if from == to {
                    return Some(Verdict::Right);
                }
                // LPIs of a collection at `from` may continue to go there, or not.
                let here = |c| self.collections.get(&c) == Some(&from);
                if self.events().any(|(_, _, (_, collection))| here(collection)) {
                    return None;
                }
                self.move_pending(from, to);
            }
            Command::Discard(device, event)
            | Command::Clear(device, event)
            | Command::Int(device, event) => {
                let Some((intid, collection)) = self.event(device.0, event.0) else {
                    return Some(Verdict::Wrong);
                };
                let rd = self.collections.get(&collection).copied();
                if let Command::Int(..) = command {
                    self.set_pending(intid, collection);
                    return Some(if rd.is_some() { Verdict::Right } else { Verdict::Wrong });
                }
                // Without the collection, there is no redistributor at which to find the LPI.
                self.pending[usize::from(rd?)].remove(&intid);
                if let Command::Discard(..) = command {
                    self.devices.get_mut(&device.0)?.events.remove(&event.0);
                }
            }
            Command::Inv(DeviceId(device), EventId(event)) => {
                let mapped = self.event(device, event).is_some();
                return Some(if mapped { Verdict::Right } else { Verdict::Wrong });
            }
            Command::Invall(CollectionId(collection)) => {
                let mapped = self.collections.contains_key(&collection);
                return Some(if mapped { Verdict::Right } else { Verdict::Wrong });
            }
            _ => {}
        }
        Some(Verdict::Right)
    }
}

impl Judge for World {
    fn compared(&self, action: Action, reference: Answer) -> u64 {
        let Action::Read { address, bytes } = action else { return 0 };
        let Some(reg) = regs::find(Model::Its, address) else { return low(bytes) };
        let mask = reg.mask(address, bytes);
        let skip = 8 * (address - reg.address);
        let whole =
            if bytes == 8 { reference.value } else { reference.value << (8 * (address % 8)) };
        let reserved = reserved(whole) >> (8 * (address % 8));
        match reg.name {
            // QEMU reports an enabled ITS as quiescent.
            "GITS_CTLR" if reference.value & 1 != 0 => mask & 1,
            // Reserved values need not be kept.
            "GITS_CBASER" => mask & !(reserved & (3 << 10) >> skip),
            "GITS_BASER0" | "GITS_BASER1" => mask & !reserved,
            _ => mask,
        }
    }

    fn observe(&mut self, _action: Action, _reference: Answer) {}
}

/// Returns a mask of the fields of GITS_BASER or GITS_CBASER that have a reserved value.
fn reserved(value: u64) -> u64 {
    let shareability = if value >> 10 & 3 == 3 { 3 << 10 } else { 0 };
    let page_size = if value >> 8 & 3 == 3 { 3 << 8 } else { 0 };
    shareability | page_size
}

/// Changes MAPD to use the address of the device's own table.
fn with_itt(command: Command) -> Command {
    match command {
        Command::Mapd { device, valid, size, .. } => {
            Command::Mapd { device, valid, size, itt: itt(device.0) }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lpi_is_looked_at() {
        for lpi in LPIS {
            let byte = u64::from(lpi / 8);
            assert!(LPI_WORDS.iter().any(|&word| (word..word + 8).contains(&byte)), "{lpi}");
        }
    }

    #[test]
    fn tables_have_what_they_hold() {
        let flat = Table { page: 0x1000, pages: 2, indirect: false, level2: 0 };
        assert!(flat.holds(1023) && !flat.has(1024));
        let indirect = Table { indirect: true, level2: 1, ..flat };
        assert!(indirect.has(65535) && !indirect.has(65536));
        assert!(indirect.holds(511) && !indirect.holds(512));
    }
}
