//! What collectors have taken from the list of the dead, and not freed yet.

#![allow(unsafe_code)] // A box that is handed from thread to thread.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::ptr;

use crate::lockfree::reclaim::Reclaim;
use crate::lockfree::reclaim::retired::Chain;
use crate::sync::{AtomicPtr, Canary, Ordering};

/// Chains of the dead.
pub(crate) type Chains = VecDeque<Chain>;

/// Work that is left to do for the dead.
pub(crate) struct Work<G> {
    /// Taken from the retired.
    pub(crate) dead: Chains,
    pub(crate) unlinked: Chains,
    /// Oldest first.
    pub(crate) waiting: VecDeque<(G, Chains)>,
    pub(crate) expired: Chains,
    /// For models: memory of a box is not loom's.
    canary: Canary,
}

impl<G> Work<G> {
    pub(crate) fn new() -> Self {
        let [dead, unlinked, expired] = [(); 3].map(|()| VecDeque::new());
        Self { dead, unlinked, waiting: VecDeque::new(), expired, canary: Canary::default() }
    }

    fn is_empty(&self) -> bool {
        let Self { dead, unlinked, waiting, expired, .. } = self;
        dead.is_empty() && unlinked.is_empty() && waiting.is_empty() && expired.is_empty()
    }

    /// Takes over another one's.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.dead.append(&mut other.dead);
        self.unlinked.append(&mut other.unlinked);
        self.waiting.append(&mut other.waiting);
        self.expired.append(&mut other.expired);
    }
}

/// Where the work lies while no thread is at it. A thread that stops in the midst of its part has all the work that it took,
/// not only that part: it counts as garbage until the thread goes on.
pub(crate) struct Limbo<R: Reclaim>(AtomicPtr<Work<R::Grace>>);

impl<R: Reclaim> Limbo<R> {
    pub(crate) fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Takes all of it, perhaps on another thread than the one that put it here: chains and graces are `Send`.
    pub(crate) fn take(&self) -> Option<Box<Work<R::Grace>>> {
        // Acquire: pairs with the Release of `put`.
        let order =
            if cfg!(mutant = "limbo_relaxed") { Ordering::Relaxed } else { Ordering::AcqRel };
        let work = self.0.swap(ptr::null_mut(), order);
        // SAFETY: leaked in `put`, and taken out once.
        let work = (!work.is_null()).then(|| unsafe { Box::from_raw(work) })?;
        work.canary.touch();
        Some(work)
    }

    /// Puts it back, together with the work that other threads have put back meanwhile.
    pub(crate) fn put(&self, mut work: Box<Work<R::Grace>>) {
        while !work.is_empty() {
            let mine = Box::into_raw(work);
            if cfg!(mutant = "limbo_overwritten") {
                self.0.swap(mine, Ordering::AcqRel);
                return;
            }
            // Release: pairs with `take`. Relaxed on failure: nothing follows from it.
            let (null, order) = (ptr::null_mut(), Ordering::AcqRel);
            if self.0.compare_exchange(null, mine, order, Ordering::Relaxed).is_ok() {
                return;
            }
            // SAFETY: just leaked, and not put anywhere.
            work = unsafe { Box::from_raw(mine) };
            if let Some(other) = self.take() {
                work.join(*other);
            }
        }
    }
}

impl<R: Reclaim> Drop for Limbo<R> {
    fn drop(&mut self) {
        drop(self.take());
    }
}
