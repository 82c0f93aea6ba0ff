//! One ITS: its registers, and whose turn it is to work off its command queue.
//!
//! # Turns
//!
//! Commands are performed by whoever writes GITS_CWRITER, one thread at a time. Who comes while another one is at it does not wait: `turn` says
//! that somebody is working, and that there is more to look at.
//!
//! | `turn` | |
//! |---|---|
//! | `IDLE` | nobody is at work; the queue was empty when somebody last looked, or a slice was left to the host |
//! | `WORKING` | somebody is |
//! | `MORE` | somebody is, and must look once more before it stops |
//!
//! A writer stores GITS_CWRITER, then swaps `turn` to `MORE`. If it was `IDLE`, the turn is the writer's. If not, who has the turn stops only by
//! a compare-exchange from `WORKING` to `IDLE`, which fails now: that one looks again, and sees GITS_CWRITER, which the swap released to it. So no
//! command is left behind, and no vCPU waits for another one's commands.
//!
//! A guest can keep whoever has the turn busy for as long as it likes. So the queue is worked off in slices: after each, the turn is given back, then
//! the host is asked whether it takes over ([`Kick::commands_left`]), and if not, the turn is taken again, unless somebody else has it. After
//! [`ItsConfig::most`] the visit ends in any case. What is left then is gone on with when the guest reads GITS_CREADR, as it does to find out whether
//! it is done, or writes GITS_CWRITER or GITS_CTLR.
//!
//! What a visit costs is counted as it is done, in events and LPIs that were looked at. A single command is never interrupted; what it can cost is bounded by
//! what is mapped.
//!
//! `maps` is locked for each slice, so that dumps, routes and writes of table registers come in between; GITS_CTLR.Enabled can be cleared
//! at any time, and stops the work after the present command. GITS_CTLR.Quiescent says that it has.

use alloc::sync::Arc;
use core::cell::Cell;

use super::command::{COMMAND_SIZE, Command, Fault, Kind};
use super::exec::{Exec, Stop};
use super::layout::{GITS, Gits};
use super::maps::Maps;
use super::stats::{Counters, ItsTrace};
use super::table::{Baser, COLLECTIONS, DEVICES, ENTRY, Queue};
use super::{ItsConfig, ItsPort};
use crate::engine::{Engine, Error, Injected, Kick, MsiControl};
use crate::gic::Machine;
use crate::gicv3::bits::{IIDR, Status, id};
use crate::gicv3::lpis::LpiControl;
use crate::gicv3::redist::Redist;
use crate::ids::{DeviceId, EventId};
use crate::mmio::{Frame, Reg};
use crate::sync::{AtomicBool, AtomicU64, CachePadded, Mutex, MutexGuard, Ordering, relax, update};

/// GITS_CTLR.Enabled.
const ENABLED: u64 = 1 << 0;
/// GITS_CTLR.Quiescent.
const QUIESCENT: u64 = 1 << 31;
/// GITS_CWRITER.Retry.
const RETRY: u64 = 1 << 0;
/// GITS_CREADR.Stalled.
const STALLED: u64 = 1 << 0;
/// GITS_CWRITER.Offset and GITS_CREADR.Offset.
const OFFSET: u64 = 0xf_ffe0;

/// GITS_TYPER.Physical: LPIs are supported.
const PHYSICAL: u64 = 1 << 0;
/// GITS_TYPER.PTA.
const PTA: u64 = 1 << 19;
/// GITS_TYPER.CIL: CIDbits says how many collections there can be.
const CIL: u64 = 1 << 36;

/// GITS_PIDR0.
const PART: u8 = 0x94;

const IDLE: u64 = 0;
const WORKING: u64 = 1;
const MORE: u64 = 2;

/// What injections through an ITS look at.
pub(crate) struct Gate {
    /// GITS_CTLR.Enabled. Injections read it, and it is written rarely.
    enabled: CachePadded<AtomicBool>,
    pub(crate) counters: Counters,
    pub(crate) trace: Option<Arc<dyn ItsTrace>>,
    pub(crate) number: usize,
}

