//! Interrupts in list registers, from `offer` to the fold that finds them ended.
//!
//! Models: `delivery_level`, `delivery_active`, `delivery_read`, `delivery_clear`,
//! `delivery_config`, `delivery_retarget`, `lifetime_refs`, `lifetime_known_bugs`.

use super::VcpuInterface;
use super::slices::SLICE;
use crate::arch::lr::{Lr, LrState};
use crate::engine::{Trigger, Wired};
use crate::lockfree::irq::control::Control;
use crate::lockfree::irq::refs::OwnerRef;
use crate::lockfree::irq::{Irq, Place};
use crate::lockfree::reclaim::Reclaim;
use crate::observe::counters::Counter;
use crate::sync::prefetch_write;

/// The pending state that was taken for a list register. A level-sensitive interrupt can be pending
/// there without any, because its line is high.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Latch {
    None,
    /// The pending bit was taken.
    Bit,
    /// The SGI of this sender was taken.
    Sender(u8),
}

/// An interrupt in a list register.
pub(super) struct Entry {
    pub(super) owned: OwnerRef,
    /// The value that the list register should have.
    pub(super) want: Lr,
    pub(super) latch: Latch,
    /// The list register names the sender of an SGI, so the entry stands for no other sender.
    sent: bool,
    /// The interrupt is hardware-mapped: the guest deactivates the physical interrupt together with
    /// it.
    hw_mapped: bool,
    /// The interrupt may still be pending when it is deactivated.
    pub(super) recheck: bool,
}

impl Entry {
    /// Requests a maintenance interrupt at the interrupt's end, and a re-check: the owner must act
    /// on the end even if no thread schedules the interrupt again.
    fn ask_for_end(&mut self) {
        self.want = self.want.with_eoi_maintenance();
        self.recheck = true;
    }

    /// Gives the pending state that was taken for the entry, if any, back to where any vCPU can
    /// take it.
    fn give_back_latch(&mut self) {
        if cfg!(mutant = "withdraw_without_restore") {
            return;
        }
        match core::mem::replace(&mut self.latch, Latch::None) {
            Latch::None => {}
            Latch::Bit if self.owned.intid().is_lpi() => {
                self.owned.pending().restore(self.owned.lane());
            }
            Latch::Bit => self.owned.pending().restore_wired(self.owned.lane()),
            Latch::Sender(sender) => {
                self.owned.control().update(|c| c.with_sender_back(sender));
            }
        }
    }

    /// Takes pending state that is new since the last evaluation, and drops pending state that was
    /// cleared or recalled since.
    fn take_pending(&mut self, control: Control) {
        let lane = self.owned.lane();
        if self.owned.pending().is_pending(lane) {
            self.owned.publish_lr_pending();
        }
        let taken = if self.owned.intid().is_lpi() {
            self.owned.pending().take(lane)
        } else {
            self.owned.pending().take_wired(lane)
        };
        if let Latch::Sender(sender) = self.latch {
            let recalled = control.is_recalled(sender);
            if !recalled && control.senders() & 1 << sender != 0 {
                // The SGI was sent again before it was acknowledged: one delivery stands for both.
                self.owned.control().update(|c| c.without_sender(sender));
            }
            if recalled || control.senders() & ((1 << sender) - 1) != 0 {
                self.take_next_sender(sender);
            }
            if taken.pending {
                // The pending bit is not this sender's SGI: it is delivered later.
                self.owned.pending().restore_wired(lane);
            }
        } else if taken.pending {
            self.latch = Latch::Bit;
        } else if taken.cleared {
            self.latch = Latch::None;
        }
        if self.sent {
            // The next sender's SGI is delivered when this one has ended.
            self.ask_for_end();
        }
        self.publish();
    }

