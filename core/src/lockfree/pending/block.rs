//! The pending bits of a stretch of LPI INTIDs, allocated while one of them exists.

#![allow(unsafe_code)] // `bury` hands a pointer on.

use core::ptr::{self, NonNull};

use crate::lockfree::pending::word::PendingBlock;
use crate::lockfree::reclaim::refcount::{Counted, RefCount};
use crate::lockfree::reclaim::retired::Graveyard;
use crate::sync::{AtomicPtr, Canary};

/// Pending bits with a count: one reference for each LPI object whose bit is here, until its memory is freed.
pub(crate) struct Block {
    count: RefCount,
    /// Next in the graveyard.
    pub(crate) link: AtomicPtr<()>,
    /// Which block it is: its key in the tree of blocks.
    pub(crate) key: u64,
    graveyard: NonNull<Graveyard>,
    pub(crate) pending: PendingBlock,
    canary: Canary,
}

// SAFETY: everything in it is atomic or constant; the graveyard outlives it (`new`) and is Sync.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Heap bytes of one block.
    pub(crate) const BYTES: usize = size_of::<Self>() + PendingBlock::LINE_BYTES;

    /// With one reference, the caller's.
    ///
    /// # Safety
    /// `graveyard` must outlive the block.
    pub(crate) unsafe fn new(key: u64, graveyard: &Graveyard) -> Self {
        Self {
            count: RefCount::new(),
            link: AtomicPtr::new(ptr::null_mut()),
            key,
            graveyard: NonNull::from(graveyard),
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

    unsafe fn bury(this: NonNull<Self>) {
        // SAFETY: dead but not yet in the graveyard, so it is the caller's alone; the graveyard outlives it.
        let graveyard = unsafe { this.as_ref().graveyard.as_ref() };
        graveyard.push_block(this);
    }
}
