//! Pending bits of interrupts, and the marks of a CLEAR.
//!
//! # The words
//!
//! A [`PendingWord`] holds 32 interrupts, one *lane* each. Bit `n` (P) says that lane `n` is
//! pending. Bit `32 + n` (C) says that it was cleared since its owner last took it. Both bits are
//! in one word, so that one read-modify-write decides between an injection, a CLEAR and the vCPU
//! that takes the bit:
//!
//! * Injection: `P |= 1`. It learns whether P was set (then it is coalesced).
//! * CLEAR: `P = 0, C = 1`.
//! * Take, by the owner, when the interrupt goes into a list register: reads both, then
//!   `P = C = 0`. C set means that the pending state that the owner took *before* was cleared. P
//!   set means that an injection came after that.
//! * Restore, by the owner, when the interrupt leaves a list register unacknowledged: `P = 1`,
//!   unless C says that it was cleared in between.
//!
//! P is set exactly while the interrupt is pending and not in a list register.
//!
//! # Happens-before
//!
//! All changes are AcqRel read-modify-writes of one word. The guest's read after its acknowledge
//! sees every store made before *any* injection that the bit stands for. The injector's stores come
//! before its `fetch_or` (Release), coalesced or not. The take (Acquire) reads the end of an
//! unbroken chain of read-modify-writes, so it synchronizes with each of them. A plain load instead
//! of the coalesced `fetch_or` would break that chain (mutant `coalesce_by_load`).
//!
//! # Layout
//!
//! Consecutive INTIDs usually belong to the queues of one device, and so to different vCPUs. A
//! [`PendingBlock`] therefore spreads them over 16 cache lines, one word each: the bits of INTIDs
//! `i` and `i + 1` to `i + 15` share no line.
//!
//! Models: delivery_data, delivery_clear, delivery_read, delivery_enable_lpis, its_commands.
//!
//! Progress: set and take are wait-free, clear and restore lock-free.

// In a model a block has one line.
#![cfg_attr(any(loom, shuttle), allow(clippy::modulo_one))]

use alloc::boxed::Box;

use crate::sync::{AtomicU64, CachePadded, MODEL, Ordering, prefetch_write, update};

/// Interrupts in one word.
pub(crate) const LANES: usize = if MODEL { 4 } else { 32 };
/// Cache lines of one block.
pub(crate) const LINES: usize = if MODEL { 1 } else { 16 };
/// Interrupts in one block.
pub(crate) const BLOCK: usize = LANES * LINES;

const CLEARED_SHIFT: u32 = 32;

/// The position of an interrupt in its word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lane(u8);

impl Lane {
    pub(crate) const fn new(n: usize) -> Self {
        Self((n % 32) as u8)
    }

    pub(crate) const fn index(self) -> u32 {
        self.0 as u32
    }

    const fn pending(self) -> u64 {
        1 << self.0
    }

    const fn cleared(self) -> u64 {
        1 << (self.0 as u32 + CLEARED_SHIFT)
    }
}

/// The result of [`PendingWord::take`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    /// The interrupt was pending, after the CLEAR if there was one.
    pub(crate) pending: bool,
    /// The pending state that was taken before has been cleared.
    pub(crate) cleared: bool,
}

/// Pending bits of up to 32 interrupts.
#[derive(Default)]
pub(crate) struct PendingWord(AtomicU64);

impl PendingWord {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Prefetches the word, to be written.
    #[inline(always)]
    pub(crate) fn prefetch(&self) {
        prefetch_write(&self.0);
    }

    /// Makes the interrupt pending; returns whether it was pending.
    #[inline(always)]
    pub(crate) fn set(&self, lane: Lane) -> bool {
        if cfg!(mutant = "coalesce_by_load") && self.0.load(Ordering::Acquire) & lane.pending() != 0
        {
            return true;
        }
        // Release even if it was set: pairs with the Acquire of `take` (see the module's text).
        // Acquire: an injection that finds the bit clear must see all that the taker did before.
        let order =
            if cfg!(mutant = "pending_relaxed") { Ordering::Relaxed } else { Ordering::AcqRel };
        self.0.fetch_or(lane.pending(), order) & lane.pending() != 0
    }

