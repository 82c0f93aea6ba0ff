//! The vCPU thread's side of the engine: from the mailbox to the list registers and back.
//!
//! An interrupt that a [`VcpuInterface`] owns is in exactly one place: it waits in a bucket
//! ([`ReadyQueue`]), it is in a list register ([`Entry`]), or it is active without one (`spilled`).
//! Every interrupt of the mailbox comes in through `take_posted`, or through `take_single` if it is
//! the only one. An interrupt leaves when its [`OwnerRef`] is dropped or handed over. (Linux's vGIC
//! calls this step pruning.) The reference that was taken when the interrupt was queued ends there,
//! and not when a list register is folded.
//!
//! Events do not tell how the state changed: each one causes a re-evaluation from scratch
//! (`classify`, `reevaluate`).
//!
//! Costs: the time of a flush grows with the number of interrupts in the mailbox and the number of
//! list registers. The number of interrupts in the buckets does not matter. Work that exceeds a
//! slice continues at the next flush (`slices`).
//!
//! Models: `delivery_push`, `delivery_config`, `delivery_active`, `delivery_read`, `delivery_kick`,
//! `delivery_retarget`, `delivery_power`, `its_storm`.

#![allow(unsafe_code)] // Interrupts found through the mailbox that this vCPU owns already.

mod entries;
mod power;
mod ready;
mod slices;

use alloc::sync::Arc;
use core::cell::Cell;
use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::arch::ids::{Intid, VcpuId};
use crate::arch::lr::{ListRegisters, Lr, LrState, MAX_LRS, Maintenance};
use crate::engine::{Error, Flushed, Vcpu, Wired};
use crate::lockfree::irq::control::Control;
use crate::lockfree::irq::refs::{Claim, OwnerRef, QueuedRef};
use crate::lockfree::irq::state::State;
use crate::lockfree::irq::{Irq, Place};
use crate::lockfree::notify::mailbox::Mail;
use crate::lockfree::notify::{Requests, VcpuRef};
use crate::lockfree::reclaim::{Participant, Reclaim, Slots};
use crate::lockfree::vcpu::ready::ReadyQueue;
use crate::lockfree::vm::Shared;
use crate::observe::counters::Counter;
use entries::Entry;
use slices::{SLICE, Scan};

/// The next step for an interrupt that this vCPU owns.
enum Disposition {
    /// It is to be offered to the guest, at this priority level.
    Deliver(u8),
    /// It is pending, and its target is another vCPU.
    Forward,
    /// It is not pending, or may not be offered now.
    Idle,
}

/// A vCPU's own side of the engine. It belongs to the thread that runs the vCPU: it is neither
/// Clone nor Sync.
pub struct VcpuInterface<R: Reclaim = Slots> {
    id: VcpuId,
    open: bool,
    /// The vCPU is being powered off. Stays set if the host panics in between.
    closing: bool,
    /// Set between a flush and the fold after it: the list registers belong to the guest.
    in_guest: bool,
    /// An interrupt may have begun to wait since the last flush, other than through the mailbox.
    /// Also set while a flush runs.
    unflushed: bool,
    /// The contents of the list registers are not known yet.
    fresh: bool,
    /// Threads that ask about wired interrupts of this vCPU wait until the fold.
    window_open: bool,
    /// The groups that the guest has enabled at its CPU interface, as of the last flush.
    groups: [bool; 2],
    /// Interrupts that were drained from the mailbox and are not taken in yet.
    mail: Mail,
    /// The progress of a scan of all LPIs.
    scan: Scan,
    /// Requests of other threads, or of this one, that are not done yet.
    asked: Requests,
    /// Interrupts in the buckets may not be deliverable any more. Each is checked before it is
    /// offered.
    doubtful: bool,
    /// Work is left that exceeded a slice, or in which the host panicked. The next flush continues
    /// it.
    left_over: bool,
    ready: ReadyQueue,
    /// Active interrupts in no list register. The newest of a level comes first.
    spilled: ReadyQueue,
    /// The first `used` are in use. Of two pending ones of a priority, the older comes first.
    entries: [Option<Entry>; MAX_LRS],
    used: usize,
    /// The known contents of the list registers. Those from `written` on are empty.
    held: [Lr; MAX_LRS],
    written: usize,
    maintenance: Maintenance,
    /// The wanted maintenance conditions may differ from `maintenance`.
    reconsider_maintenance: bool,
    participant: R::Participant,
    /// The mailbox and gates of this vCPU.
    mine: VcpuRef,
    /// The last field, so that it is dropped last: everything above points to it.
    shared: Arc<Shared<R>>,
    _not_sync: PhantomData<Cell<()>>,
}

