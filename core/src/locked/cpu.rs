//! What a vCPU shares: its `ap_list`, and the request to look at it.

use std::collections::VecDeque;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::irq::{Irq, IrqState, SortKey};
use super::kref::IrqRef;
use super::spin::{SpinGuard, SpinLock};
use crate::arch::ids::{EPPI_BASE, Intid, PRIVATE_INTIDS, VcpuId};
use crate::engine::Gates;

/// In `Cpu::entries`: somebody waits for the end of the entry.
const WAITED: u64 = 1 << 63;

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
    /// What the VM forwards to it.
    pub(super) gates: Gates,
    /// What its guest has enabled at the CPU interface, as of the last flush.
    pub(super) groups: [bool; 2],
}

impl ApList {
    /// What is let through.
    pub(super) fn open_gates(&self) -> Gates {
        let groups = [0, 1].map(|g| self.gates.groups[g] && self.groups[g]);
        Gates { groups, ..self.gates }
    }
}

/// A vCPU, as others see it.
pub(super) struct Cpu {
    pub(super) ap_list: SpinLock<ApList>,
    /// Bit 0: the owner is requested to flush. Above it, a clock: it ticks with every change that asks for a place
    /// in line. One word, so that a change that does both costs one read-modify-write.
    word: AtomicU64,
    /// The clock at the last flush.
    last_flush: AtomicU64,
    /// Odd between a flush and the fold after it: what is in list registers, or active without one, is the guest's.
    entries: AtomicU64,
    /// INTIDs 0 to 31, then the extended PPIs.
    pub(super) private: Box<[IrqRef]>,
    /// Someone has the vCPU's interface.
    /// `gates.msis` of the `ap_list`, for who does not hold its lock.
    takes_msis: AtomicBool,
    taken: AtomicBool,
}

const REQUESTED: u64 = 1;
const TICK: u64 = 2;

impl Cpu {
    pub(super) fn new(me: VcpuId, eppis: u16) -> Self {
        Self {
            ap_list: SpinLock::new(ApList {
                list: VecDeque::new(),
                open: false,
                gates: Gates::OPEN,
                groups: [true; 2],
            }),
            word: AtomicU64::new(0),
            last_flush: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            private: (0..PRIVATE_INTIDS)
                .chain(EPPI_BASE..EPPI_BASE + u32::from(eppis))
                .map(|intid| Irq::wired(Intid(intid), me))
                .collect(),
            taken: AtomicBool::new(false),
            takes_msis: AtomicBool::new(Gates::OPEN.msis),
        }
    }

    /// The SGI or PPI of an INTID.
    pub(super) fn private(&self, intid: Intid) -> Option<&IrqRef> {
        let n = if intid.0 < PRIVATE_INTIDS {
            intid.0
        } else {
            intid.0.checked_sub(EPPI_BASE)? + PRIVATE_INTIDS
        };
        self.private.get(n as usize)
    }

    /// The list registers are about to become the guest's. Only for the owner, as [`Cpu::leave`] is.
    #[inline(always)]
    pub(super) fn enter(&self) {
        let entries = self.entries.load(Ordering::Relaxed);
        // While it is odd, others mark it.
        if entries & 1 == 0 {
            // Release, for `leave`'s sake. Whoever finds an interrupt in a list register took its lock after the flush did,
            // and so finds this, too.
            self.entries.store(entries + 1, Ordering::Release);
        }
    }

    /// What the guest did with the list registers has been taken back. Returns whether somebody waits for that, who is to be told.
    #[inline(always)]
    #[must_use]
    pub(super) fn leave(&self) -> bool {
        if self.entries.load(Ordering::Relaxed) & 1 == 0 {
            return false;
        }
        // A read-modify-write, as the mark of who waits is. Release: pairs with `has_left`.
        let waited = self.entries.fetch_add(1, Ordering::Release) & WAITED != 0;
        if waited {
            self.entries.fetch_and(!WAITED, Ordering::Relaxed);
        }
        waited
    }

    /// The number of the entry that is going on. The caller waits until it is over.
    pub(super) fn entry(&self) -> Option<u64> {
        let mark = |entry| (entry & 1 != 0).then_some(entry | WAITED);
        // Relaxed: see `enter`.
        let marked = self.entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, mark);
        marked.ok().map(|entry| entry & !WAITED)
    }

    /// Whether an entry is over.
    pub(super) fn has_left(&self, entry: u64) -> bool {
        // Acquire: pairs with `leave`.
        self.entries.load(Ordering::Acquire) & !WAITED != entry
    }

    /// Whether LPIs of this vCPU can become pending. Whoever has an LPI's lock and finds that they cannot comes before who clears what is pending.
    pub(super) fn takes_msis(&self) -> bool {
        // Acquire: pairs with `set_takes_msis`.
        self.takes_msis.load(Ordering::Acquire)
    }

    /// For who has changed the gates, and still holds the lock.
    pub(super) fn set_takes_msis(&self, takes: bool) {
        // Release: pairs with `takes_msis`.
        self.takes_msis.store(takes, Ordering::Release);
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
        if !state.active && !ap_list.open_gates().pass(state.group, state.intid.is_lpi()) {
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