    /// Replaces the SGI in the list register, which the guest has not acknowledged, by the SGI of
    /// the lowest sender.
    #[cold]
    fn take_next_sender(&mut self, instead_of: u8) {
        // Nothing is given back if the sender has recalled its SGI.
        let (old, now) =
            self.owned.control().update(|c| c.with_sender_back(instead_of).with_sender_taken());
        self.latch = Latch::None;
        if old.with_sender_back(instead_of).senders() != 0 {
            self.latch = Latch::Sender(now.sender());
            self.want = self.want.with_source(now.sender());
        }
    }

    /// Ends the entry, and gives its pending state back.
    pub(super) fn withdraw(mut self) -> OwnerRef {
        self.give_back_latch();
        self.owned
    }

    /// Publishes whether the interrupt is active, and whether it is pending in the list register.
    pub(super) fn publish(&self) {
        self.owned.publish(self.want.is_active(), self.latch != Latch::None);
    }
}

impl<R: Reclaim> VcpuInterface<R> {
    /// Makes the entry of list register `n` agree with the interrupt's state, or removes it.
    pub(super) fn reevaluate(&mut self, n: usize) {
        let Some(entry) = &self.entries[n] else { return };
        let control = entry.owned.control().load();
        let willing = self.willing(&entry.owned, control, entry.owned.state.load());
        let Some(entry) = &mut self.entries[n] else { return };
        entry.take_pending(control);
        if entry.want.is_active() {
            // A level is sampled again when the interrupt is deactivated, not before. A
            // hardware-mapped interrupt cannot be pending and active (IHI 0069, 12.4,
            // `ICH_LR<n>_EL2`).
            let again = !entry.sent && entry.want.hw().is_none();
            if willing && control.trigger() == Trigger::Edge && again {
                let latched = entry.latch != Latch::None;
                let state = if latched { LrState::PendingActive } else { LrState::Active };
                entry.want = entry.want.with_state(state);
                // The priority stays until the interrupt is deactivated, as the running priority
                // does.
                entry.recheck |= control.priority() != entry.want.priority()
                    || control.group() != entry.want.group();
                if control.asserted() {
                    // It is an SGI that has senders as well.
                    entry.ask_for_end();
                }
            } else {
                entry.give_back_latch();
                // Its next delivery, here or on another vCPU, waits for its end. Without the
                // maintenance interrupt, the guest may go on running for a long time after that.
                entry.want = entry.want.with_state(LrState::Active);
                entry.ask_for_end();
            }
            return;
        }
        if control.trigger() == Trigger::Level || (!entry.sent && control.asserted()) {
            // The interrupt may have been edge-triggered when it was put into the list register. Or
            // it is an SGI that had no sender then, and has one now.
            entry.ask_for_end();
        }
        let offered = willing
            && (entry.latch != Latch::None || (control.asserted() && !entry.sent))
            && control.priority() == entry.want.priority()
            && control.group() == entry.want.group();
        if !offered && let Some(entry) = self.remove_entry(n) {
            let owned = entry.withdraw();
            self.requeue(owned);
        }
    }

    /// Takes over the active state that another thread has written for the interrupt in list
    /// register `n`.
    #[cold]
    pub(super) fn activate(&mut self, n: usize, active: bool) {
        let Some(entry) = &mut self.entries[n] else { return };
        if entry.want.is_active() == active {
            // The state is the same, but an injection may have come with the write.
            return self.reevaluate(n);
        }
        if active {
            if entry.owned.control().load().target() == self.id {
                entry.want = entry.want.with_state(LrState::Active);
                self.reevaluate(n);
            } else if let Some(entry) = self.remove_entry(n) {
                self.requeue_active(entry.withdraw());
            }
            return;
        }
        if let Some(entry) = self.remove_entry(n) {
            let phys = entry.want.hw();
            let owned = entry.withdraw();
            self.end_phys(&owned, phys);
            self.requeue(owned);
        }
    }

