//! The LPIs of a VM: INTID -> interrupt.
//!
//! A look-up takes no lock and no reference: the pin protects its result. An INTID has at most one
//! living interrupt. A dead one may still be in its slot; it counts as absent until it is replaced
//! or unlinked. So an INTID can be mapped again before its old object is freed.
//!
//! # The pending bit outlives the object
//!
//! Pending bits belong to INTIDs, not to objects. An injector that still sees a dead object can
//! leave a bit behind: it set the bit, then found the object dead. If the INTID is mapped again, no
//! injection may coalesce with that bit unless the new object is scheduled for it:
//!
//! * The injector, when it finds the object dead, looks the INTID up again, and schedules the new
//!   object if there is one (`vm::Shared::inject_into_successor`).
//! * The mapper, which takes a mapping reference to a new object or an existing one, reads the bit
//!   afterwards by a read-modify-write, and schedules the object if the bit is set
//!   ([`crate::lockfree::notify::Dispatcher::schedule_if_busy`]).
//!
//! The two read-modify-writes of the pending word are ordered: either the mapper sees the bit, or
//! the injector sees the new object. So no bit is lost.
//!
//! Nor does a new mapping inherit an earlier injection: the first mapper of an INTID clears the bit
//! before it takes its reference ([`Lpis::forget_leftover`]). One case remains: an injection that
//! overlaps with both the unmapping and the mapping, or with the unmapping and an entry that has
//! offered the LPI to the guest. It can be taken for an injection through the new mapping.
//!
//! Models: `lifetime_intid`, `lifetime_power`, `lifetime_epoch`, `lifetime_tree`, `its_commands`.

#![allow(unsafe_code)] // Objects are boxed by hand, and freed by `collect`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::NonNull;

use crate::arch::ids::{Intid, LPI_BASE};
use crate::engine::Error;
use crate::lockfree::irq::Irq;
use crate::lockfree::irq::control::Control;
use crate::lockfree::irq::refs::IrqRef;
use crate::lockfree::map::radix::Tree;
use crate::lockfree::notify::Dispatcher;
use crate::lockfree::pending::block::Block;
use crate::lockfree::pending::word::{BLOCK, Lane, PendingWord};
use crate::lockfree::reclaim::Pin;
use crate::lockfree::reclaim::refcount::Ref;
use crate::observe::trace::{Trace, trace};
use crate::sync::free;

/// The map.
pub(crate) struct Lpis {
    pub(crate) irqs: Tree<Irq>,
    pub(crate) blocks: Tree<Block>,
    dispatcher: Arc<Dispatcher>,
    /// The number of INTIDs.
    intids: u32,
    /// The most LPIs that may be mapped.
    max: usize,
}

/// The number of bits that keys below `n` need.
fn key_bits(n: u64) -> u32 {
    u64::BITS - n.saturating_sub(1).leading_zeros()
}

/// The key bits of the trees of interrupts and of blocks, for a number of INTIDs.
pub(crate) fn key_bits_of(intids: u32) -> (u32, u32) {
    let blocks = u64::from(intids).div_ceil(BLOCK as u64);
    (key_bits(intids.into()), key_bits(blocks))
}

impl Lpis {
    pub(crate) fn new(intids: u32, max: u32, dispatcher: &Arc<Dispatcher>) -> Self {
        let (irqs, blocks) = key_bits_of(intids);
        Self {
            // SAFETY: `self.dispatcher` keeps the dispatcher alive, and with it `retired`.
            irqs: unsafe { Tree::new(irqs, &dispatcher.retired) },
            // SAFETY: as above.
            blocks: unsafe { Tree::new(blocks, &dispatcher.retired) },
            dispatcher: Arc::clone(dispatcher),
            intids,
            max: max as usize,
        }
    }

    /// The key of an INTID in the tree of interrupts.
    pub(crate) fn key(&self, intid: Intid) -> Result<u64, Error> {
        let key = intid.0.checked_sub(LPI_BASE).filter(|&key| key < self.intids);
        key.map(u64::from).ok_or(Error::IntidRange(intid))
    }

