//! The life of an interrupt: its state word, and the references that keep it alive.
//!
//! This is the only file that counts. Everywhere else a reference is a value: taken when it is made,
//! given back when it is dropped, in the place where it was taken.
//!
//! # The word
//!
//! | bits | field | who writes |
//! |---|---|---|
//! | 31:0 | `REFS`: mappings, and references that are about to become one. Of wired interrupts: see `TAKES`. | anyone |
//! | 31:16 | `TAKES`, of wired interrupts only, which have one reference for ever: how often `LATCHED` was set | the owner |
//! | 32 | `SIGNALED`: the interrupt is in a mailbox. *Is* the mailbox's reference. | set by anyone, cleared by who drains |
//! | 33 | `OWNED`: a vCPU has it in its buckets or list registers. *Is* that vCPU's reference. | the vCPU named by `OWNER` |
//! | 34 | `DEAD`: there are no references, and never will be again | who drops the last one |
//! | 35 | `ACTIVE`: active: as its owner found it last, or was told; or while nobody owns it. Not for LPIs. | the owner; anyone, with `CHANGED` if it is owned |
//! | 51:36 | `KEEPS`: routes that remember the object, and threads that hold it in passing ([`Kept`]). They keep its memory, but do not make it mapped. | anyone |
//! | 61:52 | `OWNER`: which vCPU, if `OWNED` | the owner |
//! | 62 | `LATCHED`: pending in a list register, as its owner found it last. Not for LPIs. | the owner |
//! | 63 | `CHANGED`: someone else has written `ACTIVE`, and the owner has not taken that over yet | set by anyone, cleared by the owner |
//!
//! References are four types: [`IrqRef`] (one of `REFS`), [`Kept`] (one of `KEEPS`), [`Posted`] (`SIGNALED`) and [`Owned`]
//! (`OWNED`). The last two are bits since there is never more than one: this is what makes "in at most one
//! mailbox" and "in at most one vCPU" properties of one word.
//!
//! # Who may act on a predicate
//!
//! Another thread can change the word right after it was read. A reader may act on a predicate only as this table says.
//!
//! | predicate | stays true | who may act on it |
//! |---|---|---|
//! | `is_dead` | for ever | anyone |
//! | `is_signaled` | until the mailbox is drained | anyone who has made its change before: the drain sees it. A "no" means: attend |
//! | `owner() == me` | until the caller ends it | the owner. It has no other way to lose an interrupt |
//! | `owner() == other`, `owner() == None` | not at all | anyone, as a hint where to post. The drain checks it by `claim` |
//! | `is_mapped` | while the caller holds one of `REFS` | the owner, to offer an LPI; the control side, to answer a command. Only a mapping, or a thread that is making one, holds a reference in `REFS`: so "mapped" is never an accident. A "no" can be out of date: the thread that maps attends |
//! | `is_active`, `is_latched` | until the owner's next fold or flush | readers, together with the exposure of the owner (`hub`) and with `takes` (`irq`) |
//!
//! # Rules
//!
//! 1. A word without holders becomes `DEAD` in the same compare-exchange that takes the last holder away.
//!    `DEAD` never goes away: a count that reached zero is not revived.
//! 2. `SIGNALED` may be set on a dead word (by an injector that still sees the object); nothing follows
//!    from it, and the setter learns that it came too late.
//! 3. Who makes the word `DEAD` hands the object to the graveyard, once.
//! 4. `OWNED` and `OWNER` are written only by the owner, or by the vCPU that claims an unowned interrupt
//!    whose [`Posted`] it holds. So at most one vCPU claims.
//!
//! # Happens-before
//!
//! Every operation is an AcqRel read-modify-write, so the word's modification order is a happens-before
//! chain. *Attend*: the injector changes pending bits or control, then sets `SIGNALED`. If it found it
//! set, the clearing of `SIGNALED` comes later in the chain, and who clears it reads the change;
//! if not, the injector posts the interrupt itself.
//!
//! Progress: signal and get are wait-free, the rest lock-free.

#![allow(unsafe_code)] // References are raw pointers to objects that the counts keep alive.

use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::ids::VcpuId;
use crate::irq::Irq;
use crate::sync::{AtomicU64, Ordering, prefetch_write, update};
use crate::trace::{Trace, trace};

