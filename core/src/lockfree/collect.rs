//! Collection: frees the memory of retired objects. See [`crate::lockfree::reclaim::retired`] for
//! the life of a retired object.
//!
//! Any thread on the control path may collect, and several may at once. Each takes all the work
//! that there is, does a bounded part of it, and puts the rest back. So no call continues for as
//! long as other threads make garbage. A thread that is preempted while it collects holds the whole
//! backlog: no other thread frees those objects before it continues, but other threads collect the
//! objects that are retired in the meantime. Nothing here is on the injection or the entry/exit
//! path.
//!
//! An object passes through the lists of a [`Work`]: `dead` -> (unlinked) `unlinked` -> (a grace
//! period begins) `waiting` -> (it is over) `expired` -> freed. There are few grace periods at a
//! time ([`MOST_GRACES`]): each covers all objects that were unlinked while earlier ones waited.
//!
//! Progress: taking and putting back are lock-free; everything else is the thread's own.
//!
//! Models: `lifetime_tree`, `lifetime_refs`, `lifetime_epoch`, `lifetime_handles`.

#![allow(unsafe_code)] // The one place that frees shared objects.

use alloc::boxed::Box;

use crate::lockfree::reclaim::limbo::Work;
use crate::lockfree::reclaim::retired::{Chain, Retired};
use crate::lockfree::reclaim::{Participant, Pin, Reclaim};
use crate::lockfree::vm::Shared;
use crate::sync::free;

/// The share of a mapping or an unmapping, in steps, each of which unlinks or frees one object:
/// enough to keep up with the objects that it retires itself.
pub(crate) const ON_THE_SIDE: usize = 512;
/// The share of a call that only collects, in steps: some milliseconds.
pub(crate) const ON_REQUEST: usize = 1 << 14;
/// The most objects that are unlinked or freed under one pin.
const UNDER_ONE_PIN: usize = 64;
/// The most grace periods that one [`Work`] waits for.
const MOST_GRACES: usize = 3;

impl<R: Reclaim> Shared<R> {
    /// Unlinks retired objects, and frees those that no thread can still use, in at most `most`
    /// steps: an object takes one step to unlink and one to free. The caller is not pinned. Returns
    /// whether the steps were used up.
    ///
    /// If no other thread is pinned or collecting, and steps remain, no retired object is left when
    /// this returns.
    pub(crate) fn collect(&self, participant: &R::Participant, most: usize) -> bool {
        let mut work = self.limbo.take().unwrap_or_else(|| Box::new(Work::new()));
        let mut left = most;
        // Freeing can retire more objects (a block after its last LPI): continue while there is
        // progress.
        while left > 0 {
            let before = left;
            self.unlink_some(&mut work, participant, &mut left);
            self.begin_grace(&mut work, participant);
            self.await_grace(&mut work, participant);
            self.free_some(&mut work, participant, &mut left);
            if left == before {
                break;
            }
        }
        self.limbo.put(work);
        left == 0
    }

    /// Takes retired objects out of the trees in which look-ups still find them.
    fn unlink_some(
        &self,
        work: &mut Work<R::Grace>,
        participant: &R::Participant,
        left: &mut usize,
    ) {
        let fresh = self.dispatcher.retired.take();
        if !fresh.is_empty() {
            work.dead.push_back(fresh);
        }
        let mut unlinked = Chain::EMPTY;
        while let Some(chain) = work.dead.front_mut() {
            let pin = participant.pin();
            for _ in 0..UNDER_ONE_PIN.min(*left) {
                let Some(object) = chain.pop() else { break };
                self.unlink(object, &pin);
                unlinked.push(object);
                *left -= 1;
            }
            if chain.is_empty() {
                work.dead.pop_front();
            }
            if *left == 0 {
                break;
            }
        }
        if !unlinked.is_empty() {
            work.unlinked.push_back(unlinked);
        }
    }

    /// Begins a grace period for the objects that are unlinked.
    fn begin_grace(&self, work: &mut Work<R::Grace>, participant: &R::Participant) {
        if !work.unlinked.is_empty() && work.waiting.len() < MOST_GRACES {
            let grace = self.reclaim.begin(participant);
            work.waiting.push_back((grace, core::mem::take(&mut work.unlinked)));
        }
    }

