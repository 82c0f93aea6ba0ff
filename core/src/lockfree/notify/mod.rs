//! Where every change of an interrupt goes: the mailboxes of a VM, and *schedule*.
//!
//! Whatever can change what a vCPU should be offered (an injection, a line, an enable, a priority, a target,
//! a CLEAR) does two things: it changes the shared state with one atomic operation, then it attends to the
//! interrupt: sets `QUEUED`, and if it was clear, posts the interrupt to its owner's mailbox, or to its
//! target's if nobody owns it. The vCPU that drains the mailbox clears `QUEUED` first and reads the state
//! afterwards, so it sees every change whose schedule found `QUEUED` set.
//!
//! # Closed mailboxes
//!
//! A vCPU that cannot run has a closed mailbox: the interrupt stays pending, and is not signaled. Opening, and
//! whatever else makes a vCPU willing (enabling its LPIs), scans for what is pending and attends to it.
//! There are two windows between an injector I, which found the mailbox closed, and an opener O, which scans:
//!
//! * O finds QUEUED set, and leaves the interrupt to I. So I, once it has cleared QUEUED, looks at the mailbox once
//!   more. O's look at QUEUED and I's clearing are read-modify-writes of one word, O's first (it saw
//!   QUEUED), and O opened the mailbox before: so I sees it open, and attends again.
//! * O does not see the pending bit yet (or the LPI itself, or its block of bits). O has a fence between opening and
//!   scanning, and I one between the bit and its second look: one of the fences comes first, and whoever has the
//!   other one sees what the first did before its own.

#![allow(unsafe_code)] // A reference to a part of what is shared.

pub(crate) mod mailbox;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::arch::ids::VcpuId;
use crate::engine::{Gates, Kick, Wired};
use crate::lockfree::irq::Irq;
use crate::lockfree::irq::refs::{MarkQueued, QueuedRef};
use crate::lockfree::notify::mailbox::{Mailbox, Push};
use crate::lockfree::reclaim::retired::RetiredList;
use crate::observe::counters::{Counter, Counters};
use crate::sync::{AtomicBool, AtomicU64, CachePadded, Ordering, fence, update};

const fn pack(gates: Gates) -> u64 {
    let groups = gates.groups[0] as u64 | (gates.groups[1] as u64) << 1;
    groups | (gates.lpis as u64) << 2 | (gates.msis as u64) << 3
}

#[inline(always)]
const fn unpack(gates: u64) -> Gates {
    let groups = [gates & 1 != 0, gates & 2 != 0];
    Gates { groups, lpis: gates & 4 != 0, msis: gates & 8 != 0 }
}

/// In `VcpuShared::window`: somebody waits for the vCPU to be concealed.
const WAITED: u64 = 1 << 63;

/// What others ask of the owner of a vCPU. A set.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Requests(u64);

