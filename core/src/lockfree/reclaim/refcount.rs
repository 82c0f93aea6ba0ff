//! The reference count of every other object: tree nodes, blocks of pending bits, and devices.
//!
//! The rules are those of `state` and `refs`. A count becomes `DEAD` in the same step that takes
//! the last reference away, and is never revived. The thread that makes it `DEAD` puts the object
//! on the retired list.
//!
//! Models: lifetime_tree.
//!
//! Progress: lock-free.

#![allow(unsafe_code)] // References are raw pointers to objects that the counts keep alive.

use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use crate::sync::{AtomicU64, update};

const DEAD: u64 = u64::MAX;

/// A count.
pub(crate) struct RefCount(AtomicU64);

impl RefCount {
    /// Makes a count with one reference, the caller's.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(1))
    }

    /// Takes one more reference. Returns false if the object is `DEAD`.
    #[must_use]
    pub(crate) fn try_get(&self) -> bool {
        // AcqRel: in one chain with `put`, so that the holder of a reference sees everything that
        // was done under earlier ones.
        let dead = if cfg!(mutant = "revive_count") { 1 } else { DEAD };
        let old = update(&self.0, |n| if n == DEAD { dead } else { n + 1 });
        old != DEAD || cfg!(mutant = "revive_count")
    }

    /// Gives one reference back. Returns whether this made the object `DEAD`.
    ///
    /// The caller does not use the object afterwards, unless this made it `DEAD` or a pin protects
    /// it.
    #[must_use]
    pub(crate) fn put(&self) -> bool {
        // AcqRel: in one chain with `try_get`: all use of the object comes before its death. No
        // model fails without it: the threads that give a reference back are pinned today, and the
        // end of their pin orders the same.
        if cfg!(mutant = "count_in_two_steps") {
            // Between the two, the count is zero, and can be revived.
            return update(&self.0, |n| n - 1) == 1 && update(&self.0, |_| DEAD) != DEAD;
        }
        update(&self.0, |n| if n == 1 { DEAD } else { n - 1 }) == 1
    }
}

/// An object with a count.
pub(crate) trait Counted {
    fn count(&self) -> &RefCount;

    /// Retires an object that has just become `DEAD`.
    ///
    /// # Safety
    /// The caller made it `DEAD`, and does not use it afterwards.
    unsafe fn retire(this: NonNull<Self>);
}

/// A reference to a counted object.
pub(crate) struct Ref<T: Counted>(NonNull<T>);

// SAFETY: shares a `T`, and may be the reference that ends it.
unsafe impl<T: Counted + Send + Sync> Send for Ref<T> {}
// SAFETY: as above.
unsafe impl<T: Counted + Send + Sync> Sync for Ref<T> {}

impl<T: Counted> Ref<T> {
    /// Takes a reference to an object that the caller sees under a pin; `None` if it is `DEAD`.
    pub(crate) fn try_new(object: &T) -> Option<Self> {
        object.count().try_get().then(|| Self(NonNull::from(object)))
    }

    /// Gives the reference up without dropping it.
    pub(crate) fn into_raw(self) -> NonNull<T> {
        ManuallyDrop::new(self).0
    }

    /// Takes back a reference that was given up, or that the object was made with.
    ///
    /// # Safety
    /// There must be one, and it is used up.
    pub(crate) unsafe fn from_raw(object: NonNull<T>) -> Self {
        Self(object)
    }
}

impl<T: Counted> Deref for Ref<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the reference keeps it alive.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Counted> Drop for Ref<T> {
    fn drop(&mut self) {
        if self.count().put() {
            // SAFETY: this value stands for a reference, and ends here. `put` says that it was the
            // last one.
            unsafe { T::retire(self.0) };
        }
    }
}