    /// The key in the tree of blocks that goes with a key in the tree of interrupts.
    pub(crate) fn block_key(key: u64) -> u64 {
        key / BLOCK as u64
    }

    /// The interrupt of an INTID that an event is mapped to.
    pub(crate) fn get<'p>(&'p self, intid: Intid, pin: &'p Pin) -> Option<&'p Irq> {
        let irq = self.irqs.get(self.key(intid).ok()?, pin)?;
        irq.state.load().is_mapped().then_some(irq)
    }

    /// Returns a reference to the interrupt of an INTID, and whether the interrupt was made: if
    /// there is none, one is made with `control`.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::TooManyLpis`].
    pub(crate) fn get_or_insert(
        &self,
        intid: Intid,
        control: Control,
        pin: &Pin,
    ) -> Result<(IrqRef, bool), Error> {
        let key = self.key(intid)?;
        self.check_room(intid, pin)?;
        let mut fresh = None;
        loop {
            let found = self.irqs.get_to_change(key, pin);
            if let Some(irq) = found {
                self.forget_leftover(intid, (irq.pending(), irq.lane()), pin);
            }
            if let Some(irq) = found.and_then(Irq::try_get) {
                if cfg!(mutant = "existing_without_get") {
                    let existing = NonNull::from(&*irq);
                    drop(irq);
                    // SAFETY: none; this is a seeded bug.
                    return Ok((unsafe { IrqRef::from_raw(existing) }, false));
                }
                return Ok((irq, false));
            }
            let new = match fresh.take() {
                Some(new) => new,
                None => self.make(intid, key, control, pin)?,
            };
            let put = match found {
                // SAFETY: an interrupt is freed by `collect`, after it was unlinked and a grace
                // period.
                Some(dead) => unsafe { self.irqs.replace(key, NonNull::from(dead), new.0, pin) },
                // SAFETY: as above.
                None => unsafe { self.irqs.insert(key, new.0, pin) }.is_ok(),
            };
            if put {
                let irq = new.publish();
                return Ok((irq, true));
            }
            fresh = Some(new);
        }
    }

    /// Checks that there is room to map an INTID, and allocates nothing to find out.
    ///
    /// An LPI that only a route keeps does not count. The route keeps it until it is used again,
    /// which may be never. Each route keeps one LPI.
    ///
    /// # Errors
    /// [`Error::TooManyLpis`]. If fewer LPIs are mapped than may be, there will be room: the others
    /// are dead, or in a mailbox or a list register.
    pub(crate) fn check_room(&self, intid: Intid, pin: &Pin) -> Result<(), Error> {
        let counts = &self.dispatcher.retired.counts;
        let exists = |irq: &Irq| !irq.state.load().is_dead();
        let found = self.key(intid).ok().and_then(|key| self.irqs.get(key, pin));
        let room = match found.filter(|irq| exists(irq)) {
            Some(irq) if irq.state.load().is_mapped() => true,
            Some(_) => counts.mapped.get() < self.max,
            None => counts.mapped.get() < self.max && counts.irqs.get() < self.most(),
        };
        if room { Ok(()) } else { Err(Error::TooManyLpis) }
    }

    /// Whether LPIs that are no longer mapped will make room.
    pub(crate) fn will_have_room(&self) -> bool {
        self.dispatcher.retired.counts.mapped.get() < self.max
    }

    /// The most objects that may exist at the moment.
    fn most(&self) -> usize {
        self.max + self.dispatcher.retired.counts.kept.get()
    }

    /// Clears the pending bit of an INTID that is not mapped and that the caller is about to map:
    /// an injection into an earlier mapping left the bit behind.
    ///
    /// Another domain can map the INTID at the same time, so that the bit which is cleared here is
    /// that of an injection through its mapping. That domain took its reference before any thread
    /// could inject through the mapping. So the re-check, which comes after the clearing of that
    /// bit, sees a mapped interrupt, and gives the bit back.
    fn forget_leftover(&self, intid: Intid, bit: (&PendingWord, Lane), pin: &Pin) {
        let (word, lane) = bit;
        if cfg!(mutant = "leftover_inherited") || self.get(intid, pin).is_some() {
            return;
        }
        if word.forget(lane)
            && !cfg!(mutant = "leftover_taken_for_granted")
            && let Some(irq) = self.get(intid, pin)
        {
            let _ = word.set(lane);
            self.dispatcher.schedule(irq);
        }
    }