impl<R: Reclaim> VcpuInterface<R> {
    pub(crate) fn new(shared: Arc<Shared<R>>, id: VcpuId) -> Result<Self, Error> {
        if !shared.dispatcher.has_vcpu(id) {
            return Err(Error::NoSuchVcpu(id));
        }
        let participant = shared.reclaim.register().ok_or(Error::TooManyParticipants)?;
        if !shared.dispatcher.vcpu(id).take_interface() {
            return Err(Error::VcpuInUse(id));
        }
        Ok(Self {
            id,
            open: false,
            closing: false,
            in_guest: false,
            unflushed: false,
            fresh: true,
            window_open: false,
            groups: [true; 2],
            mail: Mail::new(),
            scan: Scan::default(),
            asked: Requests::default(),
            doubtful: false,
            left_over: false,
            ready: ReadyQueue::new(Place::Ready),
            spilled: ReadyQueue::new(Place::Spilled),
            entries: [const { None }; MAX_LRS],
            used: 0,
            held: [Lr::EMPTY; MAX_LRS],
            written: 0,
            maintenance: Maintenance::default(),
            reconsider_maintenance: true,
            participant,
            mine: VcpuRef::new(&shared.dispatcher, id),
            shared,
            _not_sync: PhantomData,
        })
    }

    /// Returns the vCPU's ID.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// Whether this vCPU may offer an interrupt with this configuration, if it is pending.
    #[inline]
    fn willing(&self, irq: &Irq, control: Control, state: State) -> bool {
        if !control.enabled() || control.target() != self.id {
            return false;
        }
        let lpi = irq.intid().is_lpi();
        // "Unmapped" can be stale: the thread that maps the LPI schedules it.
        (!lpi || state.is_mapped())
            && self.groups[control.group() as usize]
            // A closed gate can be stale: after a gate is opened, the owner is asked to scan.
            && self.mine.gates().pass(control.group(), lpi)
    }

    /// Decides about an interrupt from its pending bit, configuration and `state`.
    #[inline]
    fn classify(&self, irq: &Irq, state: State) -> Disposition {
        let control = irq.control().load();
        if !irq.pending().is_pending(irq.lane()) && !control.asserted() {
            Disposition::Idle
        } else if control.target() != self.id {
            Disposition::Forward
        } else if self.willing(irq, control, state) {
            Disposition::Deliver(control.priority().level() as u8)
        } else {
            Disposition::Idle
        }
    }

    /// Puts an interrupt where it belongs, after it has lost its place at this vCPU. It is no
    /// longer active or pending in a list register.
    fn requeue(&mut self, owned: OwnerRef) {
        owned.publish(false, false);
        let state = owned.state.load();
        self.requeue_as(owned, state);
    }

    /// Puts an interrupt where it belongs, given the state that the caller has just read.
    // Not inlined: most LPIs do not come here (`enqueue_lpi`, `take_single`), and guest entries are
    // faster without this code.
    #[inline(never)]
    fn requeue_as(&mut self, owned: OwnerRef, state: State) {
        if state.is_active() {
            // It was active when its vCPU was powered off, or another thread has made it active.
            return self.requeue_active(owned);
        }
        match self.classify(&owned, state) {
            Disposition::Deliver(level) => self.ready.push_back(level, owned),
            Disposition::Forward if cfg!(mutant = "elsewhere_dropped") => drop(owned),
            Disposition::Forward => self.hand_over(owned),
            Disposition::Idle => drop(owned),
        }
    }