impl Gate {
    /// Whether MSIs have an effect. What is injected after somebody saw the ITS quiescent does not pass.
    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        // Acquire: pairs with the store in `set_enabled`. A look at GITS_CTLR that found it clear comes after that store, and so, by coherence, does
        // every injection that comes after the look.
        self.enabled.load(Ordering::Acquire)
    }

    /// Tells what became of an MSI.
    #[inline(always)]
    pub(crate) fn translated(&self, device: DeviceId, event: EventId, injected: Injected) {
        if injected == Injected::Unmapped {
            self.untranslated(device, event);
        } else if cfg!(feature = "trace")
            && let Some(trace) = &self.trace
        {
            trace.translation(self.number, device, event, injected);
        }
    }

    #[cold]
    fn untranslated(&self, device: DeviceId, event: EventId) {
        self.counters.untranslated();
        if let Some(trace) = &self.trace {
            trace.untranslated(self.number, device, event);
        }
    }
}

/// What an access to the frames of an ITS comes with.
pub(crate) struct ItsCx<'a, E: Engine> {
    pub(crate) machine: &'a Machine,
    pub(crate) lpis: &'a LpiControl<E>,
    pub(crate) redists: &'a [Redist],
    pub(crate) host: &'a dyn Kick,
    /// `None` if the host goes on with commands.
    pub(crate) injector: Option<&'a E::Injector>,
}

/// One ITS.
pub(crate) struct Unit<E: Engine> {
    pub(crate) config: ItsConfig,
    /// What MSIs are translated with.
    pub(crate) port: ItsPort<E>,
    status: Status,
    cbaser: AtomicU64,
    cwriter: AtomicU64,
    /// Written by who holds `maps`.
    creadr: AtomicU64,
    /// Of devices and of collections. Written by who holds `maps`.
    basers: [AtomicU64; 2],
    turn: AtomicU64,
    maps: Mutex<Maps<E>>,
}

impl<E: Engine> Unit<E> {
    pub(crate) fn new(
        number: usize,
        config: ItsConfig,
        engine: &E,
        trace: Option<Arc<dyn ItsTrace>>,
    ) -> Result<Self, Error> {
        let maps = Maps::new(engine)?;
        let gate = Arc::new(Gate {
            enabled: CachePadded::new(AtomicBool::new(false)),
            counters: Counters::new(),
            trace,
            number,
        });
        Ok(Self {
            config,
            port: ItsPort { gate, domain: maps.msi.domain() },
            status: Status::default(),
            cbaser: AtomicU64::new(0),
            cwriter: AtomicU64::new(0),
            creadr: AtomicU64::new(0),
            basers: [DEVICES, COLLECTIONS].map(|kind| AtomicU64::new(Baser::reset(kind).0)),
            turn: AtomicU64::new(IDLE),
            maps: Mutex::new(maps),
        })
    }

