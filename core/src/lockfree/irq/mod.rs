//! One interrupt: 64 bytes, with its links.
//!
//! | word | meaning | written by |
//! |---|---|---|
//! | `state` | references, queued, owner ([`state`]) | any thread |
//! | `control` | enabled, priority, target ... ([`control`]) | any thread |
//! | `link` | next in a mailbox or retired list | holder of `QueuedRef`, or of the retired object |
//! | `place`, `links` | position in the owner's lists or list registers | the owner |
//! | `pending`, `dispatcher`, `id` | constant | |
//!
//! The pending bit is in another cache line ([`crate::lockfree::pending::word`]): injections that
//! coalesce do not touch this one.
//!
//! Models: lifetime_refs, lifetime_intid, delivery_read.

#![allow(unsafe_code)] // Owner-only fields, and pointers to objects that outlive it.

pub(crate) mod control;
pub(crate) mod refs;
pub(crate) mod state;

use core::ptr::NonNull;

use crate::arch::ids::{Intid, Priority, VcpuId};
use crate::lockfree::irq::control::{Control, ControlWord};
use crate::lockfree::irq::refs::OwnerRef;
use crate::lockfree::irq::state::{State, StateWord};
use crate::lockfree::notify::Dispatcher;
use crate::lockfree::pending::word::{Lane, PendingWord};
use crate::lockfree::reclaim::retired::Counts;
use crate::sync::{AtomicPtr, Canary, UnsafeCell};

/// The position of an interrupt at its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// In no list and in no list register.
    Nowhere,
    /// In the bucket of this level, waiting for a list register.
    Ready(u8),
    /// In this list register.
    InLr(u8),
    /// Active, but in no list register: in the bucket of this level.
    Spilled(u8),
}

/// Links of the owner's doubly linked lists.
#[derive(Clone, Copy)]
pub(crate) struct Links {
    pub(crate) prev: *mut Irq,
    pub(crate) next: *mut Irq,
}

/// One interrupt.
#[repr(C, align(64))]
pub(crate) struct Irq {
    pub(crate) state: StateWord,
    control: ControlWord,
    pub(crate) link: AtomicPtr<Irq>,
    pending: NonNull<PendingWord>,
    dispatcher: NonNull<Dispatcher>,
    links: UnsafeCell<Links>,
    place: UnsafeCell<Place>,
    /// Bits 23:0 the INTID, bits 31:24 the lane.
    id: u32,
    canary: Canary,
}

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Irq>() == 64);

// SAFETY: every field that several threads use is atomic or constant. `links` and `place` are used
// only by the thread that holds `OwnerRef`. There is at most one `OwnerRef` (`refs`, rule 4), and
// its holder receives it through the state word's acquire-release chain. `pending` and `dispatcher`
// point to objects that outlive this one (see `new`), and are Sync.
unsafe impl Send for Irq {}
// SAFETY: as above.
unsafe impl Sync for Irq {}

impl Irq {
    /// Makes an interrupt with one reference, which the caller wraps.
    ///
    /// # Safety
    /// `pending` and `dispatcher` must stay valid for as long as this object does.
    pub(crate) unsafe fn new(
        intid: Intid,
        control: Control,
        pending: (NonNull<PendingWord>, Lane),
        dispatcher: NonNull<Dispatcher>,
    ) -> Self {
        Self {
            state: StateWord::new(),
            control: ControlWord::new(control),
            link: AtomicPtr::new(core::ptr::null_mut()),
            pending: pending.0,
            dispatcher,
            links: UnsafeCell::new(Links {
                prev: core::ptr::null_mut(),
                next: core::ptr::null_mut(),
            }),
            place: UnsafeCell::new(Place::Nowhere),
            id: intid.0 | pending.1.index() << 24,
            canary: Canary::default(),
        }
    }

    #[inline(always)]
    pub(crate) fn intid(&self) -> Intid {
        Intid(self.id & 0x00ff_ffff)
    }

    #[inline(always)]
    pub(crate) fn lane(&self) -> Lane {
        Lane::new((self.id >> 24) as usize)
    }

    #[inline(always)]
    pub(crate) fn control(&self) -> &ControlWord {
        self.canary.touch();
        &self.control
    }

    #[inline(always)]
    pub(crate) fn pending(&self) -> &PendingWord {
        self.canary.touch();
        // SAFETY: `new` requires it to outlive this object.
        unsafe { self.pending.as_ref() }
    }

    /// The counts of its VM.
    pub(crate) fn counts(&self) -> &Counts {
        // SAFETY: `new` requires it to outlive this object.
        &unsafe { self.dispatcher.as_ref() }.retired.counts
    }

    #[cfg(feature = "trace")]
    pub(crate) fn dispatcher(&self) -> &Dispatcher {
        // SAFETY: `new` requires it to outlive this object.
        unsafe { self.dispatcher.as_ref() }
    }

