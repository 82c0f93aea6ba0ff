//! Everything that makes interrupts pending.

use super::irq::IrqState;
use super::kref::IrqRef;
use super::msi::{LockedDomain, LockedRoute};
use super::{Participant, Vm};
use crate::engine::{Error, Injected, Injector, Trigger, Wired, WiredConfig};
use crate::ids::{DeviceId, EventId, VcpuId};

/// One thread's handle for injecting.
pub struct LockedInjector {
    pub(super) participant: Participant,
}

impl LockedInjector {
    /// Changes a wired interrupt by `f`, which returns whether there is something to attend to, and its result.
    fn change<R>(
        &self,
        wired: Wired,
        f: impl FnOnce(&mut IrqState) -> (bool, R),
    ) -> Result<R, Error> {
        let vm = &*self.participant.vm;
        let irq = vm.wired(wired)?;
        let mut state = irq.lock();
        let (changed, result) = f(&mut state);
        if changed {
            let kick = vm.attend(irq, state);
            vm.kick(kick);
        }
        Ok(result)
    }
}

impl Vm {
    /// Looks a wired interrupt up.
    pub(super) fn wired(&self, wired: Wired) -> Result<&IrqRef, Error> {
        match wired {
            Wired::Spi(intid) => self.spi(intid),
            Wired::Private(vcpu, intid) => {
                self.check_vcpu(vcpu)?;
                let private = &self.cpu(vcpu).private;
                private.get(intid.0 as usize).ok_or(Error::IntidRange(intid))
            }
        }
    }
}

impl Injector for LockedInjector {
    type Domain = LockedDomain;
    type Route = LockedRoute;

    #[inline]
    fn inject(&self, domain: &LockedDomain, device: DeviceId, event: EventId) -> Injected {
        domain.inject(device, event)
    }

    #[inline]
    fn inject_route(&self, route: &LockedRoute) -> Injected {
        route.inject()
    }

    fn set_level(&self, wired: Wired, high: bool) -> Result<(), Error> {
        self.change(wired, |state| {
            let changed = state.line_level != high;
            state.line_level = high;
            match state.trigger {
                Trigger::Level => (changed, ()),
                Trigger::Edge => {
                    let rise = changed && high && !state.pending_latch;
                    state.pending_latch |= rise;
                    (rise, ())
                }
            }
        })
    }

    fn pulse(&self, wired: Wired) -> Result<Injected, Error> {
        self.change(wired, |state| {
            if state.pending_latch {
                return (false, Injected::Coalesced);
            }
            state.pending_latch = true;
            (true, Injected::Pending)
        })
    }

    fn clear_pulse(&self, wired: Wired) -> Result<(), Error> {
        self.change(wired, |state| {
            state.clear_pending();
            (state.vcpu().is_some(), ())
        })
    }

    fn configure(&self, wired: Wired, config: WiredConfig) -> Result<(), Error> {
        if let Wired::Spi(intid) = wired {
            self.participant.vm.spi(intid)?;
            self.participant.vm.check_vcpu(config.target)?;
        }
        self.change(wired, |state| {
            state.configure(&config);
            (true, ())
        })
    }

    fn set_lpis_enabled(&self, vcpu: VcpuId, enabled: bool) -> Result<(), Error> {
        let vm = &*self.participant.vm;
        vm.check_vcpu(vcpu)?;
        let cpu = vm.cpu(vcpu);
        let mut ap_list = cpu.ap_list.lock();
        if ap_list.lpis_enabled == enabled {
            return Ok(());
        }
        ap_list.lpis_enabled = enabled;
        if !ap_list.open {
            return Ok(());
        }
        // LPIs leave the list at the flush.
        let kick = cpu.request_review();
        drop(ap_list);
        vm.kick(kick.then_some(vcpu));
        if enabled {
            vm.lpis.for_each(|irq| vm.requeue(irq, Some(vcpu)));
        }
        Ok(())
    }
}
