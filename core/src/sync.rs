//! The one place that chooses between real atomics, loom's and shuttle's.
//!
//! Everything concurrent in this crate comes from here, so that a model runs the shipped code.
//! `clippy.toml` forbids naming the originals anywhere else.

#![allow(clippy::disallowed_types)]
#![allow(unsafe_code)] // An instruction that is a hint.

mod lock;

#[cfg(all(feature = "count-ops", not(any(loom, shuttle))))]
pub(crate) use crate::counted::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(not(any(loom, shuttle, feature = "count-ops")))]
pub(crate) use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

pub(crate) use crossbeam_utils::CachePadded;
pub(crate) use lock::{Mutex, MutexGuard};

#[cfg(any(loom, shuttle))]
pub use lock::Turns;

#[cfg(loom)]
use loom as model;
#[cfg(shuttle)]
use shuttle as model;

/// Whether this is a model. Capacities are smaller then, so that their ends are reached.
pub(crate) const MODEL: bool = cfg!(any(loom, shuttle));

/// Lets others run before a look that has to be repeated: on the control plane only.
pub(crate) fn relax() {
    #[cfg(any(loom, shuttle))]
    model::thread::yield_now();
    #[cfg(all(not(any(loom, shuttle)), feature = "std"))]
    std::thread::yield_now();
    #[cfg(all(not(any(loom, shuttle)), not(feature = "std")))]
    core::hint::spin_loop();
}

/// The first look of a compare-exchange loop, whose value is only a guess.
///
/// A relaxed load; under loom a read-modify-write that changes nothing. loom finds out which accesses of
/// two threads conflict by comparing each with the *last* one: a thread's own load, right before its
/// compare-exchange, would hide another thread's load before that, and the interleaving would not be explored.
pub(crate) trait FirstLook {
    type Value;
    fn first_look(&self) -> Self::Value;
    /// The same with Acquire, if more follows from the value than the compare-exchange.
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

#[cfg(any(loom, shuttle))]
use core::sync::atomic::{AtomicPtr as HintPtr, AtomicUsize as HintUsize};
#[cfg(not(any(loom, shuttle)))]
use {AtomicPtr as HintPtr, AtomicUsize as HintUsize};

/// A number for information and limits. Not a model's: nothing is published through it, and exploring who counts first
/// would multiply the interleavings of every model.
pub(crate) type CountUsize = HintUsize;

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

/// Replaces the value of `atomic` by `f` of it in one AcqRel read-modify-write, and returns the old value. Lock-free.
#[inline(always)]
pub(crate) fn update(atomic: &AtomicU64, f: impl Fn(u64) -> u64) -> u64 {
    prefetch_write(atomic);
    let mut old = atomic.first_look();
    loop {
        // Relaxed on failure: the value is only retried with.
        match atomic.compare_exchange_weak(old, f(old), Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return old,
            Err(now) => old = now,
        }
    }
}

/// A number that is counted, through which nothing is published. Not loom's: models need not explore what follows from nothing else.
#[derive(Default)]
pub(crate) struct Tally(core::sync::atomic::AtomicU64);

impl Tally {
    /// One more.
    pub(crate) fn add_one(&self) {
        // Relaxed: see above.
        self.0.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        // Relaxed: as above.
        self.0.load(core::sync::atomic::Ordering::Relaxed)
    }
}

/// Marks memory whose life is being modelled: nothing in a real build.
///
/// loom does not see freed memory. Under loom every use of a reclaimed object calls [`Canary::touch`],
/// a tracked read, and freeing it calls [`Canary::bury`], a tracked write: a use that is not ordered
/// before the free is then a causality violation, which loom reports; and one that is ordered after it panics. Under
/// shuttle, where everything is in one order, the second is enough.
pub(crate) struct Canary {
    /// Whether it is alive.
    #[cfg(loom)]
    alive: loom::cell::Cell<bool>,
    #[cfg(shuttle)]
    alive: core::sync::atomic::AtomicBool,
}

impl Default for Canary {
    #[inline(always)]
    fn default() -> Self {
        Self {
            #[cfg(loom)]
            alive: loom::cell::Cell::new(true),
            #[cfg(shuttle)]
            alive: core::sync::atomic::AtomicBool::new(true),
        }
    }
}

impl Canary {
    /// A use of the object.
    #[inline(always)]
    pub(crate) fn touch(&self) {
        #[cfg(loom)]
        assert!(self.alive.get(), "used after it was freed");
        #[cfg(shuttle)]
        assert!(self.alive.load(Ordering::Relaxed), "used after it was freed");
    }

    /// The end of the object.
    #[inline(always)]
    pub(crate) fn bury(&self) {
        #[cfg(loom)]
        assert!(self.alive.replace(false), "freed twice");
        #[cfg(shuttle)]
        assert!(self.alive.swap(false, Ordering::Relaxed), "freed twice");
    }
}

/// Gives memory back that was shared. Its canary has been buried.
///
/// Not in a model: there the memory stays, so that the canary of an object that is used once more
/// tells, and not a corrupted heap.
pub(crate) fn free<T>(object: alloc::boxed::Box<T>) {
    if MODEL {
        core::mem::forget(object);
    } else {
        drop(object);
    }
}

/// An `UnsafeCell` whose accesses loom checks. Only through closures, as loom wants it.
#[derive(Debug, Default)]
pub(crate) struct UnsafeCell<T> {
    #[cfg(not(loom))]
    inner: core::cell::UnsafeCell<T>,
    #[cfg(loom)]
    inner: loom::cell::UnsafeCell<T>,
}

impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        #[cfg(not(loom))]
        return Self { inner: core::cell::UnsafeCell::new(value) };
        #[cfg(loom)]
        Self { inner: loom::cell::UnsafeCell::new(value) }
    }

    /// Passes a pointer for reading to `f`.
    #[inline(always)]
    pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        #[cfg(not(loom))]
        return f(self.inner.get());
        #[cfg(loom)]
        self.inner.with(f)
    }

    /// Passes a pointer for writing to `f`.
    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        #[cfg(not(loom))]
        return f(self.inner.get());
        #[cfg(loom)]
        self.inner.with_mut(f)
    }
}