    /// Takes the pending state. For the owner.
    #[inline(always)]
    pub(crate) fn take(&self, lane: Lane) -> Taken {
        // AcqRel: pairs with `set` and `clear`, both ways.
        let order =
            if cfg!(mutant = "take_relaxed") { Ordering::Relaxed } else { Ordering::AcqRel };
        self.prefetch();
        let mut old = self.0.fetch_and(!(lane.pending() | lane.cleared()), order);
        if cfg!(mutant = "take_ignores_clear") {
            old &= !lane.cleared();
        }
        Taken { pending: old & lane.pending() != 0, cleared: old & lane.cleared() != 0 }
    }

    /// Takes the pending state of a wired interrupt, which other threads read. For the owner.
    ///
    /// The mark of a CLEAR stays until a later injection is taken. Until the owner publishes a new
    /// state, the mark tells readers that the interrupt in its list register is not pending any
    /// more.
    pub(crate) fn take_wired(&self, lane: Lane) -> Taken {
        let both = lane.pending() | lane.cleared();
        // AcqRel: as in `take`.
        let old = update(&self.0, |w| if w & lane.pending() != 0 { w & !both } else { w });
        Taken { pending: old & lane.pending() != 0, cleared: old & lane.cleared() != 0 }
    }

    /// Makes the interrupt not pending, and leaves the mark of a CLEAR, wherever its owner has it.
    /// Returns whether the pending bit was set.
    pub(crate) fn clear(&self, lane: Lane) -> bool {
        if cfg!(mutant = "clear_in_two_steps") {
            // Seeded bug: loses an injection of another lane.
            let w = self.0.load(Ordering::Acquire);
            self.0.store(w & !lane.pending() | lane.cleared(), Ordering::Release);
            return w & lane.pending() != 0;
        }
        // AcqRel: in the word's order with `set` and `take`.
        let old = update(&self.0, |w| {
            if cfg!(mutant = "clear_without_mark") {
                w & !lane.pending()
            } else if cfg!(mutant = "clear_keeps_pending") {
                w | lane.cleared()
            } else {
                w & !lane.pending() | lane.cleared()
            }
        });
        old & lane.pending() != 0
    }

    /// Makes the interrupt not pending, and leaves no mark for an owner. Returns whether it was
    /// pending.
    pub(crate) fn forget(&self, lane: Lane) -> bool {
        // AcqRel: in the word's order with `set` and `take`.
        self.0.fetch_and(!lane.pending(), Ordering::AcqRel) & lane.pending() != 0
    }

    /// Gives back the pending state that was taken, unless it was cleared in between. For the
    /// owner.
    pub(crate) fn restore(&self, lane: Lane) {
        // AcqRel: in the word's order with `set` and `clear`.
        update(&self.0, |w| {
            if w & lane.cleared() != 0 && !cfg!(mutant = "restore_despite_clear") {
                let later = if cfg!(mutant = "clear_cancels_later") { lane.pending() } else { 0 };
                w & !(lane.cleared() | later)
            } else {
                w | lane.pending()
            }
        });
    }

    /// Gives back the pending state of a wired interrupt, unless it was cleared in between. The
    /// mark of a CLEAR stays. For the owner.
    pub(crate) fn restore_wired(&self, lane: Lane) {
        // AcqRel: in the word's order with `set` and `clear`.
        update(&self.0, |w| if w & lane.cleared() != 0 { w } else { w | lane.pending() });
    }

    /// Whether the interrupt is pending, by a plain load. The caller must not rely on a "no": a
    /// thread that makes the interrupt pending later schedules it.
    #[inline(always)]
    pub(crate) fn is_pending(&self, lane: Lane) -> bool {
        // Acquire: pairs with `set`.
        self.0.load(Ordering::Acquire) & lane.pending() != 0
    }

    /// Whether the interrupt is pending, by a read-modify-write. An injection that this does not
    /// see comes later in the word's order, and so sees everything that the caller did before.
    pub(crate) fn is_pending_ordered(&self, lane: Lane) -> bool {
        // AcqRel: pairs with `set`, both ways.
        self.0.fetch_or(0, Ordering::AcqRel) & lane.pending() != 0
    }

    /// Whether it was cleared since its owner last took it: the state that the owner has taken is
    /// not pending any more.
    pub(crate) fn is_cleared(&self, lane: Lane) -> bool {
        // Acquire: pairs with `clear`.
        self.0.load(Ordering::Acquire) & lane.cleared() != 0
    }

