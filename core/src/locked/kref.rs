//! References to interrupts: a count like Linux's `kref`, held as a value.
//!
//! A get is one relaxed `fetch_add`, a put is one releasing `fetch_sub`. [`std::sync::Arc`] costs
//! the same, but puts its counts on a cache line of their own in front of an aligned value. Here
//! the count is on the line of the lock that the thread has taken when it gets or puts. As a value,
//! a reference cannot be forgotten on an early return.

// An interrupt is boxed here by hand, and freed with its last reference.
#![allow(unsafe_code)]

use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::irq::Irq;

/// The reference count of one interrupt.
pub(super) struct Kref(AtomicUsize);

impl Kref {
    /// Creates a count of one reference.
    pub(super) const fn new() -> Self {
        Self(AtomicUsize::new(1))
    }
}

/// A reference to an interrupt.
pub(super) struct IrqRef(NonNull<Irq>);

// SAFETY: a reference gives `&Irq`, and the last one drops the interrupt, on any thread. That takes
// `Irq: Send + Sync`, which this asserts.
unsafe impl Send for IrqRef where Irq: Send + Sync {}
// SAFETY: as above.
unsafe impl Sync for IrqRef where Irq: Send + Sync {}

impl IrqRef {
    /// Creates an interrupt, and returns the first reference to it.
    pub(super) fn new(irq: Irq) -> Self {
        Self(NonNull::from(Box::leak(Box::new(irq))))
    }

    /// Returns a slot, which finds the interrupt as long as it is alive, and does not keep it
    /// alive.
    pub(super) fn slot(&self) -> Slot {
        Slot(self.0)
    }
}

impl Deref for IrqRef {
    type Target = Irq;

    #[inline(always)]
    fn deref(&self) -> &Irq {
        // SAFETY: this reference keeps the interrupt alive.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for IrqRef {
    #[inline(always)]
    fn clone(&self) -> Self {
        // Relaxed: the new reference is made from an existing one.
        self.refs.0.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl Drop for IrqRef {
    #[inline(always)]
    fn drop(&mut self) {
        // Release: pairs with the load in `release`, so that every use happens before the interrupt
        // is freed.
        if self.refs.0.fetch_sub(1, Ordering::Release) == 1 {
            release(self.0);
        }
    }
}

/// Frees an interrupt that has no references left. The caller holds no lock.
#[cold]
fn release(irq: NonNull<Irq>) {
    // SAFETY: an interrupt without references is freed by the thread that put the last one: here,
    // below.
    let ended = unsafe { irq.as_ref() };
    // Acquire: pairs with the Release of every put. Each put is part of one release sequence, which
    // ends with the last put.
    ended.refs.0.load(Ordering::Acquire);
    if let Some(table) = &ended.table {
        let intid = ended.lock().intid;
        table.release(intid, &Slot(irq));
    }
    // SAFETY: the interrupt was boxed in `IrqRef::new`. There is no reference. A look-up that found
    // the slot before it was removed from the table found the count at zero, and kept nothing.
    drop(unsafe { Box::from_raw(irq.as_ptr()) });
}

/// An interrupt's entry in the table.
#[derive(PartialEq, Eq)]
pub(super) struct Slot(NonNull<Irq>);

// SAFETY: a slot is only compared, or used to get a reference, which is Send and Sync.
unsafe impl Send for Slot where IrqRef: Send {}

impl Slot {
    /// Returns a reference. `None`: the last one has been put.
    ///
    /// # Safety
    /// The slot is in the table, and the table is locked.
    pub(super) unsafe fn get(&self) -> Option<IrqRef> {
        // SAFETY: a slot leaves the locked table before `release` frees the interrupt. Either
        // `release` takes it out, or the thread that put another slot in its place did.
        let refs = unsafe { &self.0.as_ref().refs.0 };
        // Relaxed: the table's lock orders this with the creation of the interrupt.
        let got =
            refs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n > 0).then_some(n + 1));
        got.ok().map(|_| IrqRef(self.0))
    }
}