    /// Puts an interrupt where it belongs that is active, but not through this vCPU's guest: its
    /// target takes it.
    #[cold]
    fn requeue_active(&mut self, owned: OwnerRef) {
        let control = owned.control().load();
        if control.target() == self.id {
            owned.control().update(|c| c.with_active_group(c.group()));
            self.spilled.push_front(control.priority().level() as u8, owned);
        } else {
            let (posted, ended) = owned.hand_over(true);
            if let Some(posted) = posted {
                self.shared.dispatcher.post(posted);
            }
            self.shared.dispatcher.deactivate_ended(ended, control.phys());
        }
    }

    /// Gives an interrupt to its present target.
    fn hand_over(&self, owned: OwnerRef) {
        self.mine.counters.add(Counter::HandedOver, 1);
        if let (Some(posted), _) = owned.hand_over(false) {
            self.shared.dispatcher.post(posted);
        }
    }

    /// Takes in an interrupt from the mailbox, because something about it has changed.
    // Not inlined: most guest entries have a single interrupt, which takes the other path
    // (`take_single`).
    #[inline(never)]
    fn take_posted(&mut self, posted: QueuedRef) {
        if cfg!(mutant = "verdict_before_claim")
            && matches!(self.classify(&posted, posted.state.load()), Disposition::Idle)
        {
            return drop(posted);
        }
        match posted.claim(self.id) {
            Claim::New(owned, state) if owned.intid().is_lpi() => self.enqueue_lpi(owned, state),
            Claim::New(owned, state) => self.requeue_as(owned, state),
            Claim::Mine(irq, changed) => self.reconsider(irq, changed),
            Claim::Elsewhere(posted) => self.pass_on(posted),
        }
    }

    /// Puts an LPI that has just come in into its bucket. Its pending bit is read only when it is
    /// taken: the injector may still be writing other bits of the same cache line.
    #[inline]
    fn enqueue_lpi(&mut self, owned: OwnerRef, state: State) {
        let control = owned.control().load();
        if !state.is_active() && self.willing(&owned, control, state) {
            self.ready.push_back(control.priority().level() as u8, owned);
        } else {
            self.requeue_as(owned, state);
        }
    }

    /// Takes in the only interrupt that waits, while a list register is free, without the detour
    /// through a bucket.
    #[inline]
    fn take_single(&mut self, posted: QueuedRef) {
        match posted.claim(self.id) {
            Claim::New(owned, state) if !state.is_active() => {
                let control = owned.control().load();
                if self.willing(&owned, control, state) {
                    self.offer(control.priority().level() as u8, owned, control);
                } else {
                    self.requeue_as(owned, state);
                }
            }
            Claim::New(owned, state) => self.requeue_as(owned, state),
            Claim::Mine(irq, changed) => self.reconsider(irq, changed),
            Claim::Elsewhere(posted) => self.pass_on(posted),
        }
    }

    /// Passes an interrupt on to the vCPU that owns it.
    #[cold]
    fn pass_on(&self, posted: QueuedRef) {
        self.shared.dispatcher.post(posted);
    }

    /// Re-evaluates an interrupt that this vCPU owns already. `changed` is the active state that
    /// another thread has written, if any.
    fn reconsider(&mut self, irq: NonNull<Irq>, changed: Option<bool>) {
        // SAFETY: this vCPU owns it: `claim` says so, and no other thread ends the ownership.
        let owned = unsafe { OwnerRef::borrow(irq) };
        match owned.place() {
            Place::Ready(level) if changed == Some(true) => {
                // SAFETY: its place says that it is in `ready` at `level`.
                let owned = unsafe { self.ready.remove(level, irq) };
                self.requeue_active(owned);
            }
            Place::Ready(level) => {
                // An interrupt that stays at its level keeps its turn.
                if !matches!(self.classify(&owned, owned.state.load()), Disposition::Deliver(now) if now == level)
                {
                    // SAFETY: its place says that it is in `ready` at `level`.
                    let owned = unsafe { self.ready.remove(level, irq) };
                    self.requeue(owned);
                }
            }
            Place::InLr(n) => match changed {
                Some(active) if !cfg!(mutant = "write_to_active_ignored") => {
                    self.activate(n as usize, active);
                }
                _ => self.reevaluate(n as usize),
            },
            Place::Spilled(level) if changed == Some(false) => {
                // SAFETY: its place says that it is in `spilled` at `level`.
                let owned = unsafe { self.spilled.remove(level, irq) };
                self.end_spilled(&owned);
                self.requeue(owned);
            }
            // It is re-evaluated when it is deactivated, or gets a list register again.
            Place::Spilled(_) => {}
            Place::Nowhere => debug_assert!(false, "owned, but nowhere"),
        }
    }

