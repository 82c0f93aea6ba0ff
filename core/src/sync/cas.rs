//! Compare-exchange loops.

use super::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, prefetch_write};

/// The first read of a compare-exchange loop. Its value is only a guess.
///
/// It is a relaxed load; under loom, a read-modify-write that changes nothing. loom finds the
/// conflicting accesses of two threads by comparing each access with the *last* one: a thread's own
/// load, right before its compare-exchange, would hide an earlier load of another thread, and loom
/// would not explore that interleaving.
pub(crate) trait FirstLook {
    type Value;
    fn first_look(&self) -> Self::Value;
    /// Reads with Acquire, for a caller that uses the value for more than the compare-exchange.
    fn first_look_acquire(&self) -> Self::Value;
}

macro_rules! first_look {
    ($($atomic:ty => $value:ty),*) => {
        $(impl FirstLook for $atomic {
            type Value = $value;
            #[inline(always)]
            fn first_look(&self) -> $value {
                #[cfg(not(loom))]
                return self.load(Ordering::Relaxed);
                #[cfg(loom)]
                self.fetch_add(0, Ordering::Relaxed)
            }
            #[inline(always)]
            fn first_look_acquire(&self) -> $value {
                #[cfg(not(loom))]
                return self.load(Ordering::Acquire);
                #[cfg(loom)]
                self.fetch_add(0, Ordering::Acquire)
            }
        })*
    };
}

first_look!(AtomicU64 => u64, AtomicUsize => usize);

impl<T> FirstLook for AtomicPtr<T> {
    type Value = *mut T;
    #[inline(always)]
    fn first_look(&self) -> *mut T {
        #[cfg(not(loom))]
        return self.load(Ordering::Relaxed);
        #[cfg(loom)]
        {
            let null = core::ptr::null_mut();
            match self.compare_exchange(null, null, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(p) | Err(p) => p,
            }
        }
    }
    #[inline(always)]
    fn first_look_acquire(&self) -> *mut T {
        #[cfg(not(loom))]
        return self.load(Ordering::Acquire);
        #[cfg(loom)]
        {
            let null = core::ptr::null_mut();
            match self.compare_exchange(null, null, Ordering::Acquire, Ordering::Acquire) {
                Ok(p) | Err(p) => p,
            }
        }
    }
}

/// Replaces the value of `atomic` with the result of `f` in one AcqRel read-modify-write, and
/// returns the old value. Lock-free.
#[inline(always)]
pub(crate) fn update(atomic: &AtomicU64, f: impl Fn(u64) -> u64) -> u64 {
    prefetch_write(atomic);
    let mut old = atomic.first_look();
    loop {
        // Relaxed on failure: the value is only used for the next attempt.
        match atomic.compare_exchange_weak(old, f(old), Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return old,
            Err(now) => old = now,
        }
    }
}
