//! The shared side of a vCPU: its `ap_list`, and the request to flush.

use std::collections::VecDeque;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::irq::{Irq, IrqState, SortKey};
use super::kref::IrqRef;
use super::spin::{SpinGuard, SpinLock};
use crate::arch::ids::{EPPI_BASE, Intid, PRIVATE_INTIDS, VcpuId};
use crate::engine::Gates;

/// In `Cpu::entries`: a thread waits for the end of the entry.
const WAITED: u64 = 1 << 63;

/// An interrupt on an `ap_list`, which holds a reference to it.
pub(super) struct Listed {
    pub(super) irq: IrqRef,
    /// The sort key as of the last flush.
    pub(super) key: SortKey,
}

/// The state that the `ap_list_lock` protects.
pub(super) struct ApList {
    /// Any thread adds at the end. Only the vCPU's owner removes and sorts, so the interrupts in
    /// list registers stay in front, in the order of the list registers, from a flush to the fold.
    pub(super) list: VecDeque<Listed>,
    /// The vCPU is powered on.
    pub(super) open: bool,
    /// The interrupts that the VM forwards to the vCPU.
    pub(super) gates: Gates,
    /// The groups that the guest has enabled at the CPU interface, as of the last flush.
    pub(super) groups: [bool; 2],
}

impl ApList {
    /// Returns the interrupts that both the VM and the guest let through.
    pub(super) fn open_gates(&self) -> Gates {
        let groups = [0, 1].map(|g| self.gates.groups[g] && self.groups[g]);
        Gates { groups, ..self.gates }
    }
}

/// The part of a vCPU that all threads see.
pub(super) struct Cpu {
    pub(super) ap_list: SpinLock<ApList>,
    /// Bit 0: a flush by the owner is requested. The other bits are a clock, which ticks with every
    /// change that needs a place in a FIFO. They share one word, so that a change that does both
    /// costs one read-modify-write.
    word: AtomicU64,
    /// The clock at the last flush.
    last_flush: AtomicU64,
    /// Odd between a flush and the fold after it: the guest owns the interrupts in list registers,
    /// and the active ones without.
    entries: AtomicU64,
    /// The interrupts with INTIDs 0 to 31, followed by the extended PPIs.
    pub(super) private: Box<[IrqRef]>,
    /// A copy of `gates.msis` of the `ap_list`, for threads that do not hold its lock.
    takes_msis: AtomicBool,
    /// A handle has the vCPU's interface.
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

    /// Returns the SGI or PPI of an INTID.
    pub(super) fn private(&self, intid: Intid) -> Option<&IrqRef> {
        let n = if intid.0 < PRIVATE_INTIDS {
            intid.0
        } else {
            intid.0.checked_sub(EPPI_BASE)? + PRIVATE_INTIDS
        };
        self.private.get(n as usize)
    }

    /// Begins an entry: the list registers are about to become the guest's. Only the owner may call
    /// this, and [`Cpu::leave`].
    #[inline(always)]
    pub(super) fn enter(&self) {
        let entries = self.entries.load(Ordering::Relaxed);
        // Other threads mark the count only while it is odd, so a plain store is enough.
        if entries & 1 == 0 {
            // Release, for `leave`'s sake: `has_left` may read this store instead of `leave`'s. A
            // thread that finds an interrupt in a list register took its lock after the flush did,
            // and so sees this store, too.
            self.entries.store(entries + 1, Ordering::Release);
        }
    }

    /// Ends an entry: the guest's changes to the list registers have been taken back. Returns
    /// whether a thread waits for that, and is to be told.
    #[inline(always)]
    #[must_use]
    pub(super) fn leave(&self) -> bool {
        if self.entries.load(Ordering::Relaxed) & 1 == 0 {
            return false;
        }
        // This is a read-modify-write, as a waiter's mark is. Release: pairs with `has_left`.
        let waited = self.entries.fetch_add(1, Ordering::Release) & WAITED != 0;
        if waited {
            self.entries.fetch_and(!WAITED, Ordering::Relaxed);
        }
        waited
    }

    /// Marks the present entry as one that the caller waits for, and returns its number. `None`:
    /// the vCPU is not in the guest.
    pub(super) fn entry(&self) -> Option<u64> {
        let mark = |entry| (entry & 1 != 0).then_some(entry | WAITED);
        // Relaxed: see `enter`.
        let marked = self.entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, mark);
        marked.ok().map(|entry| entry & !WAITED)
    }

    /// Whether entry number `entry` is over.
    pub(super) fn has_left(&self, entry: u64) -> bool {
        // Acquire: pairs with `leave`.
        self.entries.load(Ordering::Acquire) & !WAITED != entry
    }

    /// Whether LPIs of this vCPU can become pending. After this becomes false, a thread that still
    /// reads `true` under an LPI's lock comes before the thread that reads `false` under the same
    /// lock and clears the LPI's pending state. So the LPI does not stay pending.
    pub(super) fn takes_msis(&self) -> bool {
        // Acquire: pairs with `set_takes_msis`.
        self.takes_msis.load(Ordering::Acquire)
    }

    /// Sets the copy of `gates.msis`. The caller has changed the gates, and still holds the lock.
    pub(super) fn set_takes_msis(&self, takes: bool) {
        // Release: pairs with `takes_msis`.
        self.takes_msis.store(takes, Ordering::Release);
    }

    /// Makes the caller the one holder of the interface. Returns false if there is a holder
    /// already.
    pub(super) fn take_interface(&self) -> bool {
        // Acquire: pairs with `return_interface`.
        !self.taken.swap(true, Ordering::Acquire)
    }

    pub(super) fn return_interface(&self) {
        // Release: pairs with `take_interface`.
        self.taken.store(false, Ordering::Release);
    }

    /// Returns the clock at the last flush. A change with a later stamp has not been taken in yet.
    #[inline(always)]
    pub(super) fn last_flush(&self) -> u64 {
        // Relaxed, here and below: the clock orders the interrupts that wait, and no memory.
        self.last_flush.load(Ordering::Relaxed)
    }

    /// Returns a new stamp of the clock.
    pub(super) fn tick(&self) -> u64 {
        self.word.fetch_add(TICK, Ordering::Relaxed) / TICK + 1
    }

    /// Requests a flush because `irq` has changed. Returns whether a kick is due. None is due if
    /// there is an earlier request since the last flush: its requester has kicked.
    #[inline(always)]
    #[must_use = "the vCPU must be kicked"]
    pub(super) fn request(&self, irq: &mut IrqState) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let new = (word + TICK) | REQUESTED;
            // AcqRel: pairs with `take_request`. If `take_request` comes after this, the flush sees
            // the change when it takes the lock that the caller of this holds. If it comes before,
            // this finds no request, and a kick is due.
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

    /// Requests a flush because of a change that is not of a single interrupt. Returns whether a
    /// kick is due.
    #[must_use = "the vCPU must be kicked"]
    pub(super) fn request_review(&self) -> bool {
        // AcqRel: as in `request`.
        self.word.fetch_or(REQUESTED, Ordering::AcqRel) & REQUESTED == 0
    }

    /// Begins a flush: any change from now on requests another flush. Returns whether this one was
    /// requested.
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

    /// Adds an interrupt to the end of the list, if the vCPU takes it, and requests a flush.
    /// Returns whether a kick is due.
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
        // This reference is put when the interrupt is pruned from the list.
        ap_list.list.push_back(Listed { irq: irq.clone(), key: SortKey::NONE });
        kick
    }
}
