//! When memory that was shared may be freed: grace periods, by either of two backends.
//!
//! A thread that follows shared pointers is *pinned* meanwhile. A *grace period* that began after an object was
//! unlinked is over when every thread that was pinned at its beginning has unpinned since; then nobody can hold
//! the object. That is the whole facade: pin, begin a grace period, ask whether it is over. What
//! waits, and who frees it, is the same for both backends (`retired`, `collect`).
//!
//! * [`Slots`], the default: epochs with one slot for each registered participant, `no_std`. Small enough to be modelled
//!   exhaustively. A pin runs its own few instructions and nothing else.
//! * [`Epoch`]: crossbeam-epoch, with any number of participants. Every 128th pin of a thread collects what others have
//!   put on crossbeam's queue: it frees that queue's nodes, and after 64 of them allocates one. With mappings changing
//!   all the time, an injector so allocates now and then (`tests/hot_path.rs` shows it), which the engine's first
//!   invariant rules out; hence it is not the default.

mod epoch;
pub(crate) mod limbo;
pub(crate) mod refcount;
pub(crate) mod retired;
mod slots;

use core::ops::Deref;

pub use epoch::Epoch;
pub use slots::Slots;

/// Proof that the thread is pinned, for as long as it is borrowed.
#[derive(Debug)]
pub struct Pin(());

mod sealed {
    /// Memory safety rests on what a backend says, so there are only these two.
    pub trait Sealed {}
}

/// A backend.
pub trait Reclaim: sealed::Sealed + Send + Sync + 'static {
    /// One thread's part.
    type Participant: Participant;
    /// A grace period.
    type Grace: Send;

    /// Room for `participants` participants, if the backend needs to know.
    fn new(participants: u16) -> Self;

    /// Registers a participant; `None` if there is no room.
    fn register(&self) -> Option<Self::Participant>;

    /// Begins a grace period. It covers everything that was unlinked before this call.
    fn begin(&self, participant: &Self::Participant) -> Self::Grace;

    /// Whether a grace period is over. Helps it on: if no one is pinned, a few calls suffice.
    fn is_over(&self, participant: &Self::Participant, grace: &Self::Grace) -> bool;
}

/// One thread's part in a backend. It can be sent to another thread, but not shared.
pub trait Participant: sealed::Sealed + Send + 'static {
    /// Unpins when dropped.
    type Guard<'p>: Deref<Target = Pin>;

    /// Pins the thread. Pins nest.
    fn pin(&self) -> Self::Guard<'_>;
}