    /// Moves the objects of which the grace period is over to those that are to be freed.
    fn await_grace(&self, work: &mut Work<R::Grace>, participant: &R::Participant) {
        while let Some((grace, _)) = work.waiting.front()
            && (self.reclaim.is_over(participant, grace) || cfg!(mutant = "free_without_grace"))
        {
            work.expired
                .extend(work.waiting.pop_front().into_iter().flat_map(|(_, chains)| chains));
        }
    }

    /// Frees objects of which the grace period is over.
    fn free_some(&self, work: &mut Work<R::Grace>, participant: &R::Participant, left: &mut usize) {
        while let Some(chain) = work.expired.front_mut() {
            let pin = participant.pin();
            for _ in 0..UNDER_ONE_PIN.min(*left) {
                let Some(object) = chain.pop() else { break };
                // SAFETY: unlinked, and a grace period has passed since.
                unsafe { self.free(object, &pin) };
                self.dispatcher.retired.counts.freed(&object);
                *left -= 1;
            }
            if chain.is_empty() {
                work.expired.pop_front();
            }
            if *left == 0 {
                return;
            }
        }
    }

    /// Takes a retired object out of its tree, or releases a retired hold. Nodes are unlinked
    /// before they are retired.
    fn unlink(&self, object: Retired, pin: &Pin) {
        match object {
            Retired::Irq(irq) => {
                // SAFETY: taken from the list of retired objects, so not freed yet.
                if let Ok(key) = self.lpis.key(unsafe { irq.as_ref() }.intid()) {
                    // False if a new object has replaced it.
                    let _ = self.lpis.irqs.remove(key, irq, pin);
                }
            }
            Retired::Block(block) => {
                // SAFETY: as above.
                let _ = self.lpis.blocks.remove(unsafe { block.as_ref() }.key, block, pin);
            }
            // SAFETY: as above.
            Retired::Device(device) => unsafe { device.as_ref() }.unlink(pin),
            // SAFETY: as above.
            Retired::Hold(hold) => unsafe { hold.as_ref() }.release(pin),
            Retired::Node(_) => {}
        }
    }

    /// Frees an object's memory.
    ///
    /// # Safety
    /// No other thread can reach the object any more.
    unsafe fn free(&self, object: Retired, pin: &Pin) {
        let counts = &self.dispatcher.retired.counts;
        match object {
            // SAFETY: the caller has the only pointer.
            Retired::Irq(irq) => unsafe { self.lpis.free(irq, pin) },
            Retired::Node(node) => {
                // SAFETY: boxed where it was made; the caller has the only pointer.
                let node = unsafe { Box::from_raw(node.as_ptr()) };
                node.freed();
                free(node);
                counts.nodes.sub(1);
            }
            Retired::Block(block) => {
                // SAFETY: as above.
                let block = unsafe { Box::from_raw(block.as_ptr()) };
                block.freed();
                free(block);
                counts.blocks.sub(1);
            }
            Retired::Hold(hold) => {
                // SAFETY: as above.
                drop(unsafe { Box::from_raw(hold.as_ptr()) });
            }
            Retired::Device(device) => {
                // SAFETY: as above.
                let mut device = unsafe { Box::from_raw(device.as_ptr()) };
                device.freed();
                free(device);
                counts.devices.sub(1);
            }
        }
    }

    /// Frees all objects at the end of the engine, when no other thread has any part of it.
    pub(crate) fn free_everything(&mut self, pin: &Pin) {
        if let Some(work) = self.limbo.take() {
            let Work { dead, unlinked, waiting, expired, .. } = *work;
            for mut chain in dead {
                while let Some(object) = chain.pop() {
                    self.unlink(object, pin);
                    // SAFETY: `&mut self`.
                    unsafe { self.free(object, pin) };
                }
            }
            let waiting = waiting.into_iter().flat_map(|(_, chains)| chains);
            for mut chain in unlinked.into_iter().chain(waiting).chain(expired) {
                while let Some(object) = chain.pop() {
                    // SAFETY: `&mut self`.
                    unsafe { self.free(object, pin) };
                }
            }
        }
        loop {
            // An object that is retired but not unlinked is still in its tree.
            let mut chain = self.dispatcher.retired.take();
            if chain.is_empty() {
                break;
            }
            while let Some(object) = chain.pop() {
                self.unlink(object, pin);
                // SAFETY: `&mut self`.
                unsafe { self.free(object, pin) };
            }
        }
    }
}
