//! The mailboxes of a VM, and *schedule*: how a vCPU learns that an interrupt has changed.
//!
//! Many events can change the interrupts that a vCPU should deliver: an injection, a line, an
//! enable, a priority, a target, a CLEAR. Each of them does two things. It changes the shared state
//! with one atomic operation. Then it schedules the interrupt: it sets `QUEUED`, and if that was
//! clear, posts the interrupt to its owner's mailbox, or to its target's if it has no owner. The
//! vCPU that drains the mailbox clears `QUEUED` first and reads the state afterwards, so it sees
//! every change that was followed by a schedule that found `QUEUED` set.
//!
//! # Closed mailboxes
//!
//! A vCPU that cannot run has a closed mailbox: the interrupt stays pending, and is not queued.
//! Opening a mailbox, and every other step that makes a vCPU willing (such as enabling its LPIs),
//! scans for pending interrupts and schedules them. There are two windows between an *injector*,
//! which found the mailbox closed, and an *opener*, which scans:
//!
//! * The opener finds `QUEUED` set, and leaves the interrupt to the injector. So the injector, once
//!   it has cleared `QUEUED`, re-checks the mailbox. The opener's read of `QUEUED` and the
//!   injector's clearing are read-modify-writes of one word, and the opener's is first, since it
//!   saw `QUEUED`. The opener opened the mailbox before that. So the injector sees it open, and
//!   schedules again.
//! * The opener does not see the pending bit yet (or the LPI, or its block of bits). The opener has
//!   a fence between opening and scanning, and the injector has one between setting the bit and the
//!   re-check. One of the fences comes first, and the thread with the other fence sees everything
//!   that the first thread did before its fence: either the re-check sees the mailbox open, or the
//!   scan sees the bit.
//!
//! Models: delivery_kick, delivery_config, delivery_power, delivery_enable_lpis, delivery_line,
//! delivery_active, delivery_read, delivery_clear.

#![allow(unsafe_code)] // A pointer to a part of the dispatcher.

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

/// In `VcpuShared::window`: a thread waits for the window to be closed.
const WAITED: u64 = 1 << 63;

/// A set of requests to the owner of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Requests(u64);

impl Requests {
    /// To re-evaluate everything that it has: a gate has been closed.
    pub(crate) const REEVALUATE: Self = Self(1 << 0);
    /// To scan for everything that is pending for it: a gate has been opened.
    pub(crate) const SCAN: Self = Self(1 << 1);

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn includes(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The part of a vCPU that other threads use.
pub(crate) struct VcpuShared {
    pub(crate) mailbox: CachePadded<Mailbox>,
    /// The interrupts that are forwarded to it: see [`Gates`], in that order from bit 0.
    gates: AtomicU64,
    /// The requests for the owner's next flush: [`Requests`].
    requests: AtomicU64,
    /// Odd from before the owner takes a wired interrupt's pending bit for a list register, or lets
    /// the guest have a wired interrupt that is in a list register already, until the owner has
    /// taken back the guest's changes. Only the owner counts; other threads set [`WAITED`].
    window: AtomicU64,
    /// The vCPU's interface is taken.
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
        // Acquire: pairs with `update_gates`. The scan repairs a stale "closed" of the owner, and
        // the re-evaluation that is requested afterwards repairs a stale "open".
        unpack(self.gates.load(Ordering::Acquire))
    }

    /// Replaces the gates by `f` of them; returns the old and the new ones.
    pub(crate) fn update_gates(&self, f: impl Fn(Gates) -> Gates) -> (Gates, Gates) {
        // AcqRel: pairs with `gates`.
        let old = unpack(update(&self.gates, |old| pack(f(unpack(old)))));
        (old, f(old))
    }

    /// Opens the window: from now on, a thread that asks about wired interrupts of this vCPU waits.
    /// For the owner.
    ///
    /// This is a read-modify-write, and so is [`VcpuShared::window`]: of the two, one comes first.
    /// Either the other thread sees that it must wait, or the owner, which reads the state after
    /// this, sees everything that the other thread wrote before.
    pub(crate) fn open_window(&self) {
        self.window.fetch_add(1, Ordering::AcqRel);
    }

    /// Closes the window: no thread has to wait any more, since the guest's changes have been
    /// published. For the owner. Returns whether a thread waits, and is to be told.
    ///
    /// A waiting thread marks the word while it is odd, by a read-modify-write. If that comes
    /// before this one, this one finds the mark. If it comes after this one, the thread finds that
    /// the wait is over.
    #[must_use]
    pub(crate) fn close_window(&self) -> bool {
        // Release: pairs with `window_is_past` and `window`. No model fails without it: the
        // reader's read-modify-write of the state comes after its load here, and loom performs both
        // in that order. Hardware need not.
        let waited = self.window.fetch_add(1, Ordering::AcqRel) & WAITED != 0;
        if waited {
            // AcqRel, as all changes of this word. A thread that marks the word from here on waits
            // for the next window to close.
            self.window.fetch_and(!WAITED, Ordering::AcqRel);
        }
        waited && !cfg!(mutant = "concealed_without_a_word")
    }

    /// Returns how often the window was opened and closed, as one count. The count is odd if the
    /// window is open, and then the caller is told when it is closed ([`Kick::exited`]).
    pub(crate) fn window(&self) -> u64 {
        if cfg!(mutant = "exposure_by_load") {
            return self.window.load(Ordering::Acquire) & !WAITED;
        }
        // AcqRel: see `open_window`.
        update(&self.window, |n| if n & 1 != 0 { n | WAITED } else { n }) & !WAITED
    }

    /// Whether the window has changed since `seen`.
    pub(crate) fn window_is_past(&self, seen: u64) -> bool {
        // Acquire: pairs with `close_window`. The remark about models there holds here, too.
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
        // Relaxed: a plain look. The kick that follows a request brings the owner here again.
        self.requests.load(Ordering::Relaxed) != 0
    }

    /// Takes the requests that were made since the owner looked last. For the owner.
    pub(crate) fn take_requests(&self) -> Requests {
        // Acquire: pairs with `request`, so that everything that was changed before it is seen.
        Requests(self.requests.swap(0, Ordering::AcqRel))
    }

    /// Makes the caller the one holder of the interface. Fails if there is one already.
    pub(crate) fn take_interface(&self) -> bool {
        // Acquire: pairs with `return_interface`.
        !self.taken.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn return_interface(&self) {
        // Release: pairs with `take_interface`.
        self.taken.swap(false, Ordering::AcqRel);
    }
}

/// A vCPU's own part of the dispatcher, with a pointer that costs no look-up.
pub(crate) struct VcpuRef {
    vcpu: NonNull<VcpuShared>,
    /// Keeps the vCPU.
    _hub: Arc<Dispatcher>,
}

// SAFETY: as good as a reference to the vCPU and to the dispatcher, which it shares. Both are Sync
// (checked below).
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
        // SAFETY: the dispatcher keeps its vCPUs in place for as long as it lives.
        unsafe { self.vcpu.as_ref() }
    }
}

