//! References to an interrupt: one type for each kind of holder in its [state word](super::state).
//!
//! | type | holder | in the state word |
//! |---|---|---|
//! | [`IrqRef`] | a mapping | one of `REFS` |
//! | [`WeakRef`] | a route, or a thread in passing | one of `WEAK` |
//! | [`QueuedRef`] | a mailbox | `QUEUED` |
//! | [`OwnerRef`] | the owner vCPU | `OWNED` |
//!
//! Only this file and `state` count. Everywhere else a reference is a value: it is counted when it
//! is made, and counted off when it is dropped.
//!
//! # Rules
//!
//! These rules concern the references. Rules 1 and 2, about the word, are in
//! [`state`](super::state).
//!
//! 3. The thread that makes the word `DEAD` puts the object on the retired list, once.
//! 4. `OWNED` and `OWNER` are written only by the owner, or by the vCPU that claims an unowned
//!    interrupt and holds its [`QueuedRef`]. So at most one vCPU claims.
//!
//! # Situations
//!
//! All steps are read-modify-writes of one word, so of two steps one comes first.
//!
//! *Dropped while queued.* A command drops the last [`IrqRef`] of an LPI while `QUEUED` is set. The
//! mailbox's reference remains, so the word does not become `DEAD`; it only ceases to be mapped.
//! The vCPU that drains the mailbox claims the LPI and finds it unmapped. It drops its
//! [`OwnerRef`], or first hands the LPI over to its target, which does the same. (If another vCPU
//! owns the LPI, the draining vCPU passes it on to that vCPU, which re-evaluates it and drops its
//! [`OwnerRef`].) That drop takes the last holder away, makes the word `DEAD`, and puts the object
//! on the retired list. If the mailbox closes instead, the [`QueuedRef`] becomes a [`WeakRef`]. Its
//! drop is the last put, unless the re-check has queued the LPI again.
//!
//! *Claim against the last put.* A vCPU claims a queued LPI while a command drops the last
//! [`IrqRef`]. The claim replaces `QUEUED` by `OWNED` in one compare-exchange, so there is no
//! moment without a holder. If the put comes first, the claim's state says that the LPI is
//! unmapped, and the vCPU drops its [`OwnerRef`]: the last put. If the claim comes first, its state
//! says mapped, and the vCPU may put the LPI into a list register. The put then finds `OWNED`, and
//! the object lives until the vCPU drops its [`OwnerRef`].
//!
//! *Route dropped while the LPI is weakly referenced.* A route holds a [`WeakRef`] to the LPI that
//! it injected last. While the event is mapped, dropping the route takes one of `WEAK` away and
//! nothing else. If the last [`IrqRef`] goes at the same time, the later of the two drops is the
//! last put, and its thread retires the object. If the mapping went before, the route's drop is the
//! last put. While other weak references, a mailbox or an owner remain, neither drop is the last
//! put.
//!
//! *Mapped again while queued.* The event of a queued LPI is unmapped, and the INTID is mapped
//! again before the mailbox is drained. The word is not `DEAD`, so `try_get` makes the same object
//! mapped again: `REFS` goes from 0 to 1. If the claim comes later, it finds the LPI mapped and
//! delivers it if it is pending. If the claim comes first, the vCPU finds it unmapped and drops its
//! [`OwnerRef`]. If this drop comes before `try_get`, it makes the word `DEAD`: `try_get` returns
//! `None`, and the mapper makes a new object. If it comes after `try_get`, the object lives on
//! without an owner. The mapper looks at the pending bit afterwards and schedules the LPI if the
//! bit is set (`lpis`), so no later injection is lost.
//!
//! Models: lifetime_refs, lifetime_intid, lifetime_power, lifetime_epoch, lifetime_handles,
//! delivery_retarget.

#![allow(unsafe_code)] // A reference is a pointer that its holder's bit keeps valid.

use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use super::state::*;
use crate::arch::ids::VcpuId;
use crate::lockfree::irq::Irq;
use crate::observe::trace::{Trace, trace};
use crate::sync::{Ordering, prefetch_write};

