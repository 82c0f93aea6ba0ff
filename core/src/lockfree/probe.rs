//! Separate parts of the engine, for benchmarks that compare them with others of their kind
//! (feature `probe`).
//!
//! Not for any other use: nothing here is needed to use the engine, and all of it may change at any
//! time.
//!
//! Models: none. This module does not exist under loom.

#![allow(unsafe_code)] // References to interrupts that this module owns.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;

use crate::arch::ids::{Intid, LPI_BASE, VcpuId};
use crate::engine::Kick;
use crate::lockfree::irq::Irq;
use crate::lockfree::irq::control::Control;
use crate::lockfree::irq::refs::QueuedRef;
use crate::lockfree::notify::Dispatcher;
use crate::lockfree::notify::mailbox::{self, Mailbox, Push};
use crate::lockfree::pending::word::{BLOCK, LANES, Lane, PendingBlock, PendingWord};

struct NoKick;

impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

/// A vCPU's mailbox, with interrupts to put into it.
pub struct Mail {
    mailbox: Mailbox,
    irqs: Vec<NonNull<Irq>>,
    inside: Vec<bool>,
    _block: Box<PendingBlock>,
    _hub: Arc<Dispatcher>,
}

impl Mail {
    /// Makes an open mailbox, and `irqs` interrupts outside it.
    ///
    /// # Panics
    /// If there are more interrupts than fit in one block of pending bits.
    pub fn new(irqs: u32) -> Self {
        assert!(irqs as usize <= BLOCK, "too many interrupts");
        let dispatcher = Arc::new(Dispatcher::new(1, Arc::new(NoKick)));
        let block = Box::new(PendingBlock::new());
        let make = |n: u32| {
            let (word, lane) = block.locate(n as usize);
            let bit = (NonNull::from(word), lane);
            // SAFETY: `Mail` keeps the block and the dispatcher beside the interrupts, which `drop`
            // frees.
            let irq = unsafe {
                Irq::new(Intid(LPI_BASE + n), Control::RESET, bit, NonNull::from(&*dispatcher))
            };
            NonNull::from(Box::leak(Box::new(irq)))
        };
        let irqs: Vec<_> = (0..irqs).map(make).collect();
        let mailbox = Mailbox::new();
        mailbox.open();
        let inside = irqs.iter().map(|_| false).collect();
        Self { mailbox, irqs, inside, _block: block, _hub: dispatcher }
    }

    /// Puts interrupt `n` into the mailbox. Returns whether a kick is due.
    ///
    /// # Panics
    /// If the interrupt is in the mailbox already, or `n` is out of range.
    #[inline]
    pub fn push(&mut self, n: u32) -> bool {
        let inside = &mut self.inside[n as usize];
        assert!(!core::mem::replace(inside, true), "it is in the mailbox");
        // SAFETY: the mailbox's reference exists once, as `inside` says; `drain` takes it back.
        let posted = unsafe { QueuedRef::from_raw(self.irqs[n as usize]) };
        match self.mailbox.push(posted) {
            Push::First(batch) => {
                self.mailbox.kicked(batch);
                true
            }
            Push::Unannounced | Push::Announced | Push::Closed(_) => false,
        }
    }

    /// Takes all interrupts out of the mailbox, oldest first, and passes their numbers to `f`.
    #[inline]
    pub fn drain(&mut self, mut f: impl FnMut(u32)) {
        let mut mail = mailbox::Mail::new();
        let _ = self.mailbox.drain(&mut mail);
        let _ = mail.turn(usize::MAX, &self.mailbox);
        for posted in mail {
            let irq = posted.into_raw();
            // SAFETY: freed only when this is dropped.
            let n = unsafe { irq.as_ref() }.intid().0 - LPI_BASE;
            self.inside[n as usize] = false;
            f(n);
        }
    }
}

impl Drop for Mail {
    fn drop(&mut self) {
        self.drain(|_| ());
        for irq in self.irqs.drain(..) {
            // SAFETY: made in `new`, and in no mailbox.
            drop(unsafe { Box::from_raw(irq.as_ptr()) });
        }
    }
}

/// How the pending bits of consecutive INTIDs lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// As in [`crate::Vgic`]: dealt out to cache lines.
    Shipped,
    /// One after the other.
    Plain,
}

/// The pending bits of one block of INTIDs.
pub struct Bits {
    shipped: PendingBlock,
    plain: Box<[PendingWord]>,
    layout: Layout,
}

impl Bits {
    /// Makes a block of pending bits, all of them clear.
    pub fn new(layout: Layout) -> Self {
        let plain = (0..BLOCK / LANES).map(|_| PendingWord::new()).collect();
        Self { shipped: PendingBlock::new(), plain, layout }
    }

    #[inline]
    fn locate(&self, index: u32) -> (&PendingWord, Lane) {
        let index = index as usize % BLOCK;
        match self.layout {
            Layout::Shipped => self.shipped.locate(index),
            Layout::Plain => (&self.plain[index / LANES], Lane::new(index % LANES)),
        }
    }

    /// Sets a pending bit. Returns whether it was set before.
    #[inline]
    pub fn set(&self, index: u32) -> bool {
        let (word, lane) = self.locate(index);
        word.set(lane)
    }

    /// Clears a pending bit, as an owner does that takes the interrupt. Returns whether it was set
    /// before.
    #[inline]
    pub fn take(&self, index: u32) -> bool {
        let (word, lane) = self.locate(index);
        word.take(lane).pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_comes_out_in_the_order_in_which_it_went_in() {
        let mut mail = Mail::new(3);
        assert!(mail.push(2));
        assert!(!mail.push(0));
        let mut seen = Vec::new();
        mail.drain(|n| seen.push(n));
        assert_eq!(seen, [2, 0]);
        assert!(mail.push(0), "what was taken can go in again");
    }

    #[test]
    fn bits_are_apart() {
        for layout in [Layout::Shipped, Layout::Plain] {
            let bits = Bits::new(layout);
            for n in 0..BLOCK as u32 {
                assert!(!bits.set(n));
            }
            assert!((0..BLOCK as u32).all(|n| bits.take(n) && !bits.take(n)));
        }
    }
}
