//! A vCPU's mailbox: many producers, one consumer, drained whole.
//!
//! An intrusive stack (Linux's llist has this shape). `head` is null (open and empty), an interrupt,
//! or `CLOSED`. Producers push by compare-exchange; the owner takes everything with one swap, so there is no ABA.
//! A push learns whether the owner has to be kicked.
//!
//! An interrupt is in at most one mailbox: its [`QueuedRef`] reference exists once.
//!
//! Beside the head are the addresses of what was posted lately ([`Recent`]): hints for the owner's CPU, through which nothing is published.
//!
//! # Kicks
//!
//! What lies in the mailbox between two drains is a *batch*. Its first push finds the mailbox empty: its thread kicks, and
//! says afterwards that it has (`kicked`). A later push is silent only if that has been said of its batch. Otherwise its
//! thread kicks as well: the first one may have been preempted in between. So no interrupt waits for another one's injector.
//!
//! The owner counts batches (`batch`) where they begin: after it has seen mail and before it takes it out, and before it
//! opens the mailbox. Let thread L be the first of a batch, and thread P one that finds `kicked == batch` after its push.
//!
//! * L has read `batch` before its push. The owner counts only while the head is not null, and L's push found it null. So
//!   if L has read `n`, its push came after the drain that began batch `n`.
//! * P has read `batch` after its push, and read the same `n`: the drain that ends batch `n` has not begun. So either P's
//!   interrupt went out with the drain that began batch `n`, or it lies with L's.
//! * L has said so after its kick, and its kick came after its push. So a drain follows that takes out L's interrupt, and
//!   P's with it.
//!
//! A number that L or P has read too early makes the two differ, and P kicks for nothing.
//!
//! # Happens-before
//!
//! A push (Release) is seen by the drain (Acquire), and through it everything before any push of the
//! same batch: later pushes are read-modify-writes, so they continue the release sequence.
//! Closing and opening are read-modify-writes of the same word.
//!
//! `batch` is stored (Release) before the drain's exchange of the head. L's load (Acquire) that reads `n` therefore comes
//! after the owner has seen the mail of batch `n - 1`, and L's push comes after it in the head's order. P's push acquires
//! the head, and so everything that the owner counted before the batch that P's interrupt lies in.
//!
//! Progress: push is lock-free, drain, close and open are wait-free. What was drained is turned around and taken in a
//! slice at a time.

#![allow(unsafe_code)] // The links of interrupts whose references the mailbox holds.

use core::ptr::{self, NonNull};

use crate::lockfree::irq::Irq;
use crate::lockfree::irq::refs::QueuedRef;
use crate::sync::{AtomicPtr, AtomicU64, FirstLook, Ordering, Recent, prefetch_write};

/// A mailbox.
#[repr(C)]
pub(crate) struct Mailbox {
    head: AtomicPtr<Irq>,
    /// Which batch is being filled. Only the owner writes it.
    batch: AtomicU64,
    /// On the line that a push writes anyway. The owner would otherwise wait for one line after another of those that were posted, each of which
    /// comes from another CPU.
    recent: Recent<Irq>,
    /// On a line of its own, which the owner does not touch: threads that push write and read it.
    kicked: Line<AtomicU64>,
}

/// What must not share a cache line with what comes before it.
#[repr(C, align(64))]
struct Line<T>(T);

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(core::mem::offset_of!(Mailbox, kicked) == 64);

/// The number of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch(u64);

/// What came of a push.
pub(crate) enum Push {
    /// It is in, and is the first of its batch: the owner has to be kicked, and [`Mailbox::kicked`] called after that.
    First(Batch),
    /// It is in. Whether the owner has been kicked is not known, so that it has to be.
    Unannounced,
    /// It is in, and the owner has been kicked.
    Announced,
    /// The mailbox is closed.
    Closed(QueuedRef),
}

/// The head of a closed mailbox: an address at which no interrupt can be.
fn closed() -> *mut Irq {
    ptr::without_provenance_mut(1)
}

impl Mailbox {
    /// Closed.
    pub(crate) fn new() -> Self {
        Self {
            head: AtomicPtr::new(closed()),
            // Opening makes it 2. Nobody has kicked for either.
            batch: AtomicU64::new(1),
            recent: Recent::default(),
            kicked: Line(AtomicU64::new(0)),
        }
    }