    /// All pending lanes, one bit each.
    fn lanes(&self) -> u32 {
        // Acquire: pairs with `set`.
        self.0.load(Ordering::Acquire) as u32
    }
}

/// Pending bits of a block of consecutive interrupts, spread over cache lines.
pub(crate) struct PendingBlock {
    lines: Box<[CachePadded<PendingWord>]>,
}

impl PendingBlock {
    pub(crate) fn new() -> Self {
        Self { lines: (0..LINES).map(|_| CachePadded::new(PendingWord::new())).collect() }
    }

    /// Heap bytes of one block's lines.
    pub(crate) const LINE_BYTES: usize = LINES * size_of::<CachePadded<PendingWord>>();

    /// The word and lane of interrupt `index` of the block.
    pub(crate) fn locate(&self, index: usize) -> (&PendingWord, Lane) {
        let index = index % BLOCK;
        (&self.lines[index % LINES], Lane::new(index / LINES))
    }

    /// The pending bits of 64 consecutive interrupts, from `first` up: bit `i` is that of
    /// `first + i`.
    pub(crate) fn word(&self, first: usize) -> u64 {
        let pending = |&i: &usize| {
            let (word, lane) = self.locate(first + i);
            word.is_pending(lane)
        };
        (0..BLOCK.min(64)).filter(pending).fold(0, |bits, i| bits | 1 << i)
    }

    /// The first pending interrupt at or after `from`, by index.
    pub(crate) fn next_pending(&self, from: usize) -> Option<usize> {
        // A row is one lane across all lines: LINES consecutive interrupts.
        let mut rows = self.lines.iter().fold(0, |all, line| all | line.lanes());
        rows &= u32::MAX.checked_shl((from / LINES) as u32).unwrap_or(0);
        while rows != 0 {
            let row = rows.trailing_zeros() as usize;
            let first = if row == from / LINES { from % LINES } else { 0 };
            let hit = (first..LINES).find(|&line| self.lines[line].lanes() & 1 << row != 0);
            if let Some(line) = hit {
                return Some(row * LINES + line);
            }
            rows &= rows - 1;
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn clear_withdraws_what_was_taken_and_a_later_set_stands() {
        let (word, lane) = (PendingWord::new(), Lane::new(5));
        assert!(!word.set(lane));
        assert!(word.set(lane), "coalesced");
        assert_eq!(word.take(lane), Taken { pending: true, cleared: false });
        word.clear(lane);
        assert!(!word.set(lane), "after CLEAR it is not pending");
        assert_eq!(word.take(lane), Taken { pending: true, cleared: true });
        assert_eq!(word.take(lane), Taken { pending: false, cleared: false });
    }

    #[test]
    fn restore_does_not_resurrect_what_was_cleared() {
        let (word, lane) = (PendingWord::new(), Lane::new(31));
        let _ = word.set(lane);
        let _ = word.take(lane);
        word.restore(lane);
        assert!(word.is_pending(lane));
        let _ = word.take(lane);
        word.clear(lane);
        word.restore(lane);
        assert!(!word.is_pending(lane));
        assert_eq!(word.take(lane), Taken { pending: false, cleared: false });
    }

    #[test]
    fn neighbours_do_not_share_a_cache_line() {
        let block = PendingBlock::new();
        for i in 0..BLOCK {
            for j in i + 1..(i + LINES).min(BLOCK) {
                let (a, b) = (
                    core::ptr::from_ref(block.locate(i).0),
                    core::ptr::from_ref(block.locate(j).0),
                );
                assert!(a.addr().abs_diff(b.addr()) >= 64, "{i} and {j}");
            }
        }
        let all: BTreeSet<_> = (0..BLOCK)
            .map(|i| (core::ptr::from_ref(block.locate(i).0).addr(), block.locate(i).1.index()))
            .collect();
        assert_eq!(all.len(), BLOCK, "every interrupt has a bit of its own");
    }

    proptest! {
        #[test]
        fn scan_finds_exactly_what_is_set(set in proptest::collection::btree_set(0..BLOCK, 0..40)) {
            let block = PendingBlock::new();
            for &i in &set {
                let (word, lane) = block.locate(i);
                let _ = word.set(lane);
            }
            let mut found = Vec::new();
            let mut from = 0;
            while let Some(i) = block.next_pending(from) {
                found.push(i);
                from = i + 1;
            }
            prop_assert_eq!(found, set.into_iter().collect::<Vec<_>>());
        }
    }
}
