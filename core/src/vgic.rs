//! The engine of one VM, and a thread's handle to inject.

#![allow(unsafe_code)] // Wired interrupts point into the engine that has them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::ControlFlow;
use core::ptr::NonNull;

use crate::bitmap::{BLOCK, LANES, LINES, Lane, PendingBlock, PendingWord};
use crate::block::Block;
use crate::collect::Limbo;
use crate::control::Control;
use crate::counters::Counter;
use crate::engine::{
    Config, Engine, Error, Gates, Injected, Injector, Kick, Trigger, Usage, Wired, WiredConfig,
};
use crate::hub::{Hub, Requests};
use crate::ids::{EPPI_BASE, ESPI_BASE, Intid, PRIVATE_END, PRIVATE_INTIDS, SGIS, VcpuId};
use crate::irq::Irq;
use crate::lpis::Lpis;
use crate::msi::{Msi, MsiDomain, MsiRoute};
use crate::reclaim::{Participant, Pin, Reclaim, Slots};
use crate::sync::{CachePadded, Ordering, fence};
use crate::vcpu::VcpuInterface;

/// Everything of one VM.
pub(crate) struct Shared<R: Reclaim> {
    pub(crate) config: Config,
    pub(crate) lpis: Lpis,
    pub(crate) limbo: Limbo<R>,
    wired: WiredIrqs,
    pub(crate) reclaim: R,
    /// Last: everything above points to it.
    pub(crate) hub: Arc<Hub>,
}

/// SGIs and PPIs of each vCPU that exist.
const PRIVATE: usize = PRIVATE_END as usize;

