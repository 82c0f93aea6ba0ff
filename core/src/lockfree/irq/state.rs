//! The state word of an interrupt: the count of its references, its owner, and its published state.
//!
//! This file has the bits of the word and the rules about them. The reference types that hold the
//! counts, and the rules about them, are in [`refs`](super::refs). No other file counts.
//!
//! # The word
//!
//! | bits | field | written by |
//! |---|---|---|
//! | 31:0 | `REFS`: mappings, and references that are about to become one | any thread |
//! | 31:16 | `TAKES` (wired interrupts only): how often `LR_PENDING` was set | the owner |
//! | 32 | `QUEUED`: in a mailbox. This bit is the mailbox's reference | any thread; see below |
//! | 33 | `OWNED`: a vCPU has it. This bit is that vCPU's reference | the vCPU in `OWNER` |
//! | 34 | `DEAD`: no references, and never again | the thread that drops the last one |
//! | 35 | `ACTIVE`: active. Not for LPIs | the owner; any thread, see below |
//! | 51:36 | `WEAK`: [`WeakRef`](super::refs::WeakRef)s | any thread |
//! | 61:52 | `OWNER`: the owner vCPU, if `OWNED` | the owner |
//! | 62 | `LR_PENDING`: pending in a list register. Not for LPIs | the owner |
//! | 63 | `ACTIVE_WRITTEN`: `ACTIVE` written by another thread | set by any thread |
//!
//! * `REFS` and `TAKES` overlap: a wired interrupt has one reference for ever, so its count needs
//!   no upper bits.
//! * `QUEUED` is set by any thread, and cleared by the thread that ends the mailbox's reference.
//! * `OWNED` means that the vCPU has the interrupt in its buckets or list registers.
//! * `ACTIVE` is the value that the owner found last, or that another thread wrote since; or the
//!   value while there is no owner. A thread other than the owner sets `ACTIVE_WRITTEN` with it if
//!   the interrupt is owned.
//! * `ACTIVE_WRITTEN` stays set until the owner has taken that value over, and clears the bit.
//! * `WEAK` counts routes that remember the object, and threads that hold it in passing. They keep
//!   its memory, but do not make it mapped.
//! * `LR_PENDING` is the value that the owner found last.
//!
//! `QUEUED` and `OWNED` are bits and not counts, since there is never more than one such reference.
//! So "in at most one mailbox" and "in at most one vCPU" are properties of one word.
//!
//! # Acting on a predicate
//!
//! Another thread can change the word right after it was read. A reader may act on a predicate only
//! as follows.
//!
//! * `is_dead` stays true for ever. Any thread may act on it.
//! * `is_queued` stays true until the mailbox is drained. A thread that made its change first, and
//!   then read "yes" by a read-modify-write, may rely on the drain to see the change. "No" means:
//!   schedule.
//! * `owner() == me` stays true until the caller ends it. The owner may act on it: it cannot lose
//!   an interrupt in any other way.
//! * `owner() == other` and `owner() == None` can change at any moment. Any thread may use them as
//!   a hint where to post. The drain checks by `claim`.
//! * `is_mapped` stays true while the caller holds one of `REFS`. The owner may act on it to put an
//!   LPI into a list register, and the control plane to answer a command. Only a mapping, or a
//!   thread that is making one, holds a reference in `REFS`, so "mapped" is never an accident. "No"
//!   can be out of date: the thread that maps the LPI schedules it.
//! * `is_active` and `is_lr_pending` stay true until the owner's next fold or flush. Readers may
//!   act on them together with the owner's window (`notify`) and with `takes` (`irq`).
//!
//! # Rules
//!
//! These rules concern the word. Rules 3 and 4, about the references, are in [`refs`](super::refs).
//!
//! 1. A word without holders becomes `DEAD` in the same compare-exchange that takes the last holder
//!    away. `DEAD` never goes away: a count that reached zero is not revived.
//! 2. `QUEUED` may be set on a word that is `DEAD`, by an injector that still sees the object.
//!    Nothing follows from it, and the setter learns that it came too late.
//!
//! # Happens-before
//!
//! Every write of the word is an AcqRel read-modify-write, so the word's modification order is a
//! happens-before chain. *Schedule*: the *poster* changes pending bits or the control word, then
//! sets `QUEUED`. If `QUEUED` was set already, it is cleared later in the chain, and the thread
//! that clears it reads the change. If it was clear, the poster posts the interrupt.
//!
//! Models: lifetime_refs, lifetime_intid, lifetime_power, delivery_active, delivery_read.
//!
//! Progress: `mark_queued` and `try_get` are wait-free, the rest is lock-free.

use crate::arch::ids::VcpuId;
use crate::sync::{AtomicU64, Ordering, update};

pub(super) const ONE_REF: u64 = 1;
pub(super) const REFS: u64 = 0xffff_ffff;
pub(super) const QUEUED: u64 = 1 << 32;
pub(super) const OWNED: u64 = 1 << 33;
pub(super) const DEAD: u64 = 1 << 34;
pub(super) const ACTIVE: u64 = 1 << 35;
pub(super) const ONE_WEAK: u64 = 1 << 36;
pub(super) const WEAK: u64 = 0xffff << 36;

