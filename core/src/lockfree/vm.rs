//! Everything of one VM: its wired interrupts, its LPIs, and the steps that an injection is made of.

#![allow(unsafe_code)] // Wired interrupts point into the engine that has them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::ControlFlow;
use core::ptr::NonNull;

use crate::arch::ids::{EPPI_BASE, ESPI_BASE, Intid, PRIVATE_END, PRIVATE_INTIDS, VcpuId};
use crate::engine::{Config, Error, Injected, Wired};
use crate::lockfree::irq::Irq;
use crate::lockfree::irq::control::Control;
use crate::lockfree::map::lpis::Lpis;
use crate::lockfree::notify::Dispatcher;
use crate::lockfree::pending::block::Block;
use crate::lockfree::pending::word::{BLOCK, LANES, LINES, Lane, PendingBlock, PendingWord};
use crate::lockfree::reclaim::limbo::Limbo;
use crate::lockfree::reclaim::{Participant, Pin, Reclaim};
use crate::observe::counters::Counter;
use crate::sync::{CachePadded, Ordering, fence};

/// Everything of one VM.
pub(crate) struct Shared<R: Reclaim> {
    pub(crate) config: Config,
    pub(crate) lpis: Lpis,
    pub(crate) limbo: Limbo<R>,
    pub(super) wired: WiredIrqs,
    pub(crate) reclaim: R,
    /// Last: everything above points to it.
    pub(crate) dispatcher: Arc<Dispatcher>,
}

/// SGIs and PPIs of each vCPU that exist.
const PRIVATE: usize = PRIVATE_END as usize;

/// The interrupts that exist from the start, and their pending bits.
pub(super) struct WiredIrqs {
    /// Of each vCPU: SGIs, PPIs, then extended PPIs.
    private: Box<[Irq]>,
    /// Number of private interrupts of each vCPU.
    privates: usize,
    /// SPIs, then extended SPIs.
    shared: Box<[Irq]>,
    /// Number of SPIs that are not extended.
    spis: usize,
    _private_bits: Arc<[CachePadded<[PendingWord; 3]>]>,
    _spi_bits: Arc<[PendingBlock]>,
}

/// The position of an INTID among interrupts of which there are `count` from `base` up, and then extended ones from
/// `extended` up.
fn position(intid: Intid, base: u32, count: usize, extended: u32) -> Option<usize> {
    match intid.0.checked_sub(extended) {
        Some(n) => Some(count + n as usize),
        None => intid.0.checked_sub(base).map(|n| n as usize).filter(|&n| n < count),
    }
}

impl WiredIrqs {
    pub(super) fn new(config: &Config, dispatcher: &Arc<Dispatcher>) -> Self {
        let (spis, espis) = (usize::from(config.spis), usize::from(config.espis));
        let privates = PRIVATE + usize::from(config.eppis);
        let private_bits: Arc<[CachePadded<[PendingWord; 3]>]> =
            (0..config.vcpus).map(|_| CachePadded::default()).collect();
        let spi_bits: Arc<[PendingBlock]> =
            (0..(spis + espis).div_ceil(BLOCK)).map(|_| PendingBlock::new()).collect();
        // SAFETY: the bits are kept by this struct, and the dispatcher by `Shared`, for longer than the interrupts.
        let make = |intid, target, bit: (&PendingWord, Lane)| unsafe {
            let control = Control::RESET.with_target(target);
            Irq::new(
                Intid(intid),
                control,
                (NonNull::from(bit.0), bit.1),
                NonNull::from(&**dispatcher),
            )
        };
        let intid = |n: usize, base: u32, count, extended: u32| match n.checked_sub(count) {
            Some(n) => extended + n as u32,
            None => base + n as u32,
        };
        let private = (0..config.vcpus).flat_map(|vcpu| {
            let words = &private_bits[usize::from(vcpu)];
            (0..privates).map(move |n| {
                let bit = (&words[n / LANES], Lane::new(n % LANES));
                make(intid(n, 0, PRIVATE, EPPI_BASE), VcpuId(vcpu), bit)
            })
        });
        let shared = (0..spis + espis).map(|n| {
            let bit = spi_bits[n / BLOCK].locate(n);
            make(intid(n, PRIVATE_INTIDS, spis, ESPI_BASE), VcpuId(0), bit)
        });
        Self {
            private: private.collect(),
            privates,
            shared: shared.collect(),
            spis,
            _private_bits: Arc::clone(&private_bits),
            _spi_bits: Arc::clone(&spi_bits),
        }
    }

    /// All private interrupts of a vCPU.
    fn of(&self, vcpu: VcpuId) -> &[Irq] {
        &self.private[vcpu.index() * self.privates..][..self.privates]
    }
}

