//! Collection: from the graveyard to free memory. See [`crate::graveyard`] for the life of one piece of garbage.
//!
//! Anyone on the control path may collect; if someone else is at it, there is nothing to do (`busy` is only ever
//! tried). Nothing here is on the injection or the entry/exit path.

#![allow(unsafe_code)] // The one place that frees what was shared.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use crate::graveyard::{Chain, Corpse};
use crate::reclaim::{Participant, Pin, Reclaim};
use crate::sync::{AtomicBool, Ordering, UnsafeCell, free};
use crate::vgic::Shared;

/// What waits for the end of a grace period, oldest first.
pub(crate) struct Limbo<R: Reclaim> {
    busy: AtomicBool,
    waiting: UnsafeCell<VecDeque<(R::Grace, Chain)>>,
}

// SAFETY: `waiting` is used only by who turned `busy` from false to true, or has the limbo to itself.
unsafe impl<R: Reclaim> Sync for Limbo<R> {}

impl<R: Reclaim> Limbo<R> {
    pub(crate) fn new() -> Self {
        Self { busy: AtomicBool::new(false), waiting: UnsafeCell::new(VecDeque::new()) }
    }
}

impl<R: Reclaim> Shared<R> {
    /// Buries what is dead, and frees what nobody can be looking at any more. The caller is not pinned.
    ///
    /// If no one else is pinned, nothing is left when this returns.
    pub(crate) fn collect(&self, participant: &R::Participant) {
        // Acquire: pairs with the Release below: what the last collector did to `waiting`.
        if self.limbo.busy.swap(true, Ordering::AcqRel) && !cfg!(mutant = "collect_unguarded") {
            return;
        }
        loop {
            let chain = self.hub.graveyard.take();
            let fresh = !chain.is_empty();
            if fresh {
                self.unlink(&chain, &participant.pin());
                let grace = self.reclaim.begin(participant);
                // SAFETY: `busy` is ours.
                self.limbo.waiting.with_mut(|w| unsafe { (*w).push_back((grace, chain)) });
            }
            // Freeing can make more garbage (a block after its last LPI), so go on while there is progress.
            if !self.free_expired(participant) && !fresh {
                break;
            }
        }
        // Release: pairs with the Acquire above. A swap, as all writes of this word are.
        self.limbo.busy.swap(false, Ordering::AcqRel);
    }

    /// Takes the dead out of the trees in which look-ups still find them.
    fn unlink(&self, chain: &Chain, pin: &Pin) {
        chain.for_each(|corpse| match corpse {
            Corpse::Irq(irq) => {
                // SAFETY: in the graveyard, so not freed.
                if let Ok(key) = self.lpis.key(unsafe { irq.as_ref() }.intid()) {
                    // False if a new object has taken its place.
                    let _ = self.lpis.irqs.remove(key, irq, pin);
                }
            }
            Corpse::Block(block) => {
                // SAFETY: as above.
                let _ = self.lpis.blocks.remove(unsafe { block.as_ref() }.key, block, pin);
            }
            // SAFETY: as above.
            Corpse::Device(device) => unsafe { device.as_ref() }.unlink(pin),
            // SAFETY: as above.
            Corpse::Hold(hold) => unsafe { hold.as_ref() }.release(pin),
            Corpse::Node(_) => {}
        });
    }

    /// Frees everything whose grace period is over; returns whether there was something.
    fn free_expired(&self, participant: &R::Participant) -> bool {
        let mut progress = false;
        loop {
            let ready = self.limbo.waiting.with_mut(|waiting| {
                // SAFETY: `busy` is the caller's.
                let waiting = unsafe { &mut *waiting };
                match waiting.front() {
                    Some((grace, _))
                        if self.reclaim.is_over(participant, grace)
                            || cfg!(mutant = "free_without_grace") =>
                    {
                        waiting.pop_front()
                    }
                    _ => None,
                }
            });
            let Some((_, chain)) = ready else { return progress };
            progress = true;
            let pin = participant.pin();
            chain.consume(|corpse| {
                self.hub.graveyard.counts.freed(&corpse);
                // SAFETY: unlinked, and a grace period has passed since.
                unsafe { self.free(corpse, &pin) };
            });
        }
    }

    /// # Safety
    /// Nobody else can reach it any more.
    unsafe fn free(&self, corpse: Corpse, pin: &Pin) {
        let counts = &self.hub.graveyard.counts;
        match corpse {
            // SAFETY: the caller has the only pointer.
            Corpse::Irq(irq) => unsafe { self.lpis.free(irq, pin) },
            Corpse::Node(node) => {
                // SAFETY: boxed where it was made; the caller has the only pointer.
                let node = unsafe { Box::from_raw(node.as_ptr()) };
                node.freed();
                free(node);
                counts.nodes.sub(1);
            }
            Corpse::Block(block) => {
                // SAFETY: as above.
                let block = unsafe { Box::from_raw(block.as_ptr()) };
                block.freed();
                free(block);
                counts.blocks.sub(1);
            }
            Corpse::Hold(hold) => {
                // SAFETY: as above.
                drop(unsafe { Box::from_raw(hold.as_ptr()) });
            }
            Corpse::Device(device) => {
                // SAFETY: as above.
                let mut device = unsafe { Box::from_raw(device.as_ptr()) };
                device.freed();
                free(device);
                counts.devices.sub(1);
            }
        }
    }

    /// Frees everything there is, at the end of the engine: nobody else has any part of it.
    pub(crate) fn free_everything(&mut self, pin: &Pin) {
        // SAFETY: `&mut self`.
        let waiting = self.limbo.waiting.with_mut(|w| unsafe { core::mem::take(&mut *w) });
        for (_, chain) in waiting {
            // SAFETY: `&mut self`.
            chain.consume(|corpse| unsafe { self.free(corpse, pin) });
        }
        loop {
            // What is dead but not buried is still in its tree.
            let chain = self.hub.graveyard.take();
            if chain.is_empty() {
                break;
            }
            self.unlink(&chain, pin);
            // SAFETY: `&mut self`.
            chain.consume(|corpse| unsafe { self.free(corpse, pin) });
        }
    }
}