    pub(crate) fn maps(&self) -> MutexGuard<'_, Maps<E>> {
        self.maps.lock()
    }

    /// The tables of devices and of collections. The caller holds `maps`, or takes what it gets.
    pub(crate) fn tables(&self) -> [Baser; 2] {
        // Relaxed: written under the lock of `maps`; a read of the register is ordered by the guest.
        self.basers.each_ref().map(|baser| Baser(baser.load(Ordering::Relaxed)))
    }

    fn queue(&self) -> Queue {
        // Relaxed: as in `tables`.
        Queue(self.cbaser.load(Ordering::Relaxed))
    }

    /// GITS_TYPER.
    fn typer(&self) -> u64 {
        let c = &self.config;
        let cil = match c.collection_bits {
            16 => 0,
            bits => CIL | u64::from(bits - 1) << 32,
        };
        PHYSICAL
            | (ENTRY - 1) << 4
            | u64::from(c.event_bits - 1) << 8
            | u64::from(c.device_bits - 1) << 13
            | if c.pta { PTA } else { 0 }
            | u64::from(c.hardware_collections) << 24
            | cil
    }

    /// Writes GITS_CTLR.Enabled. An ITS without a queue or without tables cannot be enabled (12.19, GITS_CTLR, leaves that open).
    fn set_enabled(&self, cx: &ItsCx<'_, E>, enable: bool) {
        if enable {
            let _maps = self.maps();
            let [devices, collections] = self.tables();
            let collections = collections.is_valid() || self.config.hardware_collections > 0;
            if !(self.queue().is_valid() && devices.is_valid() && collections) {
                return;
            }
            // Release: pairs with the Acquire in `Gate::is_open`.
            self.port.gate.enabled.store(true, Ordering::Release);
        } else {
            // Release: as above. Who takes the turn after the swap in `work` sees it; who has it then has not given it back when this
            // returns, or had seen it.
            self.port.gate.enabled.store(false, Ordering::Release);
        }
        self.work(cx);
    }

    fn ctlr(&self) -> u64 {
        if self.port.gate.is_open() {
            return ENABLED;
        }
        if cfg!(mutant = "quiescent_without_turn") {
            return QUIESCENT;
        }
        // Acquire: pairs with the release of the turn: what the last command did has been done.
        if self.turn.load(Ordering::Acquire) == IDLE { QUIESCENT } else { 0 }
    }

    /// Writes a register that can only be written while the ITS is not enabled.
    fn while_disabled(&self, write: impl FnOnce(&mut Maps<E>)) {
        let mut maps = self.maps();
        if !self.port.gate.is_open() {
            write(&mut maps);
        }
    }

    fn set_queue(&self, value: u64, mask: u64) {
        self.while_disabled(|_| {
            // Relaxed: under the lock.
            self.cbaser.store(self.queue().written(value, mask).0, Ordering::Relaxed);
            // Swaps, as all writes of these words are.
            self.cwriter.swap(0, Ordering::AcqRel);
            self.creadr.swap(0, Ordering::AcqRel);
        });
    }

    /// Writes a GITS_BASER. What its table no longer has is unmapped.
    fn set_table(&self, cx: &ItsCx<'_, E>, index: u32, value: u64, mask: u64) {
        let Some(baser) = self.basers.get(index as usize) else { return };
        self.while_disabled(|maps| {
            // Relaxed: under the lock.
            let new = Baser(baser.load(Ordering::Relaxed)).written(value, mask);
            baser.store(new.0, Ordering::Relaxed);
            if new.is_valid() {
                return;
            }
            if index == 0 {
                maps.remove_devices();
            } else {
                maps.unmap_collections(&self.exec(cx));
            }
        });
    }

    /// Writes GITS_CWRITER.
    fn set_cwriter(&self, cx: &ItsCx<'_, E>, value: u64, mask: u64) {
        let merged = |old| old & !mask | value & mask;
        // AcqRel: what the guest put into the queue is released to who has the turn; see also `turn`.
        let old = update(&self.cwriter, |old| merged(old) & OFFSET);
        if merged(old) & RETRY != 0 {
            // Release: as above.
            let _ = self.creadr.fetch_and(!STALLED, Ordering::AcqRel);
        }
        self.work(cx);
    }

    /// Sees to it that the queue is worked off: here, or by who is at it.
    pub(crate) fn work(&self, cx: &ItsCx<'_, E>) {
        if cfg!(mutant = "enabled_before_turn") && !self.port.gate.is_open() {
            return;
        }
        let mut left = self.config.most;
        // AcqRel, here and below: see the module's documentation.
        loop {
            if self.turn.swap(MORE, Ordering::AcqRel) != IDLE {
                if cfg!(mutant = "turn_awaited") {
                    relax();
                    continue;
                }
                return;
            }
            self.turn.swap(WORKING, Ordering::AcqRel);
            let (spent, more) = self.slice(cx);
            left = left.saturating_sub(spent.max(1));
            if !more && left > 0 && !cfg!(mutant = "turn_given_up_unseen") {
                let done =
                    self.turn.compare_exchange(WORKING, IDLE, Ordering::AcqRel, Ordering::Acquire);
                if done.is_ok() {
                    return;
                }
            }
            // Given back before the host is asked: it may be at work before the answer is here.
            self.turn.swap(IDLE, Ordering::AcqRel);
            let given_up = cfg!(mutant = "turn_given_up_unseen");
            if left == 0 || given_up || (more && cx.host.commands_left(self.port.gate.number)) {
                return;
            }
        }
    }

    /// Whether commands are left that nobody is at.
    pub(crate) fn has_work(&self) -> bool {
        self.turn.load(Ordering::Acquire) == IDLE && self.next_command(self.queue()).is_some()
    }

    /// What commands work with. The caller holds `maps`.
    fn exec<'a>(&'a self, cx: &ItsCx<'a, E>) -> Exec<'a, E> {
        Exec {
            config: &self.config,
            machine: cx.machine,
            lpis: cx.lpis,
            redists: cx.redists,
            counters: &self.port.gate.counters,
            tables: self.tables(),
            spent: Cell::new(0),
        }
    }

    /// Performs some commands. Returns what that cost, and whether there are more.
    fn slice(&self, cx: &ItsCx<'_, E>) -> (u32, bool) {
        let mut maps = self.maps();
        let exec = self.exec(cx);
        let queue = self.queue();
        while let Some(at) = self.next_command(queue) {
            if exec.spent.get() >= self.config.slice {
                return (exec.spent.get(), true);
            }
            exec.spend(1);
            if cfg!(mutant = "creadr_before_command") {
                self.creadr.swap((at + COMMAND_SIZE) % queue.bytes(), Ordering::AcqRel);
            }
            match self.one(&exec, &mut maps, queue.address() + at) {
                // Release, here and below: pairs with the guest's read of the register, which tells it that the command has taken effect.
                Ok(()) => {
                    self.creadr.swap((at + COMMAND_SIZE) % queue.bytes(), Ordering::AcqRel);
                }
                Err(Stop::Fault(_)) => {
                    self.creadr.fetch_or(STALLED, Ordering::AcqRel);
                    break;
                }
                // Somebody is in the middle of an injection, and keeps what is dead from being freed. That passes.
                Err(Stop::Again) => {
                    drop(maps);
                    relax();
                    return (exec.spent.get(), true);
                }
            }
        }
        (exec.spent.get(), false)
    }

    /// Where the next command is, if there is one.
    fn next_command(&self, queue: Queue) -> Option<u64> {
        let enabled = self.port.gate.is_open() || cfg!(mutant = "enabled_before_turn");
        if !enabled || !queue.is_valid() {
            return None;
        }
        // Acquire: pairs with `set_cwriter`.
        let end = self.cwriter.load(Ordering::Acquire);
        let at = self.creadr.load(Ordering::Acquire);
        (at & STALLED == 0 && at != end && end < queue.bytes()).then_some(at)
    }

    /// Performs one command. A fault is returned only if it stalls the queue.
    fn one(&self, exec: &Exec<'_, E>, maps: &mut Maps<E>, address: u64) -> Result<(), Stop> {
        let mut raw = [0; COMMAND_SIZE as usize];
        let command = match exec.lpis.memory().read(address, &mut raw) {
            Ok(()) => Command::decode(&raw).ok_or(Fault::UnknownCommand),
            Err(_) => Err(Fault::QueueMemory),
        };
        let result = match command.map(|command| exec.perform(maps, command)) {
            Ok(Err(Stop::Again)) => return Err(Stop::Again),
            Ok(Err(Stop::Fault(fault))) | Err(fault) => Err(fault),
            Ok(Ok(())) => Ok(()),
        };
        let kind = command.map_or(Kind::Unknown, |command| command.kind());
        self.port.gate.counters.command(kind, result);
        if let Some(trace) = &self.port.gate.trace {
            trace.command(self.port.gate.number, command.ok(), result);
        }
        if self.config.stall { Ok(result?) } else { Ok(()) }
    }
}