    /// Opens the window, before the guest can change a wired interrupt in a list register. From now
    /// on, threads that ask about wired interrupts of this vCPU wait.
    #[inline]
    fn open_window(&mut self) {
        if !self.window_open {
            self.window_open = true;
            self.mine.open_window();
        }
    }

    /// Takes over the active states that other threads have written for interrupts in list
    /// registers. Returns whether there were any. A writer that finds the window closed does not
    /// wait. The mail that announces its change may not have arrived, if a third thread is about to
    /// post it.
    fn take_changes(&mut self) -> bool {
        let mut changed = false;
        // From the end, since an entry can be taken out.
        for n in (0..self.used).rev() {
            let change = self.entries[n].as_ref().and_then(|entry| entry.owned.take_change());
            if let Some(active) = change {
                self.activate(n, active);
                changed = true;
            }
        }
        changed
    }

    /// Publishes the guest's changes and closes the window, so that waiting threads continue.
    #[cold]
    fn close_window(&mut self) {
        let early = cfg!(mutant = "conceal_before_publish").then(|| self.mine.close_window());
        self.entries[..self.used].iter().flatten().for_each(Entry::publish);
        self.window_open = false;
        if early.unwrap_or_else(|| self.mine.close_window()) {
            self.shared.dispatcher.tell_exit(self.id);
        }
    }

    /// Whether a wired interrupt is in a list register, or active without one.
    #[inline]
    fn holds_wired(&self) -> bool {
        let wired = |entry: &Entry| !entry.owned.intid().is_lpi();
        self.entries[..self.used].iter().flatten().any(wired) || !self.spilled.is_empty()
    }

    /// Takes over a change of the groups that the guest has enabled at its CPU interface.
    #[cold]
    fn change_groups(&mut self, groups: [bool; 2]) {
        self.reconsider_maintenance = true;
        let before = core::mem::replace(&mut self.groups, groups);
        if before.iter().zip(&groups).any(|(was, is)| *was && !is) {
            self.asked = self.asked.and(Requests::REEVALUATE);
        }
        if before.iter().zip(&groups).any(|(was, is)| !was && *is) {
            self.asked = self.asked.and(Requests::SCAN);
        }
        self.left_over = true;
    }

    /// Takes in a slice of the mail, and fills the list registers.
    #[inline]
    fn take_in_mail(&mut self, count: usize, resumed: bool) {
        // These cache lines arrive while the mail is processed.
        self.ready.prefetch(count.saturating_sub(self.used));
        let more = resumed && !self.mail.is_empty();
        if more || self.mine.mailbox.drain(&mut self.mail) || resumed {
            // Set until the work is done, since the host's kick can panic in between.
            self.left_over = true;
            let done = self.take_in_slice(count);
            // Mail that came after the earlier mail: its kick may have led to a flush that did not
            // reach it.
            let behind = more && self.mine.mailbox.has_mail();
            self.left_over = !done || behind || !self.scan.is_idle();
        }
        if !(self.ready.is_empty() && self.spilled.is_empty()) {
            self.fill(count);
        }
    }

