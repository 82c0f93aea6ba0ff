//! Prefetch hints to the CPU's cache.

#![allow(unsafe_code)] // For the prefetch instructions.

use super::{HintPtr, HintUsize, Ordering};

/// Requests a cache line for writing by this CPU. Only a hint.
///
/// There are two uses:
///
/// * Before a compare-exchange loop. Most read-modify-writes are such loops on x86. If another CPU
///   has written the line, the loop's first look would fetch it for reading, and the exchange would
///   have to request it once more, for writing.
/// * Before writes to several lines. The prefetched lines arrive at the same time, while
///   read-modify-writes wait for each other.
#[inline(always)]
pub(crate) fn prefetch_write<T>(object: *const T) {
    #[cfg(all(target_arch = "x86_64", not(any(miri, loom, shuttle))))]
    // SAFETY: a prefetch is not a memory access, for any address. If the address cannot be
    // prefetched, the instruction has no effect.
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) object.addr(), options(nomem, nostack, preserves_flags));
    }
    #[cfg(all(target_arch = "aarch64", not(any(miri, loom, shuttle))))]
    // SAFETY: as for `prefetchw` above.
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{}]", in(reg) object.addr(), options(nomem, nostack, preserves_flags));
    }
    let _ = object;
}

/// The addresses of the objects that were handed over last. They are only prefetched, never
/// dereferenced. A model does not track them: nothing is published through them.
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
    /// Records an object. If several threads do this at once, an object may be lost.
    #[inline(always)]
    pub(crate) fn note(&self, object: *mut T) {
        // Relaxed: nothing is published through these addresses.
        let next = self.next.load(Ordering::Relaxed);
        let n = if next < self.at.len() { next } else { 0 };
        self.at[n].store(object, Ordering::Relaxed);
        self.next.store(n + 1, Ordering::Relaxed);
    }

    /// Prefetches all recorded objects for writing.
    pub(crate) fn prefetch(&self) {
        // Relaxed: nothing is published through these addresses.
        self.at.iter().for_each(|at| prefetch_write(at.load(Ordering::Relaxed)));
    }
}
