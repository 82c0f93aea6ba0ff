//! Atomics that count the operations on them, separately for each thread (feature `count-ops`). The
//! numbers of read-modify-writes, fences and cache lines that an operation takes do not depend on
//! the machine, and a test checks the table of them (`perf-reports/operations.md`).
//!
//! These types replace core's atomics in `crate::sync`. Not counted are `Tally`, the mutexes inside
//! the control plane's lock (its turn numbers are counted), and the internals of crossbeam-epoch.

#![allow(clippy::disallowed_types)] // This module wraps core's atomics.

use core::cell::{Cell, RefCell};
use core::sync::atomic as real;
use std::collections::BTreeSet;
use std::thread_local;

pub(crate) use real::Ordering;

/// The accesses of an operation to atomics, on the thread that performed it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Atomic read-modify-writes, those that failed included.
    pub rmws: u64,
    /// Compare-exchanges that failed.
    pub failed: u64,
    /// Plain stores.
    pub stores: u64,
    /// Plain loads.
    pub loads: u64,
    /// Fences.
    pub fences: u64,
    /// Cache lines of 64 bytes in which an atomic was written.
    pub lines_written: u64,
    /// Cache lines of 64 bytes in which an atomic was written or read.
    pub lines: u64,
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts {
        rmws: 0, failed: 0, stores: 0, loads: 0, fences: 0, lines_written: 0, lines: 0,
    }) };
    static ON: Cell<bool> = const { Cell::new(false) };
    static WRITTEN: RefCell<BTreeSet<usize>> = const { RefCell::new(BTreeSet::new()) };
    static TOUCHED: RefCell<BTreeSet<usize>> = const { RefCell::new(BTreeSet::new()) };
}

/// Counts the accesses of `f` to atomics on this thread.
pub fn counted(f: impl FnOnce()) -> Counts {
    WRITTEN.with_borrow_mut(BTreeSet::clear);
    TOUCHED.with_borrow_mut(BTreeSet::clear);
    COUNTS.set(Counts::default());
    ON.set(true);
    f();
    ON.set(false);
    let lines_written = WRITTEN.with_borrow(|lines| lines.len() as u64);
    let lines = TOUCHED.with_borrow(|lines| lines.len() as u64);
    Counts { lines_written, lines, ..COUNTS.get() }
}

fn note<T>(at: &T, writes: bool, add: impl FnOnce(&mut Counts)) {
    if !ON.get() {
        return;
    }
    let line = core::ptr::from_ref(at).addr() / 64;
    // Counting is off while the sets may allocate: the allocation is not the operation's.
    ON.set(false);
    TOUCHED.with_borrow_mut(|lines| lines.insert(line));
    if writes {
        WRITTEN.with_borrow_mut(|lines| lines.insert(line));
    }
    ON.set(true);
    let mut counts = COUNTS.get();
    add(&mut counts);
    COUNTS.set(counts);
}

/// Whether an operation is being counted on this thread. False while an access is being recorded.
pub fn is_counting() -> bool {
    ON.get()
}

pub(crate) fn fence(order: Ordering) {
    if ON.get() {
        let mut counts = COUNTS.get();
        counts.fences += 1;
        COUNTS.set(counts);
    }
    real::fence(order);
}

macro_rules! counted {
    ($name:ident $(<$t:ident>)?, $real:ty, $value:ty) => {
        #[derive(Debug, Default)]
        #[repr(transparent)]
        #[doc(hidden)]
        pub struct $name $(<$t>)? ($real);

        #[allow(dead_code)] // Each type has all methods, used or not.
        impl $(<$t>)? $name $(<$t>)? {
            pub(crate) const fn new(value: $value) -> Self {
                Self(<$real>::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                note(self, false, |c| c.loads += 1);
                self.0.load(order)
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                note(self, true, |c| c.stores += 1);
                self.0.store(value, order);
            }

            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                note(self, true, |c| c.rmws += 1);
                self.0.swap(value, order)
            }

            pub(crate) fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let result = self.0.compare_exchange(old, new, success, failure);
                note(self, true, |c| {
                    c.rmws += 1;
                    c.failed += u64::from(result.is_err());
                });
                result
            }

            pub(crate) fn compare_exchange_weak(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(old, new, success, failure)
            }

            pub(crate) fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                mut f: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut old = self.load(failure);
                while let Some(new) = f(old) {
                    match self.compare_exchange(old, new, success, failure) {
                        Ok(old) => return Ok(old),
                        Err(now) => old = now,
                    }
                }
                Err(old)
            }

            pub(crate) fn get_mut(&mut self) -> &mut $value {
                self.0.get_mut()
            }
        }
    };
}

macro_rules! arithmetic {
    ($($name:ident($value:ty): $($op:ident)*;)*) => {
        $(#[allow(dead_code)]
        impl $name {
            $(pub(crate) fn $op(&self, value: $value, order: Ordering) -> $value {
                note(self, true, |c| c.rmws += 1);
                self.0.$op(value, order)
            })*
        })*
    };
}

counted!(AtomicBool, real::AtomicBool, bool);
counted!(AtomicU32, real::AtomicU32, u32);
counted!(AtomicU64, real::AtomicU64, u64);
counted!(AtomicUsize, real::AtomicUsize, usize);
counted!(AtomicPtr<T>, real::AtomicPtr<T>, *mut T);

arithmetic! {
    AtomicBool(bool): fetch_or fetch_and;
    AtomicU32(u32): fetch_add fetch_sub fetch_or fetch_and;
    AtomicU64(u64): fetch_add fetch_sub fetch_or fetch_and;
    AtomicUsize(usize): fetch_add fetch_sub fetch_or fetch_and;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_counted_and_nothing_else() {
        let word = AtomicU64::new(0);
        word.fetch_add(1, Ordering::AcqRel);
        let counts = counted(|| {
            word.fetch_add(1, Ordering::AcqRel);
            let _ = word.compare_exchange(7, 8, Ordering::AcqRel, Ordering::Relaxed);
            let _ = word.load(Ordering::Acquire);
            fence(Ordering::SeqCst);
        });
        word.fetch_add(1, Ordering::AcqRel);
        let expected = Counts {
            rmws: 2,
            failed: 1,
            loads: 1,
            fences: 1,
            lines: 1,
            lines_written: 1,
            stores: 0,
        };
        assert_eq!(counts, expected);
        assert!(!is_counting());
    }
}