/// The interrupts that exist from the start, and their pending bits.
struct WiredIrqs {
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
    fn new(config: &Config, hub: &Arc<Hub>) -> Self {
        let (spis, espis) = (usize::from(config.spis), usize::from(config.espis));
        let privates = PRIVATE + usize::from(config.eppis);
        let private_bits: Arc<[CachePadded<[PendingWord; 3]>]> =
            (0..config.vcpus).map(|_| CachePadded::default()).collect();
        let spi_bits: Arc<[PendingBlock]> =
            (0..(spis + espis).div_ceil(BLOCK)).map(|_| PendingBlock::new()).collect();
        // SAFETY: the bits are kept by this struct, and the hub by `Shared`, for longer than the interrupts.
        let make = |intid, target, bit: (&PendingWord, Lane)| unsafe {
            let control = Control::RESET.with_target(target);
            Irq::new(Intid(intid), control, (NonNull::from(bit.0), bit.1), NonNull::from(&**hub))
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
            Wired::Private(vcpu, _) if !self.hub.has_vcpu(vcpu) => Err(Error::NoSuchVcpu(vcpu)),
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
    fn sgi(&self, vcpu: VcpuId, sgi: Intid) -> Result<&Irq, Error> {
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
    fn try_inject_at<P>(
        &self,
        irq: &Irq,
        word: &PendingWord,
        lane: Lane,
        pin: impl FnOnce() -> P,
    ) -> Option<Injected> {
        if cfg!(mutant = "attend_before_pending") && !irq.looks_pending() {
            // Seeded bug: notifies before it publishes.
            let lives = self.hub.attend(irq);
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
        self.hub.attend(irq).then_some(Injected::Pending)
    }

    /// The rest of an injection of an LPI whose vCPU takes none. The caller is pinned.
    #[cold]
    fn try_inject_disabled(&self, irq: &Irq, word: &PendingWord, lane: Lane) -> Option<Injected> {
        if !self.is_enabled_meanwhile(irq, word, lane) {
            return Some(Injected::Unmapped);
        }
        self.count(irq, Counter::Injected);
        self.hub.attend(irq).then_some(Injected::Pending)
    }

    /// Whether an interrupt can become pending: of LPIs, their vCPU says so ([`Gates::msis`]).
    #[inline(always)]
    fn takes_msis(&self, irq: &Irq) -> bool {
        !irq.intid().is_lpi() || self.hub.vcpu(irq.control().load().target()).gates().msis
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
            let _ = self.hub.clear(irq);
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
            && !self.hub.attend(irq)
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
            sent |= self.hub.clear(irq);
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
            if self.hub.attend(irq) {
                return Injected::Pending;
            }
        }
        Injected::Unmapped
    }

    #[inline(always)]
    fn count(&self, irq: &Irq, counter: Counter) {
        if cfg!(feature = "counters") {
            self.hub.vcpu(irq.control().load().target()).counters.add(counter, 1);
        }
    }

    /// Attends to the wired interrupts that may be waiting for a vCPU, which has just become willing to take them.
    pub(crate) fn scan_wired(&self, vcpu: VcpuId) {
        self.wired.of(vcpu).iter().for_each(|irq| self.attend_if_waiting(vcpu, irq));
        self.wired.shared.iter().for_each(|irq| self.attend_if_waiting(vcpu, irq));
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
                    self.attend_if_waiting(vcpu, irq);
                }
                looks += 1;
                from = i + 1;
            }
            ControlFlow::Continue(())
        });
        next
    }

    fn attend_if_waiting(&self, vcpu: VcpuId, irq: &Irq) {
        let waits = irq.looks_pending() || irq.state.load().is_active();
        if waits && irq.control().load().target() == vcpu {
            self.hub.attend(irq);
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

/// A virtual interrupt controller without locks: the handle of one VM's engine.
///
/// ```
/// use std::sync::Arc;
/// use vgic_core::cpuif::CpuInterface;
/// use vgic_core::engine::*;
/// use vgic_core::ids::*;
/// use vgic_core::Vgic;
///
/// struct NoKick; // this example has one thread
/// impl Kick for NoKick {
///     fn kick(&self, _: VcpuId) {}
/// }
///
/// let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), Arc::new(NoKick))?;
/// let (device, event) = (DeviceId(8), EventId(0));
/// let mut msi = vgic.msi()?;
/// msi.map(device, event, Intid(8192), VcpuId(0), LpiConfig::enabled(0xa0))?;
///
/// let mut vcpu = vgic.vcpu(VcpuId(0))?;
/// vcpu.open();
/// let injector = vgic.injector()?;
/// assert_eq!(injector.inject(&msi.domain(), device, event), Injected::Pending);
///
/// // The software CPU interface stands for the hardware's list registers and the guest.
/// let mut cpu = CpuInterface::new(4).unwrap();
/// cpu.set_pmr(0xff);
/// cpu.set_igrpen1(1);
/// vcpu.flush(&mut cpu);
/// assert_eq!(cpu.iar1(), Intid(8192));
/// let _ = cpu.eoir1(Intid(8192)); // nothing physical to deactivate
/// vcpu.fold(&mut cpu);
/// # Ok::<(), Error>(())
/// ```
pub struct Vgic<R: Reclaim = Slots>(Arc<Shared<R>>);

impl<R: Reclaim> Clone for Vgic<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Reclaim> Vgic<R> {
    fn build(config: &Config, hub: Hub) -> Self {
        let hub = Arc::new(hub);
        Self(Arc::new(Shared {
            config: config.clone(),
            lpis: Lpis::new(config.lpis, config.max_lpis, &hub),
            limbo: Limbo::new(),
            wired: WiredIrqs::new(config, &hub),
            reclaim: R::new(config.participants),
            hub,
        }))
    }

    /// An engine whose every reference is reported to `tracer`.
    ///
    /// # Errors
    /// As [`Engine::new`].
    #[cfg(feature = "trace")]
    pub fn with_tracer(
        config: &Config,
        kick: Arc<dyn Kick>,
        tracer: Arc<dyn crate::trace::Tracer>,
    ) -> Result<Self, Error> {
        config.check()?;
        let mut hub = Hub::new(config.vcpus, kick);
        hub.tracer = Some(tracer);
        Ok(Self::build(config, hub))
    }

    /// The counters of a vCPU; `None` if there is no such vCPU.
    #[cfg(feature = "counters")]
    pub fn counters(&self, vcpu: VcpuId) -> Option<crate::counters::VcpuCounters> {
        self.0.hub.has_vcpu(vcpu).then(|| self.0.hub.vcpu(vcpu).counters.get())
    }
}

impl<R: Reclaim> Engine for Vgic<R> {
    type Vcpu = VcpuInterface<R>;
    type Msi = Msi<R>;
    type Domain = MsiDomain<R>;
    type Route = MsiRoute<R>;
    type Injector = VgicInjector<R>;

    const NAME: &'static str = "lockfree";

    fn new(config: &Config, kick: Arc<dyn Kick>) -> Result<Self, Error> {
        config.check()?;
        Ok(Self::build(config, Hub::new(config.vcpus, kick)))
    }

    fn vcpu(&self, vcpu: VcpuId) -> Result<VcpuInterface<R>, Error> {
        VcpuInterface::new(Arc::clone(&self.0), vcpu)
    }

    fn msi(&self) -> Result<Msi<R>, Error> {
        Msi::new(Arc::clone(&self.0))
    }

    fn injector(&self) -> Result<VgicInjector<R>, Error> {
        let participant = self.0.reclaim.register().ok_or(Error::TooManyParticipants)?;
        Ok(VgicInjector { participant, shared: Arc::clone(&self.0) })
    }

    fn usage(&self) -> Usage {
        let counts = &self.0.hub.graveyard.counts;
        Usage { lpis: counts.irqs.get(), garbage: counts.garbage.get(), bytes: counts.bytes() }
    }
}

/// One thread's handle for injecting. It can be sent to another thread, but not shared.
pub struct VgicInjector<R: Reclaim = Slots> {
    /// First: a participant ends before the engine that it belongs to.
    participant: R::Participant,
    shared: Arc<Shared<R>>,
}

impl<R: Reclaim> VgicInjector<R> {
    /// An interrupt that can be tied to a physical one.
    fn tieable(&self, wired: Wired) -> Result<&Irq, Error> {
        let irq = self.shared.wired(wired)?;
        if irq.intid().is_sgi() { Err(Error::IntidRange(irq.intid())) } else { Ok(irq) }
    }

    /// The route's event is mapped to something else than last time, or not mapped.
    #[cold]
    fn inject_remapped(&self, route: &MsiRoute<R>) -> Injected {
        let pin = &*self.participant.pin();
        match route.keep(pin) {
            Some(irq) => self.shared.inject(irq, pin),
            None => Injected::Unmapped,
        }
    }
}

impl<R: Reclaim> Injector for VgicInjector<R> {
    type Domain = MsiDomain<R>;
    type Route = MsiRoute<R>;

    #[inline]
    fn inject(
        &self,
        domain: &MsiDomain<R>,
        device: crate::ids::DeviceId,
        event: crate::ids::EventId,
    ) -> Injected {
        assert!(Arc::ptr_eq(&self.shared, &domain.shared), "a domain of another engine");
        let pin = &*self.participant.pin();
        match domain.translate(device, event, pin) {
            Some(irq) => self.shared.inject(irq, pin),
            None => Injected::Unmapped,
        }
    }

    #[inline]
    fn inject_route(&self, route: &MsiRoute<R>) -> Injected {
        assert!(Arc::ptr_eq(&self.shared, &route.shared), "a route of another engine");
        route.prefetch();
        // What is kept is not dead, so there is no successor to look for.
        let pin = || self.participant.pin();
        let kept = route.kept();
        match kept.and_then(|(irq, word, lane)| self.shared.try_inject_at(irq, word, lane, pin)) {
            Some(injected) => injected,
            None => self.inject_remapped(route),
        }
    }

    fn set_level(&self, wired: Wired, high: bool) -> Result<(), Error> {
        let irq = self.shared.wired(wired)?;
        let (old, new) = irq.control().update(|c| c.with_line(high));
        // Who has a physical interrupt may have ended it without an exit, and a fall of its line was not seen then.
        if old.line() == new.line() && !(high && new.phys().is_some()) {
            return Ok(());
        }
        match new.trigger() {
            Trigger::Level if high && cfg!(mutant = "rise_without_attend") => {}
            Trigger::Level if !high && cfg!(mutant = "fall_without_attend") => {}
            Trigger::Level => {
                self.shared.hub.attend(irq);
            }
            Trigger::Edge if high && !old.line() => {
                let _ = self.shared.inject(irq, &self.participant.pin());
            }
            Trigger::Edge => {}
        }
        Ok(())
    }

    fn pulse(&self, wired: Wired) -> Result<Injected, Error> {
        let irq = self.shared.wired(wired)?;
        Ok(self.shared.inject(irq, &self.participant.pin()))
    }

    fn clear_pulse(&self, wired: Wired) -> Result<(), Error> {
        let _ = self.shared.hub.clear(self.shared.wired(wired)?);
        Ok(())
    }

    fn configure(&self, wired: Wired, config: WiredConfig) -> Result<(), Error> {
        if matches!(wired, Wired::Spi(_)) && !self.shared.hub.has_vcpu(config.target) {
            self.shared.wired(wired)?;
            return Err(Error::NoSuchVcpu(config.target));
        }
        self.update(wired, |_| config).map(drop)
    }

    fn config(&self, wired: Wired) -> Result<WiredConfig, Error> {
        Ok(self.shared.wired(wired)?.control().load().config())
    }

    fn update(
        &self,
        wired: Wired,
        f: impl Fn(WiredConfig) -> WiredConfig,
    ) -> Result<WiredConfig, Error> {
        let irq = self.shared.wired(wired)?;
        let spi = matches!(wired, Wired::Spi(_));
        let (old, new) = irq.control().update(|c| {
            let config = f(c.config());
            let trigger = if irq.intid().is_sgi() { Trigger::Edge } else { config.trigger };
            let c = c
                .with_enabled(config.enabled)
                .with_priority(config.priority)
                .with_group(config.group)
                .with_trigger(trigger);
            let target = spi && self.shared.hub.has_vcpu(config.target);
            if target { c.with_target(config.target) } else { c }
        });
        self.shared.hub.attend(irq);
        if old.target() != new.target() {
            self.shared.hub.moved(irq, old.target());
        }
        Ok(new.config())
    }

    fn line(&self, wired: Wired) -> Result<bool, Error> {
        Ok(self.shared.wired(wired)?.control().load().line())
    }

    fn is_pending(&self, wired: Wired) -> Result<bool, Error> {
        let irq = self.shared.wired(wired)?;
        let _ = self.shared.hub.publish(irq);
        Ok(irq.looks_pending_anywhere())
    }

    fn is_active(&self, wired: Wired) -> Result<bool, Error> {
        let irq = self.shared.wired(wired)?;
        let known = self.shared.hub.publish(irq);
        let state = irq.state.load_ordered();
        // The guest may have acknowledged what it had in a list register. Who asks wants to know that it is done with it.
        Ok(state.is_active() || (!known && state.is_latched()))
    }

    fn set_active(&self, wired: Wired, active: bool) -> Result<(), Error> {
        self.shared.hub.set_active(self.shared.wired(wired)?, active);
        Ok(())
    }

    fn pulse_from(&self, vcpu: VcpuId, sgi: Intid, senders: u8) -> Result<(), Error> {
        let irq = self.shared.sgi(vcpu, sgi)?;
        irq.control().update(|c| c.sent_by(senders));
        self.shared.hub.attend(irq);
        Ok(())
    }

    fn clear_from(&self, vcpu: VcpuId, sgi: Intid, senders: u8) -> Result<(), Error> {
        let irq = self.shared.sgi(vcpu, sgi)?;
        irq.control().update(|c| c.recalled_by(senders));
        self.shared.hub.attend(irq);
        Ok(())
    }

    fn senders(&self, vcpu: VcpuId, sgi: Intid) -> Result<u8, Error> {
        let irq = self.shared.sgi(vcpu, sgi)?;
        let _ = self.shared.hub.publish(irq);
        Ok(irq.senders_anywhere())
    }

    fn map_phys(&self, wired: Wired, pintid: u16) -> Result<(), Error> {
        let irq = self.tieable(wired)?;
        // SGIs come from software, and the list register has room for 13 bits (IHI 0069, 12.4, `ICH_LR<n>_EL2`).
        if pintid < SGIS as u16 || pintid >= 1 << 13 {
            return Err(Error::IntidRange(Intid(pintid.into())));
        }
        irq.control().update(|c| c.with_phys(Some(pintid)));
        Ok(())
    }

    fn unmap_phys(&self, wired: Wired) -> Result<(), Error> {
        self.tieable(wired)?.control().update(|c| c.with_phys(None));
        Ok(())
    }

    fn phys(&self, wired: Wired) -> Result<Option<u16>, Error> {
        Ok(self.tieable(wired)?.control().load().phys())
    }

    fn update_gates(&self, vcpu: VcpuId, f: impl Fn(Gates) -> Gates) -> Result<(), Error> {
        let hub = &self.shared.hub;
        if !hub.has_vcpu(vcpu) {
            return Err(Error::NoSuchVcpu(vcpu));
        }
        let shared = hub.vcpu(vcpu);
        if cfg!(mutant = "requests_before_gates") {
            shared.request(Requests::REVIEW.and(Requests::SCAN));
            hub.kick(vcpu);
        }
        let (old, new) = shared.update_gates(f);
        let mut requests = Requests::default();
        if new.opens_more_than(old) && !cfg!(mutant = "gates_opened_without_scan") {
            requests = requests.and(Requests::SCAN);
        }
        if old.opens_more_than(new) {
            requests = requests.and(Requests::REVIEW);
        }
        if requests != Requests::default() && !cfg!(mutant = "requests_before_gates") {
            shared.request(requests);
            hub.kick(vcpu);
        }
        Ok(())
    }
}
