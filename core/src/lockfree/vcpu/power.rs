//! Power-off of a vCPU, and the end of its interface: the vCPU gives its interrupts back.
//!
//! Models: delivery_power, delivery_level, delivery_active, lifetime_power, lifetime_handles.

use alloc::sync::Arc;

use super::VcpuInterface;
use super::slices::{SLICE, Scan};
use crate::lockfree::collect::ON_REQUEST;
use crate::lockfree::irq::refs::{OwnerRef, QueuedRef};
use crate::lockfree::notify::Requests;
use crate::lockfree::reclaim::Reclaim;

impl<R: Reclaim> VcpuInterface<R> {
    /// Gives up all interrupts of this vCPU, so that other vCPUs can take them.
    pub(super) fn power_off(&mut self) {
        while !self.power_off_some() {}
    }

    /// Continues a power-off for one slice. Returns whether the power-off is complete.
    pub(super) fn power_off_some(&mut self) -> bool {
        self.open = false;
        // Set until the power-off is complete: if the host panics, the interrupts that have not
        // been given back are still here for the next attempt.
        self.closing = true;
        self.left_over = true;
        let dispatcher = Arc::clone(&self.shared.dispatcher);
        // An interrupt that is for another vCPU by now must not be left behind, so each is
        // re-checked.
        let give_back = |posted: QueuedRef| {
            if cfg!(mutant = "close_without_second_look") {
                return drop(posted);
            }
            if cfg!(mutant = "close_leaks_mail") {
                return core::mem::forget(posted);
            }
            if let Some((posted, _)) = dispatcher.recheck_after_closed(posted) {
                dispatcher.post(posted);
            }
        };
        // `phys` is the physical interrupt that it is mapped to: for a list register, as of when
        // the register was filled; otherwise as of now.
        let let_go = |irq: OwnerRef, active: bool, phys: Option<u16>| {
            let active = active && !cfg!(mutant = "close_forgets_active");
            let (posted, ended) = irq.hand_over(active);
            if let Some(posted) = posted {
                give_back(posted);
            }
            dispatcher.deactivate_ended(ended, phys);
        };
        let mut left = SLICE;
        // First the rest of an earlier drain, which may come back through the mailbox. Then the
        // contents of the mailbox.
        for drained in [false, true] {
            if drained {
                self.mine.mailbox.close(&mut self.mail);
            }
            if !self.mail.turn(SLICE, &self.mine.mailbox) {
                return false;
            }
            for posted in self.mail.by_ref().take(left) {
                left -= 1;
                give_back(posted);
            }
            if !self.mail.is_empty() {
                return false;
            }
        }
        self.used = 0;
        for entry in self.entries.iter_mut().filter_map(Option::take) {
            let (active, phys) = (entry.want.is_active(), entry.want.hw());
            let_go(entry.withdraw(), active, phys);
        }
        for (queue, active) in [(&mut self.spilled, true), (&mut self.ready, false)] {
            while left > 0
                && let Some(irq) = queue.pop()
            {
                left -= 1;
                let phys = irq.control().load().phys();
                let_go(irq, active, phys);
            }
            if !queue.is_empty() {
                return false;
            }
        }
        self.scan = Scan::default();
        self.asked = Requests::default();
        self.left_over = false;
        self.closing = false;
        true
    }
}

impl<R: Reclaim> Drop for VcpuInterface<R> {
    fn drop(&mut self) {
        let ending = Ending(self);
        if ending.0.open || ending.0.closing {
            ending.0.power_off();
        }
        if ending.0.window_open {
            // The guest's changes since the flush are lost with its list registers.
            ending.0.close_window();
        }
        drop(ending);
        let _ = self.shared.collect(&self.participant, ON_REQUEST);
    }
}

/// Ends a vCPU's interface on drop, even if the host has panicked. In that case no vCPU is told of
/// the remaining interrupts, but they stay pending.
struct Ending<'v, R: Reclaim>(&'v mut VcpuInterface<R>);

impl<R: Reclaim> Drop for Ending<'_, R> {
    fn drop(&mut self) {
        for entry in self.0.entries.iter_mut().filter_map(Option::take) {
            drop(entry.withdraw());
        }
        if self.0.window_open {
            let _ = self.0.mine.close_window();
        }
        self.0.mine.return_interface();
    }
}