const ONE_REF: u64 = 1;
const REFS: u64 = 0xffff_ffff;
const SIGNALED: u64 = 1 << 32;
const OWNED: u64 = 1 << 33;
const DEAD: u64 = 1 << 34;
const ACTIVE: u64 = 1 << 35;
const ONE_KEEP: u64 = 1 << 36;
const KEEPS: u64 = 0xffff << 36;
/// Most routes that remember one object. The other half of the field is for threads that hold the object in passing: each
/// holds one at a time, and `Config::check` allows fewer than 2^15 participants. (crossbeam-epoch does not bound them: there
/// it is the number of threads in the middle of a second look at one interrupt.)
const MOST_KEEPS: u64 = 0x8000 << 36;
const OWNER_SHIFT: u32 = 52;
const OWNER: u64 = 0x3ff << OWNER_SHIFT;
const LATCHED: u64 = 1 << 62;
const CHANGED: u64 = 1 << 63;
const TAKES: u64 = 0xffff << 16;
const ONE_TAKE: u64 = 1 << 16;

const _: () = assert!(crate::ids::MAX_VCPUS as u64 - 1 <= OWNER >> OWNER_SHIFT);

/// One value of a state word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct State(u64);

impl State {
    const fn has_holder(self) -> bool {
        self.0 & (REFS | SIGNALED | OWNED | KEEPS) != 0
    }

    pub(crate) const fn is_dead(self) -> bool {
        self.0 & DEAD != 0
    }

    pub(crate) const fn is_signaled(self) -> bool {
        self.0 & SIGNALED != 0
    }

    /// Whether an event is mapped to it, or being mapped.
    pub(crate) const fn is_mapped(self) -> bool {
        let mapping = if cfg!(mutant = "kept_is_mapped") { REFS | KEEPS } else { REFS };
        // The count of a dead word means nothing (rule 1).
        self.0 & mapping != 0 && !self.is_dead()
    }

    pub(crate) const fn is_active(self) -> bool {
        self.0 & ACTIVE != 0
    }

    pub(crate) const fn is_latched(self) -> bool {
        self.0 & LATCHED != 0
    }

    /// Of a wired interrupt: a number that changes whenever `LATCHED` is set, in steps of one, modulo 2^16. A reader
    /// compares two values that are a few loads apart: it would take 65,536 entries of a vCPU in between to make them equal.
    pub(crate) const fn takes(self) -> u64 {
        self.0 & TAKES
    }

    pub(crate) const fn owner(self) -> Option<VcpuId> {
        if self.0 & OWNED != 0 {
            Some(VcpuId(((self.0 & OWNER) >> OWNER_SHIFT) as u16))
        } else {
            None
        }
    }
}

/// A state word in memory.
pub(crate) struct StateWord(AtomicU64);

/// What came of signaling an interrupt.
pub(crate) enum Signal {
    /// It has no references any more.
    Dead,
    /// It is in a mailbox already: whoever drains that sees what the caller did before.
    Already,
    /// The caller holds the mailbox's reference, and must post it: to this owner, if there was one.
    New(Posted, Option<VcpuId>),
}

/// What came of claiming an interrupt.
pub(crate) enum Claim {
    /// Another vCPU owns it.
    Elsewhere(Posted),
    /// The claiming vCPU owns it already; the mailbox's reference is gone. If someone else has made it active or not
    /// active meanwhile: which.
    Mine(NonNull<Irq>, Option<bool>),
    /// The claiming vCPU owns it now. The state is that of the moment of claiming.
    New(Owned, State),
}

impl StateWord {
    /// With one reference, the caller's.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(ONE_REF))
    }

    #[inline]
    pub(crate) fn load(&self) -> State {
        // Acquire: pairs with every write of the word. Callers that must not miss a change hold
        // SIGNALED or OWNED, or come after a read-modify-write of their own.
        State(self.0.load(Ordering::Acquire))
    }

    /// The same as a read-modify-write: what this does not see comes later in the word's order,
    /// and so sees everything that the caller did before.
    pub(crate) fn load_ordered(&self) -> State {
        // AcqRel: pairs with every write of the word, both ways.
        State(self.0.fetch_or(0, Ordering::AcqRel))
    }

    /// Applies `f` until it sticks; returns the old and the new value.
    #[inline(always)]
    fn update(&self, f: impl Fn(u64) -> u64) -> (State, State) {
        // AcqRel: the word is a chain (see the module's text).
        let old = update(&self.0, &f);
        (State(old), State(f(old)))
    }
}

