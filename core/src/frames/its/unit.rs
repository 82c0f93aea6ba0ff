//! One ITS: its registers, and the turns in which threads work off its command queue.
//!
//! # Turns
//!
//! Commands are performed by the thread that writes GITS_CWRITER, one thread at a time. A thread
//! that comes while another one is at work does not wait: `turn` says that a thread is at work, and
//! that there is more to check.
//!
//! * `IDLE`: no thread is at work. There was no command to perform at the last check, or the
//!   remaining commands are left to the host or to the guest's next access.
//! * `WORKING`: a thread is at work.
//! * `MORE`: a thread is at work, and must re-check before it stops.
//!
//! The *writer* stores GITS_CWRITER, then swaps `turn` to `MORE`. If `turn` was `IDLE`, the writer
//! has the turn. If not, another thread, the *holder*, has it. Apart from the limits below, the
//! holder stops only by a compare-exchange from `WORKING` to `IDLE`, which now fails. So the holder
//! re-checks, and sees GITS_CWRITER, which the swap released to it. So no command is left behind,
//! and no vCPU waits for another vCPU's commands.
//!
//! A guest can keep the holder busy for as long as it likes. So the queue is worked off in slices
//! of [`ItsConfig::slice`]. After each slice, the holder gives the turn back, and then, if work is
//! left, asks the host whether it takes over ([`Kick::commands_left`]). If the host does not, the
//! thread takes the turn again, unless another thread has it. After [`ItsConfig::most`] the thread
//! stops in any case. The remaining commands run when the guest reads GITS_CREADR or GITS_CTLR, as
//! it does to find out whether they are done, or writes GITS_CTLR or GITS_CWRITER.
//!
//! # Jobs
//!
//! A command becomes a job (see `job`) if its work grows with the number of mappings. So does a
//! write of a GITS_BASER that takes mappings away. A slice can end in the midst of a job.
//! GITS_CREADR advances when the job of its command is done. GITS_CTLR.Quiescent waits for all
//! jobs. All jobs are done before the next command is read; the job of a command comes first.
//!
//! From the moment at which a GITS_BASER is written, mappings in the table that it named before are
//! no longer translated: [`LOSING`], a separate bit of the gate, is set until the job is done. The
//! gate is closed at that moment anyway, because the register can only be written while the ITS is
//! not enabled. The bit keeps the gate closed if the ITS is enabled before the job is done.
//!
//! A command that meets a bound while unmapped objects still wait to be freed ends the access, and
//! is performed at a later access of the guest.
//!
//! # Waiting
//!
//! `maps` is locked for each slice and released between slices, so that dumps, routes and register
//! writes come in between. GITS_CTLR.Enabled can be cleared at any time, and stops the work after
//! the present command. GITS_CTLR.Quiescent says that the work has stopped.
//!
//! A host's callback that panics in the midst of a command leaves the command at the head of the
//! queue, and the turn free.

use alloc::sync::Arc;
use core::cell::Cell;

use super::command::{COMMAND_SIZE, Command, Fault, Kind};
use super::exec::{Exec, Stop};
use super::job::Long;
use super::layout::{GITS, Gits};
use super::maps::Maps;
use super::stats::{Counters, ItsTrace};
use super::table::{Baser, COLLECTIONS, DEVICES, ENTRY, Queue};
use super::{ItsConfig, ItsPort};
use crate::arch::ids::{DeviceId, EventId};
use crate::engine::{Engine, Error, Injected, Kick, MsiControl};
use crate::frames::gicv3::irq_regs::{IIDR, Status, id};
use crate::frames::gicv3::redist::Redist;
use crate::frames::lpi_tables::LpiControl;
use crate::frames::machine::Machine;
use crate::frames::mmio::{Frame, Reg};
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
/// GITS_TYPER.CIL: CIDbits gives the number of collections.
const CIL: u64 = 1 << 36;

/// GITS_PIDR0.
const PART: u8 = 0x94;

