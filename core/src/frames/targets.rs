//! What a CPU interface would take: for SPIs that more than one vCPU may take.
//!
//! A vCPU tells the distributor what its guest has enabled at its CPU interface. An SPI with several targets goes to one that would take it, and to
//! another one when that changes. What is running at a CPU interface is left out: it ends by itself.

use crate::arch::ids::{Group, Priority};
use crate::sync::{AtomicUsize, Ordering, fence};

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

    /// How many of the highest levels of priority pass in a group.
    pub(crate) fn levels(self, group: Group) -> usize {
        let mask = Priority::new((self.0 >> MASK_SHIFT) as u8);
        if self.0 & GROUPS[group as usize] != 0 { mask.level() } else { 0 }
    }
}

/// How many SPIs have a choice of targets. Whoever changes what a vCPU takes looks here whether there
/// are any to look at.
#[derive(Default)]
pub(crate) struct Choices(AtomicUsize);

impl Choices {
    /// Makes a change to an SPI. `change` changes its word, with Acquire and Release, and returns
    /// whether it had a choice, and whether it has one.
    ///
    /// Counted in advance, and given back afterwards: so there are never fewer here than there are. If
    /// each change were counted after it was made, one that ends a choice could be counted before the
    /// one that began it, and hide another SPI meanwhile.
    pub(crate) fn change(&self, change: impl FnOnce() -> (bool, bool)) {
        let late = cfg!(mutant = "choice_counted_late");
        // Relaxed, here and below: of two changes of one SPI, the later one's thread has synchronised
        // with the earlier one's, and so gives back later than that one counts. Looks are ordered by
        // fences: see `is_any`.
        if !late {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        let spare = match change() {
            (false, true) => 0,
            (true, false) => 2,
            _ => 1,
        };
        if late {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        self.0.fetch_sub(spare, Ordering::Relaxed);
    }

    /// Whether there are any, for who has just changed what a vCPU takes.
    ///
    /// There is a fence between that and this, and one between [`Choices::change`] and the look at what
    /// vCPUs take. If the latter comes first, this sees the SPI; if the former does, that look sees the
    /// change.
    pub(crate) fn is_any(&self) -> bool {
        if !cfg!(mutant = "choice_without_fence") {
            fence(Ordering::SeqCst);
        }
        // Relaxed: see above.
        self.0.load(Ordering::Relaxed) != 0
    }
}
