//! What becomes of a vCPU's interrupts when it is powered off.

use alloc::sync::Arc;

use super::VcpuInterface;
use super::slices::Scan;
use crate::reclaim::Reclaim;
use crate::refs::{Owned, Posted};

impl<R: Reclaim> VcpuInterface<R> {
    /// Everything that this vCPU has goes back to where others can have it.
    pub(super) fn power_off(&mut self) {
        let hub = Arc::clone(&self.shared.hub);
        // What is for another vCPU by now must not be left lying: hence the second look at each.
        let give_back = |posted: Posted| {
            if cfg!(mutant = "close_without_second_look") {
                return drop(posted);
            }
            if cfg!(mutant = "close_leaks_mail") {
                return core::mem::forget(posted);
            }
            if let Some((posted, _)) = hub.look_again(posted) {
                hub.post(posted);
            }
        };
        let let_go = |irq: Owned, active: bool| {
            let active = active && !cfg!(mutant = "close_forgets_active");
            irq.hand_over(active).map(give_back);
        };
        // The rest of an earlier drain first, which may come back by way of the mailbox; then what is in there. What
        // is not given back because the host panics is still here for the next try.
        for drained in [false, true] {
            if drained {
                self.mine.mailbox.close(&mut self.mail);
            }
            let _ = self.mail.turn(usize::MAX, &self.mine.mailbox);
            for posted in self.mail.by_ref() {
                give_back(posted);
            }
        }
        self.used = 0;
        for entry in self.entries.iter_mut().filter_map(Option::take) {
            let active = entry.want.is_active();
            let_go(entry.withdraw(), active);
        }
        while let Some(irq) = self.spilled.pop() {
            let_go(irq, true);
        }
        while let Some(irq) = self.ready.pop() {
            let_go(irq, false);
        }
        self.scan = Scan::default();
        self.left_over = false;
        self.open = false;
    }
}
