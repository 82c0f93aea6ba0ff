//! What is dead, from the moment it becomes so until its memory is freed.
//!
//! The life of one piece of garbage:
//!
//! **Death.** The last reference of an LPI (or of a block of pending bits, or a device) goes away, anywhere: on a
//! vCPU's exit path as well as in a command. Or a tree node is emptied. There and then, one push puts it
//! on the retired, an intrusive stack through a link of its own: no allocation, no system call.
//!
//! **Burial.** A thread on the control path collects ([`crate::lockfree::collect`]): takes the whole stack, unlinks from
//! their trees what is still linked there (a look-up treats the dead as absent meanwhile), a bounded number at a
//! time, and begins a grace period for those.
//!
//! **Waiting.** A thread that was pinned when the grace period began may still be looking at it.
//!
//! **Freeing.** When the grace period is over, later collections free the memory, a bounded number at a time.
//!
//! So neither an injector nor a vCPU ever frees, allocates or walks a tree on somebody's death.

#![allow(unsafe_code)] // A stack of pointers of several types, tagged.

use core::ptr::{self, NonNull};

use crate::lockfree::irq::Irq;
use crate::lockfree::map::radix::Node;
use crate::lockfree::msi::{Device, Hold};
use crate::lockfree::pending::block::Block;
use crate::sync::{AtomicPtr, CountUsize, FirstLook, Ordering};

/// A count for information and limits: exact when nothing else is going on.
#[derive(Default)]
pub(crate) struct Count(CountUsize);

impl Count {
    pub(crate) fn add(&self, n: usize) {
        // Relaxed (here and below): a number; nothing is published through it.
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, n: usize) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds one, unless `limit` is reached.
    pub(crate) fn add_below(&self, limit: usize) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1))
            .is_ok()
    }
}

/// How many objects of each kind are allocated, the dead included.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) irqs: Count,
    pub(crate) blocks: Count,
    pub(crate) devices: Count,
    pub(crate) nodes: Count,
    pub(crate) events: Count,
    /// LPIs that an event is mapped to. The other ones are dead, or in a mailbox or list register for the moment, or kept
    /// by a route.
    pub(crate) mapped: Count,
    /// LPIs that routes keep, each counted for each of its routes.
    pub(crate) kept: Count,
    /// Dead objects that are not freed yet.
    pub(crate) garbage: Count,
    /// Those of them that are LPIs.
    pub(crate) dead_irqs: Count,
    /// What will be free when they are ([`crate::lockfree::cost`]).
    pub(crate) dead_bytes: Count,
    /// Those of them whose end gives a device back: devices, and slots that were held.
    pub(crate) dead_devices: Count,
    /// Bytes that others keep beside the mappings ([`MsiControl::count_bytes`](crate::engine::MsiControl)).
    pub(crate) beside: Count,
    /// Bytes of what is being made ([`crate::lockfree::cost`]).
    pub(crate) reserved: Count,
}

impl Counts {
    /// A dead object has come into the retired.
    fn added(&self, object: &Retired) {
        self.garbage.add(1);
        self.dead_bytes.add(crate::lockfree::cost::of_retired(object));
        match object {
            Retired::Irq(_) => self.dead_irqs.add(1),
            Retired::Device(_) | Retired::Hold(_) => self.dead_devices.add(1),
            Retired::Node(_) | Retired::Block(_) => {}
        }
    }

    /// A dead object has been freed. Not before: as long as it takes up room, it can be seen that this passes.
    pub(crate) fn freed(&self, object: &Retired) {
        self.garbage.sub(1);
        self.dead_bytes.sub(crate::lockfree::cost::of_retired(object));
        match object {
            Retired::Irq(_) => self.dead_irqs.sub(1),
            Retired::Device(_) | Retired::Hold(_) => self.dead_devices.sub(1),
            Retired::Node(_) | Retired::Block(_) => {}
        }
    }
}

/// A dead object.
#[derive(Clone, Copy)]
pub(crate) enum Retired {
    Irq(NonNull<Irq>),
    Node(NonNull<Node>),
    Block(NonNull<Block>),
    Device(NonNull<Device>),
    /// Not dead itself: a slot that is no longer held.
    Hold(NonNull<Hold>),
}

