//! The lock of the control plane: first come, first served, and a thread that waits for it sleeps.
//!
//! Injection, entry and exit never take it. Register accesses of the guest and calls of the VMM do, and a guest can keep its own threads
//! at it for as long as it likes. So a thread that gives the lock back and takes it again goes behind everybody who waits: nobody is passed over.
//!
//! # Turns
//!
//! A thread takes the next number, and its turn comes when that number is served. Both numbers are in one word, so that the numbers' order is the
//! word's modification order. With `std` (and in models) a thread whose turn has not come sleeps on a condition variable. Its row is its number modulo `ROWS`, so that few wake in vain.
//! The gate is held only to look at the word and fall asleep, or to call. No call is lost: the caller changes the word, then passes through the gate. A
//! sleeper that looked before that is asleep by then, and one that looks later sees its number.
//!
//! Without `std` there is nothing to sleep on: a thread spins until its turn has come, as with any ticket lock.
//!
//! A panic of the thread that has the lock gives it back, and the next one has it as it was left.

// A model looks at `Turns` from outside.
#![cfg_attr(not(any(loom, shuttle)), allow(unreachable_pub))]

use core::ops::{Deref, DerefMut};

use super::{AtomicU64, Ordering, update};

#[cfg(any(loom, shuttle))]
use super::model;

/// Whose turn it is.
pub struct Turns {
    /// Bits 31:0: the number that is served. Bits 63:32: the number of who comes next. Equal: nobody is at it.
    numbers: AtomicU64,
    #[cfg(any(feature = "std", loom, shuttle))]
    seats: seats::Seats,
}

/// One more number is taken. Wraps out of the top.
const NUMBER: u64 = 1 << 32;

/// The number that is served.
const fn served(numbers: u64) -> u32 {
    numbers as u32
}

/// How many have a number, the one whose turn it is included.
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
    /// Waits for a turn. Returns how often it had to look.
    pub fn take(&self) -> u32 {
        // Acquire, here and in `is_served`: pairs with `pass`, so that what was done in earlier turns is seen.
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

    /// Ends the caller's turn: the one who has waited longest is next.
    pub fn pass(&self) {
        // Release: pairs with `take`.
        let next = |numbers: u64| u64::from(served(numbers).wrapping_add(1));
        let before = update(&self.numbers, |numbers| numbers & !(NUMBER - 1) | next(numbers));
        #[cfg(any(feature = "std", loom, shuttle))]
        if present(before) > 1 {
            self.seats.call(next(before) as u32);
        }
        #[cfg(not(any(feature = "std", loom, shuttle)))]
        let _ = before;
    }

    /// How many wait.
    #[cfg(any(all(test, feature = "std"), loom, shuttle))]
    pub fn waiting(&self) -> u32 {
        // Relaxed: only a look.
        present(self.numbers.load(Ordering::Relaxed)).saturating_sub(1)
    }
}

#[cfg(any(feature = "std", loom, shuttle))]
mod seats {
    #[cfg(any(loom, shuttle))]
    use super::model::sync::{Condvar, Mutex, MutexGuard};
    #[cfg(not(any(loom, shuttle)))]
    use std::sync::{Condvar, Mutex, MutexGuard};

    /// How many threads sleep before two of them share a row.
    const ROWS: usize = if crate::sync::MODEL { 2 } else { 64 };

    /// Where threads sleep until their number is called.
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
            // Nothing is under it that a panic could have left half done.
            self.gate.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }

        /// Sleeps until a number is served. Returns how often it looked.
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

        /// Wakes who sleeps with a number that is served from now on.
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
    /// Never contended: only the one whose turn it is comes here.
    #[cfg(not(any(loom, shuttle)))]
    value: spin::mutex::SpinMutex<T>,
    /// Models of what is done under locks need not explore the lock.
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
            // A model that panicked has failed already.
            #[cfg(any(loom, shuttle))]
            value: self.value.lock().unwrap(),
            #[cfg(not(any(loom, shuttle)))]
            _turn: Turn(&self.turns),
        }
    }
}

/// Whoever has this has the lock.
pub(crate) struct MutexGuard<'m, T> {
    /// Before the turn that it is held in.
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

    /// A holder that takes the lock again at once, as a loop over slices does, goes behind who waits: always, and not after some tries.
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
        // More than there are rows.
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

    /// Numbers wrap.
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
            // Time enough to look again and again, for who does not sleep.
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
