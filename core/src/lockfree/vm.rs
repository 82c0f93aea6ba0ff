//! The state of one VM, which all handles of its engine share: its wired interrupts, its LPIs, the
//! steps of an injection, and the scans for interrupts that wait for a vCPU.
//!
//! Models: `lifetime_intid`, `delivery_enable_lpis`, `delivery_power`, `its_moves`.

#![allow(unsafe_code)] // Wired interrupts point into the engine that owns them.

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

/// The state of one VM.
pub(crate) struct Shared<R: Reclaim> {
    pub(crate) config: Config,
    pub(crate) lpis: Lpis,
    pub(crate) limbo: Limbo<R>,
    pub(super) wired: WiredIrqs,
    pub(crate) reclaim: R,
    /// The last field: everything above points to it.
    pub(crate) dispatcher: Arc<Dispatcher>,
}

/// The number of SGIs and PPIs of each vCPU, without extended PPIs.
const PRIVATE: usize = PRIVATE_END as usize;

/// The interrupts that exist from the start, and their pending bits.
pub(super) struct WiredIrqs {
    /// For each vCPU: its SGIs, its PPIs, then its extended PPIs.
    private: Box<[Irq]>,
    /// The number of private interrupts of each vCPU.
    privates: usize,
    /// SPIs, then extended SPIs.
    shared: Box<[Irq]>,
    /// The number of SPIs that are not extended.
    spis: usize,
    _private_bits: Arc<[CachePadded<[PendingWord; 3]>]>,
    _spi_bits: Arc<[PendingBlock]>,
}