/// The most routes that may remember one object. The other half of the field is for threads that
/// hold the object in passing. Each thread holds one at a time, and `Config::check` allows fewer
/// than 2^15 participants. (crossbeam-epoch does not bound them: with that backend the bound is the
/// number of threads in the middle of a re-check of one interrupt.)
pub(super) const MOST_WEAK: u64 = 0x8000 << 36;

pub(super) const OWNER_SHIFT: u32 = 52;
pub(super) const OWNER: u64 = 0x3ff << OWNER_SHIFT;
pub(super) const LR_PENDING: u64 = 1 << 62;
pub(super) const ACTIVE_WRITTEN: u64 = 1 << 63;
pub(super) const TAKES: u64 = 0xffff << 16;
pub(super) const ONE_TAKE: u64 = 1 << 16;
const _: () = assert!(crate::arch::ids::MAX_VCPUS as u64 - 1 <= OWNER >> OWNER_SHIFT);

/// One value of a state word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct State(pub(super) u64);

impl State {
    pub(super) const fn has_holder(self) -> bool {
        self.0 & (REFS | QUEUED | OWNED | WEAK) != 0
    }

    pub(crate) const fn is_dead(self) -> bool {
        self.0 & DEAD != 0
    }

    pub(crate) const fn is_queued(self) -> bool {
        self.0 & QUEUED != 0
    }

    /// Whether an event is mapped to it, or being mapped.
    pub(crate) const fn is_mapped(self) -> bool {
        let mapping = if cfg!(mutant = "kept_is_mapped") { REFS | WEAK } else { REFS };
        // The count of a `DEAD` word means nothing (rule 1).
        self.0 & mapping != 0 && !self.is_dead()
    }

    pub(crate) const fn is_active(self) -> bool {
        self.0 & ACTIVE != 0
    }

    pub(crate) const fn is_lr_pending(self) -> bool {
        self.0 & LR_PENDING != 0
    }

    /// For a wired interrupt: a number, modulo 2^16, that grows by one whenever `LR_PENDING` is
    /// set. A reader compares two values that are a few loads apart. It would take 65,536 entries
    /// of a vCPU in between to make them equal.
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
pub(crate) struct StateWord(pub(super) AtomicU64);

impl StateWord {
    /// Makes a word with one reference, the caller's.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(ONE_REF))
    }

    #[inline]
    pub(crate) fn load(&self) -> State {
        // Acquire: pairs with every write of the word. Callers that must not miss a change hold
        // `QUEUED` or `OWNED`, or come after a read-modify-write of their own.
        State(self.0.load(Ordering::Acquire))
    }

    /// Loads the word by a read-modify-write. A write that this does not see comes later in the
    /// word's order, and so sees everything that the caller did before.
    pub(crate) fn load_ordered(&self) -> State {
        // AcqRel: pairs with every write of the word, both ways.
        State(self.0.fetch_or(0, Ordering::AcqRel))
    }

    /// Applies `f` until the compare-exchange succeeds; returns the old and the new value.
    #[inline(always)]
    pub(super) fn update(&self, f: impl Fn(u64) -> u64) -> (State, State) {
        // AcqRel: the word is a chain (see "Happens-before" above).
        let old = update(&self.0, &f);
        (State(old), State(f(old)))
    }
}

/// Returns the value without `holder`: `DEAD` if that was the last one.
pub(super) const fn without(old: u64, holder: u64) -> u64 {
    let new = old - holder;
    if State(new).has_holder() { new } else { DEAD }
}

/// Returns the value without the owner and its published state. An `ACTIVE` that the owner found is
/// cleared; one that another thread has written stays.
pub(super) const fn disowned(old: u64) -> u64 {
    let active = if old & ACTIVE_WRITTEN != 0 { 0 } else { ACTIVE };
    old & !(OWNER | LR_PENDING | ACTIVE_WRITTEN | active)
}

pub(super) const fn unchanged(old: u64) -> u64 {
    old
}

/// Returns the value with `LR_PENDING`, for a wired interrupt. Setting the bit counts in `TAKES`.
pub(super) const fn with_lr_pending(old: u64) -> u64 {
    if old & LR_PENDING != 0 || cfg!(mutant = "takes_uncounted") {
        return old | LR_PENDING;
    }
    old & !TAKES | (old + ONE_TAKE) & TAKES | LR_PENDING
}

impl StateWord {
    /// Makes the interrupt active or not active; its owner, if it has one, will take that over. The
    /// caller schedules the interrupt. Returns the old state.
    pub(crate) fn write_active(&self, active: bool) -> State {
        let (old, _) = self.update(|old| {
            let changed = if old & OWNED != 0 { ACTIVE_WRITTEN } else { 0 };
            old & !ACTIVE | if active { ACTIVE } else { 0 } | changed
        });
        old
    }
}
