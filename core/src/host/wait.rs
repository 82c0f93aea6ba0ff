//! A kick as a token, with which a vCPU thread sleeps without losing a wake-up.
//!
//! There is one word with two flags. The vCPU thread sets `ASLEEP` before it blocks, and clears
//! both flags afterwards. Any thread sets `KICKED`. All changes are read-modify-writes of one word,
//! so its modification order decides whether the sleeper or the kicker came first. AcqRel suffices:
//! there is no second word that either side could read too early.
//!
//! Each kick of a sleeping thread wakes it, not only the first: the first kicker may have been
//! preempted before it did. Wake-ups are idempotent, and none comes after the sleeper has woken.
//!
//! Progress: [`WaitCell::kick`] is lock-free; it retries only if the vCPU thread has fallen asleep
//! or woken, or another kick came first. [`WaitCell::sleep`] blocks only in its argument. Models:
//! `delivery_kick`, `delivery_stall`.

use crate::sync::{AtomicU32, Ordering};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1 << 0;
const KICKED: u32 = 1 << 1;

/// The token of one vCPU thread. A [`crate::engine::Kick`] implementation keeps one per vCPU:
///
/// ```
/// use std::sync::{Arc, OnceLock};
/// use std::thread::{self, Thread};
/// use vgic_core::wait::WaitCell;
///
/// let cell = Arc::new(WaitCell::new());
/// let vcpu = thread::spawn({
///     let cell = Arc::clone(&cell);
///     move || cell.sleep(thread::park) // returns after the kick, even if that came first
/// });
/// if cell.kick() {
///     vcpu.thread().unpark();
/// }
/// vcpu.join().unwrap();
/// ```
#[derive(Debug)]
pub struct WaitCell {
    state: AtomicU32,
}

impl Default for WaitCell {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitCell {
    /// Awake, and not kicked.
    pub fn new() -> Self {
        Self { state: AtomicU32::new(AWAKE) }
    }

    /// Leaves a kick. Returns whether the vCPU thread sleeps. If so, the caller must wake it, even
    /// if another caller was told the same.
    #[inline]
    #[must_use = "a sleeping vCPU must be woken"]
    pub fn kick(&self) -> bool {
        // AcqRel: Release pairs with the swap and the compare-exchange in `sleep`, so that
        // the thread that consumes the kick sees everything that was done before it.
        let order =
            if cfg!(mutant = "kick_relaxed") { Ordering::Relaxed } else { Ordering::AcqRel };
        let old = self.state.fetch_or(KICKED, order);
        let woken = cfg!(mutant = "waking_left_to_the_first") && old & KICKED != 0;
        old & ASLEEP != 0 && !woken
    }

    /// Takes a kick that has come since the last [`WaitCell::sleep`] or `take`, without sleeping.
    /// The thread that sleeps calls this.
    pub fn take(&self) -> bool {
        // Acquire pairs with the kick's Release.
        self.state.fetch_and(!KICKED, Ordering::AcqRel) & KICKED != 0
    }

    /// Returns as soon as there is a kick, one from before the call included, and consumes it.
    ///
    /// `block` puts the thread to sleep until it is woken; it may return early, and must return
    /// at once if the wake-up came before it was called (as `std::thread::park` does).
    pub fn sleep(&self, mut block: impl FnMut()) {
        if cfg!(mutant = "sleep_forgets_kick") {
            self.state.swap(AWAKE, Ordering::AcqRel);
        }
        // Success: Release is not needed for data, but keeps this word to AcqRel throughout.
        // Failure: a kick is there; the swap below acquires it.
        if self.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            // Acquire: pairs with the kick's Release, though the swap below would do as well.
            while self.state.load(Ordering::Acquire) == ASLEEP {
                block();
            }
        }
        // A swap, not a store: it also acquires from a kick that comes between the load and here.
        self.state.swap(AWAKE, Ordering::AcqRel);
    }
}

/// A wait that polls less and less often.
#[cfg(feature = "std")]
#[derive(Default)]
pub(crate) struct Patience {
    looks: u32,
}

#[cfg(feature = "std")]
impl Patience {
    /// Number of polls between which the thread yields, before it sleeps.
    const YIELDS: u32 = 32;
    /// Length of the first sleep. It doubles each time.
    const FIRST: core::time::Duration = core::time::Duration::from_micros(10);
    /// Number of doublings, up to 1.28 ms.
    const DOUBLED: u32 = 7;

    /// Returns the length of the next sleep, or `None` if the thread is to yield.
    fn next(&mut self) -> Option<core::time::Duration> {
        self.looks = self.looks.saturating_add(1);
        let slept = self.looks.checked_sub(Self::YIELDS + 1)?;
        Some(Self::FIRST * (1 << slept.min(Self::DOUBLED)))
    }

    pub(crate) fn pause(&mut self) {
        match self.next() {
            None => std::thread::yield_now(),
            Some(pause) => std::thread::sleep(pause),
        }
    }
}

#[cfg(all(test, feature = "std", not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_up_to_a_bound() {
        let mut patience = Patience::default();
        let pauses: std::vec::Vec<_> = (0..100).map(|_| patience.next()).collect();
        assert!(pauses.is_sorted());
        assert_eq!(pauses.iter().filter(|pause| pause.is_none()).count(), 32);
        assert_eq!(pauses[99], Some(core::time::Duration::from_micros(1280)));
    }
}