/// The mailboxes of a VM, its way to kick, and its retired list. It outlives every interrupt.
pub(crate) struct Dispatcher {
    vcpus: Box<[CachePadded<VcpuShared>]>,
    kick: Arc<dyn Kick>,
    /// The host takes hints: see [`Dispatcher::announce`].
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

    /// Tells the host that a vCPU that a thread waits for has closed its window.
    pub(crate) fn tell_exit(&self, vcpu: VcpuId) {
        self.kick.exited(vcpu);
    }

    pub(crate) fn input_level(&self, wired: Wired) -> Option<bool> {
        self.kick.input_level(wired)
    }

    pub(crate) fn deactivate_phys(&self, pintid: u16) {
        self.kick.deactivate_phys(pintid);
    }

    /// Deactivates the physical interrupt of an interrupt that another thread has ended while its
    /// owner gave it up (`OwnerRef::hand_over`).
    pub(crate) fn deactivate_ended(&self, ended: bool, phys: Option<u16>) {
        if let Some(pintid) = phys.filter(|_| ended) {
            self.deactivate_phys(pintid);
        }
    }

    /// Makes sure that a vCPU re-evaluates the interrupt. Returns whether the interrupt is still
    /// alive.
    ///
    /// The caller sees it under a pin, or holds a reference to it.
    // Small enough to be inlined into every injection. The part for hosts that take hints is out of
    // line.
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

    /// Puts an interrupt into the mailbox of its destination.
    pub(crate) fn post(&self, posted: QueuedRef) {
        let to = posted.destination();
        self.post_to(posted, to);
    }

