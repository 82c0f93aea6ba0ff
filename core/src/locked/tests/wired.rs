//! Tests of accesses to wired interrupts from outside their vCPU, and of the time at which the host
//! learns of their end.

use std::sync::Weak;

use super::*;
use crate::engine::Gates;

const SPI: Wired = Wired::Spi(Intid(40));
const PPI: Wired = Wired::Private(V0, Intid(27));
const SGI: Wired = Wired::Private(V0, Intid(3));

/// A host that takes the vCPU out of its guest on the waiting thread, when a thread waits for that.
/// A thread that waits with a lock never returns.
#[derive(Default)]
struct Host {
    /// vCPU 0, which is in the guest.
    guest: Mutex<Option<(LockedVcpu, Lrs)>>,
    /// The vCPU enters the guest again before the waiter continues.
    again: bool,
    /// The guest then acknowledges an interrupt.
    then_acks: bool,
    /// The level that the host answers for a line, and the level that it sets through the injector
    /// before the engine gets the answer.
    level: Mutex<Option<(bool, LockedInjector, bool)>>,
    kicks: Kicks,
}

impl Kick for Host {
    fn kick(&self, vcpu: VcpuId) {
        self.kicks.kick(vcpu);
    }

    fn wait_for_exit(&self, vcpu: VcpuId, done: &dyn Fn() -> bool) {
        assert_eq!(self.kicks.take().last(), Some(&vcpu));
        let mut guest = self.guest.lock().unwrap();
        let (vcpu, lrs) = guest.as_mut().unwrap();
        assert!(!done());
        vcpu.fold(lrs);
        assert!(done());
        if self.again {
            vcpu.flush(lrs);
            if self.then_acks {
                lrs.ack();
            }
            assert!(done(), "that was another entry");
        }
    }

    fn input_level(&self, wired: Wired) -> Option<bool> {
        let level = self.level.lock().unwrap();
        let (said, injector, now) = level.as_ref()?;
        // A real host sets a line on another thread. Here, this shows that no lock is held, and
        // that the set level is newer than the answer.
        injector.set_level(wired, *now).unwrap();
        Some(*said)
    }
}

fn host(again: bool, then_acks: bool) -> (Arc<Host>, LockedVgic, LockedInjector) {
    let host = Arc::new(Host { again, then_acks, ..Host::default() });
    let weak: Weak<Host> = Arc::downgrade(&host);
    let vgic = LockedVgic::new(&Config::with_vcpus(2), Arc::new(Remote(weak))).unwrap();
    let lrs = Lrs { lrs: vec![Lr::EMPTY; 2], eois: 0, maintenance: Maintenance::default() };
    let mut vcpu = vgic.vcpu(V0).unwrap();
    vcpu.open();
    *host.guest.lock().unwrap() = Some((vcpu, lrs));
    let injector = vgic.injector().unwrap();
    (host, vgic, injector)
}

/// A weak handle to the host, which has a vCPU: the engine does not keep the host alive.
struct Remote(Weak<Host>);

impl Kick for Remote {
    fn kick(&self, vcpu: VcpuId) {
        self.0.upgrade().into_iter().for_each(|host| host.kick(vcpu));
    }
    fn wait_for_exit(&self, vcpu: VcpuId, done: &dyn Fn() -> bool) {
        self.0.upgrade().unwrap().wait_for_exit(vcpu, done);
    }
    fn input_level(&self, wired: Wired) -> Option<bool> {
        self.0.upgrade()?.input_level(wired)
    }
}

impl Host {
    fn with<R>(&self, f: impl FnOnce(&mut LockedVcpu, &mut Lrs) -> R) -> R {
        let mut guest = self.guest.lock().unwrap();
        let (vcpu, lrs) = guest.as_mut().unwrap();
        f(vcpu, lrs)
    }
}