impl<E: Engine> Frame<ItsCx<'_, E>> for &Unit<E> {
    type Kind = Gits;
    const LAYOUT: &'static [Reg<Gits>] = GITS;

    fn read(&mut self, cx: &ItsCx<'_, E>, kind: Gits, index: u32) -> u64 {
        match kind {
            Gits::Ctlr => self.ctlr(),
            Gits::Iidr => IIDR,
            Gits::Typer => self.typer(),
            Gits::Statusr => self.status.get(),
            Gits::Cbaser => self.queue().0,
            // Retry reads as 0.
            Gits::Cwriter => self.cwriter.load(Ordering::Relaxed),
            Gits::Creadr => {
                if self.has_work() {
                    self.work(cx);
                }
                // Acquire: pairs with `slice`.
                self.creadr.load(Ordering::Acquire)
            }
            Gits::Baser => self.tables().get(index as usize).map_or(0, |baser| baser.0),
            Gits::Id => id(index, PART),
            Gits::Raz => 0,
        }
    }

    fn write(&mut self, cx: &ItsCx<'_, E>, kind: Gits, index: u32, value: u64, mask: u64) {
        match kind {
            Gits::Ctlr => self.set_enabled(cx, value & ENABLED != 0),
            Gits::Statusr => self.status.clear(value),
            Gits::Cbaser => self.set_queue(value, mask),
            Gits::Cwriter => self.set_cwriter(cx, value, mask),
            Gits::Baser => self.set_table(cx, index, value, mask),
            Gits::Iidr | Gits::Typer | Gits::Creadr | Gits::Id | Gits::Raz => {}
        }
    }

    fn reserved(&mut self, _cx: &ItsCx<'_, E>, offset: u32, write: bool) {
        self.status.record(GITS, offset, write);
    }
}
