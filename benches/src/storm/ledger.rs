//! The numbers sent and seen of each event: the storm's proof that nothing is lost.
//!
//! Before each injection the injector writes a number for the event, counted up, with a *Relaxed*
//! store, and the guest reads it after its acknowledge with a *Relaxed* load. So only the engine
//! can make the number visible: it must order an injection before the acknowledge that the
//! injection leads to. At the end the guest must have seen the last number of every event, however
//! many injections were coalesced into one delivery.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vgic_core::ids::{Intid, LPI_BASE};

/// One event's words, on a cache line of their own. All three belong together: the line moves from
/// the device's side to the guest's once per delivery, as a device's data would.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Slot {
    /// The last number sent. Written by the event's injector only.
    sent: AtomicU64,
    /// The greatest number read after an acknowledge.
    seen: AtomicU64,
    /// The time of a sampled injection, in ns from the ledger's beginning; 0 for none.
    stamp: AtomicU64,
}

/// All events of a storm, by index: LPI `8192 + index`.
#[derive(Debug)]
pub struct Ledger {
    slots: Box<[Slot]>,
    began: Instant,
    /// Whether two vCPUs may take one event's LPI at the same time (one from before a retarget, one
    /// from after it).
    moving: bool,
}

/// The result of the guest's check after an acknowledge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sight {
    /// A number that is not stale, and the latency in ns if the injection was sampled.
    Fresh(Option<u64>),
    /// A number smaller than one seen before: stale data.
    Stale,
    /// No event has this INTID.
    Stray,
}

impl Ledger {
    /// Creates the ledger of `events` events. `moving`: whether LPIs move between vCPUs during the
    /// storm.
    pub fn new(events: u32, moving: bool) -> Self {
        Self {
            slots: (0..events).map(|_| Slot::default()).collect(),
            began: Instant::now(),
            moving,
        }
    }

    /// Returns the INTID of event `index`.
    pub fn intid(index: u32) -> Intid {
        Intid(LPI_BASE + index)
    }

    /// Returns the number of events.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns whether there are no events.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Writes the event's next number before an injection. Only the event's injector may call this.
    #[inline]
    pub fn send(&self, index: u32, number: u64) {
        // Relaxed on purpose: see the module documentation.
        self.slots[index as usize].sent.store(number, Ordering::Relaxed);
    }

    /// Notes the time before a sampled injection, and before its [`Ledger::send`]. Returns `None`
    /// if an earlier sample of the event still waits for its acknowledge: overwriting it would drop
    /// exactly the slow samples.
    #[inline]
    pub fn stamp(&self, index: u32) -> Option<u64> {
        let stamp = &self.slots[index as usize].stamp;
        // Relaxed here and below: only the injector sets the stamp, and the engine orders it as it
        // orders the number.
        if stamp.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let now = self.now();
        stamp.store(now, Ordering::Relaxed);
        Some(now)
    }

    /// Removes the stamp of a sampled injection that made nothing pending, unless the guest has
    /// taken it.
    pub fn withdraw(&self, index: u32, stamp: u64) {
        // The exchange competes with the guest's swap: the first one takes the stamp. The exchange
        // fails if the stamp is already gone.
        let _ = self.slots[index as usize].stamp.compare_exchange(
            stamp,
            0,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// Removes an event's sample after the event was unmapped: its pending interrupt is gone.
    pub fn discarded(&self, index: u32) {
        self.slots[index as usize].stamp.store(0, Ordering::Relaxed);
    }

    /// Checks an event's number after an acknowledge, on the vCPU that acknowledged.
    #[inline]
    pub fn acknowledged(&self, intid: Intid) -> Sight {
        let index = intid.0.wrapping_sub(LPI_BASE);
        let Some(slot) = self.slots.get(index as usize) else { return Sight::Stray };
        // `seen` before `sent`: the thread that stored `seen` had read that number from `sent`, and
        // this Acquire pairs with its Release. So an older number in `sent` now is not a race of
        // this check with itself.
        let seen = slot.seen.load(Ordering::Acquire);
        let sent = slot.sent.load(Ordering::Relaxed);
        // A load first: most injections are not sampled.
        let mut stamp = slot.stamp.load(Ordering::Relaxed);
        if stamp != 0 {
            stamp = slot.stamp.swap(0, Ordering::Relaxed);
        }
        if sent < seen {
            return Sight::Stale;
        }
        if sent > seen {
            if self.moving {
                slot.seen.fetch_max(sent, Ordering::Release);
            } else {
                // Only one vCPU takes this LPI.
                slot.seen.store(sent, Ordering::Release);
            }
        }
        Sight::Fresh((stamp != 0).then(|| self.now().saturating_sub(stamp)))
    }

    /// Returns the last number sent for an event.
    pub fn sent(&self, index: u32) -> u64 {
        self.slots[index as usize].sent.load(Ordering::Relaxed)
    }

    /// Returns the greatest number seen of an event.
    pub fn seen(&self, index: u32) -> u64 {
        self.slots[index as usize].seen.load(Ordering::Acquire)
    }

    /// Returns whether the last number of an event has been seen. Meaningful once its injector has
    /// been joined.
    pub fn settled(&self, index: u32) -> bool {
        self.seen(index) >= self.sent(index)
    }

    /// Returns the ns since the beginning, never 0.
    fn now(&self) -> u64 {
        // 64 bits of ns are 584 years.
        self.began.elapsed().as_nanos() as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_seen_and_settle() {
        let ledger = Ledger::new(2, false);
        assert!(ledger.settled(0) && ledger.settled(1));
        ledger.send(1, 1);
        assert!(!ledger.settled(1));
        assert_eq!(ledger.acknowledged(Ledger::intid(1)), Sight::Fresh(None));
        assert!(ledger.settled(1));
        // Acknowledged twice, as when an injection comes after the guest has read its number.
        assert_eq!(ledger.acknowledged(Ledger::intid(1)), Sight::Fresh(None));
    }

    #[test]
    fn a_number_that_goes_back_is_stale() {
        for moving in [false, true] {
            let ledger = Ledger::new(1, moving);
            ledger.send(0, 5);
            assert_eq!(ledger.acknowledged(Ledger::intid(0)), Sight::Fresh(None));
            ledger.send(0, 4);
            assert_eq!(ledger.acknowledged(Ledger::intid(0)), Sight::Stale);
            assert_eq!(ledger.seen(0), 5);
        }
    }

    #[test]
    fn an_intid_of_nobody_is_stray() {
        let ledger = Ledger::new(1, false);
        for intid in [0, 1019, 8191, 8193, u32::MAX] {
            assert_eq!(ledger.acknowledged(Intid(intid)), Sight::Stray);
        }
    }

    #[test]
    fn a_stamp_is_taken_once_and_not_after_it_was_withdrawn() {
        let ledger = Ledger::new(1, false);
        assert!(ledger.stamp(0).is_some());
        // The first one still waits.
        assert_eq!(ledger.stamp(0), None);
        assert!(matches!(ledger.acknowledged(Ledger::intid(0)), Sight::Fresh(Some(_))));
        assert_eq!(ledger.acknowledged(Ledger::intid(0)), Sight::Fresh(None));
        let stamp = ledger.stamp(0).unwrap();
        ledger.withdraw(0, stamp);
        assert_eq!(ledger.acknowledged(Ledger::intid(0)), Sight::Fresh(None));
        assert!(ledger.stamp(0).is_some());
        ledger.discarded(0);
        assert_eq!(ledger.acknowledged(Ledger::intid(0)), Sight::Fresh(None));
    }
}
