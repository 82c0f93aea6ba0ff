//! What becomes of a vCPU's interrupts when it is powered off.

use alloc::sync::Arc;

use super::VcpuInterface;
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
            let active = active && !irq.intid().is_lpi() && !cfg!(mutant = "close_forgets_active");
            irq.hand_over(active).map(give_back);
        };
        self.mine.mailbox.close().for_each(give_back);
        for entry in self.entries.iter_mut().filter_map(Option::take) {
            let active = entry.want.is_active();
            let_go(entry.withdraw(), active);
        }
        self.used = 0;
        while let Some(irq) = self.spilled.pop() {
            let_go(irq, true);
        }
        while let Some(irq) = self.ready.pop() {
            let_go(irq, false);
        }
        self.open = false;
    }
}
