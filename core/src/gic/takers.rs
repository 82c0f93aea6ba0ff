//! What a CPU interface would take: for SPIs that more than one vCPU may take.
//!
//! A vCPU tells the distributor what its guest has enabled at its CPU interface. An SPI with several targets goes to one that would take it, and to
//! another one when that changes. What is running at a CPU interface is left out: it ends by itself.

use crate::ids::{Group, Priority};

const GROUPS: [u64; 2] = [1 << 8, 1 << 9];
const MASK_SHIFT: u32 = 16;

/// A CPU interface's group enables (bits 9:8) and priority mask (bits 23:16), as a part of a word. 0: nothing passes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Takes(u64);

impl Takes {
    /// Its bits in a word that has others.
    pub(crate) const BITS: u64 = GROUPS[0] | GROUPS[1] | 0xff << MASK_SHIFT;

    pub(crate) fn new(groups: [bool; 2], mask: u8) -> Self {
        let bit = |n: usize| if groups[n] { GROUPS[n] } else { 0 };
        Self(bit(0) | bit(1) | u64::from(mask) << MASK_SHIFT)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// From such a word.
    pub(crate) fn of(word: u64) -> Self {
        Self(word & Self::BITS)
    }

    /// Whether an interrupt passes, once nothing more urgent is running.
    pub(crate) fn passes(self, group: Group, priority: Priority) -> bool {
        self.0 & GROUPS[group as usize] != 0
            && u64::from(priority.byte()) < self.0 >> MASK_SHIFT & 0xff
    }
}