fn config(trigger: Trigger) -> WiredConfig {
    let (priority, group) = (Priority::new(0xa0), Group::Group1);
    WiredConfig { enabled: true, priority, group, trigger, target: V0 }
}

impl Vm {
    /// Delivers [`SPI`] to vCPU 0, and leaves it active.
    fn active(trigger: Trigger) -> Self {
        let mut vm = Self::two();
        vm.configure(SPI, 0xa0, trigger, V0);
        let _ = vm.injector.pulse(SPI);
        let (vcpu, lrs) = &mut vm.vcpus[0];
        vcpu.flush(lrs);
        assert_eq!(lrs.ack(), Some(40));
        vcpu.fold(lrs);
        vm
    }

    /// Enters vCPU 0. Returns the state of its first list register, and whether the end of that
    /// interrupt causes an exit.
    fn enter(&mut self) -> (LrState, bool) {
        let (vcpu, lrs) = &mut self.vcpus[0];
        vcpu.flush(lrs);
        (lrs.lrs[0].state(), lrs.lrs[0].eoi_maintenance())
    }
}

#[test]
fn a_read_is_of_the_last_fold() {
    for again in [false, true] {
        let (host, _vgic, injector) = host(again, true);
        injector.configure(SPI, config(Trigger::Edge)).unwrap();
        let _ = injector.pulse(SPI);
        host.with(|vcpu, lrs| vcpu.flush(lrs));
        // If there is another entry, the guest acknowledges the interrupt after the fold: the
        // answer is older than that.
        assert_eq!((injector.is_pending(SPI), host.kicks.take()), (Ok(true), vec![]));
        host.with(|vcpu, lrs| vcpu.flush(lrs));
        assert_eq!(injector.is_active(SPI), Ok(again));
        host.with(|vcpu, lrs| vcpu.fold(lrs));
        assert_eq!(injector.is_pending(SPI), Ok(!again));
    }
}

#[test]
fn what_nobody_has_in_the_guest_is_not_waited_for() {
    let (host, _vgic, injector) = host(false, false);
    let spi = |n| Wired::Spi(Intid(n));
    for n in [40, 41, 42] {
        injector.configure(spi(n), config(Trigger::Edge)).unwrap();
        let _ = injector.pulse(spi(n));
    }
    host.with(|vcpu, lrs| vcpu.flush(lrs));
    host.kicks.take();
    // This interrupt waits for a list register.
    assert_eq!((injector.is_pending(spi(42)), injector.is_active(spi(42))), (Ok(true), Ok(false)));
    assert_eq!(injector.set_active(spi(43), true), Ok(()));
    assert_eq!(injector.is_active(spi(44)), Ok(false));
    host.with(|vcpu, lrs| {
        assert_eq!(lrs.ack(), Some(40));
        vcpu.fold(lrs);
    });
    assert_eq!((injector.is_pending(spi(40)), injector.is_active(spi(40))), (Ok(false), Ok(true)));
}

#[test]
fn an_acknowledge_after_the_fold_holds() {
    let (host, _vgic, injector) = host(true, true);
    injector.configure(SPI, config(Trigger::Edge)).unwrap();
    let _ = injector.pulse(SPI);
    host.with(|vcpu, lrs| vcpu.flush(lrs));
    // The guest acknowledges the interrupt in the entry that comes before the writer continues.
    injector.set_active(SPI, false).unwrap();
    host.with(|vcpu, lrs| {
        assert_eq!(lrs.state(40), LrState::Active);
        vcpu.fold(lrs);
    });
    assert_eq!(injector.is_active(SPI), Ok(true));
}

