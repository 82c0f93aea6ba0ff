//! One thread's handle to inject interrupts, and to read and write the state of wired ones.
//!
//! Models: `delivery_level`, `delivery_active`, `delivery_read`, `delivery_enable_lpis`.

use alloc::sync::Arc;

use crate::arch::ids::{DeviceId, EventId, Intid, SGIS, VcpuId};
use crate::engine::{Error, Gates, Injected, Injector, Trigger, Wired, WiredConfig};
use crate::lockfree::irq::Irq;
use crate::lockfree::msi::{MsiDomain, MsiRoute};
use crate::lockfree::notify::Requests;
use crate::lockfree::reclaim::{Participant, Reclaim, Slots};
use crate::lockfree::vm::Shared;

/// One thread's handle for injecting. It can be sent to another thread, but not shared.
pub struct VgicInjector<R: Reclaim = Slots> {
    /// The first field: a participant is dropped before the engine that it belongs to.
    pub(super) participant: R::Participant,
    pub(super) shared: Arc<Shared<R>>,
}

impl<R: Reclaim> VgicInjector<R> {
    /// An interrupt that can be hardware-mapped: any wired one but an SGI.
    fn hw_mappable(&self, wired: Wired) -> Result<&Irq, Error> {
        let irq = self.shared.wired(wired)?;
        if irq.intid().is_sgi() { Err(Error::IntidRange(irq.intid())) } else { Ok(irq) }
    }

    /// Injects through a route that does not keep the LPI that its event is mapped to: the mapping
    /// has changed since the last injection, or there is none.
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
    fn inject(&self, domain: &MsiDomain<R>, device: DeviceId, event: EventId) -> Injected {
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
        // An LPI that a route keeps is not dead, so there is no successor to look for.
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
        // The guest may have ended a hardware-mapped interrupt without an exit, so that a fall of
        // its line was not seen.
        if old.line() == new.line() && !(high && new.phys().is_some()) {
            return Ok(());
        }
        match new.trigger() {
            Trigger::Level if high && cfg!(mutant = "rise_without_attend") => {}
            Trigger::Level if !high && cfg!(mutant = "fall_without_attend") => {}
            Trigger::Level => {
                self.shared.dispatcher.schedule(irq);
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
        let _ = self.shared.dispatcher.clear(self.shared.wired(wired)?);
        Ok(())
    }

    fn configure(&self, wired: Wired, config: WiredConfig) -> Result<(), Error> {
        if matches!(wired, Wired::Spi(_)) && !self.shared.dispatcher.has_vcpu(config.target) {
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
            let target = spi && self.shared.dispatcher.has_vcpu(config.target);
            if target { c.with_target(config.target) } else { c }
        });
        self.shared.dispatcher.schedule(irq);
        if old.target() != new.target() {
            self.shared.dispatcher.moved(irq, old.target());
        }
        Ok(new.config())
    }

    fn line(&self, wired: Wired) -> Result<bool, Error> {
        Ok(self.shared.wired(wired)?.control().load().line())
    }

    fn is_pending(&self, wired: Wired) -> Result<bool, Error> {
        let irq = self.shared.wired(wired)?;
        let _ = self.shared.dispatcher.publish(irq);
        Ok(irq.looks_pending_anywhere())
    }

    fn is_active(&self, wired: Wired) -> Result<bool, Error> {
        let irq = self.shared.wired(wired)?;
        let known = self.shared.dispatcher.publish(irq);
        let state = irq.state.load_ordered();
        // If the host has ended the wait, the guest may have acknowledged the interrupt in its list
        // register. It counts as active then: the caller wants to know that the guest is done with
        // it.
        Ok(state.is_active() || (!known && state.is_lr_pending()))
    }

    fn set_active(&self, wired: Wired, active: bool) -> Result<(), Error> {
        self.shared.dispatcher.set_active(self.shared.wired(wired)?, active);
        Ok(())
    }

    fn pulse_from(&self, vcpu: VcpuId, sgi: Intid, senders: u8) -> Result<(), Error> {
        let irq = self.shared.sgi(vcpu, sgi)?;
        irq.control().update(|c| c.sent_by(senders));
        self.shared.dispatcher.schedule(irq);
        Ok(())
    }

    fn clear_from(&self, vcpu: VcpuId, sgi: Intid, senders: u8) -> Result<(), Error> {
        let irq = self.shared.sgi(vcpu, sgi)?;
        irq.control().update(|c| c.recalled_by(senders));
        self.shared.dispatcher.schedule(irq);
        Ok(())
    }

    fn senders(&self, vcpu: VcpuId, sgi: Intid) -> Result<u8, Error> {
        let irq = self.shared.sgi(vcpu, sgi)?;
        let _ = self.shared.dispatcher.publish(irq);
        Ok(irq.senders_anywhere())
    }

    fn map_phys(&self, wired: Wired, pintid: u16) -> Result<(), Error> {
        let irq = self.hw_mappable(wired)?;
        // INTIDs below 16 are SGIs, which software sends. A list register has room for 13 bits (IHI
        // 0069, 12.4, `ICH_LR<n>_EL2`).
        if pintid < SGIS as u16 || pintid >= 1 << 13 {
            return Err(Error::IntidRange(Intid(pintid.into())));
        }
        irq.control().update(|c| c.with_phys(Some(pintid)));
        Ok(())
    }

    fn unmap_phys(&self, wired: Wired) -> Result<(), Error> {
        self.hw_mappable(wired)?.control().update(|c| c.with_phys(None));
        Ok(())
    }

    fn phys(&self, wired: Wired) -> Result<Option<u16>, Error> {
        Ok(self.hw_mappable(wired)?.control().load().phys())
    }

    fn update_gates(&self, vcpu: VcpuId, f: impl Fn(Gates) -> Gates) -> Result<(), Error> {
        let dispatcher = &self.shared.dispatcher;
        if !dispatcher.has_vcpu(vcpu) {
            return Err(Error::NoSuchVcpu(vcpu));
        }
        let shared = dispatcher.vcpu(vcpu);
        if cfg!(mutant = "requests_before_gates") {
            shared.request(Requests::REEVALUATE.and(Requests::SCAN));
            dispatcher.kick(vcpu);
        }
        let (old, new) = shared.update_gates(f);
        let mut requests = Requests::default();
        if new.opens_more_than(old) && !cfg!(mutant = "gates_opened_without_scan") {
            requests = requests.and(Requests::SCAN);
        }
        if old.opens_more_than(new) {
            requests = requests.and(Requests::REEVALUATE);
        }
        if requests != Requests::default() && !cfg!(mutant = "requests_before_gates") {
            shared.request(requests);
            dispatcher.kick(vcpu);
        }
        Ok(())
    }
}
