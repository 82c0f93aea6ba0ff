//! A lock-free radix tree of pointers: INTID -> LPI, DeviceID -> device, EventID -> LPI, and block
//! of INTIDs -> block of pending bits.
//!
//! # The words
//!
//! A node has `SLOTS` slots and a count, `used`. A slot is null, or points to a child node, or on
//! the lowest level to a value. `used` counts the slots that are not null, plus the reservations of
//! threads that are about to fill one. When the last use is given back, the node is dead, which is
//! final; then it is unlinked from its parent and retired. The root is part of the tree and never
//! dies. So the tree's memory follows its contents.
//!
//! # Writers
//!
//! Any thread, under a pin. Before a thread fills a slot of a node, it reserves the node (`used +
//! 1`, unless dead), going hand over hand from the root. The reservation becomes the slot's count
//! if the thread fills the slot, and is given back otherwise. A thread that empties a slot gives
//! the slot's count back.
//!
//! # Happens-before
//!
//! A slot is filled by a Release compare-exchange and read with Acquire, so a reader sees the node
//! or value complete. A node or value that a reader has reached stays allocated until the reader
//! unpins: nodes are retired after they are unlinked, values by their own rules.
//!
//! Progress: look-up is wait-free (as many loads as there are levels), the rest is lock-free.
//!
//! Models: `lifetime_tree`.

#![allow(unsafe_code)] // Nodes and values are raw pointers that the pin keeps valid.

use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ops::ControlFlow;
use core::ptr::{self, NonNull};

use crate::lockfree::reclaim::Pin;
use crate::lockfree::reclaim::refcount::RefCount;
use crate::lockfree::reclaim::retired::{Counts, RetiredList};
use crate::sync::{AtomicPtr, Canary, FirstLook, MODEL, Ordering, free};

/// The number of key bits that one level consumes.
const BITS: u32 = if MODEL { 1 } else { 6 };
/// The number of slots of a node.
pub(crate) const SLOTS: usize = 1 << BITS;

/// One node. `()` in a slot stands for a node or a value, depending on the level.
pub(crate) struct Node {
    used: RefCount,
    /// The next object in the list of retired objects.
    pub(crate) link: AtomicPtr<()>,
    slots: [AtomicPtr<()>; SLOTS],
    canary: Canary,
}

impl Node {
    /// Makes a node with one use, which is the caller's.
    fn new() -> Self {
        Self {
            used: RefCount::new(),
            link: AtomicPtr::new(ptr::null_mut()),
            slots: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            canary: Canary::default(),
        }
    }

    fn slot(&self, key: u64, level: u32) -> &AtomicPtr<()> {
        self.canary.touch();
        let index = level.checked_mul(BITS).and_then(|shift| key.checked_shr(shift)).unwrap_or(0);
        &self.slots[index as usize & (SLOTS - 1)]
    }

    /// Counts one more use, unless the node is dead.
    fn reserve(&self) -> bool {
        self.canary.touch();
        self.used.try_get()
    }

    /// Gives a use back. Returns whether the caller has thereby made the node dead.
    fn unreserve(&self) -> bool {
        self.used.put()
    }

    /// Called once, right before the memory is freed.
    pub(crate) fn freed(&self) {
        self.canary.bury();
    }
}

/// The number of levels of a tree with keys of `key_bits` bits.
pub(crate) const fn levels(key_bits: u32) -> u32 {
    let levels = key_bits.div_ceil(BITS);
    if levels == 0 { 1 } else { levels }
}

/// A tree that maps keys below `2^key_bits` to `T`s, which it does not own.
pub(crate) struct Tree<T> {
    root: Node,
    levels: u32,
    key_bits: u32,
    counts: NonNull<Counts>,
    retired: NonNull<RetiredList>,
    _values: PhantomData<*mut T>,
}

// SAFETY: shared access goes through atomics; values are handed out as shared references, so T must
// be Sync, and may end up being freed by any thread, so T must be Send.
unsafe impl<T: Send + Sync> Send for Tree<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Tree<T> {}

/// A slot that stays where it is: see [`Tree::hold_slot`].
pub(crate) struct HeldSlot<T> {
    slot: NonNull<AtomicPtr<()>>,
    _value: PhantomData<*mut T>,
}

// SAFETY: an atomic word that leads to a shared `T`.
unsafe impl<T: Send + Sync> Send for HeldSlot<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for HeldSlot<T> {}

