//! The buckets of a vCPU: its interrupts that wait for a list register, in one FIFO for each
//! priority level.
//!
//! Only the owner uses them, so there are no atomics. Insert, remove and take-highest are O(1),
//! regardless of the number of entries. Each entry is the owner's reference.
//!
//! A second queue of the same type has the active interrupts without a list register (`spilled`).
//!
//! Models: `delivery_clear`, `delivery_config`, `lifetime_refs`. They run this code, but no two
//! threads meet in it.

#![allow(unsafe_code)] // Intrusive links between interrupts that the queue holds references to.

use core::ptr::{self, NonNull};

use crate::arch::ids::Priority;
use crate::lockfree::irq::refs::OwnerRef;
use crate::lockfree::irq::{Irq, Place};
use crate::sync::prefetch_write;

#[derive(Clone, Copy)]
struct Bucket {
    head: *mut Irq,
    tail: *mut Irq,
}

/// The buckets: one doubly linked list for each priority level.
pub(crate) struct ReadyQueue {
    /// One bit for each bucket that is not empty; bit 0 is the highest priority.
    occupied: u32,
    buckets: [Bucket; Priority::LEVELS],
    /// Makes the place that is recorded in an entry, from its level.
    place: fn(u8) -> Place,
}

// SAFETY: the links lead to interrupts that the queue holds `OwnerRef` references to, which are
// Send.
unsafe impl Send for ReadyQueue {}

/// Calls `f` with an entry of the queue, without ending its reference.
fn with<R>(irq: NonNull<Irq>, f: impl FnOnce(&OwnerRef) -> R) -> R {
    // SAFETY: callers pass entries of the queue, which holds their reference; it is not dropped
    // here.
    let owned = unsafe { OwnerRef::borrow(irq) };
    f(&owned)
}

impl ReadyQueue {
    /// Makes an empty queue. The place of its entries is `place(level)`.
    pub(crate) fn new(place: fn(u8) -> Place) -> Self {
        let empty = Bucket { head: ptr::null_mut(), tail: ptr::null_mut() };
        Self { occupied: 0, buckets: [empty; Priority::LEVELS], place }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    /// Returns the highest level that has an entry.
    #[inline(always)]
    pub(crate) fn highest(&self) -> Option<u8> {
        if self.occupied == 0 { None } else { Some(self.occupied.trailing_zeros() as u8) }
    }

    /// Adds an interrupt behind all others of its level.
    #[inline]
    pub(crate) fn push_back(&mut self, level: u8, owned: OwnerRef) {
        owned.set_place((self.place)(level));
        let irq = owned.into_raw();
        let bucket = &mut self.buckets[level as usize];
        let prev = bucket.tail;
        with(irq, |o| o.update_links(|l| (l.prev, l.next) = (prev, ptr::null_mut())));
        match NonNull::new(prev) {
            Some(prev) => with(prev, |o| o.update_links(|l| l.next = irq.as_ptr())),
            None => bucket.head = irq.as_ptr(),
        }
        bucket.tail = irq.as_ptr();
        self.occupied |= 1 << level;
    }

    /// Adds an interrupt in front of all others of its level.
    pub(crate) fn push_front(&mut self, level: u8, owned: OwnerRef) {
        owned.set_place((self.place)(level));
        let irq = owned.into_raw();
        let bucket = &mut self.buckets[level as usize];
        let next = bucket.head;
        with(irq, |o| o.update_links(|l| (l.prev, l.next) = (ptr::null_mut(), next)));
        match NonNull::new(next) {
            Some(next) => with(next, |o| o.update_links(|l| l.prev = irq.as_ptr())),
            None => bucket.tail = irq.as_ptr(),
        }
        bucket.head = irq.as_ptr();
        self.occupied |= 1 << level;
    }

    /// Takes out the first interrupt of the highest level.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<OwnerRef> {
        let level = self.highest()?;
        let irq = NonNull::new(self.buckets[level as usize].head)?;
        // SAFETY: an entry of this queue, in the bucket of this level.
        Some(unsafe { self.remove(level, irq) })
    }

    /// Calls `f` with the interrupt that `pop` would take out next.
    #[inline]
    pub(crate) fn peek<R>(&self, f: impl FnOnce(&OwnerRef) -> R) -> Option<R> {
        let level = self.highest()?;
        Some(with(NonNull::new(self.buckets[level as usize].head)?, f))
    }

    /// Prefetches the interrupt behind the first one, if it is of the same level: taking the first
    /// one out writes its links.
    #[inline]
    pub(crate) fn prefetch_second(&self) {
        let second = self.peek(|o| o.links().next);
        if let Some(second) = second.and_then(NonNull::new) {
            prefetch_write(second.as_ptr());
        }
    }

    /// Prefetches, for writing, the pending words of the interrupts that are taken out next: at
    /// most `n` of the highest level.
    #[inline]
    pub(crate) fn prefetch(&self, n: usize) {
        let Some(level) = self.highest() else { return };
        let mut irq = self.buckets[level as usize].head;
        for _ in 0..n {
            let Some(next) = NonNull::new(irq) else { return };
            irq = with(next, |o| {
                o.pending().prefetch();
                o.links().next
            });
        }
    }

    /// Takes out one interrupt.
    ///
    /// # Safety
    /// `irq` must be an entry of this queue, at `level`.
    #[inline]
    pub(crate) unsafe fn remove(&mut self, level: u8, irq: NonNull<Irq>) -> OwnerRef {
        // SAFETY: `push_*` gave this reference up to the queue. The caller says that it is still
        // there.
        let owned = unsafe { OwnerRef::from_raw(irq) };
        let links = owned.links();
        let bucket = &mut self.buckets[level as usize];
        match NonNull::new(links.prev) {
            Some(prev) => with(prev, |o| o.update_links(|l| l.next = links.next)),
            None => bucket.head = links.next,
        }
        match NonNull::new(links.next) {
            Some(next) => with(next, |o| o.update_links(|l| l.prev = links.prev)),
            None => bucket.tail = links.prev,
        }
        if bucket.head.is_null() {
            self.occupied &= !(1 << level);
        }
        owned.set_place(Place::Nowhere);
        owned
    }
}

impl Drop for ReadyQueue {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
