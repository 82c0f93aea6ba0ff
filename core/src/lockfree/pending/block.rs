//! The pending bits of a stretch of LPI INTIDs, allocated while one of them exists.

#![allow(unsafe_code)] // `bury` hands a pointer on.

use core::ptr::{self, NonNull};

use crate::lockfree::pending::word::PendingBlock;
use crate::lockfree::reclaim::refcount::{Counted, RefCount};
use crate::lockfree::reclaim::retired::RetiredList;
use crate::sync::{AtomicPtr, Canary};

/// Pending bits with a count: one reference for each LPI object whose bit is here, until its memory is freed.
pub(crate) struct Block {
    count: RefCount,
    /// Next in the retired.
    pub(crate) link: AtomicPtr<()>,
    /// Which block it is: its key in the tree of blocks.
    pub(crate) key: u64,
    retired: NonNull<RetiredList>,
    pub(crate) pending: PendingBlock,
    canary: Canary,
}

// SAFETY: everything in it is atomic or constant; the retired outlives it (`new`) and is Sync.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Heap bytes of one block.
    pub(crate) const BYTES: usize = size_of::<Self>() + PendingBlock::LINE_BYTES;

    /// With one reference, the caller's.
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
        // SAFETY: dead but not yet in the retired, so it is the caller's alone; the retired outlives it.
        let retired = unsafe { this.as_ref().retired.as_ref() };
        retired.push_block(this);
    }
}
