//! The events of a device: a sorted map that needs little memory.
//!
//! An event takes twelve bytes. Events are stored in runs of up to [`RUN`], and the runs in a
//! B-tree. A guest that maps events in ascending order fills the runs; any other order leaves them
//! half full. Neighbouring runs that have become small are joined, so that discarded events do not
//! keep memory. So the steps to find, add or remove an event grow with the logarithm of the number
//! of events, regardless of the guest's behavior.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Bound;

use super::command::CollectionId;
use super::maps::{Event, Link};
use crate::arch::ids::Intid;
use crate::lockfree::cost::btree_entry;

/// The most events of a run.
const RUN: usize = 64;

/// An event with its number.
#[derive(Clone, Copy, Debug)]
struct Slot {
    number: u32,
    /// INTID in bits 23:0, link in bits 25:24.
    intid: u32,
    collection: u16,
}

impl Slot {
    const LINKS: [Link; 3] = [Link::Live, Link::Parked, Link::None];

    fn new(number: u32, event: Event) -> Self {
        debug_assert!(event.intid.0 >> 24 == 0, "INTIDs have 24 bits");
        let intid = event.intid.0 | (event.link as u32) << 24;
        Self { number, intid, collection: event.collection.0 }
    }

    fn event(&self) -> Event {
        Event {
            intid: Intid(self.intid & 0x00ff_ffff),
            collection: CollectionId(self.collection),
            link: Self::LINKS[(self.intid >> 24) as usize % 3],
        }
    }
}

/// Events by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// The runs. A run's key is not above the numbers of its events, but above those of the run
    /// before it. No run is empty.
    runs: BTreeMap<u32, Vec<Slot>>,
    count: usize,
    bytes: usize,
}

/// Heap bytes of a run's entry in the map, and of the overhead of its allocation.
const PLACE: usize = btree_entry::<u32, Vec<Slot>>() + 16;

/// Heap bytes of a map with one run. The map has room for more runs from the beginning.
const ROOT: usize = 11 * size_of::<(u32, Vec<Slot>)>() + 32;

/// Heap bytes of a run.
fn bytes(run: &Vec<Slot>) -> usize {
    PLACE + run.capacity() * size_of::<Slot>()
}

