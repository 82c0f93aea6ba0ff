//! The vCPU thread's side: from the mailbox to the list registers and back.
//!
//! An interrupt that a [`VcpuInterface`] owns is in exactly one place: waiting in a bucket ([`ReadyQueue`]), in a list
//! register ([`Entry`]), or active without one (`spilled`). The way in is `take_in`, for every interrupt of the mailbox;
//! the way out is dropping its [`Owned`], which is the prune of the ancestor: the reference that was taken
//! when the interrupt was queued ends there, and not when a list register is folded.
//!
//! Everything is re-evaluated from scratch (`verdict`, `review`): no event says what changed.
//!
//! Costs: a flush takes as long as the number of interrupts in the mailbox plus the number of list registers; how many
//! wait in the buckets does not matter.

#![allow(unsafe_code)] // Interrupts found through the mailbox that this vCPU owns already.

use alloc::sync::Arc;
use core::cell::Cell;
use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::control::Control;
use crate::counters::Counter;
use crate::engine::{Error, Flushed, Trigger, Vcpu, Wired};
use crate::ids::{Group, Intid, VcpuId};
use crate::irq::{Irq, Place};
use crate::lr::{ListRegisters, Lr, LrState, MAX_LRS, Maintenance};
use crate::ready::ReadyQueue;
use crate::reclaim::{Participant, Reclaim, Slots};
use crate::refs::{Claim, Owned, Posted, State};
use crate::sync::{Ordering, fence};
use crate::vgic::Shared;

/// An interrupt in a list register.
struct Entry {
    owned: Owned,
    /// What the register is to hold.
    want: Lr,
    /// It is pending there because its pending bit was taken (and not only because its line is high).
    latched: bool,
    /// When it is deactivated, it may still be pending.
    recheck: bool,
}

/// What is to become of an interrupt that this vCPU has.
enum Verdict {
    /// It is to be offered, at this level.
    Offer(u8),
    /// It is pending, for another vCPU.
    Elsewhere,
    /// There is nothing to do.
    Idle,
}

/// A vCPU's own side of the engine. Owned by the thread that runs the vCPU: not Clone, not Sync.
pub struct VcpuInterface<R: Reclaim = Slots> {
    id: VcpuId,
    open: bool,
    /// Between a flush and the fold after it: the list registers are the guest's.
    in_guest: bool,
    /// Something has begun to wait since the last flush, other than by mail.
    unflushed: bool,
    /// Nothing is known yet of what the list registers hold.
    fresh: bool,
    ready: ReadyQueue,
    /// Active, and in no list register: the newest of a level first.
    spilled: ReadyQueue,
    /// The first `used` are in use, and the older of two pending ones of a priority comes first.
    entries: [Option<Entry>; MAX_LRS],
    used: usize,
    /// What the list registers hold, as far as we know; those from `written` on hold nothing.
    held: [Lr; MAX_LRS],
    written: usize,
    maintenance: Maintenance,
    participant: R::Participant,
    /// Last: everything above points to it.
    shared: Arc<Shared<R>>,
    _not_sync: PhantomData<Cell<()>>,
}

impl<R: Reclaim> VcpuInterface<R> {
    pub(crate) fn new(shared: Arc<Shared<R>>, id: VcpuId) -> Result<Self, Error> {
        if !shared.hub.has_vcpu(id) {
            return Err(Error::NoSuchVcpu(id));
        }
        let participant = shared.reclaim.register().ok_or(Error::TooManyParticipants)?;
        if !shared.hub.vcpu(id).take_interface() {
            return Err(Error::VcpuInUse(id));
        }
        Ok(Self {
            id,
            open: false,
            in_guest: false,
            unflushed: false,
            fresh: true,
            ready: ReadyQueue::new(Place::Ready),
            spilled: ReadyQueue::new(Place::Spilled),
            entries: [const { None }; MAX_LRS],
            used: 0,
            held: [Lr::EMPTY; MAX_LRS],
            written: 0,
            maintenance: Maintenance::default(),
            participant,
            shared,
            _not_sync: PhantomData,
        })
    }