    /// Puts an interrupt in.
    #[inline]
    pub(crate) fn push(&self, posted: QueuedRef) -> Push {
        prefetch_write(&self.head);
        let irq = ptr::from_ref::<Irq>(&posted).cast_mut();
        // Acquire: pairs with `count_batch`. Before the push: see "Kicks" above.
        let batch = Batch(self.batch.load(Ordering::Acquire));
        let mut head = self.head.first_look();
        if head != closed() {
            self.recent.note(irq);
        }
        loop {
            // No ordering needed: who is refused looks again, after a fence (`dispatcher::Dispatcher::recheck_after_closed`).
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
                    return if head.is_null() { Push::First(batch) } else { self.behind_others() };
                }
                Err(now) => head = now,
            }
        }
    }

    /// A push found others before it.
    #[inline]
    fn behind_others(&self) -> Push {
        if cfg!(mutant = "kick_left_to_the_first") {
            return Push::Announced;
        }
        // Acquire: pairs with `kicked`, though nothing is read through it.
        let kicked = self.kicked.0.load(Ordering::Acquire);
        // Acquire: pairs with `count_batch`; ordered by the push before it.
        if kicked == self.batch.load(Ordering::Acquire) {
            Push::Announced
        } else {
            Push::Unannounced
        }
    }

    /// The owner has been kicked, by the thread whose push was the first of this batch.
    #[inline]
    pub(crate) fn kicked(&self, batch: Batch) {
        // Release: pairs with `behind_others`. A store that comes late makes others kick for nothing.
        self.kicked.0.store(batch.0, Ordering::Release);
    }

    /// Another batch begins. The head is not null, so that nobody is the first of a batch at this moment. For the owner.
    #[inline]
    fn count_batch(&self) {
        if cfg!(mutant = "batches_uncounted") {
            return;
        }
        // Relaxed: only the owner writes it.
        let batch = self.batch.load(Ordering::Relaxed);
        // Release: pairs with `push` and `behind_others`.
        self.batch.store(batch + 1, Ordering::Release);
    }

    /// Takes everything out, into `mail`, which is empty; returns whether there was something. For the owner.
    #[inline]
    pub(crate) fn drain(&self, mail: &mut Mail) -> bool {
        // Relaxed: an empty look takes nothing. What it missed kicks, and the owner that was kicked does not miss it.
        let head = self.head.load(Ordering::Relaxed);
        if head.is_null() || head == closed() {
            return false;
        }
        if cfg!(mutant = "drain_in_two_steps") {
            // Seeded bug: loses what is pushed between the two.
            self.head.store(ptr::null_mut(), Ordering::Release);
            mail.put(head);
            return true;
        }
        self.count_batch();
        // Acquire: pairs with `push`. The mailbox cannot be closed here: only the owner does that.
        mail.put(self.head.swap(ptr::null_mut(), Ordering::AcqRel));
        true
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
        // through the interrupt's state word (see `dispatcher::Dispatcher::recheck_after_closed`).
        self.head.load(Ordering::Acquire) == closed()
    }

    /// Opens a closed mailbox. For the owner, who scans for what is pending afterwards.
    pub(crate) fn open(&self) {
        if !cfg!(mutant = "opening_is_no_batch") {
            self.count_batch();
        }
        // Release: pairs with `is_closed` and `push`. Fails only if it is open.
        let _ = self.head.compare_exchange(
            closed(),
            ptr::null_mut(),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }

    /// Closes the mailbox and takes out what is in it, into `mail`, which is empty. For the owner.
    pub(crate) fn close(&self, mail: &mut Mail) {
        // AcqRel: as `drain` for what is taken, and pairs with `is_closed` and `push`.
        let head = self.head.swap(closed(), Ordering::AcqRel);
        mail.put(if head == closed() { ptr::null_mut() } else { head });
    }
}

/// What was taken out of a mailbox and has not been taken in yet. It is turned around first: the newest is on top, and the
/// oldest goes first.
///
/// What is left when it is dropped is withdrawn.
pub(crate) struct Mail {
    /// Newest first: not turned around yet.
    rest: *mut Irq,
    /// Oldest first.
    next: *mut Irq,
}

// SAFETY: the interrupts are kept by the mailbox's references, which are Send, and are this value's.
unsafe impl Send for Mail {}

impl Mail {
    pub(crate) const fn new() -> Self {
        Self { rest: ptr::null_mut(), next: ptr::null_mut() }
    }

    fn put(&mut self, head: *mut Irq) {
        debug_assert!(self.is_empty(), "mail would be lost");
        self.rest = head;
    }

    /// Whether nothing is left.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.next.is_null() && self.rest.is_null()
    }

    /// Turns some of it around, which comes from `mailbox`; returns whether all of it is.
    #[inline]
    pub(crate) fn turn(&mut self, most: usize, mailbox: &Mailbox) -> bool {
        for _ in 0..most {
            let Some(irq) = NonNull::new(self.rest) else { break };
            // SAFETY: the mailbox's reference keeps it alive, and is ours since it was drained.
            let link = unsafe { &irq.as_ref().link };
            // The line comes from the thread that posted it; the rest of it is written when it is claimed.
            prefetch_write(link);
            // Relaxed: acquired by the drain; nobody else uses the link while `QueuedRef` exists.
            self.rest = link.load(Ordering::Relaxed);
            if self.next.is_null() && !self.rest.is_null() {
                mailbox.recent.prefetch();
            }
            link.store(self.next, Ordering::Relaxed);
            self.next = irq.as_ptr();
        }
        self.rest.is_null()
    }
}

/// The oldest of what is turned around.
impl Iterator for Mail {
    type Item = QueuedRef;

    #[inline]
    fn next(&mut self) -> Option<QueuedRef> {
        let irq = NonNull::new(self.next)?;
        // SAFETY: as in `turn`. The link is read before the reference is handed out: its end lets
        // others use the link.
        self.next = unsafe { irq.as_ref() }.link.load(Ordering::Relaxed);
        // SAFETY: `push` gave this reference up to the mailbox.
        Some(unsafe { QueuedRef::from_raw(irq) })
    }
}

impl Drop for Mail {
    fn drop(&mut self) {
        self.for_each(drop);
        core::mem::swap(&mut self.rest, &mut self.next);
        // In the other order, which does not matter any more.
        self.for_each(drop);
    }
}
