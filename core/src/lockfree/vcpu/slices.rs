//! Long work of a vCPU's thread, a slice at a time: mail, buckets with interrupts that are no
//! longer to be delivered, and scans of all LPIs of the VM.
//!
//! The length of each depends on the guest's set-up. So one flush does a bounded part of each, and
//! kicks the vCPU at the end if work remains: the vCPU enters the guest, leaves it at once, and
//! continues. Between two slices its thread can be stopped, and it is not pinned.
//!
//! Models: delivery_power, delivery_enable_lpis, delivery_active.

use super::{Disposition, VcpuInterface};
use crate::arch::ids::VcpuId;
use crate::arch::lr::MAX_LRS;
use crate::lockfree::notify::Requests;
use crate::lockfree::reclaim::{Participant, Pin, Reclaim};
use crate::lockfree::vm::Shared;
use crate::sync::{MODEL, Ordering, fence};

/// The most steps of each kind that one flush takes. A step turns around or takes in one interrupt
/// of the mail, drops one from a bucket, or looks at one in a scan. It takes up to about 0.1 us.
pub(super) const SLICE: usize = if MODEL { 8 } else { 2048 };

/// A scan of the LPIs of the VM for those that wait for this vCPU, block by block.
///
/// It wraps around: a request during a scan also covers the blocks that the scan has passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Scan {
    /// The next block.
    from: u64,
    /// The first block that is not scanned, in this part.
    until: u64,
    /// The scan then continues from block 0, up to this block (exclusive).
    then: u64,
}

impl Scan {
    const IDLE: Self = Self { from: 0, until: 0, then: 0 };

    /// Requests a scan of all blocks, starting now.
    fn request(&mut self) {
        *self = Self { from: self.from, until: u64::MAX, then: self.from };
    }

    #[inline]
    pub(super) fn is_idle(self) -> bool {
        self.until == 0
    }

    /// Begins to scan for waiting interrupts, because a gate, the mailbox, or a group at the CPU
    /// interface has been opened.
    pub(super) fn begin<R: Reclaim>(&mut self, shared: &Shared<R>, vcpu: VcpuId) {
        // The scan sees the changes that another thread made before it found this vCPU unwilling,
        // or that thread sees that this vCPU is willing. Pairs with the fence in
        // `Dispatcher::recheck_after_closed`.
        if !cfg!(mutant = "scan_without_fence") {
            fence(Ordering::SeqCst);
        }
        self.request();
        shared.scan_wired(vcpu);
    }

    /// Scans a slice of the LPIs.
    pub(super) fn go_on<R: Reclaim>(&mut self, shared: &Shared<R>, vcpu: VcpuId, pin: &Pin) {
        let next = shared.scan_lpis(vcpu, (self.from, self.until), SLICE, pin);
        self.passed(next);
    }

    /// Records that a slice ended before block `next`, or at the last block if `None`.
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
    /// Serves the requests of other threads, and continues the work that was left over. The caller
    /// continues with the mail.
    #[cold]
    pub(super) fn resume(&mut self) {
        // Set until the mail has been taken in, because a host's kick can panic on the way.
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

    /// Ends one active interrupt without a list register for each of `eois` EOIs, the most urgent
    /// first.
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

    /// Re-evaluates all interrupts of this vCPU: those in list registers now, those in buckets when
    /// their turn comes.
    #[cold]
    pub(super) fn reevaluate_all(&mut self) {
        // From the end, because `reevaluate` can take its entry out.
        for n in (0..self.used).rev() {
            self.reevaluate(n);
        }
        self.doubtful = !self.ready.is_empty();
    }

    /// Re-evaluates the next waiting interrupt, after `reevaluate_all`. Returns whether it is to be
    /// delivered at its present level. If not, requeues it.
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

    /// Continues a scan of `blocks` blocks by up to `step` of them. Returns the blocks that were
    /// passed.
    fn go_on(scan: &mut Scan, blocks: u64, step: u64) -> Vec<u64> {
        let (from, end) = (scan.from, scan.until.min(blocks));
        let next = (from + step < end).then_some(from + step);
        let passed = (from..next.unwrap_or(end)).collect();
        scan.passed(next);
        passed
    }

    proptest! {
        /// After the last request, the scan passes every block, and ends.
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