    /// Which vCPU this is.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// Whether an interrupt with this configuration may be offered by this vCPU, if it is pending.
    #[inline]
    fn willing(&self, irq: &Irq, control: Control, state: State) -> bool {
        if !control.enabled() || control.target() != self.id {
            return false;
        }
        let lpi = irq.intid().is_lpi();
        // "Unmapped" can be a moment old: who maps it attends.
        (!lpi || state.is_mapped()) && self.forwarded(control.group(), lpi)
    }

    /// Whether the gates of this vCPU are open for an interrupt.
    #[inline]
    fn forwarded(&self, group: Group, lpi: bool) -> bool {
        let shared = self.shared.hub.vcpu(self.id);
        shared.gates().pass(group, lpi)
            || !cfg!(mutant = "lpis_enabled_one_look") && {
                if !cfg!(mutant = "lpis_enabled_without_fence") {
                    // Pairs with the fence in `vgic::Shared::scan`, which follows opening.
                    fence(Ordering::SeqCst);
                }
                shared.gates().pass(group, lpi)
            }
    }

    #[inline]
    fn verdict(&self, irq: &Irq, state: State) -> Verdict {
        let control = irq.control().load();
        if !irq.pending().is_pending(irq.lane()) && !control.asserted() {
            Verdict::Idle
        } else if control.target() != self.id {
            Verdict::Elsewhere
        } else if self.willing(irq, control, state) {
            Verdict::Offer(control.priority().level() as u8)
        } else {
            Verdict::Idle
        }
    }

    /// Puts an interrupt that has no place yet where it belongs.
    fn settle(&mut self, owned: Owned) {
        let state = owned.state.load();
        self.settle_in(owned, state);
    }

    /// The same, for a caller who has just read the state.
    #[inline]
    fn settle_in(&mut self, owned: Owned, state: State) {
        if state.is_active() {
            // It was active when its vCPU was powered off.
            owned.set_active(false);
            let level = owned.level();
            return self.spilled.push_front(level, owned);
        }
        match self.verdict(&owned, state) {
            Verdict::Offer(level) => self.ready.push_back(level, owned),
            Verdict::Elsewhere if cfg!(mutant = "elsewhere_dropped") => drop(owned),
            Verdict::Elsewhere => self.hand_over(owned),
            Verdict::Idle => drop(owned),
        }
    }

    /// Gives an interrupt to the vCPU that it is for now.
    fn hand_over(&self, owned: Owned) {
        self.shared.hub.vcpu(self.id).counters.add(Counter::HandedOver, 1);
        if let Some(posted) = owned.hand_over() {
            self.shared.hub.post(posted);
        }
    }

    /// Takes in an interrupt from the mailbox: something about it has changed.
    #[inline]
    fn take_in(&mut self, posted: Posted) {
        if cfg!(mutant = "verdict_before_claim")
            && matches!(self.verdict(&posted, posted.state.load()), Verdict::Idle)
        {
            return drop(posted);
        }
        match posted.claim(self.id) {
            Claim::New(owned, state) => self.settle_in(owned, state),
            Claim::Mine(irq) => self.reconsider(irq),
            Claim::Elsewhere(posted) => self.shared.hub.post(posted),
        }
    }

    /// Takes in the only thing that waits for a list register, of which one is free: without the detour of a bucket.
    #[inline]
    fn take_in_alone(&mut self, posted: Posted) {
        match posted.claim(self.id) {
            Claim::New(owned, state) if !state.is_active() => {
                let control = owned.control().load();
                if self.willing(&owned, control, state) {
                    self.offer(control.priority().level() as u8, owned, control);
                } else {
                    self.settle_in(owned, state);
                }
            }
            Claim::New(owned, state) => self.settle_in(owned, state),
            Claim::Mine(irq) => self.reconsider(irq),
            Claim::Elsewhere(posted) => self.shared.hub.post(posted),
        }
    }