/// The value without some holder: dead if that was the last one.
const fn without(old: u64, holder: u64) -> u64 {
    let new = old - holder;
    if State(new).has_holder() { new } else { DEAD }
}

/// The value without what the owner says: what it found is no longer so, and what others have written stays.
const fn disowned(old: u64) -> u64 {
    let active = if old & CHANGED != 0 { 0 } else { ACTIVE };
    old & !(OWNER | LATCHED | CHANGED | active)
}

const fn unchanged(old: u64) -> u64 {
    old
}

/// The value of a wired interrupt with `LATCHED`. Setting it counts.
const fn with_latched(old: u64) -> u64 {
    if old & LATCHED != 0 || cfg!(mutant = "takes_uncounted") {
        return old | LATCHED;
    }
    old & !TAKES | (old + ONE_TAKE) & TAKES | LATCHED
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
            unsafe { Irq::bury(irq) };
        }
        return;
    }
    let (old, new) = state.update(|old| without(clear(old), holder));
    if holder == ONE_REF && old.0 & REFS == ONE_REF {
        counts.mapped.sub(1);
    }
    if new.is_dead() {
        // SAFETY: as above; rule 3: only one update makes the word dead.
        unsafe { Irq::bury(irq) };
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
    pub(crate) fn try_keep(&self) -> Option<Kept> {
        let full = |state: u64| state & KEEPS >= MOST_KEEPS;
        let (old, _) = self
            .state
            .update(|old| if State(old).is_dead() || full(old) { old } else { old + ONE_KEEP });
        if old.is_dead() || full(old.0) {
            return None;
        }
        let kept = Kept(NonNull::from(self));
        trace(Trace::Keep, &kept);
        Some(kept)
    }

    /// Says that something about the interrupt has changed.
    ///
    /// The caller sees `self` under a pin, or holds another reference.
    #[inline]
    #[track_caller]
    pub(crate) fn signal(&self) -> Signal {
        self.touch();
        // AcqRel: see "Happens-before" above.
        let order =
            if cfg!(mutant = "signal_relaxed") { Ordering::Relaxed } else { Ordering::AcqRel };
        prefetch_write(&self.state.0);
        let old = State(self.state.0.fetch_or(SIGNALED, order));
        if old.is_dead() && !cfg!(mutant = "post_dead") {
            Signal::Dead
        } else if old.is_signaled() {
            Signal::Already
        } else {
            let posted = Posted(NonNull::from(self));
            trace(Trace::Post, &posted);
            Signal::New(posted, old.owner())
        }
    }
}