#[test]
fn a_flush_obeys_for_what_has_no_list_register() {
    for again in [false, true] {
        let (host, _vgic, injector) = host(again, false);
        for (n, priority) in [(40, 0xa0), (41, 0x80), (42, 0x60)] {
            let priority = Priority::new(priority);
            let config = WiredConfig { priority, ..config(Trigger::Edge) };
            injector.configure(Wired::Spi(Intid(n)), config).unwrap();
            let _ = injector.pulse(Wired::Spi(Intid(n)));
            host.with(|vcpu, lrs| {
                vcpu.flush(lrs);
                assert_eq!(lrs.ack(), Some(n));
                vcpu.fold(lrs);
            });
        }
        host.with(|vcpu, lrs| {
            vcpu.flush(lrs);
            assert_eq!(lrs.state(40), LrState::Invalid);
        });
        injector.set_active(SPI, false).unwrap();
        assert_eq!(injector.is_active(SPI), Ok(false));
        host.with(|vcpu, lrs| {
            vcpu.fold(lrs);
            vcpu.flush(lrs);
            assert_eq!(lrs.maintenance, Maintenance::default());
            assert!(!vcpu.deactivate(Intid(40)));
        });
    }
}

#[test]
fn the_end_of_what_is_held_back_is_heard_of() {
    // No other vCPU needs it.
    let mut vm = Vm::active(Trigger::Edge);
    assert_eq!(vm.enter(), (LrState::Active, false));
    let _ = vm.injector.pulse(SPI);
    assert_eq!(vm.enter(), (LrState::PendingActive, false));
    // The interrupt is pending for another vCPU, then for none, then here again.
    vm.configure(SPI, 0xa0, Trigger::Edge, V1);
    assert_eq!(vm.enter(), (LrState::Active, true));
    vm.injector.update(SPI, |c| WiredConfig { enabled: false, target: V0, ..c }).unwrap();
    assert_eq!(vm.enter(), (LrState::Active, true));
    vm.configure(SPI, 0xa0, Trigger::Edge, V0);
    assert_eq!(vm.enter(), (LrState::PendingActive, false));
    vm.injector.update_gates(V0, |_| Gates::CLOSED).unwrap();
    assert_eq!(vm.enter(), (LrState::Active, true));
    vm.injector.update_gates(V0, |_| Gates::OPEN).unwrap();
    assert_eq!(vm.enter(), (LrState::PendingActive, false));
    vm.configure(SPI, 0xa0, Trigger::Level, V0);
    assert_eq!(vm.enter(), (LrState::Active, true));
}

#[test]
fn a_forgotten_lpi_is_handed_over_at_once() {
    let mut vm = Vm::two();
    (0..2).for_each(|n| vm.map(n, V0, if n == 0 { 0xa0 } else { 0x20 }));
    vm.vcpus[0].1.lrs.truncate(1);
    vm.inject_all([0]);
    let (vcpu, lrs) = &mut vm.vcpus[0];
    vcpu.flush(lrs);
    assert_eq!(lrs.ack(), Some(LPI_BASE));
    vm.inject_all([0, 1]);
    vm.msi.retarget(DEVICE, EventId(0), V1).unwrap();
    vm.kicks.take();
    let (vcpu, lrs) = &mut vm.vcpus[0];
    let flushed = vcpu.flush(lrs);
    assert_eq!((flushed.in_lrs, flushed.waiting), (1, false));
    assert_eq!(vm.kicks.take(), [V1]);
    assert_eq!(vm.drain(V1), [0]);
}

#[test]
fn what_waits_for_an_end_is_mail() {
    let mut vm = Vm::two();
    vm.configure(SGI, 0xa0, Trigger::Edge, V0);
    vm.injector.pulse_from(V0, Intid(3), 0b11).unwrap();
    assert_eq!(vm.run(V0), [3]);
    assert!(vm.vcpus[0].0.has_mail(), "the second sender's");
    assert_eq!(vm.run(V0), [3 | 1 << 10]);
    assert!(!vm.vcpus[0].0.has_mail());
    vm.configure(SPI, 0xa0, Trigger::Level, V0);
    vm.injector.set_level(SPI, true).unwrap();
    assert_eq!(vm.run(V0), [40]);
    assert!(vm.vcpus[0].0.has_mail(), "the line is still high");
}