const IDLE: u64 = 0;
const WORKING: u64 = 1;
const MORE: u64 = 2;

/// A bit of the gate: mappings are being unmapped because the guest has given up their table.
const LOSING: u64 = 1 << 1;

/// Work units for reading a command.
const COMMAND: u32 = 2;

/// The turn, held by the thread that is at work. It is given back also if a callback of the host
/// panics.
struct Turn<'t>(&'t AtomicU64);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // AcqRel: see the module's documentation.
        self.0.swap(IDLE, Ordering::AcqRel);
    }
}

/// The state that injections through an ITS read.
pub(crate) struct Gate {
    /// GITS_CTLR.Enabled and [`LOSING`]. Each injection reads this word, and it is written rarely.
    state: CachePadded<AtomicU64>,
    pub(crate) counters: Counters,
    pub(crate) trace: Option<Arc<dyn ItsTrace>>,
    pub(crate) number: usize,
}

impl Gate {
    /// Whether MSIs have an effect. An injection that begins after a thread has seen the ITS
    /// quiescent does not pass.
    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        // Acquire: pairs with the writes in `set_enabled` and `set_table`. A read of GITS_CTLR that
        // found Enabled clear comes after that write, and so, by coherence, does every injection
        // that comes after the read.
        self.state.load(Ordering::Acquire) == ENABLED
    }

    /// GITS_CTLR.Enabled.
    pub(crate) fn is_enabled(&self) -> bool {
        // Acquire: as in `is_open`.
        self.state.load(Ordering::Acquire) & ENABLED != 0
    }

    /// Reports the result of an MSI to the counters and hooks.
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

/// The context of an access to the frames of an ITS.
pub(crate) struct ItsCx<'a, E: Engine> {
    pub(crate) machine: &'a Machine,
    pub(crate) lpis: &'a LpiControl<E>,
    pub(crate) redists: &'a [Redist],
    pub(crate) host: &'a dyn Kick,
    /// `None` if the host works off commands.
    pub(crate) injector: Option<&'a E::Injector>,
}