/// The result of [`Irq::mark_queued`].
pub(crate) enum MarkQueued {
    /// The interrupt has no references any more.
    Dead,
    /// The interrupt is in a mailbox already. The vCPU that drains the mailbox sees everything that
    /// the caller did before.
    Already,
    /// The caller holds the mailbox's reference, and must post it: to this owner, if there was one.
    New(QueuedRef, Option<VcpuId>),
}

/// The result of [`QueuedRef::claim`].
pub(crate) enum Claim {
    /// Another vCPU owns the interrupt.
    Elsewhere(QueuedRef),
    /// The claiming vCPU owned the interrupt already; the mailbox's reference is gone. With it
    /// comes the value of `ACTIVE` that another thread has written since the owner took it over
    /// last, if any.
    Mine(NonNull<Irq>, Option<bool>),
    /// The claiming vCPU owns the interrupt now. The state is the one right after the claim.
    New(OwnerRef, State),
}

/// Takes away the holder that the caller stands for.
///
/// # Safety
/// The caller must hold the reference that `holder` names, and must not use it or `irq` afterwards.
unsafe fn release(irq: NonNull<Irq>, holder: u64, clear: fn(u64) -> u64) {
    // SAFETY: the holder keeps the object alive until the update below. After it the object is not
    // touched, unless the update made it `DEAD`, which makes it the caller's alone.
    let (state, counts) = unsafe { (&irq.as_ref().state, irq.as_ref().counts()) };
    if cfg!(mutant = "dead_in_two_steps") {
        // Between the two, the count is zero, and can be revived.
        let (_, new) = state.update(|old| clear(old) - holder);
        if !new.has_holder() {
            state.0.swap(DEAD, Ordering::AcqRel);
            // SAFETY: none; this is a seeded bug.
            unsafe { Irq::retire(irq) };
        }
        return;
    }
    let (old, new) = state.update(|old| without(clear(old), holder));
    if holder == ONE_REF && old.0 & REFS == ONE_REF {
        counts.mapped.sub(1);
    }
    if new.is_dead() {
        // SAFETY: as above; rule 3: only one update makes the word dead.
        unsafe { Irq::retire(irq) };
    }
}

impl Irq {
    /// Takes a reference, unless there are none any more.
    ///
    /// The caller sees `self` under a pin, or holds another reference.
    #[inline]
    #[track_caller]
    pub(crate) fn try_get(&self) -> Option<IrqRef> {
        self.touch();
        // AcqRel: in the word's chain, so that the holder of a reference sees everything that was
        // done under earlier ones.
        let old = State(self.state.0.fetch_add(ONE_REF, Ordering::AcqRel));
        if old.is_dead() && !cfg!(mutant = "revive_from_zero") {
            // The count of a `DEAD` word means nothing (rule 1), so there is nothing to undo.
            return None;
        }
        if old.0 & REFS == 0 {
            self.counts().mapped.add(1);
        }
        let reference = IrqRef(NonNull::from(self));
        trace(Trace::Get, &reference);
        Some(reference)
    }

    /// Takes a reference to the object's memory. `None` if the object is `DEAD`, or if there are
    /// 2^15 weak references already.
    ///
    /// The caller sees `self` under a pin, or holds another reference.
    #[track_caller]
    pub(crate) fn try_weak(&self) -> Option<WeakRef> {
        let full = |state: u64| state & WEAK >= MOST_WEAK;
        let (old, _) = self
            .state
            .update(|old| if State(old).is_dead() || full(old) { old } else { old + ONE_WEAK });
        if old.is_dead() || full(old.0) {
            return None;
        }
        let kept = WeakRef(NonNull::from(self));
        trace(Trace::Keep, &kept);
        Some(kept)
    }