    /// Whether it is pending, by its pending bit, its line or its senders. A plain load: see
    /// [`PendingWord::is_pending`].
    pub(crate) fn looks_pending(&self) -> bool {
        self.pending().is_pending(self.lane()) || self.control().load().asserted()
    }

    /// Whether it is pending, in a list register or outside, as far as that has been published. For
    /// wired interrupts.
    ///
    /// The owner sets `LR_PENDING` before it takes the pending bit, and gives the bit back before
    /// it clears `LR_PENDING`. So at each moment at which the interrupt is pending, one of the two
    /// words says so. But they are two words, and between a load of the one and a load of the other
    /// the interrupt can move from the second to the first. It can do so only in two ways. Either
    /// `LR_PENDING` was set between the loads, which counts (`State::takes`). Or it was set before,
    /// for a take that has been cleared since, and is not set any more. In both cases both words
    /// are read again.
    ///
    /// Lock-free: the loop repeats only if a vCPU has taken this very interrupt, or given it back.
    pub(crate) fn looks_pending_anywhere(&self) -> bool {
        let offered = |state: State| state.is_lr_pending() && !self.is_taken_back();
        loop {
            let before = self.state.load_ordered();
            if offered(before) || self.looks_pending() {
                return true;
            }
            let after = self.state.load_ordered();
            if offered(after) {
                return true;
            }
            let same = before.is_lr_pending() == after.is_lr_pending()
                || cfg!(mutant = "given_back_between_looks");
            if same && before.takes() == after.takes() {
                return false;
            }
        }
    }

    /// The senders for which it is pending, in a list register or outside, as far as that has been
    /// published. One load of the control word gives both the senders that are waiting and the
    /// sender that is in the list register. The loop repeats if `LR_PENDING` was set between the
    /// two loads of the state (`State::takes`).
    pub(crate) fn senders_anywhere(&self) -> u8 {
        loop {
            let before = self.state.load_ordered();
            let control = self.control().load();
            let after = self.state.load_ordered();
            if before.takes() == after.takes() {
                let offered = before.is_lr_pending()
                    && control.is_sent()
                    && !control.is_recalled(control.sender());
                let offered = if offered { 1 << control.sender() } else { 0 };
                return control.senders() | offered;
            }
        }
    }

    /// Whether the pending state that its owner has in a list register was cleared, or recalled by
    /// its sender, and the owner has not re-checked since.
    pub(crate) fn is_taken_back(&self) -> bool {
        let control = self.control().load();
        if control.is_sent() {
            control.is_recalled(control.sender())
        } else {
            self.pending().is_cleared(self.lane())
        }
    }

    /// The vCPU to post a change of this interrupt to: its owner, or its target if there is no
    /// owner.
    pub(crate) fn destination(&self) -> VcpuId {
        self.state.load().owner().unwrap_or_else(|| self.control().load().target())
    }

    /// Puts an interrupt that has just become `DEAD` on the retired list.
    ///
    /// # Safety
    /// The caller made the state of `irq` `DEAD`, and does not use it afterwards.
    pub(crate) unsafe fn retire(irq: NonNull<Irq>) {
        // SAFETY: it is `DEAD` and not yet on the retired list, so it is the caller's alone.
        let dispatcher = unsafe { irq.as_ref().dispatcher };
        // SAFETY: the dispatcher outlives every interrupt.
        unsafe { dispatcher.as_ref() }.retired.push_irq(irq);
    }

    /// Records a use of the object, for models (see [`Canary`]).
    #[inline(always)]
    pub(crate) fn touch(&self) {
        self.canary.touch();
    }

    /// Called once, right before the memory is freed.
    pub(crate) fn freed(&self) {
        self.canary.bury();
    }
}

impl OwnerRef {
    /// The position of the interrupt at its owner.
    #[inline(always)]
    pub(crate) fn place(&self) -> Place {
        // SAFETY: `&self` is the owner's.
        self.place.with(|p| unsafe { *p })
    }

    #[inline(always)]
    pub(crate) fn set_place(&self, place: Place) {
        // SAFETY: `&self` is the owner's, and the cell is never borrowed across calls.
        self.place.with_mut(|p| unsafe { *p = place });
    }

    #[inline(always)]
    pub(crate) fn links(&self) -> Links {
        // SAFETY: `&self` is the owner's.
        self.links.with(|l| unsafe { *l })
    }

    #[inline(always)]
    pub(crate) fn update_links(&self, f: impl FnOnce(&mut Links)) {
        // SAFETY: `&self` is the owner's, and `f` cannot reach the cell again.
        self.links.with_mut(|l| f(unsafe { &mut *l }));
    }

    /// The priority of a level.
    pub(crate) fn priority_of(level: u8) -> Priority {
        Priority::new(level << (8 - Priority::BITS))
    }
}
