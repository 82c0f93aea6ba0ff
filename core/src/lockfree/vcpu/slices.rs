//! Long work of a vCPU's thread, a slice at a time: mail, buckets with interrupts that are no longer to be offered, and
//! looks through all LPIs of the VM.
//!
//! How long each of these is depends on what the guest has set up. So one flush does a bounded part of each, and the vCPU
//! is kicked at the end if there is more: it enters the guest, leaves it at once, and goes on. Between two slices its
//! thread can be stopped, and it is not pinned.

use super::{Disposition, VcpuInterface};
use crate::arch::ids::VcpuId;
use crate::arch::lr::MAX_LRS;
use crate::lockfree::notify::Requests;
use crate::lockfree::reclaim::{Participant, Pin, Reclaim};
use crate::lockfree::vm::Shared;
use crate::sync::{MODEL, Ordering, fence};

/// What one flush does at most: interrupts that are turned around, taken in, dropped from a bucket, or looked at. A step takes
/// up to about 0.1 us.
pub(super) const SLICE: usize = if MODEL { 8 } else { 2048 };

/// A look through the LPIs of the VM for those that wait for this vCPU, block by block.
///
/// It goes round: a request that comes in the midst is for what has been passed already, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Scan {
    /// The next block.
    from: u64,
    /// The first block that is not looked at any more.
    until: u64,
    /// After that, from block 0 up to this one.
    then: u64,
}

impl Scan {
    const IDLE: Self = Self { from: 0, until: 0, then: 0 };

    /// Everything is to be looked at from now on.
    fn request(&mut self) {
        *self = Self { from: self.from, until: u64::MAX, then: self.from };
    }

    #[inline]
    pub(super) fn is_idle(self) -> bool {
        self.until == 0
    }

    /// Begins to look for what is waiting: a gate has been opened, the mailbox, or a group at the CPU interface.
    pub(super) fn begin<R: Reclaim>(&mut self, shared: &Shared<R>, vcpu: VcpuId) {
        // What others did before they found this vCPU unwilling is seen, or they see that it is willing.
        // Pairs with the fence in `dispatcher::Dispatcher::recheck_after_closed`.
        if !cfg!(mutant = "scan_without_fence") {
            fence(Ordering::SeqCst);
        }
        self.request();
        shared.scan_wired(vcpu);
    }

    /// Looks at a slice of the LPIs.
    pub(super) fn go_on<R: Reclaim>(&mut self, shared: &Shared<R>, vcpu: VcpuId, pin: &Pin) {
        let next = shared.scan_lpis(vcpu, (self.from, self.until), SLICE, pin);
        self.passed(next);
    }

    /// A slice came up to block `next`, or to the end.
    fn passed(&mut self, next: Option<u64>) {
        *self = match next {
            Some(next) => Self { from: next, ..*self },
            None => Self { from: 0, until: self.then, then: 0 },
        };
        if self.from >= self.until {
            *self = Self::IDLE;
        }
    }
}

impl Default for Scan {
    fn default() -> Self {
        Self::IDLE
    }
}

impl<R: Reclaim> VcpuInterface<R> {
    /// Does what others have asked for, and goes on with what was left over. The mail is gone on with after this.
    #[cold]
    pub(super) fn resume(&mut self) {
        // Remembered until the mail is taken in: a host's kick can panic in the midst.
        self.left_over = true;
        if self.closing {
            return self.power_off();
        }
        self.finish_rest(MAX_LRS);
        self.asked = self.asked.and(self.mine.take_requests());
        if self.asked.includes(Requests::SCAN) {
            self.scan.begin(&self.shared, self.id);
        }
        if self.asked.includes(Requests::REEVALUATE) {
            self.reevaluate_all();
        }
        self.asked = Requests::default();
        if !self.scan.is_idle() {
            let pin = self.participant.pin();
            self.scan.go_on(&self.shared, self.id, &pin);
        }
    }

    /// EOIs without a list register belong to the most urgent active interrupts that have none.
    #[cold]
    pub(super) fn end_spilled_by_eois(&mut self, eois: u32) {
        for _ in 0..eois {
            match self.spilled.pop() {
                Some(owned) => {
                    self.end_spilled(&owned);
                    self.finish(owned, true);
                }
                None => return,
            }
        }
    }

    /// Looks once more at everything that this vCPU has: at what is in list registers now, at what waits in buckets when its
    /// turn comes.
    #[cold]
    pub(super) fn reevaluate_all(&mut self) {
        // From the end: a review can take its entry out.
        for n in (0..self.used).rev() {
            self.reevaluate(n);
        }
        self.doubtful = !self.ready.is_empty();
    }

    /// Looks at the next one that waits, after a review; returns whether it is to be offered. If not, it goes where it belongs.
    #[cold]
    pub(super) fn confirm_next(&mut self) -> bool {
        let level = self.ready.highest();
        let disposition = self.ready.peek(|owned| self.classify(owned, owned.state.load()));
        if matches!((disposition, level), (Some(Disposition::Deliver(now)), Some(level)) if now == level)
        {
            return true;
        }
        if let Some(owned) = self.ready.pop() {
            self.requeue(owned);
        }
        false
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// Goes on with a scan of `blocks`, `step` of them; returns which were passed.
    fn go_on(scan: &mut Scan, blocks: u64, step: u64) -> Vec<u64> {
        let (from, end) = (scan.from, scan.until.min(blocks));
        let next = (from + step < end).then_some(from + step);
        let passed = (from..next.unwrap_or(end)).collect();
        scan.passed(next);
        passed
    }

    proptest! {
        /// After the last request, every block is passed, and the scan ends.
        #[test]
        fn every_block_is_passed_after_the_last_request(
            blocks in 1u64..20,
            requests in proptest::collection::vec(0usize..10, 1..4),
            step in 1u64..5,
        ) {
            let mut scan = Scan::default();
            for slices in requests {
                scan.request();
                for _ in 0..slices {
                    if !scan.is_idle() {
                        let _ = go_on(&mut scan, blocks, step);
                    }
                }
            }
            scan.request();
            let mut seen = BTreeSet::new();
            for _ in 0..100 {
                if !scan.is_idle() {
                    seen.extend(go_on(&mut scan, blocks, step));
                }
            }
            prop_assert!(scan.is_idle());
            prop_assert_eq!(seen, (0..blocks).collect::<BTreeSet<_>>());
        }
    }
}
