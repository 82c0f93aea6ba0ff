//! A route: an event that is resolved already, so that an injection needs no look-up.
//!
//! Models: `lifetime_intid`, `lifetime_refs`, `lifetime_tree`, `lifetime_epoch`, `its_commands`.

#![allow(unsafe_code)] // A kept reference is a raw pointer.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::Cell;
use core::ptr::{self, NonNull};

use super::domain::Device;
use crate::arch::ids::EventId;
use crate::lockfree::irq::Irq;
use crate::lockfree::irq::refs::WeakRef;
use crate::lockfree::map::radix::HeldSlot;
use crate::lockfree::pending::word::{Lane, PendingWord};
use crate::lockfree::reclaim::refcount::Ref;
use crate::lockfree::reclaim::{Pin, Reclaim, Slots};
use crate::lockfree::vm::Shared;
use crate::sync::AtomicPtr;

/// One event of one device, resolved: an injection through it is one load away from the LPI, and
/// needs no pin while the event's mapping does not change. A route sees every remap.
///
/// A route remembers the LPI that it injected last, and keeps its memory. After the event is
/// unmapped, the LPI (and with it its block of pending bits and its place in the trees) stays until
/// the route is used again or dropped. Such an LPI does not count against
/// [`Config::max_lpis`](crate::engine::Config). A route can be sent to another thread, but not
/// shared.
pub struct MsiRoute<R: Reclaim = Slots> {
    pub(super) slot: HeldSlot<Irq>,
    /// The LPI that the slot held last.
    pub(super) kept: Cell<Option<WeakRaw>>,
    /// Keeps the slot where it is until the hold is collected. `None` only while the route is
    /// dropped.
    pub(super) hold: Option<Box<Hold>>,
    /// The last field: it keeps alive the objects that the others point to.
    pub(crate) shared: Arc<Shared<R>>,
}

/// A `WeakRef` that was given up, and the place of the pending bit of its LPI.
type WeakRaw = (NonNull<Irq>, NonNull<PendingWord>, Lane);

/// A route's hold on a slot of its device's tree of events. It is made with the route, so that
/// dropping a route allocates nothing, and given up through the list of retired objects, since
/// releasing a slot can prune the tree.
pub(crate) struct Hold {
    /// The next object in the list of retired objects.
    pub(crate) link: AtomicPtr<()>,
    pub(super) device: Ref<Device>,
    pub(super) event: EventId,
}

impl Hold {
    /// Releases the slot.
    pub(crate) fn release(&self, pin: &Pin) {
        self.device.events.release_slot(self.event.0.into(), pin);
        if cfg!(mutant = "slot_released_twice") {
            self.device.events.release_slot(self.event.0.into(), pin);
        }
    }
}

// SAFETY: `kept` is a reference that this value owns; only the thread that has the value uses it,
// one thread at a time (it is not Sync).
unsafe impl<R: Reclaim> Send for MsiRoute<R> {}

impl<R: Reclaim> MsiRoute<R> {
    /// The LPI that the event is mapped to, and the place of its pending bit, if it is the LPI that
    /// the route keeps. Both are valid without a pin.
    #[inline(always)]
    pub(crate) fn kept(&self) -> Option<(&Irq, &PendingWord, Lane)> {
        let (kept, word, lane) = self.kept.get()?;
        // SAFETY: `hold` keeps the device, and so its tree of events, and the slot in it.
        let now = unsafe { self.slot.load() };
        // SAFETY: only two things end the `WeakRef` that `kept` stands for: `keep`, which takes it
        // out of `self.kept` first, and dropping the route.
        let kept = unsafe { kept.as_ref() };
        // SAFETY: the block of pending bits exists for as long as the interrupt's memory does
        // (`lpis::Lpis::make`).
        let word = unsafe { word.as_ref() };
        ptr::eq(now, kept).then_some((kept, word, lane))
    }

    /// Prefetches the pending word that an injection writes, while the caller's earlier stores are
    /// still on their way.
    #[inline(always)]
    pub(crate) fn prefetch(&self) {
        if let Some((_, word, _)) = self.kept.get() {
            // SAFETY: as in `kept`.
            unsafe { word.as_ref() }.prefetch();
        }
    }

    /// Returns the LPI that the event is mapped to. From now on the route keeps that LPI, or none
    /// if [`Irq::try_weak`] refuses, instead of the one that it kept so far.
    pub(crate) fn keep<'p>(&self, _pin: &'p Pin) -> Option<&'p Irq> {
        // SAFETY: as in `kept`.
        let now = unsafe { self.slot.load() };
        // SAFETY: the LPI in a slot stays allocated for as long as any pin that could see it.
        let now = unsafe { now.as_ref() };
        let kept = if cfg!(mutant = "kept_without_reference") {
            now.map(NonNull::from)
        } else {
            now.and_then(Irq::try_weak).map(WeakRef::into_raw)
        };
        let kept = kept.map(|kept| {
            // SAFETY: kept, or (in a seeded bug) seen under the pin.
            let irq = unsafe { kept.as_ref() };
            (kept, NonNull::from(irq.pending()), irq.lane())
        });
        if kept.is_some() {
            self.shared.dispatcher.retired.counts.kept.add(1);
        }
        self.end(self.kept.replace(kept));
        now
    }

    /// Ends the reference that a value of `self.kept` stands for.
    fn end(&self, kept: Option<WeakRaw>) {
        let Some((kept, ..)) = kept else { return };
        if !cfg!(mutant = "kept_without_reference") {
            // SAFETY: given up in `keep`, and taken out of `self.kept` by the caller.
            drop(unsafe { WeakRef::from_raw(kept) });
        }
        self.shared.dispatcher.retired.counts.kept.sub(1);
    }
}

impl<R: Reclaim> Drop for MsiRoute<R> {
    fn drop(&mut self) {
        self.end(self.kept.take());
        if let Some(hold) = self.hold.take() {
            self.shared.dispatcher.retired.push_hold(NonNull::from(Box::leak(hold)));
        }
    }
}
