//! What becomes of a vCPU's interrupts when it is powered off, or its interface is given back.

use alloc::sync::Arc;

use super::VcpuInterface;
use super::slices::{SLICE, Scan};
use crate::lockfree::collect::ON_REQUEST;
use crate::lockfree::irq::refs::{OwnerRef, QueuedRef};
use crate::lockfree::notify::Requests;
use crate::lockfree::reclaim::Reclaim;

impl<R: Reclaim> VcpuInterface<R> {
    /// Everything that this vCPU has goes back to where others can have it.
    pub(super) fn power_off(&mut self) {
        while !self.power_off_some() {}
    }

    /// Goes on with that, for a slice; returns whether all is done.
    pub(super) fn power_off_some(&mut self) -> bool {
        self.open = false;
        // Until it is done: what is not given back because the host panics is still here for the next try.
        self.closing = true;
        self.left_over = true;
        let dispatcher = Arc::clone(&self.shared.dispatcher);
        // What is for another vCPU by now must not be left lying: hence the second look at each.
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
        // `phys` is what it was tied to when it was offered.
        let let_go = |irq: OwnerRef, active: bool, phys: Option<u16>| {
            let active = active && !cfg!(mutant = "close_forgets_active");
            let (posted, ended) = irq.hand_over(active);
            if let Some(posted) = posted {
                give_back(posted);
            }
            dispatcher.deactivate_ended(ended, phys);
        };
        let mut left = SLICE;
        // The rest of an earlier drain first, which may come back by way of the mailbox; then what is in there.
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
            // What the guest has done since the flush is lost with its list registers.
            ending.0.close_window();
        }
        drop(ending);
        let _ = self.shared.collect(&self.participant, ON_REQUEST);
    }
}

/// The end of a vCPU's interface, also if the host panics meanwhile: then what is left is not told to anybody, but it is pending.
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
