//! References to an interrupt: one type for each kind of holder in its [state word](super::state).

#![allow(unsafe_code)] // A reference is a pointer that its holder's bit keeps valid.

use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use super::state::*;
use crate::arch::ids::VcpuId;
use crate::lockfree::irq::Irq;
use crate::observe::trace::{Trace, trace};
use crate::sync::{Ordering, prefetch_write};

/// What came of signaling an interrupt.
pub(crate) enum MarkQueued {
    /// It has no references any more.
    Dead,
    /// It is in a mailbox already: whoever drains that sees what the caller did before.
    Already,
    /// The caller holds the mailbox's reference, and must post it: to this owner, if there was one.
    New(QueuedRef, Option<VcpuId>),
}

/// What came of claiming an interrupt.
pub(crate) enum Claim {
    /// Another vCPU owns it.
    Elsewhere(QueuedRef),
    /// The claiming vCPU owns it already; the mailbox's reference is gone. If someone else has made it active or not
    /// active meanwhile: which.
    Mine(NonNull<Irq>, Option<bool>),
    /// The claiming vCPU owns it now. The state is that of the moment of claiming.
    New(OwnerRef, State),
}

/// Takes away the holder that the caller stands for.
///
/// # Safety
/// The caller must hold what `holder` names, and must not use it or `irq` afterwards.
unsafe fn release(irq: NonNull<Irq>, holder: u64, clear: fn(u64) -> u64) {
    // SAFETY: the holder keeps the object alive until the update below, after which it is not touched
    // unless the update made it dead, which makes it the caller's alone.
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
    /// A reference, unless there are none any more.
    ///
    /// The caller sees `self` under a pin, or holds another reference.
    #[inline]
    #[track_caller]
    pub(crate) fn try_get(&self) -> Option<IrqRef> {
        self.touch();
        // AcqRel: in the word's chain, so that who gets a reference sees what was done under others.
        let old = State(self.state.0.fetch_add(ONE_REF, Ordering::AcqRel));
        if old.is_dead() && !cfg!(mutant = "revive_from_zero") {
            // The count of a dead word means nothing (rule 1), so there is nothing to undo.
            return None;
        }
        if old.0 & REFS == 0 {
            self.counts().mapped.add(1);
        }
        let reference = IrqRef(NonNull::from(self));
        trace(Trace::Get, &reference);
        Some(reference)
    }

    /// Keeps the object's memory; `None` if it is dead, or kept by 2^15 others.
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

    /// Says that something about the interrupt has changed.
    ///
    /// The caller sees `self` under a pin, or holds another reference.
    #[inline]
    #[track_caller]
    pub(crate) fn mark_queued(&self) -> MarkQueued {
        self.touch();
        // AcqRel: see "Happens-before" above.
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

        // SAFETY: a counted reference to an object whose every field is atomic, or belongs to the
        // owner, who is the one holder of `OwnerRef`.
        unsafe impl Send for $name {}

        impl $name {
            /// Gives the reference up without dropping it.
            pub(crate) fn into_raw(self) -> NonNull<Irq> {
                ManuallyDrop::new(self).0
            }

            /// Looks at the object as its holder, without ending the reference that was given up.
            ///
            /// # Safety
            /// The pointer must come from `into_raw` of the same type, and must not be used up while
            /// this lives.
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
    /// A counted reference: a mapping's, or one that is about to become a mapping's. It makes the interrupt mapped.
    IrqRef, ONE_REF, unchanged, Trace::Put
}
reference! {
    /// A reference to the memory alone, a route's or a passing one: the interrupt may be unmapped, and mapped again.
    WeakRef, ONE_WEAK, unchanged, Trace::Unkeep
}
reference! {
    /// The mailbox's reference. Dropping it withdraws the interrupt from where it was to go.
    QueuedRef, QUEUED, unchanged, Trace::Unpost
}
reference! {
    /// The owner's reference: this vCPU has the interrupt in a bucket or a list register.
    /// Dropping it leaves the interrupt unowned.
    OwnerRef, OWNED, disowned, Trace::Disown
}

impl QueuedRef {
    /// Makes `vcpu` the owner, if nobody is, and ends the mailbox's reference, if `vcpu` is then the owner.
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
        // Given up before the tracer is called, which may panic: the word says already that it is gone.
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

    /// Takes the interrupt back from a mailbox that would not have it, keeping it alive for another look.
    ///
    /// Not by a counted reference: that would look like a mapping (`State::is_mapped`).
    pub(crate) fn withdraw(self) -> WeakRef {
        let _ = self.state.update(|old| (old & !QUEUED) + ONE_WEAK);
        let kept = WeakRef(self.into_raw());
        trace(Trace::Keep, &kept);
        trace(Trace::Unpost, &kept);
        kept
    }
}

impl OwnerRef {
    /// Gives the interrupt up to whom it now belongs, active or not: the result, if any, must be posted there. If there is
    /// none, the interrupt is in a mailbox already. And whether another thread has ended it, which was `active`: its physical interrupt is then
    /// the caller's to deactivate.
    #[track_caller]
    pub(crate) fn hand_over(self, active: bool) -> (Option<QueuedRef>, bool) {
        trace(Trace::Disown, &self);
        let active = if active { ACTIVE } else { 0 };
        let (old, _) = self.state.update(|old| {
            // What others have written counts.
            let active = if old & ACTIVE_WRITTEN != 0 { old & ACTIVE } else { active };
            disowned(old) & !(OWNED | ACTIVE) | active | QUEUED
        });
        let ended = active != 0 && old.0 & ACTIVE_WRITTEN != 0 && !old.is_active();
        // If it was signaled, it is the mailbox's now, and may be gone: not to be looked at any more.
        let irq = self.into_raw();
        // Seeded bug: in two mailboxes at once.
        if old.is_queued() && !cfg!(mutant = "hand_over_posts_twice") {
            return (None, ended);
        }
        let posted = QueuedRef(irq);
        trace(Trace::Post, &posted);
        (Some(posted), ended)
    }

    /// Whether someone else has made it active or not active since its owner looked; which, once.
    pub(crate) fn take_change(&self) -> Option<bool> {
        // A look: what comes later is in the mailbox, or waits (see `dispatcher::VcpuShared::open_window`).
        if self.state.load().0 & ACTIVE_WRITTEN == 0 {
            return None;
        }
        let (old, _) = self.state.update(|old| old & !ACTIVE_WRITTEN);
        Some(old.is_active())
    }

    /// Before its pending bit or sender is taken for a list register: so that who looks at those, and then here, does not find it
    /// in neither.
    pub(crate) fn publish_lr_pending(&self) {
        if !self.intid().is_lpi() && !self.state.load().is_lr_pending() {
            // In the word's chain, and before the taking.
            let _ = self.state.update(with_lr_pending);
        }
    }

    /// Shows others whether the interrupt is active, and whether it is pending in a list register.
    #[inline]
    pub(crate) fn publish(&self, active: bool, latched: bool) {
        if self.intid().is_lpi() {
            return;
        }
        let want = if active { ACTIVE } else { 0 } | if latched { LR_PENDING } else { 0 };
        // A look: only the owner changes LR_PENDING, and ACTIVE only with ACTIVE_WRITTEN, which it does not overwrite.
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
