//! The interrupts that a CPU interface takes, for SPIs that have more than one possible target.
//!
//! A vCPU tells the distributor the groups and priorities that its guest has enabled at its CPU
//! interface. An SPI with several targets goes to one that would take it, and moves to another one
//! when that changes. The running priority is not considered, because it lasts only until the
//! running interrupt ends.

use crate::arch::ids::{Group, Priority};
use crate::sync::{AtomicUsize, Ordering, fence};

const GROUPS: [u64; 2] = [1 << 8, 1 << 9];
const MASK_SHIFT: u32 = 16;

/// A CPU interface's group enables (bits 9:8) and priority mask (bits 23:16), as a part of a word.
/// If the value is 0, nothing passes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Takes(u64);

impl Takes {
    /// The bits of this value in a word that has other bits as well.
    pub(crate) const BITS: u64 = GROUPS[0] | GROUPS[1] | 0xff << MASK_SHIFT;

    pub(crate) fn new(groups: [bool; 2], mask: u8) -> Self {
        let bit = |n: usize| if groups[n] { GROUPS[n] } else { 0 };
        Self(bit(0) | bit(1) | u64::from(mask) << MASK_SHIFT)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// Extracts the value from such a word.
    pub(crate) fn of(word: u64) -> Self {
        Self(word & Self::BITS)
    }

    /// Whether an interrupt passes, once nothing more urgent is running.
    pub(crate) fn passes(self, group: Group, priority: Priority) -> bool {
        self.0 & GROUPS[group as usize] != 0
            && u64::from(priority.byte()) < self.0 >> MASK_SHIFT & 0xff
    }

    /// The number of priority levels, from the highest down, that pass in a group.
    pub(crate) fn levels(self, group: Group) -> usize {
        let mask = Priority::new((self.0 >> MASK_SHIFT) as u8);
        if self.0 & GROUPS[group as usize] != 0 { mask.level() } else { 0 }
    }
}

/// The number of SPIs that have a choice of targets. A thread that changes a vCPU's [`Takes`] reads
/// it to find out whether it has to examine any SPIs.
#[derive(Default)]
pub(crate) struct Choices(AtomicUsize);

impl Choices {
    /// Makes a change to an SPI. `change` changes the SPI's word, with Acquire and Release, and
    /// returns whether the SPI had a choice before, and whether it has one now.
    ///
    /// The count is raised before the change and corrected after it, so it is never smaller than
    /// the number of SPIs with a choice. If each change were counted after it was made, a change
    /// that ends a choice could be counted before the change that began it, and hide another SPI
    /// for a time.
    pub(crate) fn change(&self, change: impl FnOnce() -> (bool, bool)) {
        let late = cfg!(mutant = "choice_counted_late");
        // Relaxed, here and below: of two changes of one SPI, the thread of the later change has
        // synchronized with the thread of the earlier one, so its decrement comes after the earlier
        // one's increment. Reads are ordered by fences: see `is_any`.
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

    /// Whether any SPI has a choice of targets, for a thread (the *changer*) that has just changed
    /// a vCPU's [`Takes`].
    ///
    /// There is a fence between that change and this read. There is also a fence between
    /// [`Choices::change`] in another thread (the *router*) and its read of the vCPUs' `Takes`. If
    /// the router's fence comes first, the changer sees the SPI here. If the changer's fence comes
    /// first, the router sees the new `Takes`.
    pub(crate) fn is_any(&self) -> bool {
        if !cfg!(mutant = "choice_without_fence") {
            fence(Ordering::SeqCst);
        }
        // Relaxed: see above.
        self.0.load(Ordering::Relaxed) != 0
    }
}