    /// Removes the entry of list register `n`. The entries behind it move up.
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
    // Most guest entries have one interrupt to deliver, which needs no bucket: they do not come
    // here.
    #[inline(never)]
    pub(super) fn fill(&mut self, count: usize) {
        let mut left = SLICE;
        loop {
            let ready = self.ready.highest();
            // Active interrupts come back into list registers before the interrupts that they keep
            // waiting.
            if let Some(level) = self.spilled.highest()
                && ready.is_none_or(|ready| level <= ready)
                && (self.used < count || self.make_room_for_active(level))
            {
                self.restore_spilled();
                continue;
            }
            let Some(level) = ready else {
                self.doubtful = false;
                return;
            };
            // Any number of interrupts may have to be dropped or forwarded before one is found that
            // can be offered to the guest: some have been cleared.
            left -= 1;
            if left == 0 {
                self.left_over = true;
                return;
            }
            if self.doubtful && !self.confirm_next() {
                continue;
            }
            if self.used == count {
                // An LPI that was cleared, even before it came in (`enqueue_lpi`), needs no list
                // register.
                let gone = |o: &OwnerRef| o.intid().is_lpi() && !o.pending().is_pending(o.lane());
                if self.ready.peek(gone) == Some(true) {
                    drop(self.ready.pop());
                    continue;
                }
                if !self.make_room(level) {
                    self.ready.prefetch_second();
                    return;
                }
            }
            // Read again: `make_room` may have put an interrupt back into a bucket.
            if let Some(level) = self.ready.highest()
                && let Some(owned) = self.ready.pop()
            {
                let control = owned.control().load();
                self.offer(level, owned, control);
            }
        }
    }

    /// Puts a waiting interrupt into the next list register.
    // For an LPI this is one read-modify-write and a few stores, in the middle of every guest
    // entry.
    #[inline(always)]
    pub(super) fn offer(&mut self, level: u8, owned: OwnerRef, control: Control) {
        let lr = Lr::pending(owned.intid(), OwnerRef::priority_of(level), control.group());
        if !owned.intid().is_lpi() {
            return self.offer_wired(lr, owned, control);
        }
        if owned.pending().take(owned.lane()).pending {
            let (sent, hw_mapped, recheck) = (false, false, false);
            self.push_entry(Entry { owned, want: lr, latch: Latch::Bit, sent, hw_mapped, recheck });
        }
        // Otherwise the LPI was cleared, before or after it was taken in from the mailbox.
    }

    /// Puts a waiting wired interrupt into the next list register. It may have a level, senders, or
    /// a physical interrupt, and other threads read its state.
    #[inline(never)]
    fn offer_wired(&mut self, lr: Lr, owned: OwnerRef, control: Control) {
        self.open_window();
        if control.senders() != 0 || owned.pending().is_pending(owned.lane()) {
            owned.publish_lr_pending();
        }
        let (mut latch, mut want, mut more) = (Latch::None, lr, false);
        if control.senders() != 0 {
            let (before, now) = owned.control().update(Control::with_sender_taken);
            if before.senders() != 0 {
                latch = Latch::Sender(now.sender());
                want = lr.with_source(now.sender());
                more = now.senders() != 0 || owned.pending().is_pending(owned.lane());
            }
        }
        if latch == Latch::None && owned.pending().take_wired(owned.lane()).pending {
            latch = Latch::Bit;
        }
        if let Some(pintid) = control.phys() {
            want = want.with_hw(pintid);
        }
        let level = control.trigger() == Trigger::Level;
        if latch == Latch::None && !(level && control.line()) {
            // The interrupt was cleared since it was taken in.
            return drop(owned);
        }
        let sent = matches!(latch, Latch::Sender(_));
        if control.is_sent() && !sent {
            owned.control().update(|c| c.with_sent(false));
        }
        let hw_mapped = want.hw().is_some();
        let mut entry = Entry { owned, want, latch, sent, hw_mapped, recheck: sent };
        if more || (level && !cfg!(mutant = "level_not_sampled_again")) {
            entry.ask_for_end();
        }
        self.push_entry(entry);
    }