    /// Looks once more at an interrupt that this vCPU has.
    fn reconsider(&mut self, irq: NonNull<Irq>) {
        // SAFETY: this vCPU owns it: `claim` says so, and nobody else ends that.
        let owned = unsafe { Owned::borrow(irq) };
        match owned.place() {
            Place::Ready(level) => {
                // One that stays at its level keeps its turn.
                if !matches!(self.verdict(&owned, owned.state.load()), Verdict::Offer(now) if now == level)
                {
                    // SAFETY: its place says so.
                    let owned = unsafe { self.ready.remove(level, irq) };
                    self.settle(owned);
                }
            }
            Place::InLr(n) => self.review(n as usize),
            // It is looked at when it is deactivated, or gets a list register again.
            Place::Spilled(_) => {}
            Place::Nowhere => debug_assert!(false, "owned, but nowhere"),
        }
    }

    /// Looks once more at everything that this vCPU has.
    #[cold]
    fn review_all(&mut self) {
        // From the end: a review can take its entry out.
        for n in (0..self.used).rev() {
            self.review(n);
        }
        let mut waiting = self.ready.take_all();
        while let Some(owned) = waiting.pop() {
            self.settle(owned);
        }
    }

    /// Makes a list-register entry agree with the interrupt's state, or takes it out.
    fn review(&mut self, n: usize) {
        let Some(entry) = &self.entries[n] else { return };
        let control = entry.owned.control().load();
        let willing = self.willing(&entry.owned, control, entry.owned.state.load());
        let Some(entry) = &mut self.entries[n] else { return };
        let lane = entry.owned.lane();
        let taken = entry.owned.pending().take(lane);
        entry.latched = taken.pending || (entry.latched && !taken.cleared);
        if entry.want.state().is_active() {
            // A level is sampled again when the interrupt is deactivated, not before.
            if willing && control.trigger() == Trigger::Edge {
                let state = if entry.latched { LrState::PendingActive } else { LrState::Active };
                entry.want = entry.want.with_state(state);
                // Its priority stays until it is deactivated, as the running priority does.
                entry.recheck |= control.priority() != entry.want.priority()
                    || control.group() != entry.want.group();
            } else {
                entry.give_back_latch();
                // Whoever is to have it next must hear of its end: the guest may stay in for long after that.
                entry.want = entry.want.with_state(LrState::Active).with_eoi_maintenance();
                entry.recheck = true;
            }
            return;
        }
        if control.trigger() == Trigger::Level {
            // It may have been edge-triggered when it was offered.
            entry.want = entry.want.with_eoi_maintenance();
            entry.recheck = true;
        }
        let offered = willing
            && (entry.latched || control.asserted())
            && control.priority() == entry.want.priority()
            && control.group() == entry.want.group();
        if !offered && let Some(entry) = self.remove_entry(n) {
            let owned = entry.withdraw();
            self.settle(owned);
        }
    }

    /// Takes an entry out; those behind it move up.
    fn remove_entry(&mut self, n: usize) -> Option<Entry> {
        let entry = self.entries[n].take()?;
        entry.owned.set_place(Place::Nowhere);
        self.entries[n..self.used].rotate_left(1);
        self.used -= 1;
        for (i, entry) in self.entries[n..self.used].iter().enumerate() {
            if let Some(entry) = entry {
                entry.owned.set_place(Place::InLr((n + i) as u8));
            }
        }
        Some(entry)
    }

    #[inline]
    fn push_entry(&mut self, entry: Entry) {
        entry.owned.set_place(Place::InLr(self.used as u8));
        self.entries[self.used] = Some(entry);
        self.used += 1;
    }

    /// Fills `count` list registers, the most urgent first.
    #[inline]
    fn fill(&mut self, count: usize) {
        loop {
            // Active interrupts come back into list registers before what they keep waiting.
            if let Some(spilled) = self.spilled.highest()
                && self.used < count
                && self.ready.highest().is_none_or(|ready| spilled <= ready)
            {
                self.restore_spilled();
                continue;
            }
            let Some(level) = self.ready.highest() else { return };
            if self.used == count && !self.make_room(level) {
                return;
            }
            if let Some(owned) = self.ready.pop() {
                let control = owned.control().load();
                self.offer(level, owned, control);
            }
        }
    }