    /// Takes in a slice of the mail. Returns whether nothing is left.
    #[inline]
    fn take_in_slice(&mut self, count: usize) -> bool {
        if !self.mail.turn(SLICE, &self.mine.mailbox) {
            return false;
        }
        for _ in 0..SLICE {
            let Some(posted) = self.mail.next() else { return true };
            let alone = self.mail.is_empty() && self.ready.is_empty() && self.spilled.is_empty();
            if alone && self.used < count {
                self.take_single(posted);
            } else {
                self.take_posted(posted);
            }
        }
        self.mail.is_empty()
    }

    /// Clears the list registers and the EOI count, which an earlier user may have left.
    #[cold]
    fn clear_registers<L: ListRegisters>(&mut self, lrs: &mut L, count: usize) {
        for n in 0..count {
            lrs.write(n, Lr::EMPTY);
        }
        lrs.set_maintenance(self.maintenance);
        let _ = lrs.take_eoi_count();
        self.fresh = false;
    }

    /// Returns the maintenance conditions to ask for. Also asks for an end-of-interrupt notice of
    /// every entry, if interrupts wait and no entry is pending.
    fn wanted_maintenance(&mut self, count: usize) -> Maintenance {
        let waiting = !self.ready.is_empty();
        let offered = |e: &Entry| e.want.state() == LrState::Pending;
        let pending = waiting && self.entries[..self.used].iter().flatten().any(offered);
        if waiting && !pending {
            // All list registers are active: "none is pending" would hold at once, and forever. The
            // waiting interrupts are not more urgent, so they can wait until one is deactivated.
            // (If `fill` has used up its slice, neither need be true, but then the vCPU is kicked.)
            for entry in self.entries[..self.used].iter_mut().flatten() {
                entry.want = entry.want.with_eoi_maintenance();
            }
        }
        Maintenance {
            // "At most one in use" would hold at once with a single list register.
            underflow: waiting && count > 1,
            no_pending: pending,
            not_present: !self.spilled.is_empty(),
            trap_dir: !self.spilled.is_empty(),
            group_enabled: self.groups.map(|enabled| !enabled),
        }
    }

    /// Writes the list registers that have changed. Returns the number of pending entries.
    #[inline]
    fn write_back<L: ListRegisters>(&mut self, lrs: &mut L) -> usize {
        let mut pending = 0;
        for n in 0..self.used.max(self.written) {
            let want = self.entries[n].as_ref().map_or(Lr::EMPTY, |entry| entry.want);
            pending += usize::from(want.is_pending());
            if want != self.held[n] {
                lrs.write(n, want);
                self.held[n] = want;
            }
        }
        self.written = self.used;
        pending
    }
}

impl<R: Reclaim> Vcpu for VcpuInterface<R> {
    fn open(&mut self) {
        if !self.open {
            if self.closing {
                self.power_off();
            }
            self.open = true;
            // Set until the opening is done, since the host's kick can panic in between.
            self.asked = Requests::SCAN;
            self.left_over = true;
            // Pinned before opening, so that a pin's own fence, if it has one, does not order the
            // opening and the scan.
            let pin = self.participant.pin();
            self.mine.mailbox.open();
            self.scan.begin(&self.shared, self.id);
            self.scan.go_on(&self.shared, self.id, &pin);
            drop(pin);
            self.asked = Requests::default();
            self.left_over = !self.scan.is_idle();
        }
    }

    fn close_some<L: ListRegisters>(&mut self, lrs: &mut L) -> bool {
        if self.in_guest {
            self.fold(lrs);
        }
        if self.open || self.closing {
            if !self.power_off_some() {
                return false;
            }
            self.write_back(lrs);
            self.maintenance = Maintenance::default();
            self.reconsider_maintenance = true;
            lrs.set_maintenance(self.maintenance);
        }
        true
    }