    #[cold]
    fn restore_spilled(&mut self) {
        let Some(level) = self.spilled.highest() else { return };
        let Some(owned) = self.spilled.pop() else { return };
        self.open_window();
        let control = owned.control().load();
        let sent = control.is_sent();
        let group = control.active_group();
        let lr = Lr::pending(owned.intid(), OwnerRef::priority_of(level), group);
        let lr = match control.phys() {
            Some(pintid) => lr.with_hw(pintid),
            None if sent => lr.with_source(control.sender()),
            None => lr,
        };
        let want = lr.with_state(LrState::Active);
        let hw_mapped = want.hw().is_some();
        let mut entry = Entry { owned, want, latch: Latch::None, sent, hw_mapped, recheck: true };
        entry.ask_for_end();
        self.push_entry(entry);
        self.reevaluate(self.used - 1);
    }

    /// Returns the level and the list register of the least urgent entry that is `active`, or that
    /// is not. Of several at that level, it is the youngest.
    fn least_urgent(&self, active: bool) -> Option<(u8, usize)> {
        let entries = self.entries[..self.used].iter().flatten().enumerate();
        entries
            .filter(|(_, e)| e.want.is_active() == active)
            .map(|(n, e)| (e.want.priority().level() as u8, n))
            .max()
    }

    /// Takes an interrupt that is less urgent than `level` out of the full list registers,
    /// preferably a pending one. Returns whether there was one.
    ///
    /// If all of them are active, the least urgent one is taken out in any case: the guest may have
    /// dropped its priority long ago, and be ready for the interrupts that wait (T32).
    #[cold]
    fn make_room(&mut self, level: u8) -> bool {
        let (pending, active) = (self.least_urgent(false), self.least_urgent(true));
        let starving = pending.is_none();
        let victim = pending
            .filter(|&(worst, _)| worst > level)
            .or(active.filter(|&(worst, _)| worst > level || starving));
        victim.map(|(_, n)| self.displace(n)).is_some()
    }

    /// Takes an interrupt out of the full list registers, to make room for an active one of
    /// `level`: a pending one of that level or a less urgent one, but not the only pending one;
    /// otherwise an active one that is less urgent. Returns whether there was one.
    #[cold]
    fn make_room_for_active(&mut self, level: u8) -> bool {
        let entries = self.entries[..self.used].iter().flatten();
        let spare = entries.filter(|e| !e.want.is_active()).count() > 1;
        let victim = self
            .least_urgent(false)
            .filter(|&(worst, _)| spare && worst >= level)
            .or(self.least_urgent(true).filter(|&(worst, _)| worst > level));
        victim.map(|(_, n)| self.displace(n)).is_some()
    }

    /// Takes list register `n` away from its interrupt, which goes back to a bucket.
    #[cold]
    pub(super) fn displace(&mut self, n: usize) {
        let Some(entry) = self.remove_entry(n) else { return };
        let (active, level) = (entry.want.is_active(), entry.want.priority().level() as u8);
        let group = entry.want.group();
        let owned = entry.withdraw();
        owned.publish(active, false);
        if active {
            owned.control().update(|c| c.with_active_group(group));
            self.spilled.push_front(level, owned);
        } else {
            // It is older than all others in its bucket.
            self.ready.push_front(level, owned);
        }
    }

    /// Takes over the guest's changes to list register `n`, which reads as `lr` now.
    #[inline]
    pub(super) fn fold_entry(&mut self, n: usize, lr: Lr) {
        let Some(entry) = &mut self.entries[n] else { return };
        // An LPI has no active state (IHI 0069, 4.1.2): once the guest has acknowledged it, nothing
        // of it is left here, whether or not the guest ends it. Its end then has no list register:
        // it drops a priority, and is not counted (12.4, `ICH_HCR_EL2`).
        let lpi = entry.owned.intid().is_lpi();
        let lr = if lpi { lr.without_active() } else { lr };
        let was = entry.want;
        if was.is_pending() && !lr.is_pending() {
            entry.latch = Latch::None;
            if cfg!(mutant = "fold_clears_pending") {
                let _ = entry.owned.pending().take(entry.owned.lane());
            }
            self.mine.counters.add(Counter::Delivered, 1);
        }
        entry.want = lr;
        if lr.state() == LrState::Invalid {
            // The reference is dropped once all list registers have been read, so the cache lines
            // of all the interrupts come at the same time.
            prefetch_write(&entry.owned.state);
        }
    }