impl Events {
    /// The most heap bytes that [`Events::insert`] adds: a new run, and the doubling of another.
    pub(crate) const MOST_NEW: usize = ROOT + 2 * (PLACE + RUN * size_of::<Slot>());

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Heap bytes, as an upper bound.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + if self.runs.is_empty() { 0 } else { ROOT }
    }

    /// The key of the run that a number is in, or belongs in.
    fn run_of(&self, number: u32) -> Option<u32> {
        let before = self.runs.range(..=number).next_back();
        before.or_else(|| self.runs.first_key_value()).map(|(&key, _)| key)
    }

    pub(crate) fn get(&self, number: u32) -> Option<Event> {
        let run = self.runs.get(&self.run_of(number)?)?;
        let at = run.binary_search_by_key(&number, |slot| slot.number).ok()?;
        Some(run[at].event())
    }

    fn add_run(&mut self, key: u32, run: Vec<Slot>) {
        self.bytes += bytes(&run);
        self.runs.insert(key, run);
    }

    fn take_run(&mut self, key: u32) -> Vec<Slot> {
        let run = self.runs.remove(&key).unwrap_or_default();
        self.bytes -= if run.capacity() == 0 { 0 } else { bytes(&run) };
        run
    }

    /// Adds an event, or replaces the event with that number.
    pub(crate) fn insert(&mut self, number: u32, event: Event) {
        let slot = Slot::new(number, event);
        let Some(key) = self.run_of(number) else {
            // Most devices have few events.
            self.add_run(number, Vec::from([slot]));
            self.count = 1;
            return;
        };
        let Some(run) = self.runs.get_mut(&key) else { return };
        let at = match run.binary_search_by_key(&number, |slot| slot.number) {
            Ok(at) => {
                run[at] = slot;
                return;
            }
            Err(at) => at,
        };
        self.count += 1;
        if run.len() < RUN && number > key {
            let before = run.capacity();
            run.insert(at, slot);
            self.bytes += (run.capacity() - before) * size_of::<Slot>();
        } else if at == RUN {
            // The number is beyond a full run. In ascending order all runs become full.
            let next = self.runs.range((Bound::Excluded(key), Bound::Unbounded)).next();
            match next.filter(|(_, run)| run.len() < RUN).map(|(&next, _)| next) {
                Some(next) => self.lower(next, slot),
                None => self.add_run(number, Vec::from([slot])),
            }
        } else if run.len() < RUN {
            self.lower(key, slot);
        } else {
            let mut lower = self.take_run(key);
            let mut upper = lower.split_off(RUN / 2);
            if at <= RUN / 2 {
                lower.insert(at, slot);
            } else {
                upper.insert(at - RUN / 2, slot);
            }
            self.add_run(upper[0].number, upper);
            self.add_run(key.min(number), lower);
        }
    }

    /// Adds an event in front of a run that has room.
    fn lower(&mut self, key: u32, slot: Slot) {
        let mut run = self.take_run(key);
        run.insert(0, slot);
        self.add_run(slot.number.min(key), run);
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<Event> {
        let key = self.run_of(number)?;
        let at = self.runs.get(&key)?.binary_search_by_key(&number, |slot| slot.number).ok()?;
        let run = self.runs.get_mut(&key)?;
        let event = run.remove(at).event();
        self.count -= 1;
        if run.is_empty() {
            self.take_run(key);
        } else {
            self.join(key);
            if let Some((&before, _)) = self.runs.range(..key).next_back() {
                self.join(before);
            }
        }
        Some(event)
    }

    /// The event with the highest number.
    pub(crate) fn last(&self) -> Option<(u32, Event)> {
        let (_, run) = self.runs.last_key_value()?;
        run.last().map(|slot| (slot.number, slot.event()))
    }

    /// Joins a run with the next one, if both together are at most half full.
    fn join(&mut self, key: u32) {
        use Bound::{Excluded, Unbounded};
        let Some(run) = self.runs.get(&key) else { return };
        let Some((&after, next)) = self.runs.range((Excluded(key), Unbounded)).next() else {
            return;
        };
        if run.len() + next.len() <= RUN / 2 {
            let (mut run, next) = (self.take_run(key), self.take_run(after));
            run.extend(next);
            run.shrink_to(RUN / 2);
            self.add_run(key, run);
        }
    }

    /// All events, in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, Event)> {
        self.above(Bound::Unbounded)
    }

    /// The events from a number on, in the order of their numbers.
    pub(crate) fn above(&self, from: Bound<u32>) -> impl Iterator<Item = (u32, Event)> {
        let least = match from {
            Bound::Included(number) => Some(number),
            // No number is above the highest.
            Bound::Excluded(number) => number.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let key = least.and_then(|least| self.run_of(least));
        let runs = key.map(|key| self.runs.range(key..)).into_iter().flatten();
        let least = least.unwrap_or(u32::MAX);
        let first = key.and_then(|key| self.runs.get(&key));
        let first = first.map_or(0, |run| run.partition_point(|slot| slot.number < least));
        let slots = runs.flat_map(|(_, run)| run);
        slots.skip(first).map(|slot| (slot.number, slot.event()))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use proptest::prelude::*;

    fn event(n: u32) -> Event {
        let link = Slot::LINKS[n as usize % 3];
        Event { intid: Intid(8192 + n), collection: CollectionId(n as u16), link }
    }

    fn parts(event: Event) -> (u32, u16, Link) {
        (event.intid.0, event.collection.0, event.link)
    }

    #[test]
    fn twelve_bytes_each_in_ascending_order() {
        assert_eq!(size_of::<Slot>(), 12);
        let mut events = Events::default();
        (0..10_000).for_each(|n| events.insert(n, event(n)));
        assert!(events.runs.values().rev().skip(1).all(|run| run.len() == RUN));
        assert!(events.above(Bound::Excluded(u32::MAX)).next().is_none());
    }

    #[test]
    fn no_order_makes_runs_of_one() {
        let mut events = Events::default();
        let descending = (RUN as u32..5_000).rev();
        (0..RUN as u32).chain(descending).for_each(|n| events.insert(n, event(n)));
        assert!(events.runs.len() <= 2 * 5_000 / RUN + 2, "{} runs", events.runs.len());
    }

    proptest! {
        #[test]
        fn as_a_map(steps in prop::collection::vec((any::<bool>(), 0..400_u32, 0..400_u32), 0..1500)) {
            let (mut events, mut map) = (Events::default(), BTreeMap::new());
            for (insert, number, value) in steps {
                if insert {
                    events.insert(number, event(value));
                    map.insert(number, event(value));
                } else {
                    prop_assert_eq!(events.remove(number).map(parts), map.remove(&number).map(parts));
                }
                prop_assert_eq!(events.get(value).map(parts), map.get(&value).copied().map(parts));
                prop_assert_eq!(events.len(), map.len());
            }
            for from in [Bound::Unbounded, Bound::Included(200), Bound::Excluded(200)] {
                let found: Vec<_> = events.above(from).map(|(n, e)| (n, parts(e))).collect();
                let range = map.range((from, Bound::Unbounded));
                prop_assert_eq!(found, range.map(|(&n, &e)| (n, parts(e))).collect::<Vec<_>>());
            }
            prop_assert!(events.runs.values().all(|run| (1..=RUN).contains(&run.len())));
            prop_assert_eq!(events.bytes, events.runs.values().map(bytes).sum::<usize>());
            prop_assert_eq!(events.last().map(|(n, _)| n), map.keys().next_back().copied());
        }

        #[test]
        fn what_is_discarded_keeps_no_memory(keep in 1..200_u32, spread in 1..200_u32) {
            let mut events = Events::default();
            (0..20_000).for_each(|n| events.insert(n, event(n)));
            (0..20_000).filter(|n| n % spread != 0 || *n > keep * spread).for_each(|n| _ = events.remove(n));
            let most = events.len().div_ceil(RUN / 4) + 1;
            prop_assert!(events.runs.len() <= most, "{} runs for {} events", events.runs.len(), events.len());
        }
    }
}
