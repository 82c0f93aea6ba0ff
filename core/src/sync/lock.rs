//! The lock of the control plane: first come, first served. A thread that waits for the lock
//! sleeps.
//!
//! Injection, entry and exit never take the lock. Register accesses of the guest and calls of the
//! host do, and a guest can keep its own threads contending for it for as long as it likes. So a
//! thread that releases the lock and takes it again queues behind all waiting threads: no thread is
//! passed over.
//!
//! # Turns
//!
//! A thread takes the next number, and its turn comes when that number is served. Both numbers are
//! in one word, so that the order of the numbers is the word's modification order.
//!
//! With `std` (and in models) a waiting thread (the *sleeper*) sleeps on one of `ROWS` condition
//! variables, its row. The row is the sleeper's number modulo `ROWS`, so that few threads wake in
//! vain. The sleeper holds a mutex, the gate, from its check of the word until it is asleep. No
//! wakeup is lost: the thread that ends its turn (the *caller*) changes the word, then locks and
//! unlocks the gate, and then wakes the row. A sleeper that checked the word before the caller held
//! the gate is asleep by then. A sleeper that checks the word later sees its number. The gate is
//! held for nothing else.
//!
//! Without `std` a thread cannot sleep: it spins until its turn comes, as with any ticket lock.
//!
//! If the thread that holds the lock panics, it releases the lock, and the next holder finds the
//! value as it was left.

// Models use `Turns` from outside the crate.
#![cfg_attr(not(any(loom, shuttle)), allow(unreachable_pub))]

use core::ops::{Deref, DerefMut};

use super::{AtomicU64, Ordering, update};

#[cfg(any(loom, shuttle))]
use super::model;

/// The numbers of the turns, and the sleeping threads.
pub struct Turns {
    /// Bits 31:0: the number that is served. Bits 63:32: the number that the next arriving thread
    /// takes. If both are equal, no thread holds the lock or waits for it.
    numbers: AtomicU64,
    #[cfg(any(feature = "std", loom, shuttle))]
    seats: seats::Seats,
}

/// The increment that takes a number. It wraps at the top of the word.
const NUMBER: u64 = 1 << 32;

/// Returns the number that is served.
const fn served(numbers: u64) -> u32 {
    numbers as u32
}

/// Returns how many threads have a number, including the thread that is served.
#[cfg(any(feature = "std", loom, shuttle))]
const fn present(numbers: u64) -> u32 {
    ((numbers >> 32) as u32).wrapping_sub(served(numbers))
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            numbers: AtomicU64::new(0),
            #[cfg(any(feature = "std", loom, shuttle))]
            seats: seats::Seats::default(),
        }
    }
}

impl Turns {
    /// Waits for a turn. Returns how often it checked the word.
    pub fn take(&self) -> u32 {
        // Acquire, here and in `is_served`: pairs with the Release in `pass`, so that this thread
        // sees the effects of earlier turns.
        let order =
            if cfg!(mutant = "turn_taken_relaxed") { Ordering::Relaxed } else { Ordering::AcqRel };
        let before = self.numbers.fetch_add(NUMBER, order);
        let mine = (before >> 32) as u32;
        if served(before) == mine { 1 } else { self.wait(mine) }
    }

    fn is_served(&self, number: u32) -> bool {
        served(self.numbers.load(Ordering::Acquire)) == number
    }

    #[cfg(any(feature = "std", loom, shuttle))]
    #[cold]
    fn wait(&self, mine: u32) -> u32 {
        self.seats.wait(mine, || self.is_served(mine))
    }

    #[cfg(not(any(feature = "std", loom, shuttle)))]
    #[cold]
    fn wait(&self, mine: u32) -> u32 {
        let mut looks = 1_u32;
        while !self.is_served(mine) {
            core::hint::spin_loop();
            looks = looks.saturating_add(1);
        }
        looks
    }

    /// Ends the caller's turn. The thread that has waited longest is next.
    pub fn pass(&self) {
        // Release: pairs with the Acquire in `take` and `is_served`.
        let next = |numbers: u64| u64::from(served(numbers).wrapping_add(1));
        let before = update(&self.numbers, |numbers| numbers & !(NUMBER - 1) | next(numbers));
        #[cfg(any(feature = "std", loom, shuttle))]
        if present(before) > 1 {
            self.seats.call(next(before) as u32);
        }
        #[cfg(not(any(feature = "std", loom, shuttle)))]
        let _ = before;
    }

    /// Returns how many threads wait.
    #[cfg(any(all(test, feature = "std"), loom, shuttle))]
    pub fn waiting(&self) -> u32 {
        // Relaxed: only a snapshot, for tests and models.
        present(self.numbers.load(Ordering::Relaxed)).saturating_sub(1)
    }
}

#[cfg(any(feature = "std", loom, shuttle))]
mod seats {
    #[cfg(any(loom, shuttle))]
    use super::model::sync::{Condvar, Mutex, MutexGuard};
    #[cfg(not(any(loom, shuttle)))]
    use std::sync::{Condvar, Mutex, MutexGuard};

    /// Number of rows. More threads than this must sleep before two of them share a row.
    const ROWS: usize = if crate::sync::MODEL { 2 } else { 64 };

    /// The rows in which threads sleep until their number is called.
    pub(super) struct Seats {
        gate: Mutex<()>,
        rows: [Condvar; ROWS],
    }

