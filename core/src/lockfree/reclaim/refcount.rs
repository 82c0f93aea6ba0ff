//! The reference count of everything that is not an interrupt: tree nodes, blocks of pending bits, devices.
//!
//! The rules are those of `refs`: a count becomes `DEAD` in the same step that takes the last reference
//! away, is never revived, and who made it dead hands the object to the retired.
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
    /// With one reference, the caller's.
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(1))
    }

    /// One more reference, unless it is dead.
    #[must_use]
    pub(crate) fn try_get(&self) -> bool {
        // AcqRel: in one chain with `put`, so that who gets a reference sees what was done under others.
        let dead = if cfg!(mutant = "revive_count") { 1 } else { DEAD };
        let old = update(&self.0, |n| if n == DEAD { dead } else { n + 1 });
        old != DEAD || cfg!(mutant = "revive_count")
    }

    /// One reference less; returns whether the object is now dead, by the caller's hand.
    ///
    /// The caller does not use the object afterwards, unless it is dead or a pin protects it.
    #[must_use]
    pub(crate) fn put(&self) -> bool {
        // AcqRel: in one chain with `try_get`: all use of the object comes before its death. No model misses it: those who give a
        // reference back are pinned today, and the end of their pin orders the same.
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

    /// Takes over an object that has just become dead.
    ///
    /// # Safety
    /// The caller made it dead, and does not use it afterwards.
    unsafe fn retire(this: NonNull<Self>);
}

/// A reference to a counted object.
pub(crate) struct Ref<T: Counted>(NonNull<T>);

// SAFETY: shares a `T`, and may be the one to end it.
unsafe impl<T: Counted + Send + Sync> Send for Ref<T> {}
// SAFETY: as above.
unsafe impl<T: Counted + Send + Sync> Sync for Ref<T> {}

impl<T: Counted> Ref<T> {
    /// A reference to an object that the caller sees under a pin; `None` if it is dead.
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
            // SAFETY: this value stands for a reference, and ends here; `put` says that it was the last.
            unsafe { T::retire(self.0) };
        }
    }
}
