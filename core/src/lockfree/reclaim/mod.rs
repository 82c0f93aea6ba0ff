//! When shared memory may be freed: grace periods, by either of two backends.
//!
//! A thread is *pinned* while it follows shared pointers. A *grace period* that began after an
//! object was unlinked is over when every thread that was pinned at its beginning has unpinned
//! since. Then no thread can hold the object. The facade is only this: pin, begin a grace period,
//! ask whether it is over. The list of retired objects and the collection that frees them are
//! common to both backends (`retired`, `collect`).
//!
//! * [`Slots`], the default: epochs with one slot for each registered participant, `no_std`. It is
//!   small enough to be modelled exhaustively. A pin runs its own few instructions and nothing
//!   else.
//! * [`Epoch`]: crossbeam-epoch, with any number of participants. Every 128th pin of a thread
//!   collects the entries that other threads have put on crossbeam's queue. It frees that queue's
//!   nodes, and after 64 of them allocates one. If mappings change all the time, an injector
//!   therefore allocates now and then (`tests/hot_path.rs` shows it). The engine's first invariant
//!   rules that out, so this is not the default.
//!
//! Models: lifetime_reclaim, lifetime_epoch.

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
    /// Memory safety rests on the answers of a backend, so there are only these two.
    pub trait Sealed {}
}

/// A backend of reclamation.
pub trait Reclaim: sealed::Sealed + Send + Sync + 'static {
    /// One thread's part in the backend.
    type Participant: Participant;
    /// A grace period.
    type Grace: Send;

    /// Makes the backend, with room for `participants` participants if it needs to know.
    fn new(participants: u16) -> Self;

    /// Registers a participant; `None` if there is no room.
    fn register(&self) -> Option<Self::Participant>;

    /// Begins a grace period. It covers everything that was unlinked before this call.
    fn begin(&self, participant: &Self::Participant) -> Self::Grace;

    /// Whether a grace period is over. Helps it to end: if no thread is pinned, a few calls
    /// suffice.
    fn is_over(&self, participant: &Self::Participant, grace: &Self::Grace) -> bool;
}

/// One thread's part in a backend. It can be sent to another thread, but not shared.
pub trait Participant: sealed::Sealed + Send + 'static {
    /// Unpins when dropped.
    type Guard<'p>: Deref<Target = Pin>;

    /// Pins the thread. Pins nest.
    fn pin(&self) -> Self::Guard<'_>;
}