    /// Puts a waiting interrupt into the next list register.
    #[inline]
    fn offer(&mut self, level: u8, owned: Owned, control: Control) {
        let taken = owned.pending().take(owned.lane());
        if !taken.pending && !control.asserted() {
            // Cleared since it was taken in.
            return drop(owned);
        }
        let lr = Lr::pending(owned.intid(), Owned::priority_of(level), control.group());
        let sampled =
            control.trigger() == Trigger::Level && !cfg!(mutant = "level_not_sampled_again");
        let want = if sampled { lr.with_eoi_maintenance() } else { lr };
        self.push_entry(Entry { owned, want, latched: taken.pending, recheck: sampled });
    }

    #[cold]
    fn restore_spilled(&mut self) {
        let Some(level) = self.spilled.highest() else { return };
        let Some(owned) = self.spilled.pop() else { return };
        let group = owned.control().load().group();
        let want = Lr::pending(owned.intid(), Owned::priority_of(level), group)
            .with_eoi_maintenance()
            .with_state(LrState::Active);
        self.push_entry(Entry { owned, want, latched: false, recheck: true });
        self.review(self.used - 1);
    }

    /// Takes a less urgent interrupt out of the full list registers: the youngest of the least urgent pending ones,
    /// or else the least urgent active one. Returns whether there was one.
    #[cold]
    fn make_room(&mut self, level: u8) -> bool {
        let victim = |active: bool| {
            let entries = self.entries[..self.used].iter().flatten().enumerate();
            entries
                .filter(|(_, e)| e.want.state().is_active() == active)
                .map(|(n, e)| (e.want.priority().level() as u8, n))
                .max()
                .filter(|&(worst, _)| worst > level)
        };
        let Some((_, n)) = victim(false).or_else(|| victim(true)) else { return false };
        self.displace(n);
        true
    }

    /// Takes an interrupt's list register away.
    #[cold]
    fn displace(&mut self, n: usize) {
        let Some(entry) = self.remove_entry(n) else { return };
        let (active, level) = (entry.want.state().is_active(), entry.want.priority().level() as u8);
        let owned = entry.withdraw();
        if !active {
            // Older than everything in its bucket.
            self.ready.push_front(level, owned);
        } else if owned.intid().is_lpi() {
            // An LPI has no active state but its list register's: its EOI needs none (IHI 0069, 4.1.2).
            self.settle(owned);
        } else {
            self.spilled.push_front(level, owned);
        }
    }

    /// Clears what an earlier user of the list registers may have left in them.
    #[cold]
    fn clear_registers<L: ListRegisters>(&mut self, lrs: &mut L, count: usize) {
        for n in 0..count {
            lrs.write(n, Lr::EMPTY);
        }
        lrs.set_maintenance(self.maintenance);
        let _ = lrs.take_eoi_count();
        self.fresh = false;
    }

    /// What to be told while more is waiting than the list registers hold.
    fn wanted_maintenance(&mut self, count: usize) -> Maintenance {
        let waiting = !self.ready.is_empty();
        let pending =
            self.entries[..self.used].iter().flatten().any(|e| e.want.state() == LrState::Pending);
        if waiting && !pending {
            // All list registers are active: "none is pending" would hold at once, for ever. What waits
            // is not more urgent than they are, so it can wait until one is deactivated.
            for entry in self.entries[..self.used].iter_mut().flatten() {
                entry.want = entry.want.with_eoi_maintenance();
            }
        }
        Maintenance {
            // "At most one in use" would hold at once with a single list register.
            underflow: waiting && count > 1,
            no_pending: waiting && pending,
            not_present: !self.spilled.is_empty(),
            trap_dir: !self.spilled.is_empty(),
        }
    }

    /// Writes what has changed; returns the number of pending entries.
    #[inline]
    fn write_back<L: ListRegisters>(&mut self, lrs: &mut L) -> usize {
        let mut pending = 0;
        for n in 0..self.used.max(self.written) {
            let want = match &self.entries[n] {
                Some(entry) => entry.want,
                None => Lr::EMPTY,
            };
            pending += usize::from(want.state().is_pending());
            if want != self.held[n] {
                lrs.write(n, want);
                self.held[n] = want;
            }
        }
        self.written = self.used;
        pending
    }

