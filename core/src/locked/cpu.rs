//! What a vCPU shares: its `ap_list`, and the request to look at it.

use std::collections::VecDeque;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::irq::{Irq, IrqState, SortKey};
use super::kref::IrqRef;
use super::spin::{SpinGuard, SpinLock};
use crate::ids::{Intid, PRIVATE_INTIDS, VcpuId};

/// An interrupt on an `ap_list`, which holds a reference to it.
pub(super) struct Listed {
    pub(super) irq: IrqRef,
    /// Of the last flush.
    pub(super) key: SortKey,
}

/// What the `ap_list_lock` protects.
pub(super) struct ApList {
    /// Anyone adds at the end. Only the vCPU's owner removes and sorts, so that what is in list registers
    /// stays in front, in the order of the list registers, from a flush to the fold.
    pub(super) list: VecDeque<Listed>,
    /// Powered on.
    pub(super) open: bool,
    /// GICR_CTLR.EnableLPIs.
    pub(super) lpis_enabled: bool,
}

/// A vCPU, as others see it.
pub(super) struct Cpu {
    pub(super) ap_list: SpinLock<ApList>,
    /// Bit 0: the owner is requested to flush. Above it, a clock: it ticks with every change that asks for a place
    /// in line. One word, so that a change that does both costs one read-modify-write.
    word: AtomicU64,
    /// The clock at the last flush.
    last_flush: AtomicU64,
    /// INTIDs 0 to 31.
    pub(super) private: Box<[IrqRef]>,
    /// Someone has the vCPU's interface.
    taken: AtomicBool,
}

const REQUESTED: u64 = 1;
const TICK: u64 = 2;

impl Cpu {
    pub(super) fn new(me: VcpuId) -> Self {
        Self {
            ap_list: SpinLock::new(ApList {
                list: VecDeque::new(),
                open: false,
                lpis_enabled: true,
            }),
            word: AtomicU64::new(0),
            last_flush: AtomicU64::new(0),
            private: (0..PRIVATE_INTIDS).map(|intid| Irq::wired(Intid(intid), me)).collect(),
            taken: AtomicBool::new(false),
        }
    }

    /// Makes the caller the one holder of the interface; fails if there is one.
    pub(super) fn take_interface(&self) -> bool {
        // Acquire: pairs with `return_interface`.
        !self.taken.swap(true, Ordering::Acquire)
    }

    pub(super) fn return_interface(&self) {
        // Release: pairs with `take_interface`.
        self.taken.store(false, Ordering::Release);
    }

    /// The clock at the last flush: what is stamped later has not been taken in yet.
    #[inline(always)]
    pub(super) fn last_flush(&self) -> u64 {
        // Relaxed, here and below: the clock orders those who wait, and no memory.
        self.last_flush.load(Ordering::Relaxed)
    }

    /// A new stamp.
    pub(super) fn tick(&self) -> u64 {
        self.word.fetch_add(TICK, Ordering::Relaxed) / TICK + 1
    }

    /// Requests a flush because `irq` has changed. Returns whether a kick is due: whoever made an earlier request
    /// since the last flush has kicked.
    #[inline(always)]
    #[must_use = "the vCPU must be kicked"]
    pub(super) fn request(&self, irq: &mut IrqState) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let new = (word + TICK) | REQUESTED;
            // AcqRel: pairs with `take_request`. If that comes after this, its caller sees the change when it
            // takes the lock that the caller of this holds; if it comes before, this finds no request, and a kick is due.
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        if irq.changed <= self.last_flush() {
            irq.changed = word / TICK + 1;
        }
        word & REQUESTED == 0
    }

    /// Requests a flush because of a change that is no single interrupt's. Returns whether a kick is due.
    #[must_use = "the vCPU must be kicked"]
    pub(super) fn request_review(&self) -> bool {
        // AcqRel: as in `request`.
        self.word.fetch_or(REQUESTED, Ordering::AcqRel) & REQUESTED == 0
    }

    /// Begins a flush: whatever changes from now on requests another. Returns whether this one was requested.
    #[inline(always)]
    pub(super) fn take_request(&self) -> bool {
        // AcqRel: pairs with `request`.
        let word = self.word.fetch_and(!REQUESTED, Ordering::AcqRel);
        self.last_flush.store(word / TICK, Ordering::Relaxed);
        word & REQUESTED != 0
    }

    /// Whether a flush is requested.
    pub(super) fn is_requested(&self) -> bool {
        // Acquire: pairs with `request`.
        self.word.load(Ordering::Acquire) & REQUESTED != 0
    }

    /// Puts an interrupt at the end of the list, if the vCPU takes it, and requests a flush. Returns whether a kick is due.
    #[inline(always)]
    pub(super) fn enlist(
        &self,
        mut ap_list: SpinGuard<'_, ApList>,
        irq: &IrqRef,
        mut state: SpinGuard<'_, IrqState>,
    ) -> bool {
        if !ap_list.open {
            return false;
        }
        if state.intid.is_lpi() && !ap_list.lpis_enabled {
            state.note_change(self);
            return false;
        }
        let kick = self.request(&mut state);
        state.enlist();
        drop(state);
        // The reference that is dropped when the interrupt is pruned from the list.
        ap_list.list.push_back(Listed { irq: irq.clone(), key: SortKey::NONE });
        kick
    }
}