    /// Makes an interrupt that no other thread can see yet.
    fn make<'l>(
        &'l self,
        intid: Intid,
        key: u64,
        control: Control,
        pin: &'l Pin,
    ) -> Result<Fresh<'l>, Error> {
        if !self.dispatcher.retired.counts.irqs.add_below(self.most()) {
            return Err(Error::TooManyLpis);
        }
        let block = self.block(Self::block_key(key), pin);
        let (word, lane) = block.pending.locate(key as usize);
        self.forget_leftover(intid, (word, lane), pin);
        let dispatcher = NonNull::from(&*self.dispatcher);
        // SAFETY: the reference that goes into `Fresh` keeps the block, and then stays with the
        // object until `collect` frees it; the dispatcher outlives the trees and everything in
        // them.
        let irq = unsafe { Irq::new(intid, control, (NonNull::from(word), lane), dispatcher) };
        let irq = NonNull::from(Box::leak(Box::new(irq)));
        let _ = block.into_raw();
        Ok(Fresh(irq, self, pin))
    }

    /// Returns a reference to a block, which is made if there is none.
    fn block(&self, key: u64, pin: &Pin) -> Ref<Block> {
        loop {
            let found = self.blocks.get_to_change(key, pin);
            if let Some(block) = found.and_then(Ref::try_new) {
                return block;
            }
            // SAFETY: `retired` outlives the trees and everything in them.
            let fresh =
                Box::leak(Box::new(unsafe { Block::new(key, &self.dispatcher.retired) })).into();
            let put = match found {
                // SAFETY: a block is freed by `collect`, after it was unlinked and a grace period.
                Some(dead) => unsafe { self.blocks.replace(key, NonNull::from(dead), fresh, pin) },
                // SAFETY: as above.
                None => unsafe { self.blocks.insert(key, fresh, pin) }.is_ok(),
            };
            if put {
                self.dispatcher.retired.counts.blocks.add(1);
                // SAFETY: the reference that it was made with.
                return unsafe { Ref::from_raw(fresh) };
            }
            // SAFETY: never shared.
            drop(unsafe { Box::from_raw(fresh.as_ptr()) });
        }
    }

    /// Frees an interrupt's memory, and gives back its reference to its block.
    ///
    /// # Safety
    /// No other thread can reach the interrupt any more.
    pub(crate) unsafe fn free(&self, irq: NonNull<Irq>, pin: &Pin) {
        // SAFETY: boxed in `make`; the caller has the only pointer.
        let irq = unsafe { Box::from_raw(irq.as_ptr()) };
        irq.freed();
        let intid = irq.intid();
        free(irq);
        self.dispatcher.retired.counts.irqs.sub(1);
        if let Ok(key) = self.key(intid)
            && let Some(block) = self.blocks.get(Self::block_key(key), pin)
        {
            // SAFETY: `make` gave this reference up for the object. It kept the block alive, so the
            // block in the tree is that one.
            drop(unsafe { Ref::from_raw(NonNull::from(block)) });
        }
    }
}

/// An interrupt that is not in the tree yet. Dropping it frees the interrupt.
struct Fresh<'l>(NonNull<Irq>, &'l Lpis, &'l Pin);

impl Fresh<'_> {
    /// The interrupt is in the tree now. Returns the reference that it was made with.
    fn publish(self) -> IrqRef {
        let irq = core::mem::ManuallyDrop::new(self).0;
        // SAFETY: made with one reference, which no value stands for so far.
        let irq = unsafe { IrqRef::from_raw(irq) };
        irq.counts().mapped.add(1);
        trace(Trace::Get, &irq);
        irq
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        // SAFETY: never shared.
        unsafe { self.1.free(self.0, self.2) };
    }
}