    /// Takes back what the guest did with one list register. Returns whether the entry is gone.
    #[inline]
    fn fold_entry(&mut self, n: usize, lr: Lr) -> bool {
        let Some(entry) = &mut self.entries[n] else { return false };
        let (was, now) = (entry.want.state(), lr.state());
        if was.is_pending() && !now.is_pending() {
            entry.latched = false;
            if cfg!(mutant = "fold_clears_pending") {
                let _ = entry.owned.pending().take(entry.owned.lane());
            }
            self.shared.hub.vcpu(self.id).counters.add(Counter::Delivered, 1);
        }
        entry.want = lr;
        if cfg!(mutant = "put_in_fold") && was == LrState::Pending && now.is_active() {
            // The ancestor's bug: the reference ends with the fold, while the interrupt is still in its place.
            // SAFETY: none; this is a seeded bug.
            drop(unsafe { Owned::from_raw(NonNull::from(&*entry.owned)) });
        }
        now == LrState::Invalid
    }

    /// An interrupt is no longer active.
    #[inline]
    fn finish(&mut self, owned: Owned, recheck: bool) {
        // Without `recheck`, whatever made it pending since has signaled it: the mailbox brings it back.
        if recheck {
            self.unflushed = true;
            self.settle(owned);
        } else {
            drop(owned);
        }
    }

    /// Takes out the entries that the guest is done with, and looks again at those whose turn was put off.
    #[inline]
    fn finish_gone(&mut self) {
        let (used, mut kept, mut review) = (self.used, 0, false);
        for n in 0..used {
            let Some(entry) = self.entries[n].take() else { continue };
            let state = entry.want.state();
            if state == LrState::Invalid {
                entry.owned.set_place(Place::Nowhere);
                self.finish(entry.owned, entry.recheck);
                continue;
            }
            review |= entry.recheck && !state.is_active();
            if kept != n {
                entry.owned.set_place(Place::InLr(kept as u8));
            }
            self.entries[kept] = Some(entry);
            kept += 1;
        }
        self.used = kept;
        if review {
            self.review_pending();
        }
    }

    /// Looks again at what is pending in list registers.
    #[cold]
    fn review_pending(&mut self) {
        // From the end: a review can take its entry out.
        for n in (0..self.used).rev() {
            if self.entries[n].as_ref().is_some_and(|e| e.want.state() == LrState::Pending) {
                self.review(n);
            }
        }
    }

    /// Everything that this vCPU has goes back to where others can have it.
    fn power_off(&mut self) {
        let hub = Arc::clone(&self.shared.hub);
        let give_back = |posted: Posted| {
            if cfg!(mutant = "close_without_second_look") {
                return drop(posted);
            }
            if cfg!(mutant = "close_leaks_mail") {
                return core::mem::forget(posted);
            }
            if let Some((posted, _)) = hub.look_again(posted) {
                hub.post(posted);
            }
        };
        // What is for another vCPU by now must not be left lying: hence the second look at each.
        hub.vcpu(self.id).mailbox.close().for_each(give_back);
        let entries = self.entries.iter_mut().filter_map(Option::take);
        let mut owned = ReadyQueue::new(Place::Ready);
        for entry in entries {
            let active = entry.want.state().is_active();
            let irq = entry.withdraw();
            if active && !irq.intid().is_lpi() && !cfg!(mutant = "close_forgets_active") {
                irq.set_active(true);
            }
            owned.push_back(0, irq);
        }
        self.used = 0;
        while let Some(irq) = self.spilled.pop() {
            irq.set_active(true);
            owned.push_back(0, irq);
        }
        while let Some(irq) = owned.pop().or_else(|| self.ready.pop()) {
            if let Some(posted) = irq.hand_over() {
                give_back(posted);
            }
        }
        self.open = false;
    }
}

impl Entry {
    /// Makes the interrupt pending again where others can take it, if it is pending here.
    fn give_back_latch(&mut self) {
        if self.latched && !cfg!(mutant = "withdraw_without_restore") {
            self.owned.pending().restore(self.owned.lane());
            self.latched = false;
        }
    }

    /// Ends the entry.
    fn withdraw(mut self) -> Owned {
        self.give_back_latch();
        self.owned
    }
}

