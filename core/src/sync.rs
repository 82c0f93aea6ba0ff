//! The one place that chooses between real atomics and loom's.
//!
//! Everything concurrent in this crate comes from here, so that a model runs the shipped code.
//! `clippy.toml` forbids naming the originals anywhere else.

#![allow(clippy::disallowed_types)]

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

pub(crate) use crossbeam_utils::CachePadded;

/// Marks memory whose life is being modelled: nothing in a real build.
///
/// loom does not see freed memory. Under loom every use of a reclaimed object calls [`Canary::touch`],
/// a tracked read, and freeing it calls [`Canary::bury`], a tracked write: a use that is not ordered
/// before the free is then a causality violation, which loom reports.
#[derive(Default)]
pub(crate) struct Canary {
    #[cfg(loom)]
    cell: loom::cell::UnsafeCell<()>,
}

impl Canary {
    /// A use of the object.
    #[inline(always)]
    pub(crate) fn touch(&self) {
        #[cfg(loom)]
        self.cell.with(|_| ());
    }

    /// The end of the object.
    #[inline(always)]
    pub(crate) fn bury(&self) {
        #[cfg(loom)]
        self.cell.with_mut(|_| ());
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
