//! A vCPU's mailbox: many producers, one consumer, which takes out everything at once.
//!
//! It is an intrusive stack (Linux's llist has this shape). `head` is null (open and empty), an
//! interrupt, or `CLOSED`. Producers push by compare-exchange. The owner takes everything with one
//! swap, so there is no ABA. A push learns whether the owner has to be kicked.
//!
//! An interrupt is in at most one mailbox: its [`QueuedRef`] exists once.
//!
//! Beside the head are the addresses of the interrupts posted last ([`Recent`]). They are hints for
//! the owner's CPU, and nothing is published through them.
//!
//! # Kicks
//!
//! A *batch* is the set of interrupts that come into the mailbox between two drains. The first push
//! of a batch finds the mailbox empty: its thread kicks, and then records the kick (`kicked`). The
//! thread of a later push skips the kick only if the kick of its batch is recorded. Otherwise it
//! kicks as well, since the first thread may have been preempted in between. So no interrupt waits
//! for the injector of another one.
//!
//! The owner counts batches (`batch`) where they begin: after it has seen mail and before it takes
//! the mail out, and before it opens the mailbox. Let the *leader* be the thread with the first
//! push of a batch, and the *follower* a thread that finds `kicked == batch` after its push.
//!
//! * The leader reads `batch` before its push. The owner counts only while the head is not null,
//!   and the leader's push found it null. So if the leader has read `n`, its push came after the
//!   drain that began batch `n`.
//! * The follower reads `batch` after its push. If it reads the same `n`, the drain that ends batch
//!   `n` has not begun. So either the follower's interrupt went out with the drain that began batch
//!   `n`, or it is in the mailbox with the leader's.
//! * The leader records its kick after the kick, and kicks after its push. So a drain follows that
//!   takes out the leader's interrupt, and the follower's with it.
//!
//! If the leader or the follower reads a number too early, the two numbers differ, and the follower
//! makes a superfluous kick.
//!
//! # Happens-before
//!
//! A push (Release) is seen by the drain (Acquire), and through it everything before any push of
//! the same batch: later pushes are read-modify-writes, so they continue the release sequence.
//! Closing and opening are read-modify-writes of the same word.
//!
//! `batch` is stored (Release) before the drain's exchange of the head. If the leader's load
//! (Acquire) reads `n`, it therefore comes after the owner has seen the mail of batch `n - 1`, and
//! the leader's push comes after that mail in the head's order. The follower's push acquires the
//! head, and so everything that the owner counted before the batch of the follower's interrupt.
//!
//! Models: delivery_push, delivery_kick, delivery_stall, delivery_power.
//!
//! Progress: push is lock-free; drain, close and open are wait-free. The mail of a drain is
//! reversed and taken in one slice at a time.

#![allow(unsafe_code)] // The links of interrupts whose references the mailbox holds.

use core::ptr::{self, NonNull};

use crate::lockfree::irq::Irq;
use crate::lockfree::irq::refs::QueuedRef;
use crate::sync::{AtomicPtr, AtomicU64, FirstLook, Ordering, Recent, prefetch_write};

/// A mailbox.
#[repr(C)]
pub(crate) struct Mailbox {
    head: AtomicPtr<Irq>,
    /// The number of the batch that is being filled. Only the owner writes it.
    batch: AtomicU64,
    /// On the cache line that a push writes anyway. Without these hints the owner would wait for
    /// the lines of the posted interrupts one after another, each of which comes from another CPU.
    recent: Recent<Irq>,
    /// On a cache line of its own, which the owner does not touch: threads that push write and read
    /// it.
    kicked: Line<AtomicU64>,
}

/// A value that must not share a cache line with the fields before it.
#[repr(C, align(64))]
struct Line<T>(T);

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(core::mem::offset_of!(Mailbox, kicked) == 64);

/// The number of a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch(u64);

/// The result of a push.
pub(crate) enum Push {
    /// The interrupt is in, as the first of its batch. The caller kicks the owner, and then calls
    /// [`Mailbox::kicked`].
    First(Batch),
    /// The interrupt is in. It is not known whether the owner has been kicked, so the caller kicks.
    Unannounced,
    /// The interrupt is in, and the owner has been kicked.
    Announced,
    /// The mailbox is closed.
    Closed(QueuedRef),
}

/// The head of a closed mailbox: an address at which no interrupt can be.
fn closed() -> *mut Irq {
    ptr::without_provenance_mut(1)
}

