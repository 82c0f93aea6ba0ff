//! Retired objects, from the moment at which they are retired until their memory is freed.
//!
//! The life of one retired object has four stages.
//!
//! **Retirement.** The last reference of an LPI (or of a block of pending bits, or a device) goes
//! away, on any thread: on a vCPU's exit path as well as in a command. Or a tree node is emptied,
//! or a route gives its slot up. There and then, one push puts the object on the retired list, an
//! intrusive stack through a link of its own: no allocation, no system call.
//!
//! **Unlinking.** A thread on the control path collects ([`crate::lockfree::collect`]). It takes
//! the whole stack, and unlinks the objects that are still linked in their trees, a bounded number
//! at a time. (A look-up treats them as absent until then.) Then it begins a grace period for them.
//!
//! **Waiting.** A thread that was pinned when the grace period began may still be reading the
//! object.
//!
//! **Freeing.** When the grace period is over, later collections free the memory, a bounded number
//! at a time.
//!
//! So neither an injector nor a vCPU ever frees memory, allocates, or walks a tree when an object
//! is retired.
//!
//! Models: lifetime_tree, lifetime_refs, lifetime_handles.

#![allow(unsafe_code)] // A stack of pointers of several types, tagged.

use core::ptr::{self, NonNull};

use crate::lockfree::irq::Irq;
use crate::lockfree::map::radix::Node;
use crate::lockfree::msi::{Device, Hold};
use crate::lockfree::pending::block::Block;
use crate::sync::{AtomicPtr, CountUsize, FirstLook, Ordering};

/// A count for information and limits. It is exact when no other thread is changing it.
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

/// The number of allocated objects of each kind, retired ones included.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) irqs: Count,
    pub(crate) blocks: Count,
    pub(crate) devices: Count,
    pub(crate) nodes: Count,
    pub(crate) events: Count,
    /// LPIs that an event is mapped to. The other LPIs are retired, or in a mailbox or list
    /// register for the moment, or kept by a route.
    pub(crate) mapped: Count,
    /// LPIs that routes keep, each counted once for each of its routes.
    pub(crate) kept: Count,
    /// Retired objects that are not freed yet.
    pub(crate) garbage: Count,
    /// The retired objects that are LPIs.
    pub(crate) dead_irqs: Count,
    /// The bytes that will be free when the retired objects are freed ([`crate::lockfree::cost`]).
    pub(crate) dead_bytes: Count,
    /// The retired objects that give a device back when they are freed: devices, and slots that
    /// were held.
    pub(crate) dead_devices: Count,
    /// Bytes that other components keep beside the mappings
    /// ([`MsiControl::count_bytes`](crate::engine::MsiControl)).
    pub(crate) beside: Count,
    /// Bytes reserved for objects that are being made ([`crate::lockfree::cost`]).
    pub(crate) reserved: Count,
}

impl Counts {
    /// Counts an object that has just been retired.
    fn added(&self, object: &Retired) {
        self.garbage.add(1);
        self.dead_bytes.add(crate::lockfree::cost::of_retired(object));
        match object {
            Retired::Irq(_) => self.dead_irqs.add(1),
            Retired::Device(_) | Retired::Hold(_) => self.dead_devices.add(1),
            Retired::Node(_) | Retired::Block(_) => {}
        }
    }

    /// Counts a retired object as freed. Called after the freeing: while the object takes up room,
    /// the counts show that this is temporary.
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

/// A retired object.
#[derive(Clone, Copy)]
pub(crate) enum Retired {
    Irq(NonNull<Irq>),
    Node(NonNull<Node>),
    Block(NonNull<Block>),
    Device(NonNull<Device>),
    /// A slot that is no longer held. (A `Hold` has no reference count.)
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

    /// The link through which the object is chained. It is the holder's alone: no other thread
    /// links retired objects.
    fn link(&self) -> &AtomicPtr<()> {
        // SAFETY: retired objects stay allocated until they are freed from their chain.
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

/// The list of retired objects: a stack.
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
            // Release: pairs with the Acquire of `take`. Everything that was done to the object
            // comes before its collection.
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
    /// The caller unlinked the node, and is the only thread that did.
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

    /// Takes all the objects.
    pub(crate) fn take(&self) -> Chain {
        // Acquire: pairs with every `push` (the stack is a chain of read-modify-writes). No model
        // fails without it: the links are followed under a pin today, and its fence orders the
        // same.
        Chain(self.head.swap(ptr::null_mut(), Ordering::Acquire))
    }
}

/// Retired objects, linked: a stack.
pub(crate) struct Chain(*mut ());

// SAFETY: the links of the objects in a chain are the holder's alone. Readers only read the other
// fields.
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

    /// Takes one object out.
    pub(crate) fn pop(&mut self) -> Option<Retired> {
        let object = Retired::from_tagged(self.0)?;
        // Relaxed (here and below): acquired with the chain, and only its holder uses the links.
        self.0 = object.link().load(Ordering::Relaxed);
        Some(object)
    }

    /// Puts an object in that was taken out of a chain.
    pub(crate) fn push(&mut self, object: Retired) {
        object.link().store(self.0, Ordering::Relaxed);
        self.0 = object.tagged();
    }
}