    /// Puts an interrupt into the mailbox of `to`, which the caller has just found to be its
    /// destination. If that has changed since, the vCPU that drains the mailbox passes the
    /// interrupt on.
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
                    // A field of the dispatcher: the interrupt may be gone by now.
                    return self.vcpu(to).mailbox.kicked(batch);
                }
                Push::Unannounced => return self.kick(to),
                // A host that takes hints has not been told of everything that is there.
                Push::Announced if self.offers => return self.kick(to),
                Push::Announced => return,
                Push::Closed(back) => match self.recheck_after_closed(back) {
                    Some(again) => (posted, to) = again,
                    None => return,
                },
            }
        }
    }

    /// Posts an interrupt for a host that takes hints.
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
            // The interrupt has been moved in between, and its new target does not look here: see
            // `moved`.
            self.kick(to);
        }
    }

    /// Called after an interrupt has been moved from `old` to its present target, and has been
    /// scheduled since. While it waits in the mailbox of `old`, of which a host that takes hints
    /// may know nothing, `old` must come and hand it over.
    ///
    /// With the fences of `announce`, either the thread that posts it to `old` sees that it has
    /// been moved, or its post comes before this kick.
    pub(crate) fn moved(&self, irq: &Irq, old: VcpuId) {
        if self.offers && !cfg!(mutant = "moved_without_kick") {
            fence(Ordering::SeqCst);
            if irq.state.load_ordered().is_queued() && irq.control().load().target() != old {
                self.kick(old);
            }
        }
    }

    /// Gives the host a hint about an interrupt that is in a vCPU's mailbox, or is about to be put
    /// there by another thread.
    ///
    /// Two threads can schedule one interrupt at once. The *poster* is the thread that set `QUEUED`
    /// after its change: it posts the interrupt and then reads it here. The *observer* is a thread
    /// that found `QUEUED` set after its change: it only reads it here. Each has a fence before its
    /// read. If the observer's fence comes first, the poster's read sees the observer's change. If
    /// the poster's fence comes first, the interrupt was posted before the observer's read, and the
    /// vCPU that the observer tells finds it. Either way one thread gives the hint for the
    /// interrupt as it is in the end, after it has been posted. So a read may conclude that there
    /// is nothing to tell.
    ///
    /// Returns the target that it saw, after its fence. The caller sees the interrupt under a pin,
    /// or holds a reference to it, and does not use it any more: the host has been called.
    #[inline(never)]
    fn announce(&self, irq: &Irq) -> VcpuId {
        if !cfg!(mutant = "announce_without_fence") {
            fence(Ordering::SeqCst);
        }
        // Before the state: an owner sets `LR_PENDING` before it takes the pending bit.
        let pending = irq.pending().is_pending(irq.lane());
        let control = irq.control().load();
        let state = irq.state.load();
        let target = control.target();
        let owner = state.owner();
        match owner {
            // It is to be handed over, and other threads wait for that.
            Some(owner) if owner != target => self.kick(owner),
            _ => {
                let lpi = irq.intid().is_lpi();
                // In a list register it may be an interrupt that the guest's thresholds kept back,
                // until it got another priority. Only the owner of an LPI knows whether the LPI is
                // in a list register.
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

    /// Called after a mailbox was found closed: see "Closed mailboxes" above.
    #[cold]
    pub(crate) fn recheck_after_closed(&self, posted: QueuedRef) -> Option<(QueuedRef, VcpuId)> {
        let irq = posted.withdraw();
        if cfg!(mutant = "closed_without_second_look") {
            return None;
        }
        if !cfg!(mutant = "second_look_without_fence") {
            // Pairs with the fence of `vcpu::slices::Scan::begin`.
            fence(Ordering::SeqCst);
        }
        // Read afresh: the owner that closed its mailbox may have let go, and the target may have
        // changed.
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

    /// Schedules an edge-triggered interrupt after a change of its control word, unless the
    /// interrupt is idle: then nothing follows from the change.
    ///
    /// It uses two read-modify-writes instead of two loads. If the first sees no pending bit, an
    /// injection that it missed comes later and reads the new control word. If the second sees
    /// neither `QUEUED` nor an owner, a later claim comes after it and reads the new control word.
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

    /// Waits until a vCPU has taken back all that its guest has done up to now to the wired
    /// interrupts in its list registers. Kicks the vCPU if it is in the guest. Waits for one fold
    /// at most. Returns false if the host has ended the wait before the fold.
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

    /// Called before the state of a wired interrupt is read. When this returns, everything that its
    /// guest has done to it up to now has been published. If its vCPU is in the guest again by
    /// then, the published state stays as it is until the next fold.
    ///
    /// Returns false if the host has ended the wait: then only the state that was published before
    /// is known.
    pub(crate) fn publish(&self, irq: &Irq) -> bool {
        irq.state.load_ordered().owner().is_none_or(|owner| self.await_fold(owner))
    }

    /// Makes a wired interrupt active or not active, wherever it is.
    pub(crate) fn set_active(&self, irq: &Irq, active: bool) {
        if let Some(owner) = self.write_active(irq, active) {
            // Changes that the guest makes until it has been kicked out count as earlier. Before
            // the guest is entered again, the owner takes this value over, even if the host ends
            // the wait.
            let _ = self.await_fold(owner);
        }
    }

    /// Makes a wired interrupt active or not active, without waiting. Returns the owner, if it has
    /// one.
    pub(crate) fn write_active(&self, irq: &Irq, active: bool) -> Option<VcpuId> {
        let old = irq.state.write_active(active);
        if old.owner().is_none()
            && old.is_active()
            && !active
            && let Some(pintid) = irq.control().load().phys()
        {
            // No other thread deactivates it.
            self.deactivate_phys(pintid);
        }
        self.schedule(irq);
        old.owner()
    }

    /// Makes an interrupt not pending, wherever it is. Returns whether its pending bit was set, and
    /// no vCPU had taken it.
    pub(crate) fn clear(&self, irq: &Irq) -> bool {
        let pending = irq.pending().clear(irq.lane());
        if cfg!(mutant = "clear_without_attend") {
            return pending;
        }
        // The owner withdraws the pending state that it has taken already. Nothing else is left to
        // do if there is no owner.
        if irq.state.load_ordered().owner().is_some() {
            self.schedule(irq);
        }
        pending
    }
}