impl<T> HeldSlot<T> {
    /// The pointer in the slot. It is valid under a pin from before this call, or if the caller
    /// keeps the value by other means.
    ///
    /// # Safety
    /// The tree must still exist, and the slot must not have been released.
    #[inline(always)]
    pub(crate) unsafe fn load(&self) -> *mut T {
        // SAFETY: the node lives until the slot is released. Acquire: pairs with the
        // compare-exchange that filled the slot.
        unsafe { self.slot.as_ref() }.load(Ordering::Acquire).cast()
    }
}

impl<T> Tree<T> {
    /// An empty tree.
    ///
    /// # Safety
    /// `retired` and its counts must outlive the tree.
    pub(crate) unsafe fn new(key_bits: u32, retired: &RetiredList) -> Self {
        Self {
            root: Node::new(),
            levels: levels(key_bits),
            key_bits,
            counts: NonNull::from(&retired.counts),
            retired: NonNull::from(retired),
            _values: PhantomData,
        }
    }

    /// Whether the tree can hold `key`. The levels ignore the bits above their own.
    #[inline]
    fn has_key(&self, key: u64) -> bool {
        key.checked_shr(self.key_bits).unwrap_or(0) == 0
    }

    fn counts(&self) -> &Counts {
        // SAFETY: `new` requires them to outlive the tree.
        unsafe { self.counts.as_ref() }
    }

    /// The child node behind a slot of a node.
    fn child<'p>(&self, node: &'p Node, key: u64, level: u32, _pin: &'p Pin) -> Option<&'p Node> {
        // Acquire: pairs with the compare-exchange that filled the slot.
        let child = node.slot(key, level).load(Ordering::Acquire).cast::<Node>();
        // SAFETY: above level 0, slots hold nodes; a node that a pinned reader reaches stays
        // allocated.
        unsafe { child.as_ref() }
    }

