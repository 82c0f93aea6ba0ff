//! The events of a device: a sorted map in little memory.
//!
//! Twelve bytes an event, in runs of up to [`RUN`]. A guest that maps events in ascending order, as they do, fills the runs; one that
//! does not leaves them half full; neighbours that have become small are joined, so that what a guest discards does not keep its memory. Finding an event takes two binary searches, and adding or removing one moves
//! a run's bytes, and now and then those of the list of runs: nothing that a guest could make slow.

use alloc::vec::Vec;
use core::ops::Bound;

use super::command::CollectionId;
use super::maps::{Event, Link};
use crate::ids::Intid;

/// Most events of a run.
const RUN: usize = 64;

/// An event with its number.
#[derive(Clone, Copy, Debug)]
struct Slot {
    number: u32,
    /// Bits 23:0 the INTID, bits 25:24 the link.
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
    /// None of which is empty.
    runs: Vec<Vec<Slot>>,
    count: usize,
}

impl Events {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The run in which a number is, or belongs.
    fn run_of(&self, number: u32) -> usize {
        let after = self.runs.partition_point(|run| run[0].number <= number);
        after.saturating_sub(1)
    }

    fn find(&self, number: u32) -> Option<(usize, usize)> {
        let run = self.run_of(number);
        let at = self.runs.get(run)?.binary_search_by_key(&number, |slot| slot.number).ok()?;
        Some((run, at))
    }

    pub(crate) fn get(&self, number: u32) -> Option<Event> {
        self.find(number).map(|(run, at)| self.runs[run][at].event())
    }

    /// Adds an event, or replaces the one of that number.
    pub(crate) fn insert(&mut self, number: u32, event: Event) {
        let slot = Slot::new(number, event);
        let n = self.run_of(number);
        let Some(run) = self.runs.get_mut(n) else {
            self.push_run(0, slot);
            self.count = 1;
            return;
        };
        let at = match run.binary_search_by_key(&number, |slot| slot.number) {
            Ok(at) => {
                run[at] = slot;
                return;
            }
            Err(at) => at,
        };
        self.count += 1;
        if run.len() < RUN {
            run.insert(at, slot);
        } else if at == RUN {
            // Beyond a full run: in ascending order all runs become full.
            match self.runs.get_mut(n + 1) {
                Some(next) if next.len() < RUN => next.insert(0, slot),
                _ => self.push_run(n + 1, slot),
            }
        } else {
            let upper = run.split_off(RUN / 2);
            if at <= RUN / 2 {
                run.insert(at, slot);
                self.runs.insert(n + 1, upper);
            } else {
                self.runs.insert(n + 1, upper);
                self.runs[n + 1].insert(at - RUN / 2, slot);
            }
        }
    }

    fn push_run(&mut self, at: usize, slot: Slot) {
        if self.runs.is_empty() {
            // Most devices have few events.
            self.runs.reserve_exact(1);
        }
        self.runs.insert(at, Vec::from([slot]));
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<Event> {
        let (n, at) = self.find(number)?;
        let event = self.runs[n].remove(at).event();
        self.count -= 1;
        if self.runs[n].is_empty() {
            self.runs.remove(n);
        } else {
            self.join(n);
            if let Some(before) = n.checked_sub(1) {
                self.join(before);
            }
        }
        Some(event)
    }

    /// Joins a run with the one after it, if both together are at most half full.
    fn join(&mut self, n: usize) {
        if let [run, next, ..] = &self.runs[n..]
            && run.len() + next.len() <= RUN / 2
        {
            let next = self.runs.remove(n + 1);
            self.runs[n].extend(next);
        }
    }

    /// In the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, Event)> {
        self.above(Bound::Unbounded)
    }

    /// The same, from a number on.
    pub(crate) fn above(&self, from: Bound<u32>) -> impl Iterator<Item = (u32, Event)> {
        let least = match from {
            Bound::Included(number) => Some(number),
            // None is above the highest.
            Bound::Excluded(number) => number.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let runs = match least {
            Some(least) => &self.runs[self.run_of(least)..],
            None => &[],
        };
        let first = runs.first().map_or(0, |run| {
            run.partition_point(|slot| least.is_some_and(|least| slot.number < least))
        });
        runs.iter().flatten().skip(first).map(|slot| (slot.number, slot.event()))
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
        assert!(events.runs.iter().rev().skip(1).all(|run| run.len() == RUN));
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
            prop_assert!(events.runs.iter().all(|run| (1..=RUN).contains(&run.len())));
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
