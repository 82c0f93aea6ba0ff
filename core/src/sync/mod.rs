//! The one place that chooses between real atomics, loom's and shuttle's.
//!
//! Everything concurrent in this crate comes from here, so that a model runs the shipped code.
//! `clippy.toml` forbids naming the originals anywhere else.

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

/// Whether this is a model. Capacities are smaller then, so that their ends are reached.
pub(crate) const MODEL: bool = cfg!(any(loom, shuttle));

/// Lets others run before a look that has to be repeated: on the control plane only.
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

/// A number for information and limits. Not a model's: nothing is published through it, and exploring who counts first
/// would multiply the interleavings of every model.
pub(crate) type CountUsize = HintUsize;

/// A number that is counted, through which nothing is published. Not loom's: models need not explore what follows from nothing else.
#[derive(Default)]
pub(crate) struct Tally(core::sync::atomic::AtomicU64);

impl Tally {
    /// One more.
    pub(crate) fn add_one(&self) {
        // Relaxed: see above.
        self.0.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        // Relaxed: as above.
        self.0.load(core::sync::atomic::Ordering::Relaxed)
    }
}
