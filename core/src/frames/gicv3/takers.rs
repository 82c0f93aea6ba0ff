//! Bitmaps of the vCPUs that would take an SPI that any vCPU may take, so that such a vCPU is found
//! without a look at each one.
//!
//! There is a bitmap of vCPUs for each group and priority, and one of all vCPUs that take part.
//! They follow from the vCPUs' words (`routing`), but only from the first such SPI on. A guest
//! without such SPIs changes its priority masks at no cost.

use alloc::boxed::Box;
use core::ops::Range;

use crate::arch::ids::{Group, Priority, VcpuId};
use crate::engine::WiredConfig;
use crate::frames::targets::Takes;
use crate::sync::{AtomicU64, MODEL, Ordering};

/// The number of priority levels that are told apart.
const LEVELS: usize = if MODEL { 1 } else { Priority::LEVELS };

const GROUPS: [Group; 2] = [Group::Group0, Group::Group1];

/// The number of bitmaps: one of all vCPUs that take part, and one for each group and priority.
const MAPS: usize = 1 + GROUPS.len() * LEVELS;

/// The index of the bitmap of vCPUs that take part.
const PART: usize = 0;

fn map(group: Group, level: usize) -> usize {
    1 + group as usize * LEVELS + if MODEL { 0 } else { level }
}

pub(super) struct Takers {
    /// All words of the first bitmap, then those of the second, and so on.
    words: Box<[AtomicU64]>,
    /// The number of words in a bitmap.
    length: usize,
}

impl Takers {
    /// Creates the bitmaps for `vcpus` vCPUs, none of which takes part.
    pub(super) fn new(vcpus: usize) -> Self {
        let length = vcpus.div_ceil(64);
        Self { words: (0..MAPS * length).map(|_| AtomicU64::new(0)).collect(), length }
    }

    /// Updates the bits of a vCPU from its [`Takes`]. `None` means that it does not take part.
    pub(super) fn set(&self, vcpu: usize, takes: Option<Takes>) {
        self.set_bit(PART, vcpu, takes.is_some());
        for group in GROUPS {
            let below = takes.map_or(0, |takes| takes.levels(group));
            for level in 0..LEVELS {
                self.set_bit(map(group, level), vcpu, level < below);
            }
        }
    }

    fn set_bit(&self, map: usize, vcpu: usize, set: bool) {
        let (word, bit) = (&self.words[map * self.length + vcpu / 64], 1 << (vcpu % 64));
        // Relaxed: most bits stay as they are, and a thread that has changed the vCPU's word
        // re-checks it after a fence.
        let is_set = word.load(Ordering::Relaxed) & bit != 0;
        // AcqRel, as in all changes of these words: see `routing`.
        match (is_set, set) {
            (false, true) => drop(word.fetch_or(bit, Ordering::AcqRel)),
            (true, false) => drop(word.fetch_and(!bit, Ordering::AcqRel)),
            _ => {}
        }
    }

    /// Returns the first vCPU that would take an interrupt of this group and priority, from number
    /// `first` up and then from 0. If there is none, returns the first vCPU that takes part.
    pub(super) fn choose(&self, config: WiredConfig, first: usize) -> Option<VcpuId> {
        let taker = self.first_of(map(config.group, config.priority.level()), first);
        taker.or_else(|| self.first_of(PART, first))
    }

    fn first_of(&self, map: usize, first: usize) -> Option<VcpuId> {
        let words = &self.words[map * self.length..][..self.length];
        let (at, upper) = (first / 64, u64::MAX << (first % 64));
        // Acquire: see `routing`.
        let of = |n: usize, mask: u64| match words[n].load(Ordering::Acquire) & mask {
            0 => None,
            bits => Some(VcpuId((64 * n) as u16 + bits.trailing_zeros() as u16)),
        };
        let whole = |mut range: Range<usize>| range.find_map(|n| of(n, u64::MAX));
        let found = of(at, upper).or_else(|| whole(at + 1..self.length));
        found.or_else(|| whole(0..at)).or_else(|| of(at, !upper))
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::engine::Trigger;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn takes() -> impl Strategy<Value = Option<Takes>> {
        let one = (any::<bool>(), any::<bool>(), any::<u8>())
            .prop_map(|(g0, g1, mask)| Takes::new([g0, g1], Priority::new(mask).byte()));
        prop::option::weighted(0.3, one)
    }

    proptest! {
        /// `choose` agrees with a look at each vCPU in turn.
        #[test]
        fn the_first_that_would_take_it(
            steps in prop::collection::vec((0..200_usize, takes()), 1..60),
            count in 1..200_usize,
            first in 0..200_usize,
            group in 0..2_usize,
            priority: u8,
        ) {
            let (takers, mut all) = (Takers::new(count), Vec::from_iter((0..count).map(|_| None)));
            for (vcpu, takes) in steps {
                takers.set(vcpu % count, takes);
                all[vcpu % count] = takes;
            }
            let (group, priority, first) = (GROUPS[group], Priority::new(priority), first % count);
            let order = || (first..count).chain(0..first);
            let wants = |n: &usize| all[*n].is_some_and(|takes: Takes| takes.passes(group, priority));
            let expected = order().find(wants).or_else(|| order().find(|n| all[*n].is_some()));
            let config = WiredConfig {
                enabled: true, priority, group, trigger: Trigger::Edge, target: VcpuId(0),
            };
            let found = takers.choose(config, first).map(|vcpu| vcpu.index());
            prop_assert_eq!(found, expected);
        }
    }
}
