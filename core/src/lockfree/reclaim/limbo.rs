//! Retired objects that collectors have taken from the retired list, and not freed yet.
//!
//! Models: lifetime_tree.

#![allow(unsafe_code)] // A box that is handed from thread to thread.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::ptr;

use crate::lockfree::reclaim::Reclaim;
use crate::lockfree::reclaim::retired::Chain;
use crate::sync::{AtomicPtr, Canary, Ordering};

/// Chains of retired objects.
pub(crate) type Chains = VecDeque<Chain>;

/// The work that is left to do for retired objects.
pub(crate) struct Work<G> {
    /// Taken from the retired list, and not unlinked yet.
    pub(crate) dead: Chains,
    pub(crate) unlinked: Chains,
    /// Grace periods, and the objects that wait for each. Oldest first.
    pub(crate) waiting: VecDeque<(G, Chains)>,
    pub(crate) expired: Chains,
    /// For models: loom does not track the memory of a box.
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

    /// Takes over the work of `other`.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.dead.append(&mut other.dead);
        self.unlinked.append(&mut other.unlinked);
        self.waiting.append(&mut other.waiting);
        self.expired.append(&mut other.expired);
    }
}

/// The work, while no thread does it.
///
/// A thread that is preempted in the middle of its part holds all the work that it took, not only
/// that part. The work counts as garbage until the thread goes on.
pub(crate) struct Limbo<R: Reclaim>(AtomicPtr<Work<R::Grace>>);

impl<R: Reclaim> Limbo<R> {
    pub(crate) fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Takes all the work, perhaps on another thread than the one that put it here: chains and
    /// graces are `Send`.
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

    /// Puts the work back, together with the work that other threads have put back in between.
    pub(crate) fn put(&self, mut work: Box<Work<R::Grace>>) {
        while !work.is_empty() {
            let mine = Box::into_raw(work);
            if cfg!(mutant = "limbo_overwritten") {
                self.0.swap(mine, Ordering::AcqRel);
                return;
            }
            // Release: pairs with `take`. Relaxed on failure: nothing is read through the value.
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
