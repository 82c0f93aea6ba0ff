//! Collection: from the retired to free memory. See [`crate::lockfree::reclaim::retired`] for the life of one piece of garbage.
//!
//! Anyone on the control path may collect, and several threads at once: each takes all that there is to do, does a bounded
//! part of it, and puts the rest back. So no call goes on for as long as others make garbage. A thread that is preempted while
//! it collects has the whole backlog with it: nobody frees that before it goes on, but others collect what dies meanwhile.
//! Nothing here is on the injection or the entry/exit path.
//!
//! The way of the dead through a [`Work`]: `dead` -> (unlinked) `unlinked` -> (a grace period begins) `waiting` -> (it is
//! over) `expired` -> freed. There are few grace periods at a time ([`MOST_GRACES`]): each has all that was unlinked while the
//! others waited.
//!
//! Progress: taking and putting back are lock-free; everything else is the thread's own.

#![allow(unsafe_code)] // The one place that frees what was shared.

use alloc::boxed::Box;

use crate::lockfree::reclaim::limbo::Work;
use crate::lockfree::reclaim::retired::{Chain, Retired};
use crate::lockfree::reclaim::{Participant, Pin, Reclaim};
use crate::lockfree::vm::Shared;
use crate::sync::free;

/// The share of a mapping or an unmapping, in corpses: enough to keep up with those that it makes itself.
pub(crate) const ON_THE_SIDE: usize = 512;
/// The share of a call that only collects, in corpses: some milliseconds.
pub(crate) const ON_REQUEST: usize = 1 << 14;
/// Corpses that are unlinked or freed under one pin.
const UNDER_ONE_PIN: usize = 64;
/// Grace periods that one [`Work`] waits for.
const MOST_GRACES: usize = 3;

impl<R: Reclaim> Shared<R> {
    /// Buries the dead, and frees those that no thread can be looking at any more: `most` corpses at most. The caller is not
    /// pinned. Returns whether it stopped at `most`.
    ///
    /// If no other thread is pinned or collecting, and it did not stop at `most`, nothing is left when this returns.
    pub(crate) fn collect(&self, participant: &R::Participant, most: usize) -> bool {
        let mut work = self.limbo.take().unwrap_or_else(|| Box::new(Work::new()));
        let mut left = most;
        // Freeing can make more garbage (a block after its last LPI), so go on while there is progress.
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

    /// Takes the dead out of the trees in which look-ups still find them.
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

    /// A grace period begins for those that are unlinked.
    fn begin_grace(&self, work: &mut Work<R::Grace>, participant: &R::Participant) {
        if !work.unlinked.is_empty() && work.waiting.len() < MOST_GRACES {
            let grace = self.reclaim.begin(participant);
            work.waiting.push_back((grace, core::mem::take(&mut work.unlinked)));
        }
    }

    /// Those whose grace period is over are to be freed.
    fn await_grace(&self, work: &mut Work<R::Grace>, participant: &R::Participant) {
        while let Some((grace, _)) = work.waiting.front()
            && (self.reclaim.is_over(participant, grace) || cfg!(mutant = "free_without_grace"))
        {
            work.expired
                .extend(work.waiting.pop_front().into_iter().flat_map(|(_, chains)| chains));
        }
    }

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

    /// Takes one of the dead out of its tree.
    fn unlink(&self, object: Retired, pin: &Pin) {
        match object {
            Retired::Irq(irq) => {
                // SAFETY: in the retired, so not freed.
                if let Ok(key) = self.lpis.key(unsafe { irq.as_ref() }.intid()) {
                    // False if a new object has taken its place.
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

    /// # Safety
    /// Nobody else can reach it any more.
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

    /// Frees everything there is, at the end of the engine: nobody else has any part of it.
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
            // What is dead but not buried is still in its tree.
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