/// The position of an INTID in a list of `count` interrupts from `base` up, followed by extended
/// ones from `extended` up.
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
        // SAFETY: this struct keeps the bits, and `Shared` keeps the dispatcher, for longer than
        // the interrupts live.
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

    /// Makes an interrupt pending; `None` if it is dead.
    #[inline]
    fn try_inject(&self, irq: &Irq, pin: &Pin) -> Option<Injected> {
        self.try_inject_at(irq, irq.pending(), irq.lane(), || pin)
    }

    /// Makes an interrupt pending by its pending bit, lane `lane` of `word`; `None` if the
    /// interrupt is dead. If the injection coalesces, the interrupt's own cache line is not
    /// touched.
    ///
    /// The caller sees the interrupt under a pin, or keeps it. `pin` pins the thread where a kept
    /// reference is not enough.
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
            // The host is called before the last look at the interrupt, and the reference that a
            // route keeps can end in that call.
            let _pin = pin();
            return self.try_inject_disabled(irq, word, lane);
        }
        self.count(irq, Counter::Injected);
        self.dispatcher.schedule(irq).then_some(Injected::Pending)
    }

    /// Finishes an injection that found the target vCPU of its LPI to take no LPIs. The caller is
    /// pinned.
    #[cold]
    fn try_inject_disabled(&self, irq: &Irq, word: &PendingWord, lane: Lane) -> Option<Injected> {
        if !self.is_enabled_meanwhile(irq, word, lane, true) {
            return Some(Injected::Unmapped);
        }
        self.count(irq, Counter::Injected);
        self.dispatcher.schedule(irq).then_some(Injected::Pending)
    }

    /// Whether an interrupt can become pending. For an LPI, its target vCPU decides
    /// ([`Gates::msis`](crate::engine::Gates::msis)).
    #[inline(always)]
    fn takes_msis(&self, irq: &Irq) -> bool {
        !irq.intid().is_lpi() || self.dispatcher.vcpu(irq.control().load().target()).gates().msis
    }

    /// Clears the pending bit of an LPI because its target vCPU takes no LPIs. Returns true if the
    /// bit is set after all, since the vCPU takes LPIs by now or the interrupt is dead. The caller
    /// then schedules the interrupt, which it sees under a pin.
    ///
    /// Another injection may have coalesced before the clearing, so that the bit stands for it,
    /// too. If the vCPU took LPIs before that injection, the re-check after the clearing sees that
    /// it does: all threads change the pending word by read-modify-writes, and the clearing is the
    /// last of them. In the same way, a thread that closes the gate and then clears the pending bit
    /// misses nothing: an injection that sets the bit later finds the gate closed.
    ///
    /// `sent` says that the bit stands for an injection of the caller. If it does not, the bit is
    /// set again only if the clearing may have taken an injection. If there is no owner, only the
    /// pending bit is taken, without the mark that makes an owner withdraw the interrupt: a vCPU
    /// that claims the interrupt from now on takes the bit only if it takes LPIs, and then keeps
    /// it. If there is an owner, it withdraws the interrupt, and may have taken an injection that
    /// counts: the LPI is then delivered once too often rather than lost.
    ///
    /// Or the interrupt has died, and the INTID has been mapped again. Then the bit belongs to the
    /// new object, the vCPU of which may take LPIs, and is given back. In the same way, an injector
    /// that saw the new object, and set the bit before the clearing, had seen the death of the old
    /// object, and so does the re-check.
    #[cold]
    fn is_enabled_meanwhile(
        &self,
        irq: &Irq,
        word: &PendingWord,
        lane: Lane,
        mut sent: bool,
    ) -> bool {
        let takes = || {
            let dead = irq.state.load().is_dead() && !cfg!(mutant = "successor_cleared");
            dead || self.takes_msis(irq)
        };
        let is_owned = || irq.state.load_ordered().owner().is_some();
        loop {
            if sent || is_owned() {
                let _ = self.dispatcher.clear(irq);
                sent = true;
            } else {
                sent = word.forget(lane) || cfg!(mutant = "settled_is_pending");
            }
            if !takes() || !sent || cfg!(mutant = "ignored_without_second_look") {
                return false;
            }
            let _ = word.set(lane);
            if takes() {
                return true;
            }
        }
    }

    /// Settles an LPI at the new target that the caller has given it: if that vCPU takes no LPIs,
    /// the LPI is no longer pending.
    ///
    /// A thread that disables LPIs of that vCPU has a fence between closing the gate and looking at
    /// the targets of LPIs. This function has one between the change of the target and the look at
    /// the gate. Either that thread sees the new target, and clears the LPI, or this thread sees
    /// that the target takes none.
    pub(crate) fn settle_at_target(&self, irq: &Irq, pin: &Pin) {
        fence(Ordering::SeqCst);
        if !self.takes_msis(irq)
            && self.is_enabled_meanwhile(irq, irq.pending(), irq.lane(), false)
            && !self.dispatcher.schedule(irq)
        {
            let _ = self.inject_into_successor(irq, pin);
        }
    }

    /// Makes an LPI not pending if it is still at a vCPU that takes no LPIs. The caller disables
    /// the LPIs of a vCPU, and has found this one there. Returns whether it is still there.
    ///
    /// The LPI may move away at any time, and an MSI to its new target must not be lost. The
    /// pending bit is taken by a read-modify-write. If that takes the bit of an MSI to the new
    /// target, the re-check sees the new target, and the MSI is sent again. If the interrupt has
    /// died, the bit is that of the INTID's next mapping, and the MSI is sent again, too.
    ///
    /// The mark that makes an owner withdraw the LPI is left only if there is an owner, or was one
    /// that has just given the bit back. At any other time the mark could apply to an MSI that the
    /// new target has taken in since. The MSI that an owner has may have been sent after the move,
    /// also if the owner is the old target, which takes a pending bit before it hands over. If it
    /// was sent before the move, the LPI is delivered once too often, but is not lost.
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

    /// Finishes an injection that found its interrupt dead after it had set the pending bit. If the
    /// INTID has been mapped again since, the bit now belongs to the new object: see `lpis`.
    #[cold]
    fn inject_into_successor(&self, dead: &Irq, pin: &Pin) -> Injected {
        if cfg!(mutant = "dead_without_second_lookup") {
            return Injected::Unmapped;
        }
        while let Some(irq) = self.lpis.get(dead.intid(), pin) {
            if !self.takes_msis(irq)
                && !self.is_enabled_meanwhile(irq, irq.pending(), irq.lane(), true)
            {
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

    /// Schedules the wired interrupts that may be waiting for a vCPU, which has just become willing
    /// to take them.
    pub(crate) fn scan_wired(&self, vcpu: VcpuId) {
        self.wired.of(vcpu).iter().for_each(|irq| self.schedule_if_waiting(vcpu, irq));
        self.wired.shared.iter().for_each(|irq| self.schedule_if_waiting(vcpu, irq));
    }

    /// Schedules the LPIs that may be waiting for a vCPU, in the blocks from key `from` up to but
    /// not including `until`. Stops after about `most` looks. Returns the key to continue from, or
    /// `None` if no block is left.
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
            // One look at each of its cache lines, whether or not a bit is set.
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

    /// Schedules an interrupt if its target is `vcpu` and it may be waiting there.
    fn schedule_if_waiting(&self, vcpu: VcpuId, irq: &Irq) {
        let waits = irq.looks_pending() || irq.state.load().is_active();
        if waits && irq.control().load().target() == vcpu {
            self.dispatcher.schedule(irq);
        }
    }
}

impl<R: Reclaim> Drop for Shared<R> {
    fn drop(&mut self) {
        // Every participant had a handle of the engine, so all are gone: there is room for one.
        if let Some(participant) = self.reclaim.register() {
            self.free_everything(&participant.pin());
        }
    }
}