    #[inline]
    fn flush<L: ListRegisters>(&mut self, lrs: &mut L) -> Flushed {
        self.mine.counters.add(Counter::Entries, 1);
        if self.in_guest {
            self.fold(lrs);
        }
        // Set until the flush is done, since the host can panic in between.
        self.unflushed = true;
        if self.holds_wired() {
            self.open_window();
        }
        let groups = lrs.groups_enabled();
        if groups != self.groups {
            self.change_groups(groups);
        }
        let resumed = self.left_over || self.mine.has_requests();
        if resumed {
            self.resume();
        }
        let count = lrs.count().min(MAX_LRS);
        if self.fresh {
            self.clear_registers(lrs, count);
        }
        while self.used > count {
            self.displace(self.used - 1);
        }
        self.take_in_mail(count, resumed);
        if self.window_open && !cfg!(mutant = "change_left_to_the_mail") && self.take_changes() {
            self.fill(count);
            // Also for the interrupts that `fill` has just put into list registers. The next flush
            // fills the list registers that this frees.
            if self.take_changes() {
                self.left_over = true;
            }
        }
        let waiting = !self.ready.is_empty() || !self.spilled.is_empty();
        if waiting || self.reconsider_maintenance {
            // While interrupts wait, the wanted conditions depend on the list registers.
            self.reconsider_maintenance = waiting;
            let maintenance = self.wanted_maintenance(count);
            if maintenance != self.maintenance {
                self.maintenance = maintenance;
                lrs.set_maintenance(maintenance);
            }
        }
        let pending = self.write_back(lrs);
        self.in_guest = true;
        self.unflushed = self.left_over;
        if self.left_over {
            // The vCPU comes back for the rest: it leaves the guest, or does not sleep.
            self.shared.dispatcher.kick(self.id);
        }
        Flushed { in_lrs: self.used, pending, waiting }
    }

    #[inline]
    fn fold<L: ListRegisters>(&mut self, lrs: &mut L) {
        let mut changed = false;
        self.in_guest = false;
        for n in 0..self.written {
            let lr = lrs.read(n);
            if lr != self.held[n] {
                self.held[n] = lr;
                changed = true;
                self.fold_entry(n, lr);
            }
        }
        if changed {
            self.finish_gone();
        }
        let eois = lrs.take_eoi_count();
        if eois > 0 {
            self.end_spilled_by_eois(eois);
        }
        if self.window_open {
            self.close_window();
        }
    }

    fn deactivate(&mut self, intid: Intid) -> bool {
        let wired =
            if intid.is_private() { Wired::Private(self.id, intid) } else { Wired::Spi(intid) };
        let Ok(irq) = self.shared.wired(wired) else { return false };
        let state = irq.state.load();
        match state.owner() {
            Some(owner) if owner == self.id => {}
            // It was made active, and is not taken in yet: it is queued.
            None if state.is_active() && irq.control().load().target() == self.id => {
                // Does not wait, since another thread may wait for this vCPU.
                self.shared.dispatcher.write_active(irq, false);
                return true;
            }
            _ => return false,
        }
        let irq = NonNull::from(irq);
        // SAFETY: this vCPU owns it, and only this thread could end the ownership.
        let owned = unsafe { OwnerRef::borrow(irq) };
        match owned.place() {
            Place::Spilled(level) => {
                // SAFETY: its place says that it is in `spilled` at `level`.
                let owned = unsafe { self.spilled.remove(level, irq) };
                self.end_spilled(&owned);
                self.finish(owned, true);
                true
            }
            // While the guest has the list registers, the CPU interface deactivates there.
            Place::InLr(_) if self.in_guest => false,
            Place::InLr(n) => {
                let Some(entry) = &mut self.entries[n as usize] else { return false };
                let state = entry.want.state();
                if !state.is_active() {
                    return false;
                }
                entry.want = entry.want.with_state(match state {
                    LrState::PendingActive => LrState::Pending,
                    _ => LrState::Invalid,
                });
                entry.recheck = true;
                let phys = entry.want.hw();
                self.end_phys(&owned, phys);
                self.finish_gone();
                self.entries[..self.used].iter().flatten().for_each(Entry::publish);
                true
            }
            Place::Ready(_) | Place::Nowhere => false,
        }
    }

    #[inline]
    fn has_mail(&self) -> bool {
        self.mine.mailbox.has_mail() || self.mine.has_requests() || self.unflushed || self.left_over
    }
}