    /// Lets go of an interrupt that the guest is done with. With `recheck`, puts it where it
    /// belongs if it is still pending.
    #[inline(always)]
    pub(super) fn finish(&mut self, owned: OwnerRef, recheck: bool) {
        // Without `recheck`, a thread that has made it pending since has scheduled it: the mailbox
        // brings it back.
        if recheck {
            self.finish_and_settle(owned);
        } else {
            drop(owned);
        }
    }

    #[inline(never)]
    fn finish_and_settle(&mut self, owned: OwnerRef) {
        self.unflushed = true;
        self.requeue(owned);
    }

    /// Asks the host for the level of an interrupt, if it is level-sensitive, after its physical
    /// interrupt was deactivated.
    #[cold]
    fn sample(&self, owned: &OwnerRef) {
        if owned.control().load().trigger() != Trigger::Level {
            return;
        }
        let mut asked = None;
        // The host may set the level between its answer and the update, and the update must not
        // undo that. So the host is asked again, until its answer is the level that was written.
        while let Some(high) = self.shared.dispatcher.input_level(self.wired(owned))
            && asked != Some(high)
        {
            owned.control().update(|c| c.with_line(high));
            asked = Some(high);
        }
    }

    /// Deactivates the physical interrupt, if any, of an interrupt that was deactivated other than
    /// by the guest through its list register, and samples its level.
    pub(super) fn end_phys(&self, owned: &OwnerRef, phys: Option<u16>) {
        if let Some(pintid) = phys {
            self.shared.dispatcher.deactivate_phys(pintid);
            self.sample(owned);
        }
    }

    /// Deactivates the physical interrupt of an interrupt that has lost its list register: the one
    /// to which it is hardware-mapped now.
    pub(super) fn end_spilled(&self, owned: &OwnerRef) {
        self.end_phys(owned, owned.control().load().phys());
    }

    fn wired(&self, irq: &Irq) -> Wired {
        let intid = irq.intid();
        if intid.is_private() { Wired::Private(self.id, intid) } else { Wired::Spi(intid) }
    }

    /// Removes the entries that the guest is done with. Re-evaluates the pending entries if one of
    /// those left is not active and is marked for a re-check.
    #[inline(always)]
    pub(super) fn finish_gone(&mut self) {
        let (used, mut kept, mut reevaluate) = (self.used, 0, false);
        for n in 0..used {
            let Some(entry) = &self.entries[n] else { continue };
            if entry.want.state() != LrState::Invalid {
                reevaluate |= entry.recheck && !entry.want.is_active();
                if kept != n {
                    entry.owned.set_place(Place::InLr(kept as u8));
                    self.entries.swap(kept, n);
                }
                kept += 1;
            }
        }
        // Before the host is called, which may panic: the entries in use are contiguous, and the
        // next flush lets go of the others.
        self.used = kept;
        let left_over = core::mem::replace(&mut self.left_over, true);
        self.finish_rest(used);
        self.left_over = left_over;
        if reevaluate {
            self.review_pending();
        }
    }

    /// Lets go of the entries up to `until` that are not in use any more.
    #[inline(always)]
    pub(super) fn finish_rest(&mut self, until: usize) {
        for n in self.used..until {
            if let Some(Entry { owned, hw_mapped, recheck, .. }) = self.entries[n].take() {
                owned.set_place(Place::Nowhere);
                if hw_mapped {
                    self.sample(&owned);
                }
                self.finish(owned, recheck);
            }
        }
    }

    /// Re-evaluates the entries that are pending.
    #[cold]
    fn review_pending(&mut self) {
        // From the end: `reevaluate` can remove the entry.
        for n in (0..self.used).rev() {
            if self.entries[n].as_ref().is_some_and(|e| e.want.state() == LrState::Pending) {
                self.reevaluate(n);
            }
        }
    }
}