impl<R: Reclaim> Shared<R> {
    /// A wired interrupt.
    pub(crate) fn wired(&self, wired: Wired) -> Result<&Irq, Error> {
        match wired {
            Wired::Private(vcpu, _) if !self.dispatcher.has_vcpu(vcpu) => {
                Err(Error::NoSuchVcpu(vcpu))
            }
            Wired::Private(vcpu, intid) => {
                let n = position(intid, 0, PRIVATE, EPPI_BASE);
                n.and_then(|n| self.wired.of(vcpu).get(n)).ok_or(Error::IntidRange(intid))
            }
            Wired::Spi(intid) => {
                let n = position(intid, PRIVATE_INTIDS, self.wired.spis, ESPI_BASE);
                n.and_then(|n| self.wired.shared.get(n)).ok_or(Error::IntidRange(intid))
            }
        }
    }

    /// An SGI of a vCPU.
    pub(super) fn sgi(&self, vcpu: VcpuId, sgi: Intid) -> Result<&Irq, Error> {
        if sgi.is_sgi() {
            self.wired(Wired::Private(vcpu, sgi))
        } else {
            Err(Error::IntidRange(sgi))
        }
    }

    /// Makes an interrupt pending.
    #[inline]
    pub(crate) fn inject(&self, irq: &Irq, pin: &Pin) -> Injected {
        self.try_inject(irq, pin).unwrap_or_else(|| self.inject_into_successor(irq, pin))
    }

    /// The same; `None` if the interrupt is dead.
    #[inline]
    fn try_inject(&self, irq: &Irq, pin: &Pin) -> Option<Injected> {
        self.try_inject_at(irq, irq.pending(), irq.lane(), || pin)
    }

    /// The same for who knows where its pending bit is: if the injection coalesces, the interrupt's own cache line is not touched.
    /// The caller sees it under a pin, or keeps it, and then pins itself with `pin` where a reference is not enough.
    #[inline]
    pub(super) fn try_inject_at<P>(
        &self,
        irq: &Irq,
        word: &PendingWord,
        lane: Lane,
        pin: impl FnOnce() -> P,
    ) -> Option<Injected> {
        if cfg!(mutant = "attend_before_pending") && !irq.looks_pending() {
            // Seeded bug: notifies before it publishes.
            let lives = self.dispatcher.schedule(irq);
            let _ = word.set(lane);
            return lives.then_some(Injected::Pending);
        }
        if word.set(lane) {
            self.count(irq, Counter::Coalesced);
            return Some(Injected::Coalesced);
        }
        if !self.takes_msis(irq) {
            // The host is called before the last look at the interrupt, and what a route keeps can end in that call.
            let _pin = pin();
            return self.try_inject_disabled(irq, word, lane);
        }
        self.count(irq, Counter::Injected);
        self.dispatcher.schedule(irq).then_some(Injected::Pending)
    }

    /// The rest of an injection of an LPI whose vCPU takes none. The caller is pinned.
    #[cold]
    fn try_inject_disabled(&self, irq: &Irq, word: &PendingWord, lane: Lane) -> Option<Injected> {
        if !self.is_enabled_meanwhile(irq, word, lane) {
            return Some(Injected::Unmapped);
        }
        self.count(irq, Counter::Injected);
        self.dispatcher.schedule(irq).then_some(Injected::Pending)
    }

    /// Whether an interrupt can become pending: of LPIs, their vCPU says so ([`Gates::msis`](crate::engine::Gates::msis)).
    #[inline(always)]
    fn takes_msis(&self, irq: &Irq) -> bool {
        !irq.intid().is_lpi() || self.dispatcher.vcpu(irq.control().load().target()).gates().msis
    }

    /// An LPI has become pending whose vCPU takes none: it is not pending any more. Returns true if it is, after all, as the vCPU takes LPIs by now. The caller
    /// then attends, and sees the interrupt under a pin.
    ///
    /// Another injection may have come meanwhile, for which this one's bit stands. If the vCPU took LPIs before that, so it does for this look: all change the pending word by
    /// read-modify-writes, and the clearing is the last of them. In the same way whoever has closed the gate and clears what is pending then misses nothing:
    /// an injection that sets the bit later finds the gate closed.
    ///
    /// Or the interrupt has died, and the INTID has been mapped again: then the bit is the new object's, whose vCPU may take LPIs, and
    /// is given back. In the same way, who saw the new object and set the bit before the clearing had seen the old one's death, and so does this look.
    #[cold]
    fn is_enabled_meanwhile(&self, irq: &Irq, word: &PendingWord, lane: Lane) -> bool {
        let takes = || {
            let dead = irq.state.load().is_dead() && !cfg!(mutant = "successor_cleared");
            dead || self.takes_msis(irq)
        };
        loop {
            let _ = self.dispatcher.clear(irq);
            if !takes() || cfg!(mutant = "ignored_without_second_look") {
                return false;
            }
            let _ = word.set(lane);
            if takes() {
                return true;
            }
        }
    }