impl Requests {
    /// To look once more at everything that it has: a gate has been closed.
    pub(crate) const REEVALUATE: Self = Self(1 << 0);
    /// To look for everything that is pending for it: a gate has been opened.
    pub(crate) const SCAN: Self = Self(1 << 1);

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn includes(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// What others need of a vCPU.
pub(crate) struct VcpuShared {
    pub(crate) mailbox: CachePadded<Mailbox>,
    /// What is forwarded to it: see [`Gates`], in that order from bit 0.
    gates: AtomicU64,
    /// What the owner is to do at its next flush: [`Requests`].
    requests: AtomicU64,
    /// Odd from before the owner takes a wired interrupt's pending bit for a list register, or lets the guest have one
    /// that is there already, until it has taken back what the guest did. Only the owner counts; others set [`WAITED`].
    window: AtomicU64,
    /// Someone has the vCPU's interface.
    taken: AtomicBool,
    pub(crate) counters: Counters,
}

impl VcpuShared {
    fn new() -> Self {
        Self {
            mailbox: CachePadded::new(Mailbox::new()),
            gates: AtomicU64::new(pack(Gates::OPEN)),
            requests: AtomicU64::new(0),
            window: AtomicU64::new(0),
            taken: AtomicBool::new(false),
            counters: Counters::new(),
        }
    }

    #[inline(always)]
    pub(crate) fn gates(&self) -> Gates {
        // Acquire: pairs with `update_gates`. The owner's stale "closed" is mended by the scan, its stale "open" by
        // the review that it is asked for afterwards.
        unpack(self.gates.load(Ordering::Acquire))
    }

    /// Replaces the gates by `f` of them; returns the old and the new ones.
    pub(crate) fn update_gates(&self, f: impl Fn(Gates) -> Gates) -> (Gates, Gates) {
        // AcqRel: pairs with `gates`.
        let old = unpack(update(&self.gates, |old| pack(f(unpack(old)))));
        (old, f(old))
    }

    /// From now on, who wants to know about wired interrupts of this vCPU waits. For the owner.
    ///
    /// A read-modify-write, and so is [`VcpuShared::window`]: of the two, one comes first. Either the other side sees
    /// that it must wait, or the owner, which looks after this, sees what the other side wrote before.
    pub(crate) fn open_window(&self) {
        self.window.fetch_add(1, Ordering::AcqRel);
    }

    /// Nobody has to wait any more: what the guest did has been published. For the owner. Returns whether somebody waits, who is to be told.
    ///
    /// Who waits marks the word while it is odd, by a read-modify-write: before this one, which then finds the mark, or after it, and then it
    /// finds that the wait is over.
    #[must_use]
    pub(crate) fn close_window(&self) -> bool {
        // Release: pairs with `window_is_past` and `window`.
        // No model misses it: the reader's read-modify-write of the state comes after its look here, and loom performs both in
        // that order. Hardware need not.
        let waited = self.window.fetch_add(1, Ordering::AcqRel) & WAITED != 0;
        if waited {
            // AcqRel, as all changes of this word. Who marks the word from here on waits for the next time.
            self.window.fetch_and(!WAITED, Ordering::AcqRel);
        }
        waited && !cfg!(mutant = "concealed_without_a_word")
    }

    /// How often it was exposed and concealed: odd if it is exposed, and then the caller is told when it is concealed ([`Kick::exited`]).
    pub(crate) fn window(&self) -> u64 {
        if cfg!(mutant = "exposure_by_load") {
            return self.window.load(Ordering::Acquire) & !WAITED;
        }
        // AcqRel: see `open_window`.
        update(&self.window, |n| if n & 1 != 0 { n | WAITED } else { n }) & !WAITED
    }

    /// Whether that has changed.
    pub(crate) fn window_is_past(&self, seen: u64) -> bool {
        // Acquire: pairs with `close_window`; what is said there of models holds here, too.
        self.window.load(Ordering::Acquire) & !WAITED != seen
    }

    /// Asks the owner for something. The caller kicks.
    pub(crate) fn request(&self, what: Requests) {
        let order =
            if cfg!(mutant = "request_relaxed") { Ordering::Relaxed } else { Ordering::AcqRel };
        // Release: pairs with `take_requests`.
        self.requests.fetch_or(what.0, order);
    }

    #[inline(always)]
    pub(crate) fn has_requests(&self) -> bool {
        // Relaxed: a look; the kick that follows a request brings the owner here again.
        self.requests.load(Ordering::Relaxed) != 0
    }

    /// What was asked for since the owner looked. For the owner.
    pub(crate) fn take_requests(&self) -> Requests {
        // Acquire: pairs with `request`, so that what was changed before it is seen.
        Requests(self.requests.swap(0, Ordering::AcqRel))
    }

    /// Makes the caller the one holder of the interface; fails if there is one.
    pub(crate) fn take_interface(&self) -> bool {
        // Acquire: pairs with `return_interface`.
        !self.taken.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn return_interface(&self) {
        // Release: pairs with `take_interface`.
        self.taken.swap(false, Ordering::AcqRel);
    }
}

/// A vCPU's own part of the dispatcher, at hand.
pub(crate) struct VcpuRef {
    vcpu: NonNull<VcpuShared>,
    /// Keeps it.
    _hub: Arc<Dispatcher>,
}

// SAFETY: as good as a reference to the vCPU, and the dispatcher, which it shares: both are Sync (checked below).
unsafe impl Send for VcpuRef {}

const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Dispatcher>();
    shared::<VcpuShared>();
};

impl VcpuRef {
    pub(crate) fn new(dispatcher: &Arc<Dispatcher>, vcpu: VcpuId) -> Self {
        Self { vcpu: NonNull::from(dispatcher.vcpu(vcpu)), _hub: Arc::clone(dispatcher) }
    }
}

impl Deref for VcpuRef {
    type Target = VcpuShared;
    #[inline(always)]
    fn deref(&self) -> &VcpuShared {
        // SAFETY: the dispatcher keeps its vCPUs where they are for as long as it lives.
        unsafe { self.vcpu.as_ref() }
    }
}

/// The mailboxes of a VM, its way to kick, and its retired. Outlives every interrupt.
pub(crate) struct Dispatcher {
    vcpus: Box<[CachePadded<VcpuShared>]>,
    kick: Arc<dyn Kick>,
    /// The host takes offers: see [`Dispatcher::announce`].
    offers: bool,
    pub(crate) retired: RetiredList,
    #[cfg(feature = "trace")]
    pub(crate) tracer: Option<Arc<dyn crate::observe::trace::Tracer>>,
}

impl Dispatcher {
    pub(crate) fn new(vcpus: u16, kick: Arc<dyn Kick>) -> Self {
        Self {
            vcpus: (0..vcpus).map(|_| CachePadded::new(VcpuShared::new())).collect(),
            offers: kick.wants_offers(),
            kick,
            retired: RetiredList::new(),
            #[cfg(feature = "trace")]
            tracer: None,
        }
    }

    #[inline(always)]
    pub(crate) fn vcpu(&self, vcpu: VcpuId) -> &VcpuShared {
        &self.vcpus[vcpu.index()]
    }

    pub(crate) fn has_vcpu(&self, vcpu: VcpuId) -> bool {
        vcpu.index() < self.vcpus.len()
    }

    pub(crate) fn kick(&self, vcpu: VcpuId) {
        if cfg!(feature = "counters") {
            self.vcpu(vcpu).counters.add(Counter::Kicks, 1);
        }
        self.kick.kick(vcpu);
    }

    /// A vCPU that somebody waits for has been concealed.
    pub(crate) fn tell_exit(&self, vcpu: VcpuId) {
        self.kick.exited(vcpu);
    }

    pub(crate) fn input_level(&self, wired: Wired) -> Option<bool> {
        self.kick.input_level(wired)
    }

    pub(crate) fn deactivate_phys(&self, pintid: u16) {
        self.kick.deactivate_phys(pintid);
    }

    /// Deactivates the physical interrupt of one that another thread has ended while its owner gave it up (`OwnerRef::hand_over`).
    pub(crate) fn deactivate_ended(&self, ended: bool, phys: Option<u16>) {
        if let Some(pintid) = phys.filter(|_| ended) {
            self.deactivate_phys(pintid);
        }
    }

    /// Makes sure that a vCPU looks at the interrupt again. Returns whether the interrupt still lives.
    ///
    /// The caller sees it under a pin, or holds a reference to it.
    // Small enough to be a part of every injection: what hosts that take offers need is out of line.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn schedule(&self, irq: &Irq) -> bool {
        match irq.mark_queued() {
            MarkQueued::Dead => return false,
            MarkQueued::Already if self.offers => {
                self.announce(irq);
            }
            MarkQueued::Already => {}
            MarkQueued::New(posted, owner) => {
                let to = owner.unwrap_or_else(|| irq.control().load().target());
                if self.offers {
                    self.post_and_announce(posted, to, irq);
                } else {
                    self.post_to(posted, to);
                }
            }
        }
        true
    }

    /// Puts an interrupt into the mailbox of whom it concerns.
    pub(crate) fn post(&self, posted: QueuedRef) {
        let to = posted.destination();
        self.post_to(posted, to);
    }

    /// The same, for a caller who has just seen whom it concerns. If that is no longer so, who drains passes it on.
    #[inline]
    fn post_to(&self, posted: QueuedRef, to: VcpuId) {
        let (mut posted, mut to) = (posted, to);
        loop {
            if cfg!(mutant = "kick_before_push") && !self.vcpu(to).mailbox.has_mail() {
                self.kick(to);
                let _ = self.vcpu(to).mailbox.push(posted);
                return;
            }
            match self.vcpu(to).mailbox.push(posted) {
                Push::First(batch) => {
                    self.kick(to);
                    // The dispatcher's: not the interrupt's, which may be gone.
                    return self.vcpu(to).mailbox.kicked(batch);
                }
                Push::Unannounced => return self.kick(to),
                // A host that takes offers has not been told of all that is there.
                Push::Announced if self.offers => return self.kick(to),
                Push::Announced => return,
                Push::Closed(back) => match self.recheck_after_closed(back) {
                    Some(again) => (posted, to) = again,
                    None => return,
                },
            }
        }
    }

    /// Posts an interrupt for a host that takes offers.
    #[inline(never)]
    fn post_and_announce(&self, posted: QueuedRef, to: VcpuId, irq: &Irq) {
        let (mut posted, mut to) = (posted, to);
        while let Push::Closed(back) = self.vcpu(to).mailbox.push(posted) {
            match self.recheck_after_closed(back) {
                Some(again) => (posted, to) = again,
                None => return,
            }
        }
        if self.announce(irq) != to {
            // It has been moved meanwhile, and its new target does not look here: see `moved`.
            self.kick(to);
        }
    }

    /// An interrupt has been moved from `old` to its present target, and attended to since. While it waits in the mailbox of `old`, of
    /// which a host that takes offers may know nothing, `old` has to come and hand it over.
    ///
    /// With the fences of `announce`, either who is posting it to `old` sees that it has been moved, or its post comes before this kick.
    pub(crate) fn moved(&self, irq: &Irq, old: VcpuId) {
        if self.offers && !cfg!(mutant = "moved_without_kick") {
            fence(Ordering::SeqCst);
            if irq.state.load_ordered().is_queued() && irq.control().load().target() != old {
                self.kick(old);
            }
        }
    }

    /// Tells the host of a vCPU about an interrupt that is in its mailbox, or is about to be put there by another thread.
    ///
    /// Two threads can be about one interrupt: I, whose change set QUEUED, posts it and then looks at it; J, whose change found QUEUED
    /// set, only looks at it. Each has a fence before its look. If J's comes first, I's look sees J's change. If
    /// I's comes first, the interrupt was posted before J's look, and the vCPU that J tells finds it. Either way somebody tells of it as it is
    /// in the end, and after it has been posted; so a look may conclude that there is nothing to tell.
    ///
    /// Returns the target that it saw, after its fence. The caller sees the interrupt under a pin, or holds a reference to it, and
    /// does not look at it any more: the host has been called.
    #[inline(never)]
    fn announce(&self, irq: &Irq) -> VcpuId {
        if !cfg!(mutant = "announce_without_fence") {
            fence(Ordering::SeqCst);
        }
        // Before the state: an owner shows that it has it before it takes the pending bit.
        let pending = irq.pending().is_pending(irq.lane());
        let control = irq.control().load();
        let state = irq.state.load();
        let target = control.target();
        let owner = state.owner();
        match owner {
            // It is to be handed over, which others wait for.
            Some(owner) if owner != target => self.kick(owner),
            _ => {
                let lpi = irq.intid().is_lpi();
                // In a list register it may be one that the guest's thresholds kept back, until it got another priority. Of an LPI
                // only its owner knows whether it is in one.
                let offered = state.is_lr_pending() || (lpi && owner.is_some());
                let offered = offered && !cfg!(mutant = "announce_forgets_list_registers");
                let waits = pending || control.asserted() || offered;
                if waits
                    && control.enabled()
                    && self.vcpu(target).gates().pass(control.group(), lpi)
                {
                    self.kick.offer(target, control.group(), control.priority());
                }
            }
        }
        target
    }

    /// After a mailbox was found closed: see "Closed mailboxes" above.
    #[cold]
    pub(crate) fn recheck_after_closed(&self, posted: QueuedRef) -> Option<(QueuedRef, VcpuId)> {
        let irq = posted.withdraw();
        if cfg!(mutant = "closed_without_second_look") {
            return None;
        }
        if !cfg!(mutant = "second_look_without_fence") {
            // Pairs with the fence of `vgic::Shared::scan`.
            fence(Ordering::SeqCst);
        }
        // Fresh: the owner that closed its mailbox may have let go, and the target may have changed.
        let to = irq.destination();
        if self.vcpu(to).mailbox.is_closed() {
            if cfg!(mutant = "closed_keeps_reference") {
                core::mem::forget(irq);
            }
            return None;
        }
        match irq.mark_queued() {
            MarkQueued::New(posted, _) => Some((posted, to)),
            MarkQueued::Already | MarkQueued::Dead => None,
        }
    }

    /// Attends to an edge-triggered interrupt whose control word has changed, unless it is idle: then
    /// nothing follows from the change.
    ///
    /// Two read-modify-writes instead of two looks: if the first sees no pending bit, any injection it missed comes later
    /// and reads the new control word; if the second sees no holder, any later claim does.
    pub(crate) fn schedule_if_busy(&self, irq: &Irq) {
        if cfg!(mutant = "attend_by_looks") {
            let state = irq.state.load();
            if irq.looks_pending() || state.is_queued() || state.owner().is_some() {
                self.schedule(irq);
            }
            return;
        }
        let pending = irq.pending().is_pending_ordered(irq.lane());
        let state = irq.state.load_ordered();
        if pending || state.is_queued() || state.owner().is_some() {
            self.schedule(irq);
        }
    }

    /// Waits until a vCPU has taken back what its guest has done up to now to the wired interrupts in its list registers, kicking it
    /// if it is in the guest. Waits for one fold at most. Returns whether there was one: not if the host has ended the wait.
    fn await_fold(&self, vcpu: VcpuId) -> bool {
        let shared = self.vcpu(vcpu);
        let seen = shared.window();
        if seen.is_multiple_of(2) || cfg!(mutant = "no_wait_for_fold") {
            return true;
        }
        self.kick(vcpu);
        self.kick.wait_for_exit(vcpu, &|| shared.window_is_past(seen));
        shared.window_is_past(seen)
    }

    /// Before a wired interrupt is looked at: what its guest has done to it up to now has been published when this returns. If its
    /// vCPU is in the guest again by then, what was published stays as it is until the next fold. Returns false if the host has ended the wait: then only
    /// what was published before is known.
    pub(crate) fn publish(&self, irq: &Irq) -> bool {
        irq.state.load_ordered().owner().is_none_or(|owner| self.await_fold(owner))
    }

    /// Makes a wired interrupt active or not active, wherever it is.
    pub(crate) fn set_active(&self, irq: &Irq, active: bool) {
        if let Some(owner) = self.write_active(irq, active) {
            // What the guest does until it has been kicked out counts as earlier. Before it is entered again, the
            // owner takes this over, also if the host ends the wait.
            let _ = self.await_fold(owner);
        }
    }

    /// The same without waiting; returns the owner, if it has one.
    pub(crate) fn write_active(&self, irq: &Irq, active: bool) -> Option<VcpuId> {
        let old = irq.state.write_active(active);
        if old.owner().is_none()
            && old.is_active()
            && !active
            && let Some(pintid) = irq.control().load().phys()
        {
            // Nobody else does.
            self.deactivate_phys(pintid);
        }
        self.schedule(irq);
        old.owner()
    }

    /// Makes an interrupt not pending, wherever it is waiting. Returns whether it was, and nobody had taken it.
    pub(crate) fn clear(&self, irq: &Irq) -> bool {
        let pending = irq.pending().clear(irq.lane());
        if cfg!(mutant = "clear_without_attend") {
            return pending;
        }
        // Its owner withdraws what it has taken already. Nothing else is left to do if there is none.
        if irq.state.load_ordered().owner().is_some() {
            self.schedule(irq);
        }
        pending
    }
}
