//! Injection, and the other operations on interrupts from outside their vCPU's thread.

use super::irq::IrqState;
use super::kref::IrqRef;
use super::msi::{LockedDomain, LockedRoute};
use super::spin::SpinGuard;
use super::{Participant, Vm};
use crate::arch::ids::{DeviceId, EventId, Intid, SGIS, VcpuId};
use crate::engine::{Error, Gates, Injected, Injector, Trigger, Wired, WiredConfig};

/// Physical interrupts that a wired interrupt can be mapped to: all but SGIs, in the 13 bits of a
/// list register.
const PINTIDS: core::ops::Range<u16> = SGIS as u16..1 << 13;

/// One thread's handle for injecting.
pub struct LockedInjector {
    pub(super) participant: Participant,
}

impl LockedInjector {
    /// Changes a wired interrupt with `f`, which returns whether the vCPU must see the change, and
    /// a result. Returns that result.
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

    /// Changes an SGI with `f`, which returns whether the vCPU must see the change.
    fn change_sgi(
        &self,
        vcpu: VcpuId,
        sgi: Intid,
        f: impl FnOnce(&mut IrqState) -> bool,
    ) -> Result<(), Error> {
        self.change(sgi_of(vcpu, sgi)?, |state| (f(state), ()))
    }

    /// Maps a PPI or SPI to a physical interrupt, or to none. The mapping applies when the
    /// interrupt is next presented.
    fn tie(&self, wired: Wired, pintid: Option<u16>) -> Result<(), Error> {
        check_tieable(wired)?;
        self.change(wired, |state| (false, state.own.set_phys(pintid)))
    }

    /// Reads a wired interrupt with `f`, when the guest does not own it.
    fn read<R>(&self, wired: Wired, f: impl FnOnce(&IrqState) -> R) -> Result<R, Error> {
        let vm = &*self.participant.vm;
        let irq = vm.wired(wired)?;
        // If the guest owns it again by now, the state is that of the last fold, which ended after
        // this call began.
        Ok(f(&vm.outside(irq, irq.lock()).0))
    }
}

/// Returns an SGI as a wired interrupt.
fn sgi_of(vcpu: VcpuId, sgi: Intid) -> Result<Wired, Error> {
    if sgi.is_sgi() { Ok(Wired::Private(vcpu, sgi)) } else { Err(Error::IntidRange(sgi)) }
}

/// Refuses SGIs: they come from software, and cannot be mapped to a physical interrupt.
fn check_tieable(wired: Wired) -> Result<(), Error> {
    match wired {
        Wired::Private(_, intid) if intid.is_sgi() => Err(Error::IntidRange(intid)),
        _ => Ok(()),
    }
}