    /// The child node behind a slot of a node, for a caller that is going to change the slot.
    fn child_to_change<'p>(
        &self,
        node: &'p Node,
        key: u64,
        level: u32,
        _pin: &'p Pin,
    ) -> Option<&'p Node> {
        // Acquire: as in `child`.
        let child = node.slot(key, level).first_look_acquire().cast::<Node>();
        // SAFETY: as in `child`.
        unsafe { child.as_ref() }
    }

    /// The value of `key`.
    #[inline]
    pub(crate) fn get<'p>(&'p self, key: u64, pin: &'p Pin) -> Option<&'p T> {
        let node = self.leaf(key, pin)?;
        // Acquire: pairs with the compare-exchange that filled the slot.
        let value = node.slot(key, 0).load(Ordering::Acquire).cast::<T>();
        // SAFETY: on level 0, slots hold values; a value that a pinned reader reaches stays
        // allocated.
        unsafe { value.as_ref() }
    }

    /// The value of `key`, for a caller that is going to change the slot.
    pub(crate) fn get_to_change<'p>(&'p self, key: u64, pin: &'p Pin) -> Option<&'p T> {
        // Acquire: as in `get`.
        let value = self.leaf(key, pin)?.slot(key, 0).first_look_acquire().cast::<T>();
        // SAFETY: as in `get`.
        unsafe { value.as_ref() }
    }

    /// Reserves the lowest node of `key`, which it makes if there is none.
    fn reserve_leaf<'p>(&'p self, key: u64, pin: &'p Pin) -> &'p Node {
        let mut node = &self.root;
        let _ = node.reserve();
        for level in (1..self.levels).rev() {
            node = self.reserve_child(node, key, level, pin);
        }
        node
    }

    /// Goes from a reserved node to its child, which it reserves. The node's reservation is given
    /// back, or becomes the count of the child's slot.
    fn reserve_child<'p>(&'p self, node: &'p Node, key: u64, level: u32, pin: &'p Pin) -> &'p Node {
        loop {
            match self.child_to_change(node, key, level, pin) {
                Some(child) if child.reserve() => {
                    // The child is alive, so it counts for a slot of `node`: this is not the last
                    // use.
                    let _ = node.unreserve();
                    return child;
                }
                Some(dead) => self.unlink(node, dead, key, level),
                None => {
                    let fresh = Box::into_raw(Box::new(Node::new()));
                    let slot = node.slot(key, level);
                    // Release: the child is seen complete.
                    let put = if cfg!(mutant = "node_made_twice") {
                        // Seeded bug: overwrites a node that another thread has put there.
                        Ok(slot.swap(fresh.cast(), Ordering::AcqRel))
                    } else {
                        slot.compare_exchange(
                            ptr::null_mut(),
                            fresh.cast(),
                            Ordering::AcqRel,
                            Ordering::Relaxed,
                        )
                    };
                    if put.is_ok() {
                        self.counts().nodes.add(1);
                        // SAFETY: just linked, and reserved by the count that it was made with.
                        return unsafe { &*fresh };
                    }
                    // SAFETY: never shared.
                    drop(unsafe { Box::from_raw(fresh) });
                }
            }
        }
    }

    /// Takes a dead child out of its parent, which the caller keeps from dying. Of all threads that
    /// try, one succeeds, and retires the child.
    fn unlink(&self, parent: &Node, dead: &Node, key: u64, level: u32) {
        let dead = ptr::from_ref(dead).cast_mut();
        // AcqRel: unlinked before it is retired.
        let slot = parent.slot(key, level);
        let cut = if cfg!(mutant = "unlink_by_swap") {
            // Seeded bug: also takes out a node that has replaced the dead one.
            slot.swap(ptr::null_mut(), Ordering::AcqRel) == dead.cast()
        } else {
            slot.compare_exchange(dead.cast(), ptr::null_mut(), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        if cut {
            // The slot's use. The caller has another, so this is not the last.
            let _ = parent.unreserve();
            // SAFETY: `retired` outlives the tree; this is the one thread that unlinked the node.
            unsafe { self.retired.as_ref().push_node(NonNull::new_unchecked(dead)) };
        }
    }

    /// Gives back a use of the lowest node of `key`, and prunes the nodes that are then empty.
    fn unreserve_leaf(&self, leaf: &Node, key: u64, pin: &Pin) {
        let mut dead = leaf;
        if ptr::eq(dead, &self.root) {
            let _ = dead.unreserve();
            return;
        }
        while dead.unreserve() {
            // Find the parent, then keep it alive. If the walk ends early, another thread has
            // unlinked the node.
            let mut parent = &self.root;
            let mut level = self.levels - 1;
            loop {
                match self.child_to_change(parent, key, level, pin) {
                    Some(child) if ptr::eq(child, dead) => break,
                    Some(child) if level > 1 => (parent, level) = (child, level - 1),
                    _ => return,
                }
            }
            if !cfg!(mutant = "prune_without_reserve") && !parent.reserve() {
                // The parent is dead, so it has no child: the node is unlinked already.
                return;
            }
            self.unlink(parent, dead, key, level);
            if ptr::eq(parent, &self.root) {
                let _ = parent.unreserve();
                return;
            }
            dead = parent;
        }
    }

    /// Inserts a value for a key that has none.
    ///
    /// # Errors
    /// `Err` if the key has a value, even the same one.
    ///
    /// # Safety
    /// The value must stay allocated until it is removed, and then for as long as any pin that
    /// could see it.
    pub(crate) unsafe fn insert(&self, key: u64, value: NonNull<T>, pin: &Pin) -> Result<(), ()> {
        let leaf = self.reserve_leaf(key, pin);
        // Release: the value is seen complete.
        let put = leaf.slot(key, 0).compare_exchange(
            ptr::null_mut(),
            value.as_ptr().cast(),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if put.is_err() {
            self.unreserve_leaf(leaf, key, pin);
            return Err(());
        }
        Ok(())
    }

    /// Replaces `old` by `new`. Returns whether `old` was there.
    ///
    /// # Safety
    /// As for [`Tree::insert`]; and `old` must be protected by the pin.
    pub(crate) unsafe fn replace(
        &self,
        key: u64,
        old: NonNull<T>,
        new: NonNull<T>,
        pin: &Pin,
    ) -> bool {
        self.exchange(key, old, new.as_ptr(), pin).is_some()
    }

    /// Removes a value. Returns whether it was there.
    pub(crate) fn remove(&self, key: u64, value: NonNull<T>, pin: &Pin) -> bool {
        match self.exchange(key, value, ptr::null_mut(), pin) {
            Some(leaf) => {
                self.unreserve_leaf(leaf, key, pin);
                true
            }
            None => false,
        }
    }

    /// The lowest node of `key`, if it exists.
    #[inline]
    fn leaf<'p>(&'p self, key: u64, pin: &'p Pin) -> Option<&'p Node> {
        if !self.has_key(key) {
            return None;
        }
        let mut node = &self.root;
        for level in (1..self.levels).rev() {
            node = self.child(node, key, level, pin)?;
        }
        Some(node)
    }

    /// Replaces `old` by `new` in the slot of `key`. Returns the leaf if the slot held `old`.
    fn exchange<'p>(
        &'p self,
        key: u64,
        old: NonNull<T>,
        new: *mut T,
        pin: &'p Pin,
    ) -> Option<&'p Node> {
        let node = self.leaf(key, pin)?;
        // AcqRel: a new value is seen complete; an old one is unlinked before its grace period
        // begins.
        node.slot(key, 0)
            .compare_exchange(old.as_ptr().cast(), new.cast(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then_some(node)
    }

    /// Keeps the slot of `key` where it is until [`Tree::release_slot`].
    pub(crate) fn hold_slot(&self, key: u64, pin: &Pin) -> HeldSlot<T> {
        // The reservation keeps the node alive, and so the nodes above it.
        let leaf = self.reserve_leaf(key, pin);
        if cfg!(mutant = "held_slot_not_held") {
            self.unreserve_leaf(leaf, key, pin);
        }
        HeldSlot { slot: NonNull::from(leaf.slot(key, 0)), _value: PhantomData }
    }

    /// Gives back the reservation that [`Tree::hold_slot`] made.
    pub(crate) fn release_slot(&self, key: u64, pin: &Pin) {
        if let Some(leaf) = self.leaf(key, pin) {
            self.unreserve_leaf(leaf, key, pin);
        }
    }

    /// Calls `f` with every key and value, in ascending order of the keys.
    pub(crate) fn for_each<'p>(&'p self, pin: &'p Pin, f: &mut dyn FnMut(u64, &'p T)) {
        let _ = self.for_each_from(0, pin, &mut |key, value| {
            f(key, value);
            ControlFlow::Continue(())
        });
    }

    /// Calls `f` with every key from `from` up and its value, in ascending order, until `f` breaks.
    pub(crate) fn for_each_from<'p>(
        &'p self,
        from: u64,
        pin: &'p Pin,
        f: &mut dyn FnMut(u64, &'p T) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let _ = pin; // the values have the pin's lifetime
        self.visit(&self.root, self.levels - 1, 0, from, f)
    }

    /// Visits the keys of `node` for [`Tree::for_each_from`]. `level` counts from the leaves. All
    /// keys of `node` have `prefix` above their lowest `BITS * (level + 1)` bits.
    fn visit<'p>(
        &'p self,
        node: &'p Node,
        level: u32,
        prefix: u64,
        from: u64,
        f: &mut dyn FnMut(u64, &'p T) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        node.canary.touch();
        // The first slot that can have a key of `from` or above.
        let first = (from >> (BITS * level)).saturating_sub(prefix << BITS) as usize;
        for (i, slot) in node.slots.iter().enumerate().skip(first) {
            // Acquire: pairs with the compare-exchange that filled the slot.
            let p = slot.load(Ordering::Acquire);
            if p.is_null() {
                continue;
            }
            let key = prefix << BITS | i as u64;
            if level == 0 {
                // SAFETY: as in `get`.
                f(key, unsafe { &*p.cast::<T>() })?;
            } else {
                // SAFETY: as in `child`.
                self.visit(unsafe { &*p.cast::<Node>() }, level - 1, key, from, f)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Empties the tree, which no other thread uses, and passes every value to `f`.
    pub(crate) fn clear(&mut self, f: &mut dyn FnMut(NonNull<T>)) {
        let levels = self.levels;
        let mut freed = 0;
        Self::clear_node(&self.root, levels - 1, f, &mut freed);
        self.counts().nodes.sub(freed);
    }

    fn clear_node(node: &Node, level: u32, f: &mut dyn FnMut(NonNull<T>), freed: &mut usize) {
        for slot in &node.slots {
            // Relaxed: no other thread uses the tree (see `clear`).
            let Some(p) = NonNull::new(slot.swap(ptr::null_mut(), Ordering::Relaxed)) else {
                continue;
            };
            if level == 0 {
                f(p.cast());
            } else {
                // SAFETY: above level 0, slots hold boxed nodes, which no other thread uses.
                let child = unsafe { Box::from_raw(p.cast::<Node>().as_ptr()) };
                Self::clear_node(&child, level - 1, f, freed);
                child.freed();
                free(child);
                *freed += 1;
            }
        }
    }
}

impl<T> Drop for Tree<T> {
    fn drop(&mut self) {
        self.clear(&mut |_| ());
    }
}
