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
//! | 31:16 | `TAKES`, of wired interrupts only, which have one reference for ever: how often `LR_PENDING` was set | the owner |
//! | 32 | `QUEUED`: the interrupt is in a mailbox. *Is* the mailbox's reference. | set by anyone, cleared by who drains |
//! | 33 | `OWNED`: a vCPU has it in its buckets or list registers. *Is* that vCPU's reference. | the vCPU named by `OWNER` |
//! | 34 | `DEAD`: there are no references, and never will be again | who drops the last one |
//! | 35 | `ACTIVE`: active: as its owner found it last, or was told; or while nobody owns it. Not for LPIs. | the owner; anyone, with `ACTIVE_WRITTEN` if it is owned |
//! | 51:36 | `WEAK`: routes that remember the object, and threads that hold it in passing ([`WeakRef`](super::refs::WeakRef)). They keep its memory, but do not make it mapped. | anyone |
//! | 61:52 | `OWNER`: which vCPU, if `OWNED` | the owner |
//! | 62 | `LR_PENDING`: pending in a list register, as its owner found it last. Not for LPIs. | the owner |
//! | 63 | `ACTIVE_WRITTEN`: someone else has written `ACTIVE`, and the owner has not taken that over yet | set by anyone, cleared by the owner |
//!
//! References are four types: [`IrqRef`](super::refs::IrqRef) (one of `REFS`), [`WeakRef`](super::refs::WeakRef) (one of `WEAK`), [`QueuedRef`](super::refs::QueuedRef) (`QUEUED`) and [`OwnerRef`](super::refs::OwnerRef)
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
//! | `is_queued` | until the mailbox is drained | anyone who has made its change before: the drain sees it. A "no" means: schedule |
//! | `owner() == me` | until the caller ends it | the owner. It has no other way to lose an interrupt |
//! | `owner() == other`, `owner() == None` | not at all | anyone, as a hint where to post. The drain checks it by `claim` |
//! | `is_mapped` | while the caller holds one of `REFS` | the owner, to offer an LPI; the control side, to answer a command. Only a mapping, or a thread that is making one, holds a reference in `REFS`: so "mapped" is never an accident. A "no" can be out of date: the thread that maps attends |
//! | `is_active`, `is_lr_pending` | until the owner's next fold or flush | readers, together with the exposure of the owner (`dispatcher`) and with `takes` (`irq`) |
//!
//! # Rules
//!
//! 1. A word without holders becomes `DEAD` in the same compare-exchange that takes the last holder away.
//!    `DEAD` never goes away: a count that reached zero is not revived.
//! 2. `QUEUED` may be set on a dead word (by an injector that still sees the object); nothing follows
//!    from it, and the setter learns that it came too late.
//! 3. Who makes the word `DEAD` hands the object to the retired, once.
//! 4. `OWNED` and `OWNER` are written only by the owner, or by the vCPU that claims an unowned interrupt
//!    whose [`QueuedRef`](super::refs::QueuedRef) it holds. So at most one vCPU claims.
//!
//! # Happens-before
//!
//! Every operation is an AcqRel read-modify-write, so the word's modification order is a happens-before
//! chain. *Attend*: the injector changes pending bits or control, then sets `QUEUED`. If it found it
//! set, the clearing of `QUEUED` comes later in the chain, and who clears it reads the change;
//! if not, the injector posts the interrupt itself.
//!
//! Progress: signal and get are wait-free, the rest lock-free.

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

/// Most routes that remember one object. The other half of the field is for threads that hold the object in passing: each
/// holds one at a time, and `Config::check` allows fewer than 2^15 participants. (crossbeam-epoch does not bound them: there
/// it is the number of threads in the middle of a second look at one interrupt.)
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
        // The count of a dead word means nothing (rule 1).
        self.0 & mapping != 0 && !self.is_dead()
    }

    pub(crate) const fn is_active(self) -> bool {
        self.0 & ACTIVE != 0
    }

    pub(crate) const fn is_lr_pending(self) -> bool {
        self.0 & LR_PENDING != 0
    }

    /// Of a wired interrupt: a number that changes whenever `LR_PENDING` is set, in steps of one, modulo 2^16. A reader
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
pub(crate) struct StateWord(pub(super) AtomicU64);

impl StateWord {
    /// With one reference, the caller's.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(ONE_REF))
    }

    #[inline]
    pub(crate) fn load(&self) -> State {
        // Acquire: pairs with every write of the word. Callers that must not miss a change hold
        // QUEUED or OWNED, or come after a read-modify-write of their own.
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
    pub(super) fn update(&self, f: impl Fn(u64) -> u64) -> (State, State) {
        // AcqRel: the word is a chain (see the module's text).
        let old = update(&self.0, &f);
        (State(old), State(f(old)))
    }
}

/// The value without some holder: dead if that was the last one.
pub(super) const fn without(old: u64, holder: u64) -> u64 {
    let new = old - holder;
    if State(new).has_holder() { new } else { DEAD }
}

/// The value without what the owner says: what it found is no longer so, and what others have written stays.
pub(super) const fn disowned(old: u64) -> u64 {
    let active = if old & ACTIVE_WRITTEN != 0 { 0 } else { ACTIVE };
    old & !(OWNER | LR_PENDING | ACTIVE_WRITTEN | active)
}

pub(super) const fn unchanged(old: u64) -> u64 {
    old
}

/// The value of a wired interrupt with `LR_PENDING`. Setting it counts.
pub(super) const fn with_lr_pending(old: u64) -> u64 {
    if old & LR_PENDING != 0 || cfg!(mutant = "takes_uncounted") {
        return old | LR_PENDING;
    }
    old & !TAKES | (old + ONE_TAKE) & TAKES | LR_PENDING
}

impl StateWord {
    /// Makes the interrupt active or not active; its owner, if it has one, is to take that over. The caller attends. Returns the
    /// old state.
    pub(crate) fn write_active(&self, active: bool) -> State {
        let (old, _) = self.update(|old| {
            let changed = if old & OWNED != 0 { ACTIVE_WRITTEN } else { 0 };
            old & !ACTIVE | if active { ACTIVE } else { 0 } | changed
        });
        old
    }
}