impl Mailbox {
    /// Makes a closed mailbox.
    pub(crate) fn new() -> Self {
        Self {
            head: AtomicPtr::new(closed()),
            // Opening makes it 2. No thread has kicked for either number.
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
            // No ordering needed: a thread that is refused re-checks, after a fence
            // (`notify::Dispatcher::recheck_after_closed`).
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

    /// The result of a push that found other interrupts before it.
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

    /// Records that the owner has been kicked, by the thread that made the first push of this
    /// batch.
    #[inline]
    pub(crate) fn kicked(&self, batch: Batch) {
        // Release: pairs with `behind_others`. A store that comes late causes superfluous kicks.
        self.kicked.0.store(batch.0, Ordering::Release);
    }

    /// Begins another batch. The head is not null, so no push can be the first of a batch at this
    /// moment. For the owner.
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

    /// Takes everything out, into `mail`, which is empty. Returns whether there was something. For
    /// the owner.
    #[inline]
    pub(crate) fn drain(&self, mail: &mut Mail) -> bool {
        // Relaxed: a load that finds nothing takes nothing. The push that it missed is followed by
        // a kick, and the owner that was kicked does not miss it.
        let head = self.head.load(Ordering::Relaxed);
        if head.is_null() || head == closed() {
            return false;
        }
        if cfg!(mutant = "drain_in_two_steps") {
            // Seeded bug: loses a push between the two steps.
            self.head.store(ptr::null_mut(), Ordering::Release);
            mail.put(head);
            return true;
        }
        self.count_batch();
        // Acquire: pairs with `push`. The mailbox cannot be closed here: only the owner closes it.
        mail.put(self.head.swap(ptr::null_mut(), Ordering::AcqRel));
        true
    }

    /// Whether there is something to drain. For the owner.
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        // Acquire: for tests that look before they drain. See `drain` for why a missed push is
        // harmless.
        let head = self.head.load(Ordering::Acquire);
        !head.is_null() && head != closed()
    }

    pub(crate) fn is_closed(&self) -> bool {
        // Acquire: pairs with `open` and `close`. A caller that must not miss an `open` holds the
        // chain through the interrupt's state word (see
        // `notify::Dispatcher::recheck_after_closed`).
        self.head.load(Ordering::Acquire) == closed()
    }

    /// Opens a closed mailbox. For the owner, which scans for pending interrupts afterwards.
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

    /// Closes the mailbox and takes everything out, into `mail`, which is empty. For the owner.
    pub(crate) fn close(&self, mail: &mut Mail) {
        // AcqRel: as in `drain` for the mail, and pairs with `is_closed` and `push`.
        let head = self.head.swap(closed(), Ordering::AcqRel);
        mail.put(if head == closed() { ptr::null_mut() } else { head });
    }
}

/// Interrupts that were taken out of a mailbox, and that the vCPU has not taken in yet. The list is
/// reversed first: the mailbox has the newest on top, and the oldest goes first.
///
/// The interrupts that are left when this is dropped are withdrawn.
pub(crate) struct Mail {
    /// Newest first: not reversed yet.
    rest: *mut Irq,
    /// Oldest first.
    next: *mut Irq,
}

// SAFETY: the mailbox's references keep the interrupts. They are Send, and belong to this value.
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

    /// Reverses up to `most` of the mail, which comes from `mailbox`. Returns whether all of it is
    /// reversed.
    #[inline]
    pub(crate) fn turn(&mut self, most: usize, mailbox: &Mailbox) -> bool {
        for _ in 0..most {
            let Some(irq) = NonNull::new(self.rest) else { break };
            // SAFETY: the mailbox's reference keeps the interrupt alive, and is ours since the
            // drain.
            let link = unsafe { &irq.as_ref().link };
            // The cache line comes from the thread that posted the interrupt. The rest of the line
            // is written when the interrupt is claimed.
            prefetch_write(link);
            // Relaxed: acquired by the drain. No other thread uses the link while `QueuedRef`
            // exists.
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

/// Yields the reversed interrupts, oldest first.
impl Iterator for Mail {
    type Item = QueuedRef;

    #[inline]
    fn next(&mut self) -> Option<QueuedRef> {
        let irq = NonNull::new(self.next)?;
        // SAFETY: as in `turn`. The link is read before the reference is handed out: once that
        // reference ends, other threads may use the link.
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
