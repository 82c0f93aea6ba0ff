//! The lock of the locked engine: test-and-test-and-set, with the uncontended path inlined.
//!
//! A kernel's spin lock runs with preemption off, so its holder is always on a CPU. The holder of
//! this lock can be preempted, and a waiter that only spins can then burn its whole time slice. So
//! a waiter spins for about as long as the engine's critical sections last, and then yields.

// The guard hands out the value by reference. The `unsafe` code below is for that.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::hint;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

/// Rounds of spinning before a waiter yields the CPU: some hundred nanoseconds to a few
/// microseconds.
const SPINS: u32 = 100;

/// A value behind a spin lock.
#[derive(Default)]
pub(super) struct SpinLock<T> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the lock gives the value to one thread at a time, and so moves it between threads. That
// takes `T: Send`, and no more.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    pub(super) const fn new(value: T) -> Self {
        Self { locked: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Waits until the lock is free, and takes it.
    #[inline(always)]
    pub(super) fn lock(&self) -> SpinGuard<'_, T> {
        // Acquire: pairs with the Release of the guard's drop.
        if self.locked.swap(true, Ordering::Acquire) {
            self.lock_contended();
        }
        SpinGuard { lock: self }
    }

    /// Takes the lock if it is free.
    #[inline(always)]
    pub(super) fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        // Relaxed: the load is only a guess, which spares the holder the loss of its cache line.
        // Acquire: pairs with the Release of the guard's drop.
        if self.locked.load(Ordering::Relaxed) || self.locked.swap(true, Ordering::Acquire) {
            return None;
        }
        Some(SpinGuard { lock: self })
    }

    #[cold]
    fn lock_contended(&self) {
        let mut spins = 0;
        loop {
            // Relaxed: waiters share the cache line until it changes; the swap below acquires.
            while self.locked.load(Ordering::Relaxed) {
                if spins < SPINS {
                    spins += 1;
                    hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
            // Acquire: pairs with the Release of the guard's drop.
            if !self.locked.swap(true, Ordering::Acquire) {
                return;
            }
        }
    }
}

/// Proof that the lock is held. Dropping it releases the lock.
pub(super) struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
}

// SAFETY: a shared guard gives `&T` and nothing else. (Without this bound, it would be `Sync` for
// any `T: Send`, as a reference to the lock is.)
unsafe impl<T: Send + Sync> Sync for SpinGuard<'_, T> {}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: this guard exists, so its thread holds the lock, and nothing else accesses the
        // value.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`. The guard is borrowed exclusively, so nothing else refers into
        // the value.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // Release: everything done under the lock happens before the next Acquire that takes it.
        self.lock.locked.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::SpinLock;

    #[test]
    fn one_holder_at_a_time() {
        let lock = Arc::new(SpinLock::new(0u32));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let lock = Arc::clone(&lock);
                thread::spawn(move || (0..10_000).for_each(|_| *lock.lock() += 1))
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(*lock.lock(), 40_000);
    }

    #[test]
    fn try_lock_does_not_wait() {
        let lock = SpinLock::new(());
        let held = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(held);
        assert!(lock.try_lock().is_some());
    }
}
