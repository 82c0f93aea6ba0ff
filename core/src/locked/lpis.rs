//! The LPIs of a VM by INTID. Only the control side uses this table: an injection finds its LPI
//! through the event.

#![allow(unsafe_code)] // Slots are pointers that are valid as long as they are in the table.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::irq::Irq;
use super::kref::{IrqRef, Slot};
use crate::arch::ids::{Intid, LPI_BASE, VcpuId};
use crate::engine::Error;

/// The table of LPIs. It does not keep its LPIs alive: an LPI removes itself when its last
/// reference is dropped.
pub(super) struct LpiTable {
    slots: Mutex<Slots>,
    /// The number of INTIDs.
    intids: u32,
    /// The largest number of LPIs that may exist.
    max: usize,
    /// The number of LPIs that an event is mapped to.
    mapped: AtomicUsize,
}

#[derive(Default)]
struct Slots {
    /// At most one entry for each INTID. Its LPI may be one that is losing its last reference.
    by_intid: BTreeMap<Intid, Slot>,
    /// The number of LPIs that exist. Some may have no entry, because their INTID has been mapped
    /// again.
    live: usize,
}

/// The number of LPIs that a walk looks up at a time. It bounds the time that other threads wait
/// for the table's lock.
const BATCH: usize = 64;

impl Slots {
    fn get(&self, intid: Intid) -> Option<IrqRef> {
        // SAFETY: the slot is in the table, and the table is locked: there are no other `&Slots`.
        unsafe { self.by_intid.get(&intid)?.get() }
    }

    /// Adds references to the next LPIs to `batch`. Returns the INTID to continue from, or `None`
    /// at the end.
    fn get_batch(&self, from: Intid, batch: &mut Vec<IrqRef>) -> Option<Intid> {
        let mut next = None;
        for (&intid, slot) in self.by_intid.range(from..).take(BATCH) {
            // SAFETY: as in `get`.
            batch.extend(unsafe { slot.get() });
            next = Some(Intid(intid.0 + 1));
        }
        next
    }
}

impl LpiTable {
    pub(super) fn new(intids: u32, max: u32) -> Arc<Self> {
        let mapped = AtomicUsize::new(0);
        Arc::new(Self { slots: Mutex::default(), intids, max: max as usize, mapped })
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // No code under this lock panics half-way.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mapped(&self) -> usize {
        // Relaxed, here and below: the number publishes nothing.
        self.mapped.load(Ordering::Relaxed)
    }

    /// Counts one more mapped LPI.
    pub(super) fn add_mapped(&self) {
        self.mapped.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one mapped LPI less.
    pub(super) fn drop_mapped(&self) {
        self.mapped.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn check(&self, intid: Intid) -> Result<(), Error> {
        match intid.0.checked_sub(LPI_BASE) {
            Some(n) if n < self.intids => Ok(()),
            _ => Err(Error::IntidRange(intid)),
        }
    }

    /// Returns the LPI of an INTID.
    pub(super) fn get(&self, intid: Intid) -> Option<IrqRef> {
        self.lock().get(intid)
    }

    /// Returns the LPI of an INTID, and makes it if there is none.
    pub(super) fn get_or_make(
        self: &Arc<Self>,
        intid: Intid,
        target: VcpuId,
    ) -> Result<IrqRef, Error> {
        let mut slots = self.lock();
        if let Some(irq) = slots.get(intid) {
            return Ok(irq);
        }
        if slots.live >= self.max {
            // LPIs that are not mapped stay on a vCPU's list only until that vCPU prunes them: the
            // shortage passes.
            let passes = self.mapped() < self.max;
            return Err(if passes { Error::TooMuchGarbage } else { Error::TooManyLpis });
        }
        let irq = Irq::lpi(intid, target, self);
        slots.by_intid.insert(intid, irq.slot());
        slots.live += 1;
        Ok(irq)
    }

    /// Removes the LPI of `slot`, after its last reference has been dropped.
    pub(super) fn release(&self, intid: Intid, slot: &Slot) {
        let mut slots = self.lock();
        slots.live -= 1;
        // The INTID may have been mapped again already. The entry then belongs to the new LPI, and
        // stays.
        if slots.by_intid.get(&intid) == Some(slot) {
            slots.by_intid.remove(&intid);
        }
    }

    /// Passes every LPI to `f`, in the order of the INTIDs, without holding the table's lock.
    pub(super) fn for_each(&self, mut f: impl FnMut(&IrqRef)) {
        let _ = self.for_each_from(Intid(0), |irq| {
            f(irq);
            ControlFlow::Continue(())
        });
    }

    /// Passes every LPI from INTID `from` up to `f`, in the order of the INTIDs, until `f` breaks.
    /// The table's lock is not held.
    pub(super) fn for_each_from(
        &self,
        from: Intid,
        mut f: impl FnMut(&IrqRef) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut next = Some(from);
        while let Some(from) = next {
            next = self.lock().get_batch(from, &mut batch);
            batch.drain(..).try_for_each(|irq| f(&irq))?;
        }
        ControlFlow::Continue(())
    }

    pub(super) fn live(&self) -> usize {
        self.lock().live
    }

    /// Heap bytes of the LPIs that are not mapped any more.
    pub(super) fn unmapped_bytes(&self) -> usize {
        self.live().saturating_sub(self.mapped()) * size_of::<Irq>()
    }

    /// Heap bytes of an LPI and its entry.
    pub(super) const fn bytes_of_one() -> usize {
        size_of::<Irq>() + super::btree_bytes::<Intid, Slot>()
    }

    /// Heap bytes of the LPIs and of this table.
    pub(super) fn bytes(&self) -> usize {
        let slots = self.lock();
        slots.live * size_of::<Irq>() + slots.by_intid.len() * super::btree_bytes::<Intid, Slot>()
    }
}