macro_rules! reference {
    ($(#[$doc:meta])* $name:ident, $holder:expr, $clear:expr, $trace:expr) => {
        $(#[$doc])*
        #[must_use]
        pub(crate) struct $name(NonNull<Irq>);

        // SAFETY: a counted reference to an object whose every field is atomic, or belongs to the
        // owner, who is the one holder of `Owned`.
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
    Kept, ONE_KEEP, unchanged, Trace::Unkeep
}
reference! {
    /// The mailbox's reference. Dropping it withdraws the interrupt from where it was to go.
    Posted, SIGNALED, unchanged, Trace::Unpost
}
reference! {
    /// The owner's reference: this vCPU has the interrupt in a bucket or a list register.
    /// Dropping it leaves the interrupt unowned.
    Owned, OWNED, disowned, Trace::Disown
}

impl Posted {
    /// Makes `vcpu` the owner, if nobody is, and ends the mailbox's reference, if `vcpu` is then the owner.
    #[inline]
    #[track_caller]
    pub(crate) fn claim(self, vcpu: VcpuId) -> Claim {
        let mine = OWNED | (vcpu.0 as u64) << OWNER_SHIFT;
        let (old, new) = self.state.update(|old| match State(old).owner() {
            Some(owner) if owner != vcpu => old,
            Some(_) => old & !(SIGNALED | CHANGED),
            None => old & !SIGNALED | mine,
        });
        if new.is_signaled() {
            return Claim::Elsewhere(self);
        }
        // Given up before the tracer is called, which may panic: the word says already that it is gone.
        let irq = self.into_raw();
        match old.owner() {
            Some(_) => {
                // SAFETY: this vCPU owns it.
                trace(Trace::Unpost, unsafe { irq.as_ref() });
                Claim::Mine(irq, (old.0 & CHANGED != 0).then_some(old.is_active()))
            }
            None => {
                let owned = Owned(irq);
                trace(Trace::Unpost, &owned);
                trace(Trace::Own, &owned);
                Claim::New(owned, new)
            }
        }
    }

    /// Takes the interrupt back from a mailbox that would not have it, keeping it alive for another look.
    ///
    /// Not by a counted reference: that would look like a mapping (`State::is_mapped`).
    pub(crate) fn withdraw(self) -> Kept {
        let _ = self.state.update(|old| (old & !SIGNALED) + ONE_KEEP);
        let kept = Kept(self.into_raw());
        trace(Trace::Keep, &kept);
        trace(Trace::Unpost, &kept);
        kept
    }
}

impl Owned {
    /// Gives the interrupt up to whom it now belongs, active or not: the result, if any, must be posted there. If there is
    /// none, the interrupt is in a mailbox already. And whether another thread has ended it, which was `active`: its physical interrupt is then
    /// the caller's to deactivate.
    #[track_caller]
    pub(crate) fn hand_over(self, active: bool) -> (Option<Posted>, bool) {
        trace(Trace::Disown, &self);
        let active = if active { ACTIVE } else { 0 };
        let (old, _) = self.state.update(|old| {
            // What others have written counts.
            let active = if old & CHANGED != 0 { old & ACTIVE } else { active };
            disowned(old) & !(OWNED | ACTIVE) | active | SIGNALED
        });
        let ended = active != 0 && old.0 & CHANGED != 0 && !old.is_active();
        // If it was signaled, it is the mailbox's now, and may be gone: not to be looked at any more.
        let irq = self.into_raw();
        // Seeded bug: in two mailboxes at once.
        if old.is_signaled() && !cfg!(mutant = "hand_over_posts_twice") {
            return (None, ended);
        }
        let posted = Posted(irq);
        trace(Trace::Post, &posted);
        (Some(posted), ended)
    }

    /// Whether someone else has made it active or not active since its owner looked; which, once.
    pub(crate) fn take_change(&self) -> Option<bool> {
        // A look: what comes later is in the mailbox, or waits (see `hub::VcpuShared::expose`).
        if self.state.load().0 & CHANGED == 0 {
            return None;
        }
        let (old, _) = self.state.update(|old| old & !CHANGED);
        Some(old.is_active())
    }

    /// Before its pending bit or sender is taken for a list register: so that who looks at those, and then here, does not find it
    /// in neither.
    pub(crate) fn publish_latched(&self) {
        if !self.intid().is_lpi() && !self.state.load().is_latched() {
            // In the word's chain, and before the taking.
            let _ = self.state.update(with_latched);
        }
    }

    /// Shows others whether the interrupt is active, and whether it is pending in a list register.
    #[inline]
    pub(crate) fn publish(&self, active: bool, latched: bool) {
        if self.intid().is_lpi() {
            return;
        }
        let want = if active { ACTIVE } else { 0 } | if latched { LATCHED } else { 0 };
        // A look: only the owner changes LATCHED, and ACTIVE only with CHANGED, which it does not overwrite.
        if self.state.load().0 & (ACTIVE | LATCHED) == want {
            return;
        }
        let _ = self.state.update(|old| {
            let mine = if old & CHANGED != 0 { 0 } else { ACTIVE };
            let new = old & !mine | want & mine;
            if want & LATCHED != 0 { with_latched(new) } else { new & !LATCHED }
        });
    }
}

impl StateWord {
    /// Makes the interrupt active or not active; its owner, if it has one, is to take that over. The caller attends. Returns the
    /// old state.
    pub(crate) fn write_active(&self, active: bool) -> State {
        let (old, _) = self.update(|old| {
            let changed = if old & OWNED != 0 { CHANGED } else { 0 };
            old & !ACTIVE | if active { ACTIVE } else { 0 } | changed
        });
        old
    }
}
