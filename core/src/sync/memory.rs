//! Memory whose life is modelled, and cells that a model checks.

use super::MODEL;
#[cfg(shuttle)]
use super::Ordering;

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
