//! Memory with a modelled lifetime, and cells that a model checks.

use super::MODEL;
#[cfg(shuttle)]
use super::Ordering;

/// Marks memory with a modelled lifetime. It is empty in a real build.
///
/// loom does not track freed memory. Under loom every use of a reclaimed object calls
/// [`Canary::touch`], a tracked read, and freeing the object calls [`Canary::bury`], a tracked
/// write. A use that is not ordered before the free is then a causality violation, which loom
/// reports, and a use that is ordered after the free panics. Under shuttle, where all accesses are
/// in one order, the panic is enough.
pub(crate) struct Canary {
    /// Whether the object has not been freed yet.
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
    /// Records a use of the object. Panics if the object has been freed.
    #[inline(always)]
    pub(crate) fn touch(&self) {
        #[cfg(loom)]
        assert!(self.alive.get(), "used after it was freed");
        #[cfg(shuttle)]
        assert!(self.alive.load(Ordering::Relaxed), "used after it was freed");
    }

    /// Records that the object is freed. Panics if it has been freed before.
    #[inline(always)]
    pub(crate) fn bury(&self) {
        #[cfg(loom)]
        assert!(self.alive.replace(false), "freed twice");
        #[cfg(shuttle)]
        assert!(self.alive.swap(false, Ordering::Relaxed), "freed twice");
    }
}

/// Frees memory that was shared. [`Canary::bury`] has been called for it.
///
/// In a model the memory is not freed, so that a later use of the object is reported by its canary
/// instead of corrupting the heap.
pub(crate) fn free<T>(object: alloc::boxed::Box<T>) {
    if MODEL {
        core::mem::forget(object);
    } else {
        drop(object);
    }
}

/// An `UnsafeCell` with accesses that loom checks. They take closures, as loom requires.
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
