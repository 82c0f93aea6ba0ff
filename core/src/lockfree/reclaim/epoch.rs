//! The crossbeam-epoch backend.
//!
//! Models: lifetime_reclaim, lifetime_epoch.

#![allow(unsafe_code)] // One `Send` that crossbeam leaves out.

use alloc::sync::Arc;
use core::ops::Deref;

use crossbeam_epoch::{Collector, Guard, LocalHandle};

use super::sealed::Sealed;
use super::{Participant, Pin, Reclaim};
use crate::sync::{AtomicBool, Ordering};

/// Reclamation by crossbeam-epoch, each engine with a collector of its own.
#[derive(Debug, Default)]
pub struct Epoch {
    collector: Collector,
}

/// A participant of [`Epoch`].
#[derive(Debug)]
pub struct EpochParticipant(LocalHandle);

// SAFETY: `LocalHandle` is not Send because its guards must not outlive their thread's use of it:
// its pin count and its bag are plain cells. They are not bound to a thread as such (none of it is
// in thread-local storage). Our guards borrow the participant, so there are none when it moves. It
// is not Sync, so one thread uses it at a time.
unsafe impl Send for EpochParticipant {}

/// A pin of [`Epoch`].
#[derive(Debug)]
pub struct EpochGuard<'p> {
    _guard: Guard,
    _participant: &'p EpochParticipant,
    pin: Pin,
}

impl Deref for EpochGuard<'_> {
    type Target = Pin;
    fn deref(&self) -> &Pin {
        &self.pin
    }
}

impl Sealed for EpochParticipant {}
impl Sealed for Epoch {}

impl Participant for EpochParticipant {
    type Guard<'p> = EpochGuard<'p>;

    #[inline]
    fn pin(&self) -> EpochGuard<'_> {
        EpochGuard { _guard: self.0.pin(), _participant: self, pin: Pin(()) }
    }
}

impl Reclaim for Epoch {
    type Participant = EpochParticipant;
    /// The flag that crossbeam sets when the grace period is over.
    type Grace = Arc<AtomicBool>;

    fn new(_participants: u16) -> Self {
        Self::default()
    }

    fn register(&self) -> Option<EpochParticipant> {
        Some(EpochParticipant(self.collector.register()))
    }

    fn begin(&self, participant: &EpochParticipant) -> Arc<AtomicBool> {
        let over = Arc::new(AtomicBool::new(false));
        let guard = participant.0.pin();
        // The thread that runs the deferred function only sets a flag. Freeing is left to the
        // thread that collects, so an injector never frees.
        let flag = Arc::clone(&over);
        // Release: pairs with `is_over`. Crossbeam orders it after every pin that it had to wait
        // for.
        if cfg!(mutant = "grace_at_once") {
            over.store(true, Ordering::Release);
        }
        guard.defer(move || flag.store(true, Ordering::Release));
        guard.flush();
        over
    }

    fn is_over(&self, participant: &EpochParticipant, grace: &Arc<AtomicBool>) -> bool {
        // Acquire: pairs with `begin`'s store.
        if grace.load(Ordering::Acquire) {
            return true;
        }
        participant.0.pin().flush();
        grace.load(Ordering::Acquire)
    }
}
