//! The fixed-slot backend: epochs with one slot for each registered participant.
//!
//! # The words
//!
//! `global` is the epoch, which only grows. A slot is `FREE`, `IDLE` (registered, not pinned), or
//! pinned at an epoch.
//!
//! # Writers
//!
//! A participant writes its own slot. A thread that asks whether a grace period is over reads all
//! the slots, and advances the epoch from `e` to `e + 1` if every pinned slot is at `e`.
//!
//! # Why two steps are enough
//!
//! A grace period that begins at epoch `e` is over at `e + 2`. Let B be the fence in `begin`, and P
//! the one in `pin` of some reader. Two cases:
//!
//! * B comes first. Then the loads of the reader after P no longer lead to objects that were
//!   unlinked before B.
//! * P comes first. Then the reader's slot was written before P with an epoch of at most `e` (had
//!   it read `e + 1`, the load after B would have read at least `e + 1`, too). The step from
//!   `e + 1` to `e + 2` is taken by a thread that read `e + 1`, so the fence of that thread comes
//!   after B, and so after P. It sees the slot, and does not step until the reader unpins.
//!
//! The unpinning store is a Release, and so is the store that pins again. The Acquire of the
//! advancing thread then orders everything that the reader did before the step, and so before the
//! memory is freed.
//!
//! Models: lifetime_reclaim.
//!
//! Progress: pin, unpin and begin are wait-free.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::Cell;
use core::ops::Deref;

use super::sealed::Sealed;
use super::{Participant, Pin, Reclaim};
use crate::sync::{AtomicU64, CachePadded, FirstLook, Ordering, fence};

const FREE: u64 = 0;
const IDLE: u64 = 1;
const PINNED: u64 = 2;
const EPOCH_SHIFT: u32 = 2;

#[derive(Debug)]
struct Shared {
    global: CachePadded<AtomicU64>,
    slots: Box<[CachePadded<AtomicU64>]>,
}

/// Reclamation by epochs, with a fixed number of participants.
#[derive(Debug)]
pub struct Slots(Arc<Shared>);

/// A participant of [`Slots`].
#[derive(Debug)]
pub struct SlotParticipant {
    shared: Arc<Shared>,
    index: usize,
    depth: Cell<u32>,
}

/// A pin of [`Slots`].
#[derive(Debug)]
pub struct SlotGuard<'p> {
    participant: &'p SlotParticipant,
    pin: Pin,
}

impl Deref for SlotGuard<'_> {
    type Target = Pin;
    fn deref(&self) -> &Pin {
        &self.pin
    }
}

impl SlotParticipant {
    #[inline(always)]
    fn slot(&self) -> &AtomicU64 {
        &self.shared.slots[self.index]
    }

    #[inline(always)]
    fn publish(&self) {
        // Relaxed: an old epoch delays the next one a little longer, nothing else.
        let epoch = self.shared.global.load(Ordering::Relaxed);
        let value = epoch << EPOCH_SHIFT | PINNED;
        if cfg!(mutant = "pin_without_fence") {
            self.slot().store(value, Ordering::Release);
            return;
        }
        // On x86-64 a locked read-modify-write orders everything, as MFENCE does, for less.
        #[cfg(all(target_arch = "x86_64", not(loom)))]
        {
            self.slot().swap(value, Ordering::SeqCst);
            core::sync::atomic::compiler_fence(Ordering::SeqCst);
        }
        // The fence is P of the module's text. Release: see there.
        #[cfg(not(all(target_arch = "x86_64", not(loom))))]
        {
            self.slot().store(value, Ordering::Release);
            fence(Ordering::SeqCst);
        }
    }
}

impl Sealed for SlotParticipant {}
impl Sealed for Slots {}

impl Participant for SlotParticipant {
    type Guard<'p> = SlotGuard<'p>;

    #[inline]
    fn pin(&self) -> SlotGuard<'_> {
        let depth = self.depth.get();
        if depth == 0 {
            self.publish();
        }
        self.depth.set(depth + 1);
        SlotGuard { participant: self, pin: Pin(()) }
    }
}

impl Drop for SlotGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        let depth = self.participant.depth.get() - 1;
        self.participant.depth.set(depth);
        if depth == 0 || cfg!(mutant = "inner_unpin") {
            // Release: everything that was done while pinned comes before the step that this
            // allows.
            let order =
                if cfg!(mutant = "unpin_relaxed") { Ordering::Relaxed } else { Ordering::Release };
            self.participant.slot().store(IDLE, order);
        }
    }
}

impl Drop for SlotParticipant {
    fn drop(&mut self) {
        // Release: pairs with the Acquire of `register`.
        self.slot().store(FREE, Ordering::Release);
    }
}

impl Shared {
    /// Advances the epoch by one if no participant is pinned at another.
    fn advance(&self) {
        // Acquire: in the chain of the threads that advanced before.
        let epoch = self.global.first_look_acquire();
        if !cfg!(mutant = "advance_without_fence") {
            fence(Ordering::SeqCst);
        }
        let held = self.slots.iter().any(|slot| {
            // Acquire: pairs with the Release of unpinning and of pinning again.
            let slot = slot.load(Ordering::Acquire);
            slot & PINNED != 0 && slot >> EPOCH_SHIFT != epoch
        });
        if !held {
            // Release: the readers' work, acquired above, comes before the step.
            let _ =
                self.global.compare_exchange(epoch, epoch + 1, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

impl Reclaim for Slots {
    type Participant = SlotParticipant;
    /// The epoch in which the grace period began.
    type Grace = u64;

    fn new(participants: u16) -> Self {
        let slots = (0..participants).map(|_| CachePadded::new(AtomicU64::new(FREE))).collect();
        Self(Arc::new(Shared { global: CachePadded::new(AtomicU64::new(0)), slots }))
    }

    fn register(&self) -> Option<SlotParticipant> {
        let index = self.0.slots.iter().position(|slot| {
            if cfg!(mutant = "slot_taken_twice") && slot.load(Ordering::Acquire) == FREE {
                slot.store(IDLE, Ordering::Release);
                return true;
            }
            // Acquire: pairs with the Release of the participant that had the slot before.
            slot.compare_exchange(FREE, IDLE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        Some(SlotParticipant { shared: Arc::clone(&self.0), index, depth: Cell::new(0) })
    }

    fn begin(&self, _participant: &SlotParticipant) -> u64 {
        if !cfg!(mutant = "begin_without_fence") {
            // B of the module's text.
            fence(Ordering::SeqCst);
        }
        // Relaxed: ordered by the fence.
        self.0.global.load(Ordering::Relaxed)
    }

    fn is_over(&self, _participant: &SlotParticipant, grace: &u64) -> bool {
        let steps = if cfg!(mutant = "grace_one_epoch") { 1 } else { 2 };
        for _ in 0..steps {
            // Acquire: pairs with the step, and through it with every reader that the step waited
            // for.
            if self.0.global.load(Ordering::Acquire) >= grace + steps {
                return true;
            }
            self.0.advance();
        }
        self.0.global.load(Ordering::Acquire) >= grace + steps
    }
}