    /// Marks the interrupt as queued, because something about it has changed.
    ///
    /// The caller sees `self` under a pin, or holds another reference.
    #[inline]
    #[track_caller]
    pub(crate) fn mark_queued(&self) -> MarkQueued {
        self.touch();
        // AcqRel: see "Happens-before" in `state`.
        let order =
            if cfg!(mutant = "signal_relaxed") { Ordering::Relaxed } else { Ordering::AcqRel };
        prefetch_write(&self.state.0);
        let old = State(self.state.0.fetch_or(QUEUED, order));
        if old.is_dead() && !cfg!(mutant = "post_dead") {
            MarkQueued::Dead
        } else if old.is_queued() {
            MarkQueued::Already
        } else {
            let posted = QueuedRef(NonNull::from(self));
            trace(Trace::Post, &posted);
            MarkQueued::New(posted, old.owner())
        }
    }
}

macro_rules! reference {
    ($(#[$doc:meta])* $name:ident, $holder:expr, $clear:expr, $trace:expr) => {
        $(#[$doc])*
        #[must_use]
        pub(crate) struct $name(NonNull<Irq>);

        // SAFETY: a counted reference to an object. Every field of the object is atomic or
        // constant, or belongs to the owner, which is the one holder of `OwnerRef`.
        unsafe impl Send for $name {}

        impl $name {
            /// Gives the reference up without dropping it.
            pub(crate) fn into_raw(self) -> NonNull<Irq> {
                ManuallyDrop::new(self).0
            }

            /// Borrows the object as its holder, without ending the reference that was given up.
            ///
            /// # Safety
            /// The pointer must come from `into_raw` of the same type, and must not be used up
            /// while this lives.
            #[allow(dead_code)]
            pub(crate) unsafe fn borrow(irq: NonNull<Irq>) -> ManuallyDrop<Self> {
                ManuallyDrop::new(Self(irq))
            }

            /// Takes back a reference that was given up.
            ///
            /// # Safety
            /// The pointer must come from `into_raw` of the same type, and is used up.
            pub(crate) unsafe fn from_raw(irq: NonNull<Irq>) -> Self {
                Self(irq)
            }
        }

        impl Deref for $name {
            type Target = Irq;
            #[inline(always)]
            fn deref(&self) -> &Irq {
                // SAFETY: the reference keeps the object alive.
                let irq = unsafe { self.0.as_ref() };
                irq.touch();
                irq
            }
        }

        impl Drop for $name {
            #[inline]
            fn drop(&mut self) {
                trace($trace, self);
                // SAFETY: this value stands for its holder, and ends here.
                unsafe { release(self.0, $holder, $clear) };
            }
        }
    };
}

reference! {
    /// A counted reference: of a mapping, or of one that is about to be made. It makes the
    /// interrupt mapped.
    IrqRef, ONE_REF, unchanged, Trace::Put
}
reference! {
    /// A reference to the memory alone, of a route or of a thread in passing. The interrupt may be
    /// unmapped, and mapped again.
    WeakRef, ONE_WEAK, unchanged, Trace::Unkeep
}
reference! {
    /// The mailbox's reference. Dropping it withdraws the interrupt from the mailbox.
    QueuedRef, QUEUED, unchanged, Trace::Unpost
}
reference! {
    /// The owner's reference: this vCPU has the interrupt in a bucket or a list register. Dropping
    /// it leaves the interrupt without an owner.
    OwnerRef, OWNED, disowned, Trace::Disown
}

impl QueuedRef {
    /// Makes `vcpu` the owner, if there is none. If `vcpu` is then the owner, ends the mailbox's
    /// reference.
    #[inline]
    #[track_caller]
    pub(crate) fn claim(self, vcpu: VcpuId) -> Claim {
        let mine = OWNED | (vcpu.0 as u64) << OWNER_SHIFT;
        let (old, new) = self.state.update(|old| match State(old).owner() {
            Some(owner) if owner != vcpu => old,
            Some(_) => old & !(QUEUED | ACTIVE_WRITTEN),
            None => old & !QUEUED | mine,
        });
        if new.is_queued() {
            return Claim::Elsewhere(self);
        }
        // Given up before the call of the tracer, which may panic: the word says already that this
        // reference is gone.
        let irq = self.into_raw();
        match old.owner() {
            Some(_) => {
                // SAFETY: this vCPU owns it.
                trace(Trace::Unpost, unsafe { irq.as_ref() });
                Claim::Mine(irq, (old.0 & ACTIVE_WRITTEN != 0).then_some(old.is_active()))
            }
            None => {
                let owned = OwnerRef(irq);
                trace(Trace::Unpost, &owned);
                trace(Trace::Own, &owned);
                Claim::New(owned, new)
            }
        }
    }

    /// Turns the reference of a mailbox that refused the interrupt into a weak one, which keeps the
    /// interrupt alive for a re-check.
    ///
    /// The result is not a counted reference, since that would look like a mapping
    /// (`State::is_mapped`).
    pub(crate) fn withdraw(self) -> WeakRef {
        let _ = self.state.update(|old| (old & !QUEUED) + ONE_WEAK);
        let kept = WeakRef(self.into_raw());
        trace(Trace::Keep, &kept);
        trace(Trace::Unpost, &kept);
        kept
    }
}

impl OwnerRef {
    /// Gives the interrupt up, active or not, for the vCPU that it now belongs to.
    ///
    /// The first result, if any, must be posted there. If there is none, the interrupt is in a
    /// mailbox already. The second result is true if the interrupt was `active` and another thread
    /// has ended it: the caller then deactivates its physical interrupt.
    #[track_caller]
    pub(crate) fn hand_over(self, active: bool) -> (Option<QueuedRef>, bool) {
        trace(Trace::Disown, &self);
        let active = if active { ACTIVE } else { 0 };
        let (old, _) = self.state.update(|old| {
            // A value that another thread has written wins.
            let active = if old & ACTIVE_WRITTEN != 0 { old & ACTIVE } else { active };
            disowned(old) & !(OWNED | ACTIVE) | active | QUEUED
        });
        let ended = active != 0 && old.0 & ACTIVE_WRITTEN != 0 && !old.is_active();
        // If it was queued, the reference is the mailbox's now, and the object may be gone: it is
        // not touched any more.
        let irq = self.into_raw();
        // Seeded bug: in two mailboxes at once.
        if old.is_queued() && !cfg!(mutant = "hand_over_posts_twice") {
            return (None, ended);
        }
        let posted = QueuedRef(irq);
        trace(Trace::Post, &posted);
        (Some(posted), ended)
    }

    /// Returns the value of `ACTIVE` that another thread has written since the owner took it over
    /// last, if any. It is returned once.
    pub(crate) fn take_change(&self) -> Option<bool> {
        // A plain load. A later write is in the mailbox, or its writer waits (see
        // `notify::VcpuShared::open_window`).
        if self.state.load().0 & ACTIVE_WRITTEN == 0 {
            return None;
        }
        let (old, _) = self.state.update(|old| old & !ACTIVE_WRITTEN);
        Some(old.is_active())
    }

    /// Sets `LR_PENDING`. The owner calls this before it takes the pending bit or a sender for a
    /// list register, so that a reader of the pending bit and then of this word does not find the
    /// interrupt in neither.
    pub(crate) fn publish_lr_pending(&self) {
        if !self.intid().is_lpi() && !self.state.load().is_lr_pending() {
            // In the word's chain, and before the pending bit or sender is taken.
            let _ = self.state.update(with_lr_pending);
        }
    }

    /// Publishes whether the interrupt is active, and whether it is pending in a list register.
    #[inline]
    pub(crate) fn publish(&self, active: bool, latched: bool) {
        if self.intid().is_lpi() {
            return;
        }
        let want = if active { ACTIVE } else { 0 } | if latched { LR_PENDING } else { 0 };
        // A plain load: only the owner changes `LR_PENDING`. It changes `ACTIVE` only while
        // `ACTIVE_WRITTEN` is clear, so it does not overwrite a written value.
        if self.state.load().0 & (ACTIVE | LR_PENDING) == want {
            return;
        }
        let _ = self.state.update(|old| {
            let mine = if old & ACTIVE_WRITTEN != 0 { 0 } else { ACTIVE };
            let new = old & !mine | want & mine;
            if want & LR_PENDING != 0 { with_lr_pending(new) } else { new & !LR_PENDING }
        });
    }
}