#[test]
fn a_pulse_of_an_sgi_is_no_senders() {
    let mut vm = Vm::two();
    vm.configure(SGI, 0xa0, Trigger::Edge, V0);
    let _ = vm.injector.pulse(SGI);
    vm.injector.pulse_from(V0, Intid(3), 0b10).unwrap();
    assert_eq!(vm.injector.senders(V0, Intid(3)), Ok(0b10));
    assert_eq!(vm.enter(), (LrState::Pending, true));
    vm.injector.clear_pulse(SGI).unwrap();
    assert_eq!(vm.enter(), (LrState::Pending, false));
    let _ = vm.injector.pulse(SGI);
    assert_eq!((vm.run(V0), vm.run(V0)), (vec![3 | 1 << 10], vec![3]));
    assert_eq!(vm.run(V0), []);
}

#[test]
fn tied_to_a_physical_interrupt_it_is_never_pending_and_active() {
    let mut vm = Vm::two();
    vm.configure(SPI, 0xa0, Trigger::Edge, V0);
    vm.injector.map_phys(SPI, 99).unwrap();
    let _ = vm.injector.pulse(SPI);
    assert_eq!(vm.enter(), (LrState::Pending, false));
    vm.vcpus[0].1.ack();
    let _ = vm.injector.pulse(SPI);
    // Two other interrupts wait, which changes nothing here.
    (0..2).for_each(|n| vm.map(n, V0, 0xf0));
    vm.inject_all([0, 1]);
    assert_eq!(vm.enter(), (LrState::Active, false));
    let (vcpu, lrs) = &mut vm.vcpus[0];
    assert_eq!(lrs.lrs[0].hw(), Some(99));
    lrs.eoi(40);
    vcpu.fold(lrs);
    assert_eq!((vm.run(V0), vm.run(V0)), (vec![40, LPI_BASE], vec![LPI_BASE + 1]));
}

#[test]
fn a_line_that_is_set_meanwhile_is_newer_than_the_answer() {
    for (said, now) in [(true, false), (false, true)] {
        let (host, vgic, injector) = host(false, false);
        injector.configure(PPI, config(Trigger::Level)).unwrap();
        injector.map_phys(PPI, 99).unwrap();
        injector.set_level(PPI, true).unwrap();
        *host.level.lock().unwrap() = Some((said, vgic.injector().unwrap(), now));
        host.with(|vcpu, lrs| {
            vcpu.flush(lrs);
            lrs.ack();
            lrs.eoi(27);
            vcpu.fold(lrs);
        });
        assert_eq!(injector.line(PPI), Ok(now));
        assert_eq!(host.with(|vcpu, lrs| vcpu.flush(lrs)).pending, usize::from(now));
    }
}

#[test]
fn what_was_active_can_be_deactivated_from_opening_on() {
    let mut vm = Vm::active(Trigger::Edge);
    let (vcpu, lrs) = &mut vm.vcpus[0];
    vcpu.close(lrs);
    assert!(!vcpu.deactivate(Intid(40)), "it is nobody's");
    vcpu.open();
    assert!(vcpu.deactivate(Intid(40)) && !vcpu.deactivate(Intid(40)));
    assert_eq!(vm.injector.is_active(SPI), Ok(false));
    // Made active for another vCPU, the interrupt is not active at this one, though this one has
    // not flushed yet.
    let mut vm = Vm::two();
    vm.configure(SPI, 0xa0, Trigger::Edge, V0);
    let _ = vm.injector.pulse(SPI);
    vm.configure(SPI, 0xa0, Trigger::Edge, V1);
    vm.injector.set_active(SPI, true).unwrap();
    assert!(!vm.vcpus[0].0.deactivate(Intid(40)));
    assert_eq!(vm.enter(), (LrState::Invalid, false));
    assert!(vm.vcpus[1].0.deactivate(Intid(40)));
    assert_eq!(vm.run(V1), [40]);
}