    impl Default for Seats {
        fn default() -> Self {
            Self { gate: Mutex::new(()), rows: core::array::from_fn(|_| Condvar::new()) }
        }
    }

    impl Seats {
        fn gate(&self) -> MutexGuard<'_, ()> {
            // The gate protects no data that a panic could have left half updated.
            self.gate.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }

        /// Sleeps until `number` is served. Returns how often it checked.
        pub(super) fn wait(&self, number: u32, is_served: impl Fn() -> bool) -> u32 {
            let mut gate = self.gate();
            let mut looks = 1_u32;
            while !is_served() {
                let row = &self.rows[number as usize % ROWS];
                gate = row.wait(gate).unwrap_or_else(|poisoned| poisoned.into_inner());
                looks = looks.saturating_add(1);
            }
            looks
        }

        /// Wakes the row of `number`, which is served from now on.
        pub(super) fn call(&self, number: u32) {
            if !cfg!(mutant = "turn_called_past_the_gate") {
                drop(self.gate());
            }
            self.rows[number as usize % ROWS].notify_all();
        }
    }
}

/// A lock for the control plane: see the [module](self).
pub(crate) struct Mutex<T> {
    #[cfg(not(any(loom, shuttle)))]
    turns: Turns,
    /// Never contended: a thread locks this only during its turn.
    #[cfg(not(any(loom, shuttle)))]
    value: spin::mutex::SpinMutex<T>,
    /// The model checker's own mutex: models of code that runs under locks need not explore this
    /// lock.
    #[cfg(any(loom, shuttle))]
    value: model::sync::Mutex<T>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            #[cfg(not(any(loom, shuttle)))]
            turns: Turns::default(),
            #[cfg(not(any(loom, shuttle)))]
            value: spin::mutex::SpinMutex::new(value),
            #[cfg(any(loom, shuttle))]
            value: model::sync::Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(not(any(loom, shuttle)))]
        self.turns.take();
        MutexGuard {
            #[cfg(not(any(loom, shuttle)))]
            value: self.value.lock(),
            // The lock is poisoned only if a thread has panicked, and then the model has failed
            // already.
            #[cfg(any(loom, shuttle))]
            value: self.value.lock().unwrap(),
            #[cfg(not(any(loom, shuttle)))]
            _turn: Turn(&self.turns),
        }
    }
}

/// Holds the lock until it is dropped.
pub(crate) struct MutexGuard<'m, T> {
    /// Declared before the turn, so that the value is unlocked before the turn ends.
    #[cfg(not(any(loom, shuttle)))]
    value: spin::mutex::SpinMutexGuard<'m, T>,
    #[cfg(any(loom, shuttle))]
    value: model::sync::MutexGuard<'m, T>,
    #[cfg(not(any(loom, shuttle)))]
    _turn: Turn<'m>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(not(any(loom, shuttle)))]
struct Turn<'m>(&'m Turns);

#[cfg(not(any(loom, shuttle)))]
impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.pass();
    }
}

#[cfg(all(test, feature = "std", not(any(loom, shuttle))))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread;

    use super::*;

    fn until_waiting<T>(lock: &Mutex<T>, threads: u32) {
        while lock.turns.waiting() < threads {
            thread::yield_now();
        }
    }

    /// A holder that takes the lock again at once, as a loop over slices does, queues behind the
    /// waiting threads. This holds every time, not only after some attempts.
    #[test]
    fn who_takes_it_again_goes_behind_who_waits() {
        let lock = Mutex::new(0);
        for round in 1..=100 {
            let mut held = lock.lock();
            thread::scope(|scope| {
                scope.spawn(|| *lock.lock() += 1);
                until_waiting(&lock, 1);
                drop(held);
                held = lock.lock();
                assert_eq!(*held, round, "passed over");
            });
        }
    }

    #[test]
    fn first_come_first_served() {
        let lock = Mutex::new(Vec::new());
        // More threads than rows.
        const THREADS: u32 = 150;
        let held = lock.lock();
        thread::scope(|scope| {
            let lock = &lock;
            for n in 0..THREADS {
                scope.spawn(move || lock.lock().push(n));
                until_waiting(lock, n + 1);
            }
            drop(held);
        });
        assert!(lock.lock().iter().copied().eq(0..THREADS));
        assert_eq!(lock.turns.waiting(), 0);
    }

    /// The numbers wrap around.
    #[test]
    fn the_last_number_is_followed_by_the_first() {
        let turns = Turns::default();
        turns.numbers.store(u64::MAX, Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(turns.take(), 1);
            assert_eq!(turns.waiting(), 0);
            turns.pass();
        }
    }

    #[test]
    fn who_waits_sleeps() {
        let turns = Turns::default();
        turns.take();
        let looks = thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let looks = turns.take();
                turns.pass();
                looks
            });
            while turns.waiting() < 1 {
                thread::yield_now();
            }
            // Enough time for a thread that does not sleep to check the word many times.
            for _ in 0..10_000 {
                thread::yield_now();
            }
            turns.pass();
            waiter.join().unwrap()
        });
        assert!(looks < 100, "looked {looks} times");
    }

    #[test]
    fn a_panic_leaves_it_usable() {
        let lock = Mutex::new(1);
        let panics = || {
            *lock.lock() = 2;
            let _held = lock.lock();
            panic!("as a host's callback may");
        };
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert_eq!(*lock.lock(), 2);
    }
}
