//! Blocks of pending bits: the bits of a range of LPI INTIDs, allocated while one of those LPIs
//! exists.
//!
//! Models: lifetime_tree, lifetime_refs.

#![allow(unsafe_code)] // `retire` passes a pointer on.

use core::ptr::{self, NonNull};

use crate::lockfree::pending::word::PendingBlock;
use crate::lockfree::reclaim::refcount::{Counted, RefCount};
use crate::lockfree::reclaim::retired::RetiredList;
use crate::sync::{AtomicPtr, Canary};

/// Pending bits with a reference count: one reference for each LPI object with a bit in this block,
/// until the memory of that object is freed.
pub(crate) struct Block {
    count: RefCount,
    /// Next in the retired list.
    pub(crate) link: AtomicPtr<()>,
    /// The key of the block in the tree of blocks.
    pub(crate) key: u64,
    retired: NonNull<RetiredList>,
    pub(crate) pending: PendingBlock,
    canary: Canary,
}

// SAFETY: everything in it is atomic or constant. The retired list outlives it (`new`) and is Sync.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Heap bytes of one block.
    pub(crate) const BYTES: usize = size_of::<Self>() + PendingBlock::LINE_BYTES;

    /// Makes a block with one reference, the caller's.
    ///
    /// # Safety
    /// `retired` must outlive the block.
    pub(crate) unsafe fn new(key: u64, retired: &RetiredList) -> Self {
        Self {
            count: RefCount::new(),
            link: AtomicPtr::new(ptr::null_mut()),
            key,
            retired: NonNull::from(retired),
            pending: PendingBlock::new(),
            canary: Canary::default(),
        }
    }

    /// Called once, right before the memory is freed.
    pub(crate) fn freed(&self) {
        self.canary.bury();
    }
}

impl Counted for Block {
    fn count(&self) -> &RefCount {
        self.canary.touch();
        &self.count
    }

    unsafe fn retire(this: NonNull<Self>) {
        // SAFETY: it is `DEAD` and not yet on the retired list, so it is the caller's alone. The
        // retired list outlives it.
        let retired = unsafe { this.as_ref().retired.as_ref() };
        retired.push_block(this);
    }
}