const TAGS: usize = 7;

impl Retired {
    fn tagged(self) -> *mut () {
        let (p, tag) = match self {
            Self::Irq(p) => (p.cast::<()>(), 0),
            Self::Node(p) => (p.cast(), 1),
            Self::Block(p) => (p.cast(), 2),
            Self::Device(p) => (p.cast(), 3),
            Self::Hold(p) => (p.cast(), 4),
        };
        // All are aligned to at least 8 bytes.
        p.as_ptr().map_addr(|a| a | tag)
    }

    fn from_tagged(p: *mut ()) -> Option<Self> {
        let (tag, p) = (p.addr() & TAGS, NonNull::new(p.map_addr(|a| a & !TAGS))?);
        Some(match tag {
            0 => Self::Irq(p.cast()),
            1 => Self::Node(p.cast()),
            2 => Self::Block(p.cast()),
            3 => Self::Device(p.cast()),
            _ => Self::Hold(p.cast()),
        })
    }

    /// The link through which it is chained. It is the holder's alone: nobody else links the dead.
    fn link(&self) -> &AtomicPtr<()> {
        // SAFETY: dead objects stay allocated until they are freed from their chain.
        unsafe {
            match self {
                // A pointer to a different type behind an atomic pointer of the same layout.
                Self::Irq(p) => &*ptr::from_ref(&p.as_ref().link).cast::<AtomicPtr<()>>(),
                Self::Node(p) => &p.as_ref().link,
                Self::Block(p) => &p.as_ref().link,
                Self::Device(p) => &p.as_ref().link,
                Self::Hold(p) => &p.as_ref().link,
            }
        }
    }
}

/// The stack of the dead.
pub(crate) struct RetiredList {
    head: AtomicPtr<()>,
    pub(crate) counts: Counts,
}

impl RetiredList {
    pub(crate) fn new() -> Self {
        Self { head: AtomicPtr::new(ptr::null_mut()), counts: Counts::default() }
    }

    fn push(&self, object: Retired) {
        self.counts.added(&object);
        let mut head = self.head.first_look();
        loop {
            // Relaxed: published by the compare-exchange.
            object.link().store(head, Ordering::Relaxed);
            // Release: pairs with the Acquire of `take`: what was done to the object comes before its burial.
            match self.head.compare_exchange_weak(
                head,
                object.tagged(),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    pub(crate) fn push_irq(&self, irq: NonNull<Irq>) {
        self.push(Retired::Irq(irq));
    }

    /// # Safety
    /// The caller unlinked the node, and is the only one who did.
    pub(crate) unsafe fn push_node(&self, node: NonNull<Node>) {
        self.push(Retired::Node(node));
    }

    pub(crate) fn push_block(&self, block: NonNull<Block>) {
        self.push(Retired::Block(block));
    }

    pub(crate) fn push_hold(&self, hold: NonNull<Hold>) {
        self.push(Retired::Hold(hold));
    }

    pub(crate) fn push_device(&self, device: NonNull<Device>) {
        self.push(Retired::Device(device));
    }

    /// Takes all of it.
    pub(crate) fn take(&self) -> Chain {
        // Acquire: pairs with `push`, all of them (the stack is a chain of read-modify-writes). No model misses it: the links are
        // followed under a pin today, and its fence orders the same.
        Chain(self.head.swap(ptr::null_mut(), Ordering::Acquire))
    }
}

/// Dead objects, linked: a stack.
pub(crate) struct Chain(*mut ());

// SAFETY: the links of the objects of a chain are its holder's alone; readers only look at the rest of them.
unsafe impl Send for Chain {}

impl Default for Chain {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Chain {
    pub(crate) const EMPTY: Self = Self(ptr::null_mut());

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_null()
    }

    /// Takes one out.
    pub(crate) fn pop(&mut self) -> Option<Retired> {
        let object = Retired::from_tagged(self.0)?;
        // Relaxed (here and below): acquired with the chain, and only its holder uses the links.
        self.0 = object.link().load(Ordering::Relaxed);
        Some(object)
    }

    /// Puts one in that was taken out of a chain.
    pub(crate) fn push(&mut self, object: Retired) {
        object.link().store(self.0, Ordering::Relaxed);
        self.0 = object.tagged();
    }
}
