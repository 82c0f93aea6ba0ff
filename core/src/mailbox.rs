//! A vCPU's mailbox: many producers, one consumer, drained whole.
//!
//! An intrusive stack (Linux's llist has this shape). `head` is null (open and empty), an interrupt,
//! or `CLOSED`. Producers push by compare-exchange; the owner takes everything with one swap, so there is no ABA.
//! A push learns whether it found the mailbox empty, which is exactly when a kick is due: whoever came
//! before has kicked, and the owner has not drained since.
//!
//! An interrupt is in at most one mailbox: its [`Posted`] reference exists once.
//!
//! Beside the head are the addresses of what was posted lately ([`Recent`]): hints for the owner's CPU, through which nothing is published.
//!
//! # Happens-before
//!
//! A push (Release) is seen by the drain (Acquire), and through it everything before any push of the
//! same batch: later pushes are read-modify-writes, so they continue the release sequence.
//! Closing and opening are read-modify-writes of the same word.
//!
//! Progress: push is lock-free, drain, close and open are wait-free (going through what was drained
//! takes as long as it is long).

#![allow(unsafe_code)] // The links of interrupts whose references the mailbox holds.

use core::ptr::{self, NonNull};

use crate::irq::Irq;
use crate::refs::Posted;
use crate::sync::{AtomicPtr, FirstLook, Ordering, Recent, prefetch_write};

/// A mailbox.
#[repr(C)]
pub(crate) struct Mailbox {
    head: AtomicPtr<Irq>,
    /// On the line that a push writes anyway. The owner would otherwise wait for one line after another of those that were posted, each of which
    /// comes from another CPU.
    recent: Recent<Irq>,
}

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Mailbox>() <= 64);

/// What came of a push.
pub(crate) enum Push {
    /// It is in, and the owner has to be kicked.
    WasEmpty,
    /// It is in; a kick is under way.
    Queued,
    /// The mailbox is closed.
    Closed(Posted),
}

/// The head of a closed mailbox: an address at which no interrupt can be.
fn closed() -> *mut Irq {
    ptr::without_provenance_mut(1)
}

impl Mailbox {
    /// Closed.
    pub(crate) fn new() -> Self {
        Self { head: AtomicPtr::new(closed()), recent: Recent::default() }
    }

    /// Puts an interrupt in.
    #[inline]
    pub(crate) fn push(&self, posted: Posted) -> Push {
        prefetch_write(&self.head);
        let irq = ptr::from_ref::<Irq>(&posted).cast_mut();
        let mut head = self.head.first_look();
        let first = head;
        if head != closed() {
            self.recent.note(irq);
        }
        loop {
            // No ordering needed: who is refused looks again, after a fence (`hub::Hub::look_again`).
            if head == closed() {
                return Push::Closed(posted);
            }
            // Relaxed: published by the compare-exchange below.
            posted.link.store(head, Ordering::Relaxed);
            let order =
                if cfg!(mutant = "push_relaxed") { Ordering::Relaxed } else { Ordering::AcqRel };
            // Release: pairs with the Acquire of `drain`.
            match self.head.compare_exchange_weak(head, irq, order, Ordering::Relaxed) {
                Ok(_) => {
                    let _ = posted.into_raw();
                    // Seeded bug: the owner may have drained since the first look.
                    let before = if cfg!(mutant = "kick_by_first_look") { first } else { head };
                    return if before.is_null() { Push::WasEmpty } else { Push::Queued };
                }
                Err(now) => head = now,
            }
        }
    }

    /// Takes everything out, oldest first. For the owner.
    #[inline]
    pub(crate) fn drain(&self) -> Drained {
        // Relaxed: an empty look takes nothing. What it missed kicks, and the owner that was kicked does not miss it.
        let head = self.head.load(Ordering::Relaxed);
        if head.is_null() || head == closed() {
            return Drained { next: ptr::null_mut() };
        }
        if cfg!(mutant = "drain_in_two_steps") {
            // Seeded bug: loses what is pushed between the two.
            self.head.store(ptr::null_mut(), Ordering::Release);
            return Drained::new(head, &self.recent);
        }
        // Acquire: pairs with `push`. The mailbox cannot be closed here: only the owner does that.
        Drained::new(self.head.swap(ptr::null_mut(), Ordering::AcqRel), &self.recent)
    }

    /// Whether there is something to drain. For the owner.
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        // Acquire, for tests that look before they drain; see `drain` for why missing one is harmless.
        let head = self.head.load(Ordering::Acquire);
        !head.is_null() && head != closed()
    }

    pub(crate) fn is_closed(&self) -> bool {
        // Acquire: pairs with `open` and `close`. Who must not miss an `open` holds the chain
        // through the interrupt's state word (see `hub::Hub::look_again`).
        self.head.load(Ordering::Acquire) == closed()
    }

    /// Opens a closed mailbox. For the owner, who scans for what is pending afterwards.
    pub(crate) fn open(&self) {
        // Release: pairs with `is_closed` and `push`. Fails only if it is open.
        let _ = self.head.compare_exchange(
            closed(),
            ptr::null_mut(),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }

    /// Closes the mailbox and takes out what is in it. For the owner.
    pub(crate) fn close(&self) -> Drained {
        // AcqRel: as `drain` for what is taken, and pairs with `is_closed` and `push`.
        let head = self.head.swap(closed(), Ordering::AcqRel);
        Drained::new(if head == closed() { ptr::null_mut() } else { head }, &self.recent)
    }
}

/// What a mailbox held, oldest first. What is not taken from here is withdrawn.
pub(crate) struct Drained {
    next: *mut Irq,
}

impl Drained {
    /// Turns the stack around: newest first becomes oldest first.
    fn new(head: *mut Irq, recent: &Recent<Irq>) -> Self {
        let (mut rest, mut turned) = (head, ptr::null_mut::<Irq>());
        while let Some(irq) = NonNull::new(rest) {
            // SAFETY: the mailbox's reference keeps it alive, and is ours since the swap.
            let link = unsafe { &irq.as_ref().link };
            // The line comes from whoever posted it; the rest of it is written when it is claimed.
            prefetch_write(link);
            // Relaxed: acquired by the swap; nobody else uses the link while `Posted` exists.
            rest = link.load(Ordering::Relaxed);
            if turned.is_null() && !rest.is_null() {
                recent.prefetch();
            }
            link.store(turned, Ordering::Relaxed);
            turned = irq.as_ptr();
        }
        Self { next: turned }
    }
}

impl Drained {
    /// Whether nothing is left.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.next.is_null()
    }
}

impl Iterator for Drained {
    type Item = Posted;

    #[inline]
    fn next(&mut self) -> Option<Posted> {
        let irq = NonNull::new(self.next)?;
        // SAFETY: as in `new`. The link is read before the reference is handed out: its end lets
        // others use the link.
        self.next = unsafe { irq.as_ref() }.link.load(Ordering::Relaxed);
        // SAFETY: `push` gave this reference up to the mailbox.
        Some(unsafe { Posted::from_raw(irq) })
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}
