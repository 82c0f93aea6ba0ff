//! The only module that chooses between real atomics, loom's and shuttle's.
//!
//! All synchronization primitives of this crate come from here, so that a model runs the shipped
//! code. `clippy.toml` forbids naming the originals anywhere else.

#![allow(clippy::disallowed_types)]

mod cas;
mod converge;
#[cfg(all(feature = "count-ops", not(any(loom, shuttle))))]
pub mod counted;
mod lock;
mod memory;
mod prefetch;

#[cfg(all(feature = "count-ops", not(any(loom, shuttle))))]
pub(crate) use crate::sync::counted::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(not(any(loom, shuttle, feature = "count-ops")))]
pub(crate) use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

pub(crate) use cas::{FirstLook, update};
pub(crate) use converge::converge;
pub(crate) use crossbeam_utils::CachePadded;
pub(crate) use lock::{Mutex, MutexGuard};
pub(crate) use memory::{Canary, UnsafeCell, free};
pub(crate) use prefetch::{Recent, prefetch_write};

#[cfg(any(loom, shuttle))]
pub use lock::Turns;

#[cfg(loom)]
use loom as model;
#[cfg(shuttle)]
use shuttle as model;

/// Whether this is a model. Capacities are smaller in a model, so that their limits are reached.
pub(crate) const MODEL: bool = cfg!(any(loom, shuttle));

/// Lets other threads run before a re-check. Only for the control plane.
pub(crate) fn relax() {
    #[cfg(any(loom, shuttle))]
    model::thread::yield_now();
    #[cfg(all(not(any(loom, shuttle)), feature = "std"))]
    std::thread::yield_now();
    #[cfg(all(not(any(loom, shuttle)), not(feature = "std")))]
    core::hint::spin_loop();
}

#[cfg(any(loom, shuttle))]
use core::sync::atomic::{AtomicPtr as HintPtr, AtomicUsize as HintUsize};
#[cfg(not(any(loom, shuttle)))]
use {AtomicPtr as HintPtr, AtomicUsize as HintUsize};

/// A number for information and limits. A model does not track it: nothing is published through it,
/// and exploring the order of the counts would multiply the interleavings of every model.
pub(crate) type CountUsize = HintUsize;

/// A counter through which nothing is published. A model does not track it, because nothing else
/// depends on its value.
#[derive(Default)]
pub(crate) struct Tally(core::sync::atomic::AtomicU64);

impl Tally {
    /// Adds one.
    pub(crate) fn add_one(&self) {
        // Relaxed: nothing is published through it.
        self.0.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        // Relaxed: nothing is published through it.
        self.0.load(core::sync::atomic::Ordering::Relaxed)
    }
}