impl<R: Reclaim> Vcpu for VcpuInterface<R> {
    fn open(&mut self) {
        if !self.open {
            self.open = true;
            // Pinned before: a pin's own fence, if it has one, is not what orders opening and scanning.
            let pin = self.participant.pin();
            self.shared.hub.vcpu(self.id).mailbox.open();
            self.shared.scan(self.id, true, &pin);
        }
    }

    fn close<L: ListRegisters>(&mut self, lrs: &mut L) {
        if self.in_guest {
            self.fold(lrs);
        }
        if self.open {
            self.power_off();
            self.write_back(lrs);
            self.maintenance = Maintenance::default();
            lrs.set_maintenance(self.maintenance);
        }
    }

    #[inline]
    fn flush<L: ListRegisters>(&mut self, lrs: &mut L) -> Flushed {
        let hub = Arc::as_ptr(&self.shared.hub);
        // SAFETY: `self.shared` keeps it.
        let shared = unsafe { &*hub }.vcpu(self.id);
        shared.counters.add(Counter::Entries, 1);
        if self.in_guest {
            self.fold(lrs);
        }
        self.unflushed = false;
        if shared.wants_review() && shared.take_review() {
            self.review_all();
        }
        let count = lrs.count().min(MAX_LRS);
        if self.fresh {
            self.clear_registers(lrs, count);
        }
        while self.used > count {
            self.displace(self.used - 1);
        }
        let mut mail = shared.mailbox.drain();
        while let Some(posted) = mail.next() {
            let alone = mail.is_empty() && self.ready.is_empty() && self.spilled.is_empty();
            if alone && self.used < count {
                self.take_in_alone(posted);
            } else {
                self.take_in(posted);
            }
        }
        self.fill(count);
        let waiting = !self.ready.is_empty() || !self.spilled.is_empty();
        let maintenance =
            if waiting { self.wanted_maintenance(count) } else { Maintenance::default() };
        if maintenance != self.maintenance {
            self.maintenance = maintenance;
            lrs.set_maintenance(maintenance);
        }
        let pending = self.write_back(lrs);
        self.in_guest = true;
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
        // EOIs without a list register belong to the most urgent active interrupts that have none.
        for _ in 0..lrs.take_eoi_count() {
            match self.spilled.pop() {
                Some(owned) => self.finish(owned, true),
                None => break,
            }
        }
    }

    fn deactivate(&mut self, intid: Intid) -> bool {
        let wired =
            if intid.is_private() { Wired::Private(self.id, intid) } else { Wired::Spi(intid) };
        let Ok(irq) = self.shared.wired(wired) else { return false };
        if irq.state.load().owner() != Some(self.id) {
            return false;
        }
        let irq = NonNull::from(irq);
        // SAFETY: this vCPU is its owner, and only this thread could change that.
        let owned = unsafe { Owned::borrow(irq) };
        match owned.place() {
            Place::Spilled(level) => {
                // SAFETY: its place says so.
                let owned = unsafe { self.spilled.remove(level, irq) };
                self.finish(owned, true);
                true
            }
            // While the guest has the list registers, deactivation there is the CPU interface's.
            Place::InLr(_) if self.in_guest => false,
            Place::InLr(n) => {
                let Some(entry) = &mut self.entries[n as usize] else { return false };
                let state = entry.want.state();
                entry.want = entry.want.with_state(match state {
                    LrState::PendingActive => LrState::Pending,
                    LrState::Active => LrState::Invalid,
                    unchanged => unchanged,
                });
                entry.recheck = true;
                self.finish_gone();
                state.is_active()
            }
            Place::Ready(_) | Place::Nowhere => false,
        }
    }

    #[inline]
    fn has_mail(&self) -> bool {
        let shared = self.shared.hub.vcpu(self.id);
        shared.mailbox.has_mail() || shared.wants_review() || self.unflushed
    }
}

impl<R: Reclaim> Drop for VcpuInterface<R> {
    fn drop(&mut self) {
        if self.open {
            self.power_off();
        }
        self.shared.hub.vcpu(self.id).return_interface();
        self.shared.collect(&self.participant);
    }
}
