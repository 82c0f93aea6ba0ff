//! One interrupt: 64 bytes, links included.
//!
//! | word | what | written by |
//! |---|---|---|
//! | `state` | references, signaled, owner ([`state`]) | anyone |
//! | `control` | enabled, priority, target ... ([`control`]) | anyone |
//! | `link` | next in the mailbox, or in the retired | holder of `QueuedRef`; who made it dead |
//! | `place`, `links` | where the owner has it | the owner |
//! | `pending`, `dispatcher`, `id` | constant | |
//!
//! The pending bit is elsewhere ([`crate::lockfree::pending::word`]): injections that coalesce do not touch this line.

#![allow(unsafe_code)] // Owner-only fields, and the pointer to the dispatcher that outlives every interrupt.

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

/// Where its owner has an interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Nowhere yet.
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

// SAFETY: every field that several threads use is atomic or constant. `links` and `place` are used only
// by the thread that holds `OwnerRef`, of which there is at most one (refs, rule 4), and which receives it through
// the state word's acquire-release chain. `pending` and `dispatcher` point to objects that outlive this one
// (see `new`), and are Sync.
unsafe impl Send for Irq {}
// SAFETY: as above.
unsafe impl Sync for Irq {}

impl Irq {
    /// An interrupt with one reference, which is the caller's to wrap.
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

    /// What is counted of all interrupts of its VM.
    pub(crate) fn counts(&self) -> &Counts {
        // SAFETY: `new` requires it to outlive this object.
        &unsafe { self.dispatcher.as_ref() }.retired.counts
    }

    #[cfg(feature = "trace")]
    pub(crate) fn dispatcher(&self) -> &Dispatcher {
        // SAFETY: `new` requires it to outlive this object.
        unsafe { self.dispatcher.as_ref() }
    }

    /// Whether it is pending, by latch or by line, as a plain look (see [`PendingWord::is_pending`]).
    pub(crate) fn looks_pending(&self) -> bool {
        self.pending().is_pending(self.lane()) || self.control().load().asserted()
    }

    /// Whether it is pending, in a list register or out of it, as far as has been published. For wired interrupts.
    ///
    /// Its owner shows that it has the interrupt (`LR_PENDING`) before it takes the pending bit, and gives the bit back before it
    /// stops showing that: so at each moment at which the interrupt is pending, one of the two says so. They are two words,
    /// and between a look at the one and a look at the other the interrupt can go from the second to the first. It
    /// can do so only if `LR_PENDING` was set meanwhile, which counts (`State::takes`), or was set before, for what has been cleared since,
    /// and is not set any more: then both are looked at again.
    ///
    /// Lock-free: a look is repeated only if a vCPU has taken this very interrupt, or given it back.
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

    /// The senders of whom it is pending, in the same sense, and in the same way: the control word says in one look
    /// both who sends and who is in the list register.
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

    /// Whether what its owner has of it in a list register was cleared, or taken back by its sender, and the owner has not looked since.
    pub(crate) fn is_taken_back(&self) -> bool {
        let control = self.control().load();
        if control.is_sent() {
            control.is_recalled(control.sender())
        } else {
            self.pending().is_cleared(self.lane())
        }
    }

    /// The vCPU whose mailbox a change of this interrupt goes to: its owner's, or else its target's.
    pub(crate) fn destination(&self) -> VcpuId {
        self.state.load().owner().unwrap_or_else(|| self.control().load().target())
    }

    /// Hands an object that has just become dead to the retired.
    ///
    /// # Safety
    /// The caller made `irq`'s state dead, and does not use it afterwards.
    pub(crate) unsafe fn retire(irq: NonNull<Irq>) {
        // SAFETY: dead but not yet in the retired, so it is the caller's alone.
        let dispatcher = unsafe { irq.as_ref().dispatcher };
        // SAFETY: the dispatcher outlives every interrupt.
        unsafe { dispatcher.as_ref() }.retired.push_irq(irq);
    }

    /// A use of the object, for models (see [`Canary`]).
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
    /// Where the owner has it.
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
