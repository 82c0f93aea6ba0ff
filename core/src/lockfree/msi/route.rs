//! One event, resolved: an injection that needs no look-up.

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

/// One event of one device, resolved: an injection through it is one load away from the LPI, and needs no pin while
/// the event's mapping does not change. It sees every remap.
///
/// It remembers the LPI that it injected last, and keeps its memory: after an event is unmapped, the LPI (and with it
/// its block of pending bits and its place in the trees) stays until the route is used again or dropped. It does not count against
/// [`Config::max_lpis`](crate::engine::Config) then. It can be sent to another thread, but not shared.
pub struct MsiRoute<R: Reclaim = Slots> {
    pub(super) slot: HeldSlot<Irq>,
    /// What the slot held last.
    pub(super) kept: Cell<Option<WeakRaw>>,
    /// Keeps the slot where it is, until it is collected. `None` only while this is dropped.
    pub(super) hold: Option<Box<Hold>>,
    /// Last: what the others point to is kept alive by this.
    pub(crate) shared: Arc<Shared<R>>,
}

/// A `WeakRef` that was given up, and where the pending bit of its LPI is.
type WeakRaw = (NonNull<Irq>, NonNull<PendingWord>, Lane);

/// What a route holds: a slot of its device's tree of events. Made with the route, so that dropping one allocates nothing;
/// given up through the retired, as releasing a slot can prune the tree.
pub(crate) struct Hold {
    /// Next in the retired.
    pub(crate) link: AtomicPtr<()>,
    pub(super) device: Ref<Device>,
    pub(super) event: EventId,
}

impl Hold {
    pub(crate) fn release(&self, pin: &Pin) {
        self.device.events.release_slot(self.event.0.into(), pin);
        if cfg!(mutant = "slot_released_twice") {
            self.device.events.release_slot(self.event.0.into(), pin);
        }
    }
}

// SAFETY: `kept` is a reference that this value owns; who has the value uses it, one thread at a time (it is not Sync).
unsafe impl<R: Reclaim> Send for MsiRoute<R> {}

impl<R: Reclaim> MsiRoute<R> {
    /// The LPI that the event is mapped to, and its pending bit, if it is the one that the route keeps. That is valid without a pin.
    #[inline(always)]
    pub(crate) fn kept(&self) -> Option<(&Irq, &PendingWord, Lane)> {
        let (kept, word, lane) = self.kept.get()?;
        // SAFETY: `hold` keeps the device, and so its tree of events, and the slot in it.
        let now = unsafe { self.slot.load() };
        // SAFETY: the `WeakRef` that `kept` stands for is ended only by `keep`, which takes this route's LPI out of
        // use first, and by dropping the route.
        let kept = unsafe { kept.as_ref() };
        // SAFETY: the block of pending bits is there for as long as the interrupt's memory is (`lpis::Lpis::make`).
        let word = unsafe { word.as_ref() };
        ptr::eq(now, kept).then_some((kept, word, lane))
    }

    /// Brings the pending word that an injection writes here, while what the caller has written before is still on its way.
    #[inline(always)]
    pub(crate) fn prefetch(&self) {
        if let Some((_, word, _)) = self.kept.get() {
            // SAFETY: as in `kept`.
            unsafe { word.as_ref() }.prefetch();
        }
    }

    /// What the event is mapped to, which is kept from now on instead of what was kept so far.
    pub(crate) fn keep<'p>(&self, _pin: &'p Pin) -> Option<&'p Irq> {
        // SAFETY: as in `kept`.
        let now = unsafe { self.slot.load() };
        // SAFETY: what a slot holds stays allocated for as long as a pin that could see it.
        let now = unsafe { now.as_ref() };
        let kept = if cfg!(mutant = "kept_without_reference") {
            now.map(NonNull::from)
        } else {
            now.and_then(Irq::try_weak).map(WeakRef::into_raw)
        };
        let kept = kept.map(|kept| {
            // SAFETY: kept, or (a seeded bug) seen under the pin.
            let irq = unsafe { kept.as_ref() };
            (kept, NonNull::from(irq.pending()), irq.lane())
        });
        if kept.is_some() {
            self.shared.dispatcher.retired.counts.kept.add(1);
        }
        self.end(self.kept.replace(kept));
        now
    }

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
