//! The pending list registers, by group and priority level. Finding the highest priority takes two
//! bit scans, regardless of the number of entries.

use super::lowest;
use crate::arch::ids::{Group, Priority};

/// A set of list register numbers, each with the group and priority that it was inserted with.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Pending {
    /// For each group, the levels that have entries. Bit n is level n.
    levels: [u32; 2],
    /// For each level and group, the entries. Bit n is list register n.
    entries: [[u16; 2]; Priority::LEVELS],
}

impl Pending {
    #[inline]
    pub(super) const fn is_empty(&self) -> bool {
        self.levels[0] | self.levels[1] == 0
    }

    #[inline]
    pub(super) fn insert(&mut self, group: Group, priority: Priority, n: usize) {
        let (group, level) = (group as usize, priority.level());
        self.levels[group] |= 1 << level;
        self.entries[level][group] |= 1 << n;
    }

    #[inline]
    pub(super) fn remove(&mut self, group: Group, priority: Priority, n: usize) {
        let (group, level) = (group as usize, priority.level());
        let entries = &mut self.entries[level][group];
        *entries &= !(1 << n);
        if *entries == 0 {
            self.levels[group] &= !(1 << level);
        }
    }

    /// Returns the highest priority entry of the enabled groups; among equals, the lowest-numbered.
    /// The code that fills the list registers keeps older interrupts in lower-numbered ones, so the
    /// order is first come, first served.
    #[inline]
    pub(super) fn highest(&self, enabled: [bool; 2]) -> Option<usize> {
        let of = |group: usize| if enabled[group] { self.levels[group] } else { 0 };
        let levels = of(0) | of(1);
        if levels == 0 {
            return None;
        }
        let level = levels.trailing_zeros() as usize % Priority::LEVELS;
        let of = |group: usize| if enabled[group] { self.entries[level][group] } else { 0 };
        Some(lowest((of(0) | of(1)).into()))
    }
}