    /// An LPI has a new target: if that takes none, it is not pending any more.
    ///
    /// Whoever disables LPIs there has a fence between that and its look at targets. Either it sees the new one, and clears the LPI, or this sees that it takes none.
    pub(crate) fn settle_at_target(&self, irq: &Irq, pin: &Pin) {
        fence(Ordering::SeqCst);
        if !self.takes_msis(irq)
            && self.is_enabled_meanwhile(irq, irq.pending(), irq.lane())
            && !self.dispatcher.schedule(irq)
        {
            let _ = self.inject_into_successor(irq, pin);
        }
    }

    /// Whoever disables LPIs has found one there: it is not pending any more, if it is still there. Returns whether it is.
    ///
    /// It may move away at any time, and what comes at its new target is not to be lost. The pending bit is taken by a read-modify-write: if that
    /// takes the bit of an MSI to the new target, the look after it sees the new target, and the MSI is sent again. The same if the
    /// interrupt has died: then the bit is that of the INTID's next mapping.
    ///
    /// The mark that withdraws what an owner has is left only if there is an owner, or was one that has just given the bit back. At any other time
    /// it could meet what the new target has taken in since. What an owner has may have been sent after the move, also if the owner is the old
    /// target, which takes a pending bit before it hands over. If it was sent before, the LPI comes once too often, but is not lost.
    pub(crate) fn silence(&self, irq: &Irq, pin: &Pin) -> bool {
        let is_there = || !self.takes_msis(irq) && !irq.state.load().is_dead();
        if !is_there() {
            return false;
        }
        let mut sent = irq.pending().forget(irq.lane());
        let owner = irq.state.load_ordered().owner();
        if owner.is_some() || irq.looks_pending() {
            sent |= self.dispatcher.clear(irq);
            sent |= owner.is_some() || irq.state.load_ordered().owner().is_some();
        }
        if is_there() || cfg!(mutant = "silenced_wherever_it_is") {
            return true;
        }
        if sent || cfg!(mutant = "moved_is_pending") {
            let _ = self.inject(irq, pin);
        }
        false
    }

    /// An injection found its interrupt unmapped, after it had set the pending bit. If the INTID has been mapped again
    /// since, the bit is now the new object's: see `lpis`.
    #[cold]
    fn inject_into_successor(&self, dead: &Irq, pin: &Pin) -> Injected {
        if cfg!(mutant = "dead_without_second_lookup") {
            return Injected::Unmapped;
        }
        while let Some(irq) = self.lpis.get(dead.intid(), pin) {
            if !self.takes_msis(irq) && !self.is_enabled_meanwhile(irq, irq.pending(), irq.lane()) {
                return Injected::Unmapped;
            }
            if self.dispatcher.schedule(irq) {
                return Injected::Pending;
            }
        }
        Injected::Unmapped
    }

    #[inline(always)]
    fn count(&self, irq: &Irq, counter: Counter) {
        if cfg!(feature = "counters") {
            self.dispatcher.vcpu(irq.control().load().target()).counters.add(counter, 1);
        }
    }

    /// Attends to the wired interrupts that may be waiting for a vCPU, which has just become willing to take them.
    pub(crate) fn scan_wired(&self, vcpu: VcpuId) {
        self.wired.of(vcpu).iter().for_each(|irq| self.schedule_if_waiting(vcpu, irq));
        self.wired.shared.iter().for_each(|irq| self.schedule_if_waiting(vcpu, irq));
    }

    /// The same for the LPIs of some blocks, from key `from` up to `until`. Stops after about `most` looks. Returns where to
    /// go on.
    pub(crate) fn scan_lpis(
        &self,
        vcpu: VcpuId,
        (from, until): (u64, u64),
        most: usize,
        pin: &Pin,
    ) -> Option<u64> {
        let (mut looks, mut next) = (0, None);
        let _ = self.lpis.blocks.for_each_from(from, pin, &mut |key, block: &Block| {
            if key >= until {
                return ControlFlow::Break(());
            }
            if looks >= most {
                next = Some(key);
                return ControlFlow::Break(());
            }
            // A look at each of its cache lines, pending or not.
            looks += LINES;
            let mut from = 0;
            while let Some(i) = block.pending.next_pending(from) {
                if let Some(irq) = self.lpis.irqs.get(key * BLOCK as u64 + i as u64, pin) {
                    self.schedule_if_waiting(vcpu, irq);
                }
                looks += 1;
                from = i + 1;
            }
            ControlFlow::Continue(())
        });
        next
    }

    fn schedule_if_waiting(&self, vcpu: VcpuId, irq: &Irq) {
        let waits = irq.looks_pending() || irq.state.load().is_active();
        if waits && irq.control().load().target() == vcpu {
            self.dispatcher.schedule(irq);
        }
    }
}

impl<R: Reclaim> Drop for Shared<R> {
    fn drop(&mut self) {
        // All participants are gone, as each has a handle of the engine: there is room for one.
        if let Some(participant) = self.reclaim.register() {
            self.free_everything(&participant.pin());
        }
    }
}
