//! References to interrupts: the count of the ancestor's `kref`, as a value.
//!
//! A get is one relaxed `fetch_add`, a put one releasing `fetch_sub`: what [`std::sync::Arc`] costs. But `Arc` puts its counts on
//! a cache line of their own in front of an aligned value; here the count is on the line of the lock that whoever
//! gets or puts has taken. Being a value, a reference cannot be forgotten on an early return.

// An interrupt is boxed by hand, and freed with its last reference.
#![allow(unsafe_code)]

use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::irq::Irq;

/// The count of one interrupt.
pub(super) struct Kref(AtomicUsize);

impl Kref {
    /// One reference.
    pub(super) const fn new() -> Self {
        Self(AtomicUsize::new(1))
    }
}

/// A reference to an interrupt.
pub(super) struct IrqRef(NonNull<Irq>);

// SAFETY: a reference gives `&Irq`, and the last one drops the interrupt, wherever it is: that takes `Irq: Send + Sync`,
// which this asserts.
unsafe impl Send for IrqRef where Irq: Send + Sync {}
// SAFETY: as above.
unsafe impl Sync for IrqRef where Irq: Send + Sync {}

impl IrqRef {
    /// The first reference to an interrupt.
    pub(super) fn new(irq: Irq) -> Self {
        Self(NonNull::from(Box::leak(Box::new(irq))))
    }

    /// What finds the interrupt as long as it is alive, and does not keep it alive.
    pub(super) fn slot(&self) -> Slot {
        Slot(self.0)
    }
}

impl Deref for IrqRef {
    type Target = Irq;

    #[inline(always)]
    fn deref(&self) -> &Irq {
        // SAFETY: this reference keeps it.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for IrqRef {
    #[inline(always)]
    fn clone(&self) -> Self {
        // Relaxed: the new reference comes from one that is there.
        self.refs.0.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl Drop for IrqRef {
    #[inline(always)]
    fn drop(&mut self) {
        // Release: pairs with the load in `release`, so that every use comes before the end.
        if self.refs.0.fetch_sub(1, Ordering::Release) == 1 {
            release(self.0);
        }
    }
}

/// Ends an interrupt that has no references any more. No lock is held.
#[cold]
fn release(irq: NonNull<Irq>) {
    // SAFETY: without references, it is freed by whoever put the last one: here, below.
    let ended = unsafe { irq.as_ref() };
    // Acquire: pairs with the Release of every put, each part of one release sequence that ends with the last.
    ended.refs.0.load(Ordering::Acquire);
    if let Some(table) = &ended.table {
        let intid = ended.lock().intid;
        table.release(intid, &Slot(irq));
    }
    // SAFETY: boxed in `IrqRef::new`. There is no reference, and a look-up that found the slot before it was removed from the
    // table found the count at zero, and did not keep what it found.
    drop(unsafe { Box::from_raw(irq.as_ptr()) });
}

/// An interrupt's place in the table.
#[derive(PartialEq, Eq)]
pub(super) struct Slot(NonNull<Irq>);

// SAFETY: it is only compared, or used to get a reference, which is Send and Sync.
unsafe impl Send for Slot where IrqRef: Send {}

impl Slot {
    /// A reference, unless the last one is gone.
    ///
    /// # Safety
    /// The slot is in the table, and the table is locked.
    pub(super) unsafe fn get(&self) -> Option<IrqRef> {
        // SAFETY: `release` takes the slot out of the locked table before it frees the interrupt, or whoever put
        // another in its place did.
        let refs = unsafe { &self.0.as_ref().refs.0 };
        // Relaxed: the table's lock orders this with the making of the interrupt.
        let got =
            refs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n > 0).then_some(n + 1));
        got.ok().map(|_| IrqRef(self.0))
    }
}
