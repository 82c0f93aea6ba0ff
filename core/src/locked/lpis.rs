//! The LPIs of a VM by INTID: for the control side alone, injections find theirs through the event.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::irq::Irq;
use crate::engine::Error;
use crate::ids::{Intid, LPI_BASE, VcpuId};

/// The table. It does not keep its LPIs alive: an LPI takes itself out with its last reference.
pub(super) struct LpiTable {
    slots: Mutex<Slots>,
    /// Number of INTIDs.
    intids: u32,
    /// Most LPIs that may exist.
    max: usize,
}

#[derive(Default)]
struct Slots {
    /// At most one entry for each INTID; it may be one whose last reference is being dropped.
    by_intid: BTreeMap<Intid, Weak<Irq>>,
    /// LPIs that exist, those without an entry included: their INTID has been mapped again already.
    live: usize,
}

/// How many LPIs a walk looks up at a time: bounds how long it holds up others.
const BATCH: usize = 64;

impl LpiTable {
    pub(super) fn new(intids: u32, max: u32) -> Arc<Self> {
        Arc::new(Self { slots: Mutex::default(), intids, max: max as usize })
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Nothing under this lock panics half-way.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn check(&self, intid: Intid) -> Result<(), Error> {
        match intid.0.checked_sub(LPI_BASE) {
            Some(n) if n < self.intids => Ok(()),
            _ => Err(Error::IntidRange(intid)),
        }
    }

    /// The LPI of an INTID.
    pub(super) fn get(&self, intid: Intid) -> Option<Arc<Irq>> {
        self.lock().by_intid.get(&intid)?.upgrade()
    }

    /// The LPI of an INTID, made if there is none.
    pub(super) fn get_or_make(
        self: &Arc<Self>,
        intid: Intid,
        target: VcpuId,
    ) -> Result<Arc<Irq>, Error> {
        let mut slots = self.lock();
        if let Some(irq) = slots.by_intid.get(&intid).and_then(Weak::upgrade) {
            return Ok(irq);
        }
        if slots.live >= self.max {
            return Err(Error::TooManyLpis);
        }
        let irq = Irq::lpi(intid, target, self);
        slots.by_intid.insert(intid, Arc::downgrade(&irq));
        slots.live += 1;
        Ok(irq)
    }

    /// The last reference to `irq` has been dropped.
    pub(super) fn release(&self, intid: Intid, irq: &Irq) {
        let mut slots = self.lock();
        slots.live -= 1;
        // The INTID may have been mapped again already: the new LPI's entry is not this one's to remove.
        if slots.by_intid.get(&intid).is_some_and(|slot| core::ptr::eq(slot.as_ptr(), irq)) {
            slots.by_intid.remove(&intid);
        }
    }

    /// Passes every LPI to `f`, in the order of their INTIDs, without holding the table's lock.
    pub(super) fn for_each(&self, mut f: impl FnMut(&Arc<Irq>)) {
        let mut next = Intid(0);
        let mut batch: Vec<Option<Arc<Irq>>> = Vec::with_capacity(BATCH);
        loop {
            for (&intid, slot) in self.lock().by_intid.range(next..).take(BATCH) {
                batch.push(slot.upgrade());
                next = Intid(intid.0 + 1);
            }
            if batch.is_empty() {
                return;
            }
            batch.drain(..).flatten().for_each(|irq| f(&irq));
        }
    }

    pub(super) fn live(&self) -> usize {
        self.lock().live
    }

    /// Heap bytes of the LPIs and of this table.
    pub(super) fn bytes(&self) -> usize {
        let slots = self.lock();
        slots.live * super::arc_bytes::<Irq>()
            + slots.by_intid.len() * super::btree_bytes::<Intid, Weak<Irq>>()
    }
}
