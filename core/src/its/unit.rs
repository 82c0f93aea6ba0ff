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
//! A guest can keep whoever has the turn busy for as long as it likes. So the queue is worked off in slices: after each, the host may take over
//! ([`Kick::commands_left`]), and after [`ItsConfig::most`] the turn ends in any case. What is left then is gone on with when the guest reads
//! GITS_CREADR, as it does to find out whether it is done, or writes GITS_CWRITER or GITS_CTLR.
//!
//! `maps` is locked for each slice, so that dumps, routes and writes of table registers come in between; GITS_CTLR.Enabled can be cleared
//! at any time, and stops the work after the present command. GITS_CTLR.Quiescent says that it has.

use alloc::sync::Arc;

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

/// How often a command is tried again while too much waits to be reclaimed, before it is given up.
const ATTEMPTS: u32 = if cfg!(loom) { 2 } else { 1000 };

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
    fn set_table(&self, index: u32, value: u64, mask: u64) {
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
                maps.unmap_collections();
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
        // AcqRel: see the module's documentation.
        if self.turn.swap(MORE, Ordering::AcqRel) != IDLE {
            return;
        }
        let mut left = self.config.most.div_ceil(self.config.slice.max(1)).max(1);
        loop {
            self.turn.swap(WORKING, Ordering::AcqRel);
            while self.slice(cx) {
                left -= 1;
                if left == 0 || cx.host.commands_left(self.port.gate.number) {
                    self.turn.swap(IDLE, Ordering::AcqRel);
                    return;
                }
            }
            let done =
                self.turn.compare_exchange(WORKING, IDLE, Ordering::AcqRel, Ordering::Acquire);
            if done.is_ok() {
                return;
            }
        }
    }

    /// Whether commands are left that nobody is at.
    pub(crate) fn has_work(&self) -> bool {
        self.turn.load(Ordering::Acquire) == IDLE && self.next_command(self.queue()).is_some()
    }

    /// Performs some commands. Returns whether there are more.
    fn slice(&self, cx: &ItsCx<'_, E>) -> bool {
        let mut maps = self.maps();
        let exec = Exec {
            config: &self.config,
            machine: cx.machine,
            lpis: cx.lpis,
            redists: cx.redists,
            counters: &self.port.gate.counters,
            tables: self.tables(),
        };
        let queue = self.queue();
        let mut budget = self.config.slice;
        while let Some(at) = self.next_command(queue) {
            if budget == 0 {
                return true;
            }
            let (cost, goes_on) = self.one(&exec, &mut maps, queue.address() + at);
            budget = budget.saturating_sub(cost);
            if !goes_on {
                // Release: pairs with the guest's read of the register.
                self.creadr.fetch_or(STALLED, Ordering::AcqRel);
                return false;
            }
            // Release: pairs with the guest's read of the register, which tells it that the command has taken effect.
            self.creadr.swap((at + COMMAND_SIZE) % queue.bytes(), Ordering::AcqRel);
        }
        false
    }

    /// Where the next command is, if there is one.
    fn next_command(&self, queue: Queue) -> Option<u64> {
        if !self.port.gate.is_open() || !queue.is_valid() {
            return None;
        }
        // Acquire: pairs with `set_cwriter`.
        let end = self.cwriter.load(Ordering::Acquire);
        let at = self.creadr.load(Ordering::Acquire);
        (at & STALLED == 0 && at != end && end < queue.bytes()).then_some(at)
    }

    /// Performs one command. Returns what it cost, and whether the queue goes on.
    fn one(&self, exec: &Exec<'_, E>, maps: &mut Maps<E>, address: u64) -> (u32, bool) {
        let mut raw = [0; COMMAND_SIZE as usize];
        let command = match exec.lpis.memory().read(address, &mut raw) {
            Ok(()) => Command::decode(&raw).ok_or(Fault::UnknownCommand),
            Err(_) => Err(Fault::QueueMemory),
        };
        let cost = command.map_or(1, |command| maps.cost(command));
        // What is tried again is work, too.
        let (result, again) = match command {
            Ok(command) => self.perform(exec, maps, command),
            Err(fault) => (Err(fault), 0),
        };
        let kind = command.map_or(Kind::Unknown, |command| command.kind());
        self.port.gate.counters.command(kind, result);
        if let Some(trace) = &self.port.gate.trace {
            trace.command(self.port.gate.number, command.ok(), result);
        }
        (cost.saturating_add(again), result.is_ok() || !self.config.stall)
    }

    /// Performs a command. Returns how often it was tried again, as well.
    fn perform(
        &self,
        exec: &Exec<'_, E>,
        maps: &mut Maps<E>,
        command: Command,
    ) -> (Result<(), Fault>, u32) {
        for again in 0..ATTEMPTS {
            match exec.perform(maps, command) {
                Ok(()) => return (Ok(()), again),
                Err(Stop::Fault(fault)) => return (Err(fault), again),
                // Somebody is in the middle of an injection, and keeps what is dead from being freed.
                Err(Stop::Again) => relax(),
            }
        }
        (Err(Fault::Bounds), ATTEMPTS)
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
            Gits::Baser => self.set_table(index, value, mask),
            Gits::Iidr | Gits::Typer | Gits::Creadr | Gits::Id | Gits::Raz => {}
        }
    }

    fn reserved(&mut self, _cx: &ItsCx<'_, E>, offset: u32, write: bool) {
        self.status.record(GITS, offset, write);
    }
}
