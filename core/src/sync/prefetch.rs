//! Hints to the cache.

#![allow(unsafe_code)] // An instruction that is a hint.

use super::{HintPtr, HintUsize, Ordering};

/// Asks for a cache line to be brought here to be written. Only a hint.
///
/// Before a compare-exchange loop, which is what most read-modify-writes are on x86: its first look would bring a line that another CPU has written here to be read, and the exchange would
/// have to ask once more, to write it. And where several lines are going to be written: they come at the same time, while read-modify-writes
/// wait for each other.
#[inline(always)]
pub(crate) fn prefetch_write<T>(object: *const T) {
    #[cfg(all(target_arch = "x86_64", not(any(miri, loom, shuttle))))]
    // SAFETY: no access, whatever the address; what cannot be prefetched is not.
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) object.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(all(target_arch = "aarch64", not(any(miri, loom, shuttle))))]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{}]", in(reg) object.addr(), options(nomem, nostack, preserves_flags));
    }
    let _ = object;
}

/// Where objects are that have been handed over lately: addresses to prefetch from, which nobody follows. Not a model's: nothing is published
/// through them.
pub(crate) struct Recent<T> {
    next: HintUsize,
    at: [HintPtr<T>; 5],
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { next: HintUsize::new(0), at: [const { HintPtr::new(core::ptr::null_mut()) }; 5] }
    }
}

impl<T> Recent<T> {
    /// One more. Of several threads that do this at once, one may be forgotten.
    #[inline(always)]
    pub(crate) fn note(&self, object: *mut T) {
        // Relaxed: see above.
        let next = self.next.load(Ordering::Relaxed);
        let n = if next < self.at.len() { next } else { 0 };
        self.at[n].store(object, Ordering::Relaxed);
        self.next.store(n + 1, Ordering::Relaxed);
    }

    /// Brings all of them here, to be written.
    pub(crate) fn prefetch(&self) {
        // Relaxed: see above.
        self.at.iter().for_each(|at| prefetch_write(at.load(Ordering::Relaxed)));
    }
}