/// One ITS.
pub(crate) struct Unit<E: Engine> {
    pub(crate) config: ItsConfig,
    /// The handle through which MSIs are translated.
    pub(crate) port: ItsPort<E>,
    status: Status,
    cbaser: AtomicU64,
    cwriter: AtomicU64,
    /// Written with `maps` locked, except that a write of GITS_CWRITER can clear Stalled.
    creadr: AtomicU64,
    /// The registers of the device table and of the collection table. Written with `maps` locked.
    basers: [AtomicU64; 2],
    turn: AtomicU64,
    /// Whether `maps` has a job. Written with `maps` locked.
    has_job: AtomicBool,
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
            state: CachePadded::new(AtomicU64::new(0)),
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
            has_job: AtomicBool::new(false),
            maps: Mutex::new(maps),
        })
    }

    pub(crate) fn maps(&self) -> MutexGuard<'_, Maps<E>> {
        self.maps.lock()
    }

    /// The device table and the collection table. The caller holds `maps`, or accepts values that
    /// may change.
    pub(crate) fn tables(&self) -> [Baser; 2] {
        // Relaxed: written under the lock of `maps`. The guest orders its reads of the register.
        self.basers.each_ref().map(|baser| Baser(baser.load(Ordering::Relaxed)))
    }

    fn queue(&self) -> Queue {
        // Relaxed: as in `tables`.
        Queue(self.cbaser.load(Ordering::Relaxed))
    }

    /// The value of GITS_TYPER.
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

    /// Writes GITS_CTLR.Enabled. An ITS without a queue or without tables cannot be enabled (12.19,
    /// GITS_CTLR, leaves that open).
    fn set_enabled(&self, cx: &ItsCx<'_, E>, enable: bool) {
        if enable {
            let _maps = self.maps();
            let [devices, collections] = self.tables();
            let collections = collections.is_valid() || self.config.hardware_collections > 0;
            if !(self.queue().is_valid() && devices.is_valid() && collections) {
                return;
            }
            // Release: pairs with the Acquire in `Gate::is_open`.
            self.port.gate.state.fetch_or(ENABLED, Ordering::AcqRel);
        } else {
            // Release: as above. A thread that takes the turn after the swap in `work` sees the bit
            // clear. A thread that has the turn at the swap either has not given it back when this
            // returns, or had seen the bit clear.
            self.port.gate.state.fetch_and(!ENABLED, Ordering::AcqRel);
        }
        self.work(cx);
    }

    fn ctlr(&self, cx: &ItsCx<'_, E>) -> u64 {
        self.poll(cx);
        if self.port.gate.is_enabled() {
            return ENABLED;
        }
        if cfg!(mutant = "quiescent_without_turn") {
            return QUIESCENT;
        }
        // Acquire: pairs with the release of the turn, so the effects of the last command are
        // complete.
        let idle = self.turn.load(Ordering::Acquire) == IDLE;
        if idle && !self.has_job() { QUIESCENT } else { 0 }
    }

    /// Continues with remaining work if no thread is at work.
    fn poll(&self, cx: &ItsCx<'_, E>) {
        if self.has_work() {
            self.work(cx);
        }
    }

    fn has_job(&self) -> bool {
        // Acquire: pairs with `set_has_job`, which comes before the turn is given back.
        self.has_job.load(Ordering::Acquire)
    }

    /// Updates `has_job`. The caller holds `maps`.
    fn set_has_job(&self, maps: &Maps<E>) {
        // A swap: all writes of these words are read-modify-writes.
        self.has_job.swap(maps.long.is_some() || maps.lost.is_some(), Ordering::AcqRel);
    }

    /// Writes a register that can only be written while the ITS is not enabled.
    fn while_disabled(&self, write: impl FnOnce(&mut Maps<E>)) {
        let mut maps = self.maps();
        if !self.port.gate.is_enabled() {
            write(&mut maps);
        }
    }

    fn set_queue(&self, value: u64, mask: u64) {
        self.while_disabled(|maps| {
            // The command was in the queue that is being replaced.
            maps.long.iter_mut().for_each(|long| long.queued = false);
            // Relaxed: under the lock.
            self.cbaser.store(self.queue().written(value, mask).0, Ordering::Relaxed);
            // Swaps: all writes of these words are read-modify-writes.
            self.cwriter.swap(0, Ordering::AcqRel);
            self.creadr.swap(0, Ordering::AcqRel);
        });
    }

    /// Writes a GITS_BASER. Mappings that were in the old table and are not in the new one are
    /// unmapped.
    fn set_table(&self, cx: &ItsCx<'_, E>, index: u32, value: u64, mask: u64) {
        let Some(baser) = self.basers.get(index as usize) else { return };
        self.while_disabled(|maps| {
            // Relaxed: under the lock.
            let old = Baser(baser.load(Ordering::Relaxed));
            let new = old.written(value, mask);
            baser.store(new.0, Ordering::Relaxed);
            let Some(first) = old.lost(new) else { return };
            if index == 0 {
                maps.lost.devices(first);
            } else {
                // The first collections are in no table.
                maps.lost.collections(first.max(self.config.hardware_collections.into()));
            }
            // Release: pairs with the Acquire in `Gate::is_open`.
            self.port.gate.state.fetch_or(LOSING, Ordering::AcqRel);
            self.set_has_job(maps);
        });
        if self.has_job() {
            self.work(cx);
        }
    }

    /// Writes GITS_CWRITER.
    fn set_cwriter(&self, cx: &ItsCx<'_, E>, value: u64, mask: u64) {
        let merged = |old| old & !mask | value & mask;
        // AcqRel: releases the guest's writes to the queue to the holder of the turn; see also
        // `turn`.
        let old = update(&self.cwriter, |old| merged(old) & OFFSET);
        if merged(old) & RETRY != 0 {
            // Release: as above.
            let _ = self.creadr.fetch_and(!STALLED, Ordering::AcqRel);
        }
        self.work(cx);
    }

    /// Makes sure that the queue is worked off: here, or by the holder of the turn.
    pub(crate) fn work(&self, cx: &ItsCx<'_, E>) {
        if cfg!(mutant = "enabled_before_turn") && !self.port.gate.is_enabled() {
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
            let turn = Turn(&self.turn);
            self.turn.swap(WORKING, Ordering::AcqRel);
            let (spent, more) = self.slice(cx);
            left = left.saturating_sub(spent.max(1));
            if !more && left > 0 && !cfg!(mutant = "turn_given_up_unseen") {
                let done =
                    self.turn.compare_exchange(WORKING, IDLE, Ordering::AcqRel, Ordering::Acquire);
                if done.is_ok() {
                    core::mem::forget(turn);
                    return;
                }
            }
            // The turn is given back before the host is asked: the host may be at work before its
            // answer arrives here.
            drop(turn);
            let given_up = cfg!(mutant = "turn_given_up_unseen");
            if left == 0 || given_up || (more && cx.host.commands_left(self.port.gate.number)) {
                return;
            }
        }
    }

    /// Whether there is work that no thread is doing.
    pub(crate) fn has_work(&self) -> bool {
        let idle = self.turn.load(Ordering::Acquire) == IDLE;
        idle && (self.has_job() || self.next_command(self.queue()).is_some())
    }

    /// The context of commands. The caller holds `maps`.
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

    /// Performs one slice of jobs and commands. Returns its cost, and whether there is more work.
    fn slice(&self, cx: &ItsCx<'_, E>) -> (u32, bool) {
        let mut maps = self.maps();
        let exec = self.exec(cx);
        loop {
            let step = if maps.long.is_some() || maps.lost.is_some() {
                if exec.is_spent() {
                    return (exec.spent.get(), true);
                }
                self.go_on(&exec, &mut maps)
            } else {
                let Some(at) = self.next_command(self.queue()) else { break };
                if exec.is_spent() {
                    return (exec.spent.get(), true);
                }
                exec.spend(COMMAND);
                self.one(&exec, &mut maps, self.queue().address() + at)
            };
            match step {
                Ok(()) => {}
                Err(Stop::Fault(_)) => break,
                // Unmapped objects cannot be freed yet: a thread is in the middle of an injection,
                // or a vCPU has them queued in its mailbox. The thread at work here may be that
                // vCPU's own. The condition passes when these threads continue.
                Err(_) => return (u32::MAX, true),
            }
        }
        (exec.spent.get(), false)
    }

    /// Continues a job.
    fn go_on(&self, exec: &Exec<'_, E>, maps: &mut Maps<E>) -> Result<(), Stop> {
        // This is a copy, so a callback that panics leaves the job as it was.
        if let Some(mut long) = maps.long {
            let done = exec.go_on(maps, &mut long.job);
            let result = match done {
                Ok(true) => Ok(()),
                Err(Stop::Fault(fault)) => Err(fault),
                Ok(false) | Err(_) => {
                    maps.long = Some(long);
                    return done.map(drop);
                }
            };
            maps.long = None;
            self.set_has_job(maps);
            return self.performed(Some(long.command), result, long.queued);
        }
        let mut lost = maps.lost;
        let done = exec.go_on_losing(maps, &mut lost);
        maps.lost = lost;
        self.set_has_job(maps);
        if done? {
            // Release: pairs with the Acquire in `Gate::is_open`.
            self.port.gate.state.fetch_and(!LOSING, Ordering::AcqRel);
        }
        Ok(())
    }

    /// The offset of the next command in the queue, if there is one.
    fn next_command(&self, queue: Queue) -> Option<u64> {
        let enabled = self.port.gate.is_enabled() || cfg!(mutant = "enabled_before_turn");
        if !enabled || !queue.is_valid() {
            return None;
        }
        // Acquire: pairs with `set_cwriter`.
        let end = self.cwriter.load(Ordering::Acquire);
        let at = self.creadr.load(Ordering::Acquire);
        (at & STALLED == 0 && at != end && end < queue.bytes()).then_some(at)
    }

    /// Performs one command. Returns a fault only if it stalls the queue.
    fn one(&self, exec: &Exec<'_, E>, maps: &mut Maps<E>, address: u64) -> Result<(), Stop> {
        let mut raw = [0; COMMAND_SIZE as usize];
        let command = match exec.lpis.memory().read(address, &mut raw) {
            Ok(()) => Command::decode(&raw).ok_or(Fault::UnknownCommand),
            Err(_) => Err(Fault::QueueMemory),
        };
        if cfg!(mutant = "creadr_before_command") {
            self.advance();
        }
        let result = match command.map(|command| exec.perform(maps, command)) {
            Ok(Err(Stop::Again)) => return Err(Stop::Again),
            Ok(Err(Stop::Long(job))) => {
                maps.long = command.ok().map(|command| Long { job, command, queued: true });
                self.set_has_job(maps);
                return Ok(());
            }
            Ok(Err(Stop::Fault(fault))) | Err(fault) => Err(fault),
            Ok(Ok(())) => Ok(()),
        };
        self.performed(command.ok(), result, true)
    }

    /// Records that a command has been performed, and advances GITS_CREADR if the command is
    /// `queued`. Returns a fault only if it stalls the queue.
    fn performed(
        &self,
        command: Option<Command>,
        result: Result<(), Fault>,
        queued: bool,
    ) -> Result<(), Stop> {
        let kind = command.map_or(Kind::Unknown, |command| command.kind());
        self.port.gate.counters.command(kind, result);
        if let Some(trace) = &self.port.gate.trace {
            trace.command(self.port.gate.number, command, result);
        }
        if !queued {
            return Ok(());
        }
        if self.config.stall && result.is_err() {
            self.creadr.fetch_or(STALLED, Ordering::AcqRel);
            return Ok(result?);
        }
        if !cfg!(mutant = "creadr_before_command") {
            self.advance();
        }
        Ok(())
    }

    /// Advances GITS_CREADR to the next command.
    fn advance(&self) {
        let at = self.creadr.load(Ordering::Acquire) & OFFSET;
        // Release: pairs with the guest's read of the register, which tells it that the command has
        // taken effect.
        self.creadr.swap((at + COMMAND_SIZE) % self.queue().bytes(), Ordering::AcqRel);
    }

    /// Finishes the work that is in progress, for a caller that is going to read all mappings. No
    /// vCPU runs. Work that waits for something else stays as it is.
    pub(crate) fn settle(&self, cx: &ItsCx<'_, E>) {
        let mut before = None;
        while self.has_job() {
            self.work(cx);
            let maps = self.maps();
            let now = (maps.long.map(|long| long.job), maps.lost, maps.counts());
            if before.replace(now) == Some(now) {
                return;
            }
        }
    }
}

impl<E: Engine> Frame<ItsCx<'_, E>> for &Unit<E> {
    type Kind = Gits;
    const LAYOUT: &'static [Reg<Gits>] = GITS;

    fn read(&mut self, cx: &ItsCx<'_, E>, kind: Gits, index: u32) -> u64 {
        match kind {
            Gits::Ctlr => self.ctlr(cx),
            Gits::Iidr => IIDR,
            Gits::Typer => self.typer(),
            Gits::Statusr => self.status.get(),
            Gits::Cbaser => self.queue().0,
            // Retry reads as 0.
            Gits::Cwriter => self.cwriter.load(Ordering::Relaxed),
            Gits::Creadr => {
                self.poll(cx);
                // Acquire: pairs with `advance`.
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