impl Vm {
    /// Makes the guest that owns this interrupt, if there is one, leave, and waits for that.
    /// Returns the interrupt's lock, and false if the host has ended the wait.
    fn outside<'i>(
        &self,
        irq: &'i IrqRef,
        state: SpinGuard<'i, IrqState>,
    ) -> (SpinGuard<'i, IrqState>, bool) {
        let Some(vcpu) = state.vcpu().filter(|_| state.in_lr || state.active) else {
            return (state, true);
        };
        let cpu = self.cpu(vcpu);
        let Some(entry) = cpu.entry() else { return (state, true) };
        drop(state);
        self.kick.kick(vcpu);
        self.kick.wait_for_exit(vcpu, &|| cpu.has_left(entry));
        let left = cpu.has_left(entry);
        (irq.lock(), left)
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
            // A guest may have ended a hardware-mapped interrupt without an exit. If its line had
            // fallen, that was not seen, so a high line counts as a change.
            let tied = high && state.trigger == Trigger::Level && state.own.phys().is_some();
            let changed = state.line_level != high || tied;
            state.line_level = high;
            state.own.set_line_set(true);
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
        self.update(wired, |_| config).map(drop)
    }

    fn config(&self, wired: Wired) -> Result<WiredConfig, Error> {
        self.change(wired, |state| (false, state.config()))
    }

    fn update(
        &self,
        wired: Wired,
        f: impl Fn(WiredConfig) -> WiredConfig,
    ) -> Result<WiredConfig, Error> {
        let mut old = self.config(wired)?;
        loop {
            // The lock is not held: `f` is the caller's code.
            let mut new = f(old);
            if matches!(wired, Wired::Private(..))
                || self.participant.vm.check_vcpu(new.target).is_err()
            {
                new.target = old.target;
            }
            let now = self.change(wired, |state| {
                if state.intid.is_sgi() {
                    new.trigger = Trigger::Edge;
                }
                let now = state.config();
                let changes = now == old && now != new;
                if changes {
                    state.configure(&new);
                }
                (changes, now)
            })?;
            if now == old {
                return Ok(new);
            }
            old = now;
        }
    }

    fn line(&self, wired: Wired) -> Result<bool, Error> {
        self.change(wired, |state| (false, state.line_level))
    }

    fn is_pending(&self, wired: Wired) -> Result<bool, Error> {
        self.read(wired, IrqState::is_pending)
    }

    fn is_active(&self, wired: Wired) -> Result<bool, Error> {
        let vm = &*self.participant.vm;
        let irq = vm.wired(wired)?;
        let (state, known) = vm.outside(irq, irq.lock());
        Ok(state.active || (!known && state.in_lr))
    }

    fn set_active(&self, wired: Wired, active: bool) -> Result<(), Error> {
        let vm = &*self.participant.vm;
        let irq = vm.wired(wired)?;
        let mut state = irq.lock();
        state.own.order(active);
        let (mut state, left) = vm.outside(irq, state);
        // A fold, a flush or another write may have carried out the order already, and the first
        // one to do so has handled the consequences. If the host has ended the wait, the next fold
        // carries out the order.
        if left && state.obey_order() {
            let kick = vm.attend(irq, state);
            vm.kick(kick);
        }
        Ok(())
    }

    fn pulse_from(&self, vcpu: VcpuId, sgi: Intid, senders: u8) -> Result<(), Error> {
        self.change_sgi(vcpu, sgi, |state| {
            let old = state.own.senders();
            state.own.set_senders(old | senders);
            old | senders != old
        })
    }

    fn clear_from(&self, vcpu: VcpuId, sgi: Intid, senders: u8) -> Result<(), Error> {
        self.change_sgi(vcpu, sgi, |state| {
            state.clear_senders(senders);
            state.vcpu().is_some()
        })
    }

    fn senders(&self, vcpu: VcpuId, sgi: Intid) -> Result<u8, Error> {
        self.read(sgi_of(vcpu, sgi)?, IrqState::senders)
    }

    fn map_phys(&self, wired: Wired, pintid: u16) -> Result<(), Error> {
        if !PINTIDS.contains(&pintid) {
            return Err(Error::IntidRange(Intid(pintid.into())));
        }
        self.tie(wired, Some(pintid))
    }

    fn unmap_phys(&self, wired: Wired) -> Result<(), Error> {
        self.tie(wired, None)
    }

    fn phys(&self, wired: Wired) -> Result<Option<u16>, Error> {
        check_tieable(wired)?;
        self.change(wired, |state| (false, state.own.phys()))
    }

    fn update_gates(&self, vcpu: VcpuId, f: impl Fn(Gates) -> Gates) -> Result<(), Error> {
        let vm = &*self.participant.vm;
        vm.check_vcpu(vcpu)?;
        let cpu = vm.cpu(vcpu);
        let mut old = cpu.ap_list.lock().gates;
        let (new, kick) = loop {
            // The lock is not held: `f` is the caller's code.
            let new = f(old);
            let mut ap_list = cpu.ap_list.lock();
            if ap_list.gates != old {
                old = ap_list.gates;
                continue;
            }
            ap_list.gates = new;
            cpu.set_takes_msis(new.msis);
            if !ap_list.open || new == old {
                return Ok(());
            }
            // Interrupts that are no longer forwarded leave the list at the flush. An interrupt
            // that is active in a list register may be forwarded again.
            break (new, cpu.request_review());
        };
        vm.kick(kick.then_some(vcpu));
        if new.opens_more_than(old) {
            cpu.private.iter().chain(&vm.spis).for_each(|irq| vm.requeue(irq, Some(vcpu)));
            vm.lpis.for_each(|irq| vm.requeue(irq, Some(vcpu)));
        }
        Ok(())
    }
}
