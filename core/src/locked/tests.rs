//! Tests of the locked engine alone, with a guest of a few lines.

mod wired;

use std::sync::{Arc, Mutex};

use super::{LockedDomain, LockedInjector, LockedMsi, LockedVcpu, LockedVgic};
use crate::arch::ids::{DeviceId, EventId, Group, Intid, LPI_BASE, Priority, VcpuId};
use crate::arch::lr::{ListRegisters, Lr, LrState, Maintenance};
use crate::engine::{
    Config, Engine, Error, Injected, Injector, Kick, LpiConfig, MsiControl, Trigger, Vcpu, Wired,
    WiredConfig,
};

const V0: VcpuId = VcpuId(0);
const V1: VcpuId = VcpuId(1);
const DEVICE: DeviceId = DeviceId(7);

#[derive(Default)]
struct Kicks(Mutex<Vec<VcpuId>>);

impl Kick for Kicks {
    fn kick(&self, vcpu: VcpuId) {
        self.0.lock().unwrap().push(vcpu);
    }
}

impl Kicks {
    fn take(&self) -> Vec<VcpuId> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// List registers, with a guest that acknowledges the most urgent interrupt in them.
struct Lrs {
    lrs: Vec<Lr>,
    eois: u32,
    maintenance: Maintenance,
}

impl ListRegisters for Lrs {
    fn count(&self) -> usize {
        self.lrs.len()
    }
    fn read(&self, n: usize) -> Lr {
        self.lrs[n]
    }
    fn write(&mut self, n: usize, lr: Lr) {
        self.lrs[n] = lr;
    }
    fn take_eoi_count(&mut self) -> u32 {
        std::mem::take(&mut self.eois)
    }
    fn set_maintenance(&mut self, wanted: Maintenance) {
        self.maintenance = wanted;
    }
}

impl Lrs {
    fn ack(&mut self) -> Option<u32> {
        let pending = self.lrs.iter_mut().filter(|lr| lr.state() == LrState::Pending);
        let lr = pending.min_by_key(|lr| lr.priority())?;
        *lr = lr.with_state(LrState::Active);
        Some(lr.intid().0)
    }

    /// Deactivates an interrupt. Its list register becomes empty, or pending if it was pending and
    /// active.
    fn eoi(&mut self, intid: u32) {
        match self.lrs.iter_mut().find(|lr| lr.state().is_active() && lr.intid().0 == intid) {
            Some(lr) if lr.state().is_pending() => *lr = lr.with_state(LrState::Pending),
            Some(lr) => *lr = lr.with_state(LrState::Invalid),
            None => self.eois += 1,
        }
    }

    fn state(&self, intid: u32) -> LrState {
        let used =
            self.lrs.iter().find(|lr| lr.state() != LrState::Invalid && lr.intid().0 == intid);
        used.map_or(LrState::Invalid, |lr| lr.state())
    }
}

/// A VM with open vCPUs that have two list registers each.
struct Vm {
    kicks: Arc<Kicks>,
    vgic: LockedVgic,
    vcpus: Vec<(LockedVcpu, Lrs)>,
    msi: LockedMsi,
    domain: LockedDomain,
    injector: LockedInjector,
}

impl Vm {
    fn new(config: &Config) -> Self {
        let kicks = Arc::new(Kicks::default());
        let vgic = LockedVgic::new(config, Arc::clone(&kicks) as _).unwrap();
        let lrs = || Lrs { lrs: vec![Lr::EMPTY; 2], eois: 0, maintenance: Maintenance::default() };
        let open = |v| {
            let mut vcpu = vgic.vcpu(VcpuId(v)).unwrap();
            vcpu.open();
            (vcpu, lrs())
        };
        let vcpus = (0..config.vcpus).map(open).collect();
        let msi = vgic.msi().unwrap();
        let (domain, injector) = (msi.domain(), vgic.injector().unwrap());
        Self { kicks, vgic, vcpus, msi, domain, injector }
    }

    fn two() -> Self {
        Self::new(&Config::with_vcpus(2))
    }

    /// Maps event `n` to the `n`th LPI.
    fn map(&mut self, n: u32, target: VcpuId, priority: u8) {
        let config = LpiConfig::enabled(priority);
        self.msi.map(DEVICE, EventId(n), Intid(LPI_BASE + n), target, config).unwrap();
    }

    fn inject(&self, n: u32) -> Injected {
        self.injector.inject(&self.domain, DEVICE, EventId(n))
    }

    fn inject_all(&self, events: impl IntoIterator<Item = u32>) {
        events.into_iter().for_each(|n| assert_eq!(self.inject(n), Injected::Pending));
    }

    fn configure(&self, wired: Wired, priority: u8, trigger: Trigger, target: VcpuId) {
        let (priority, group) = (Priority::new(priority), Group::Group1);
        let config = WiredConfig { enabled: true, priority, group, trigger, target };
        self.injector.configure(wired, config).unwrap();
    }

    /// Enters the guest, which acknowledges and deactivates every interrupt presented to it, and
    /// leaves it. Returns their INTIDs.
    fn run(&mut self, v: VcpuId) -> Vec<u32> {
        let (vcpu, lrs) = &mut self.vcpus[v.index()];
        vcpu.flush(lrs);
        let mut taken = Vec::new();
        while let Some(intid) = lrs.ack() {
            lrs.eoi(intid);
            taken.push(intid);
        }
        vcpu.fold(lrs);
        taken
    }

    /// Runs a vCPU until nothing is left for it. Returns the LPIs that it took, counted from 0.
    fn drain(&mut self, v: VcpuId) -> Vec<u32> {
        let mut taken = Vec::new();
        loop {
            let now = self.run(v);
            if now.is_empty() {
                return taken;
            }
            taken.extend(now.iter().map(|intid| intid - LPI_BASE));
        }
    }
}

#[test]
fn coalescing_and_kicks() {
    let mut vm = Vm::two();
    assert_eq!(vm.inject(0), Injected::Unmapped);
    (0..3).for_each(|n| vm.map(n, V1, 0xa0));
    vm.inject_all([0, 1]);
    assert_eq!(vm.inject(0), Injected::Coalesced);
    assert_eq!(vm.kicks.take(), [V1], "one kick from flush to flush");
    assert!(vm.vcpus[1].0.has_mail() && !vm.vcpus[0].0.has_mail());

    let (vcpu, lrs) = &mut vm.vcpus[1];
    let flushed = vcpu.flush(lrs);
    assert_eq!((flushed.in_lrs, flushed.pending, flushed.waiting), (2, 2, false));
    assert!(!vcpu.has_mail());
    // An LPI in a list register does not coalesce: the guest may have acknowledged it by now.
    vm.inject_all([0]);
    assert_eq!(vm.kicks.take(), [V1]);
    let (vcpu, lrs) = &mut vm.vcpus[1];
    let taken = lrs.ack().unwrap();
    lrs.eoi(taken);
    vcpu.fold(lrs);
    assert_eq!(vm.drain(V1), [1, 0]);
}

#[test]
fn priorities_and_fifo_with_more_than_fits() {
    let mut vm = Vm::two();
    (0..8).for_each(|n| vm.map(n, V0, if n % 2 == 0 { 0xa0 } else { 0x80 }));
    vm.inject_all([6, 3, 4, 1, 0, 5]);
    let (vcpu, lrs) = &mut vm.vcpus[0];
    let flushed = vcpu.flush(lrs);
    assert_eq!((flushed.in_lrs, flushed.waiting), (2, true));
    assert!(lrs.maintenance.underflow && lrs.maintenance.no_pending);
    assert_eq!([lrs.lrs[0].intid().0, lrs.lrs[1].intid().0], [LPI_BASE + 3, LPI_BASE + 1]);
    vcpu.fold(lrs);
    // Of the later LPIs, the more urgent one goes first, and displaces none of its own priority.
    vm.inject_all([7, 2]);
    assert_eq!(vm.drain(V0), [3, 1, 5, 7, 6, 4, 0, 2]);
    assert_eq!(vm.vcpus[0].1.maintenance, Maintenance::default());
}

#[test]
fn the_displaced_keeps_its_place() {
    let mut vm = Vm::two();
    (0..4).for_each(|n| vm.map(n, V0, 0xa0));
    vm.map(4, V0, 0x20);
    vm.inject_all([2, 1, 0]);
    let (vcpu, lrs) = &mut vm.vcpus[0];
    vcpu.flush(lrs);
    vcpu.fold(lrs);
    vm.inject_all([3, 4]);
    let (vcpu, lrs) = &mut vm.vcpus[0];
    vcpu.flush(lrs);
    assert_eq!([lrs.lrs[0].intid().0, lrs.lrs[1].intid().0], [LPI_BASE + 4, LPI_BASE + 2]);
    assert_eq!(vm.drain(V0), [4, 2, 1, 0, 3]);
}

#[test]
fn a_new_priority_means_the_end_of_its_line() {
    let mut vm = Vm::two();
    (0..4).for_each(|n| vm.map(n, V0, if n == 3 { 0x20 } else { 0xa0 }));
    vm.inject_all(0..4);
    let (vcpu, lrs) = &mut vm.vcpus[0];
    vcpu.flush(lrs);
    vcpu.fold(lrs);
    vm.msi.set_config(Intid(LPI_BASE + 3), LpiConfig::enabled(0xa0)).unwrap();
    vm.msi
        .set_config(Intid(LPI_BASE + 1), LpiConfig { enabled: false, ..LpiConfig::enabled(0xa0) })
        .unwrap();
    assert_eq!(vm.drain(V0), [0, 2, 3]);
    vm.msi.set_config(Intid(LPI_BASE + 1), LpiConfig::enabled(0xa0)).unwrap();
    assert_eq!(vm.drain(V0), [1], "still pending once it is enabled");
}

#[test]
fn handover_of_pending_and_of_acknowledged() {
    let mut vm = Vm::two();
    (0..3).for_each(|n| vm.map(n, V0, 0xa0));
    vm.inject_all(0..3);
    let (vcpu, lrs) = &mut vm.vcpus[0];
    vcpu.flush(lrs);
    assert_eq!(lrs.ack(), Some(LPI_BASE));
    vcpu.fold(lrs);
    vm.kicks.take();
    assert_eq!(vm.msi.move_all(V0, V0), Ok(0));
    assert_eq!(vm.msi.move_all(V0, V1), Ok(3));
    assert_eq!(vm.drain(V1), [], "they are still with their old vCPU");
    let (vcpu, lrs) = &mut vm.vcpus[0];
    assert_eq!(vcpu.flush(lrs).in_lrs, 0, "an LPI is not active");
    assert_eq!(vm.kicks.take(), [V0, V1]);
    vm.inject_all([0]);
    assert_eq!(vm.drain(V1), [1, 2, 0]);
}

#[test]
fn closed_vcpus_get_nothing_and_open_ones_everything() {
    let mut vm = Vm::two();
    vm.configure(Wired::Spi(Intid(40)), 0xa0, Trigger::Edge, V0);
    vm.configure(Wired::Private(V0, Intid(3)), 0xa0, Trigger::Edge, V0);
    (0..3).for_each(|n| vm.map(n, V0, 0xa0));
    assert_eq!(vm.run(V0), []);
    vm.inject_all([2, 1]);
    assert_eq!(vm.injector.pulse(Wired::Spi(Intid(40))), Ok(Injected::Pending));
    let (vcpu, lrs) = &mut vm.vcpus[0];
    vcpu.flush(lrs);
    lrs.ack();
    vcpu.close(lrs);
    assert!(lrs.lrs.iter().all(|lr| *lr == Lr::EMPTY));
    assert_eq!(vcpu.flush(lrs).in_lrs, 0);
    vm.kicks.take();
    // The active LPI is forgotten, and the pending one is still pending.
    vm.inject_all([2, 0]);
    assert_eq!(vm.inject(1), Injected::Coalesced);
    assert_eq!(vm.injector.pulse(Wired::Private(V0, Intid(3))), Ok(Injected::Pending));
    assert_eq!(vm.kicks.take(), []);
    vm.vcpus[0].0.open();
    assert_eq!(vm.kicks.take(), [V0]);
    assert_eq!(vm.run(V0), [3, 40]);
    assert_eq!(vm.drain(V0), [0, 1, 2]);

    vm.injector.set_lpis_enabled(V0, false).unwrap();
    vm.inject_all([1, 0]);
    assert_eq!(vm.drain(V0), []);
    vm.injector.set_lpis_enabled(V0, true).unwrap();
    assert_eq!(vm.drain(V0), [0, 1]);
}

#[test]
fn an_active_spi_survives_closing() {
    let mut vm = Vm::two();
    vm.configure(Wired::Spi(Intid(32)), 0xa0, Trigger::Edge, V0);
    let _ = vm.injector.pulse(Wired::Spi(Intid(32)));
    let (vcpu, lrs) = &mut vm.vcpus[0];
    vcpu.flush(lrs);
    lrs.ack();
    vcpu.close(lrs);
    vcpu.open();
    vcpu.flush(lrs);
    assert_eq!(lrs.state(32), LrState::Active);
    assert!(!vcpu.deactivate(Intid(32)), "that is the list register's");
    vcpu.fold(lrs);
    assert!(vcpu.deactivate(Intid(32)) && !vcpu.deactivate(Intid(32)));
    assert_eq!(vcpu.flush(lrs).in_lrs, 0);
}

#[test]
fn more_active_than_list_registers() {
    let mut vm = Vm::two();
    let spis = [(40, 0x80), (41, 0x60), (42, 0x40), (43, 0x20)];
    for (intid, priority) in spis {
        vm.configure(Wired::Spi(Intid(intid)), priority, Trigger::Edge, V0);
        let _ = vm.injector.pulse(Wired::Spi(Intid(intid)));
        let (vcpu, lrs) = &mut vm.vcpus[0];
        vcpu.flush(lrs);
        assert_eq!(lrs.ack(), Some(intid), "the more urgent gets a list register");
        vcpu.fold(lrs);
    }
    let (vcpu, lrs) = &mut vm.vcpus[0];
    let flushed = vcpu.flush(lrs);
    assert_eq!((flushed.in_lrs, flushed.pending, flushed.waiting), (2, 0, true));
    assert!(lrs.maintenance.not_present && lrs.maintenance.trap_dir && !lrs.maintenance.no_pending);
    // The guest deactivates three of them in turn. 41 and 40 are in no list register.
    [43, 42, 41].iter().for_each(|&intid| lrs.eoi(intid));
    vcpu.fold(lrs);
    assert_eq!(vcpu.flush(lrs).in_lrs, 1);
    assert_eq!(lrs.state(40), LrState::Active);
    assert_eq!(lrs.maintenance, Maintenance::default());
}

#[test]
fn levels_are_sampled_again() {
    let mut vm = Vm::two();
    let spi = Wired::Spi(Intid(33));
    vm.configure(spi, 0xa0, Trigger::Level, V0);
    vm.injector.set_level(spi, true).unwrap();
    let (vcpu, lrs) = &mut vm.vcpus[0];
    vcpu.flush(lrs);
    assert!(lrs.lrs[0].eoi_maintenance());
    lrs.ack();
    vcpu.fold(lrs);
    vcpu.flush(lrs);
    assert_eq!(lrs.state(33), LrState::Active, "not again while it is active");
    lrs.eoi(33);
    vcpu.fold(lrs);
    vcpu.flush(lrs);
    assert_eq!(lrs.state(33), LrState::Pending);
    // The line falls before the guest acknowledges the interrupt.
    vm.kicks.take();
    vm.injector.set_level(spi, false).unwrap();
    assert_eq!(vm.kicks.take(), [V0]);
    assert_eq!(vm.run(V0), []);
    // A pulse lasts until it is acknowledged. A pulse after that is another one.
    assert_eq!(vm.injector.pulse(spi), Ok(Injected::Pending));
    let (vcpu, lrs) = &mut vm.vcpus[0];
    vcpu.flush(lrs);
    lrs.ack();
    assert_eq!(vm.injector.pulse(spi), Ok(Injected::Pending));
    let (vcpu, lrs) = &mut vm.vcpus[0];
    lrs.eoi(33);
    vcpu.fold(lrs);
    assert_eq!(vm.run(V0), [33]);
    assert_eq!(vm.run(V0), []);
}

#[test]
fn shared_intid_and_unmap_while_in_a_list_register() {
    let mut vm = Vm::two();
    vm.map(0, V0, 0xa0);
    let config = LpiConfig::enabled(0x40);
    vm.msi.map(DEVICE, EventId(9), Intid(LPI_BASE), V1, config).unwrap();
    assert_eq!(vm.vgic.usage().lpis, 1);
    vm.inject_all([0]);
    assert_eq!(vm.inject(9), Injected::Coalesced);
    let (vcpu, lrs) = &mut vm.vcpus[1];
    vcpu.flush(lrs);
    assert_eq!(lrs.lrs[0].priority().byte(), 0x40, "the newest configuration");
    // The second event keeps the LPI, but not pending.
    vm.msi.unmap(DEVICE, EventId(0)).unwrap();
    assert_eq!(vm.inject(0), Injected::Unmapped);
    assert_eq!(vm.run(V1), []);
    vm.inject_all([9]);
    let (vcpu, lrs) = &mut vm.vcpus[1];
    vcpu.flush(lrs);
    lrs.ack();
    vm.msi.unmap(DEVICE, EventId(9)).unwrap();
    assert_eq!(vm.msi.set_config(Intid(LPI_BASE), config), Err(Error::NotMapped));
    // The LPI is mapped again, and delivered though the guest has not ended it.
    vm.map(0, V1, 0xa0);
    assert_eq!(vm.vgic.usage().lpis, 1);
    vm.inject_all([0]);
    let (vcpu, lrs) = &mut vm.vcpus[1];
    vcpu.fold(lrs);
    vcpu.flush(lrs);
    assert_eq!(lrs.state(LPI_BASE), LrState::Pending);
    assert_eq!(vm.drain(V1), [0]);
    vm.msi.unmap(DEVICE, EventId(0)).unwrap();
    assert_eq!(vm.vgic.usage(), Default::default());
}

#[test]
fn every_reference_comes_back() {
    let mut vm = Vm::two();
    (0..100).for_each(|n| vm.map(n, VcpuId(n as u16 % 2), (n as u8 % 4) << 4));
    vm.inject_all(0..100);
    vm.vcpus.iter_mut().for_each(|(vcpu, lrs)| {
        vcpu.flush(lrs);
        lrs.ack();
    });
    vm.msi.move_all(V0, V1).unwrap();
    assert_eq!(vm.msi.unmap_device(DEVICE), 100);
    assert_eq!(vm.vgic.usage().lpis, 100, "the lists have them still");
    assert_eq!(vm.drain(V0), []);
    assert_eq!(vm.drain(V1), []);
    // Closing ends the two LPIs that were active.
    vm.vcpus.iter_mut().for_each(|(vcpu, lrs)| vcpu.close(lrs));
    assert_eq!(vm.vgic.usage(), Default::default());
    assert_eq!(vm.msi.unmap_device(DEVICE), 0);
}

#[test]
fn a_vm_can_go_with_everything_pending() {
    let mut vm = Vm::two();
    (0..10).for_each(|n| vm.map(n, V0, 0xa0));
    vm.inject_all(0..10);
    let route = vm.msi.route(DEVICE, EventId(3)).unwrap();
    let inner = Arc::downgrade(&vm.vgic.vm);
    let injector = vm.vgic.injector().unwrap();
    drop(vm);
    assert_eq!(injector.inject_route(&route), Injected::Unmapped);
    drop((injector, route));
    assert_eq!(inner.strong_count(), 0);
}

#[test]
fn routes_see_every_remap() {
    let mut vm = Vm::two();
    let route = vm.msi.route(DEVICE, EventId(5)).unwrap();
    assert_eq!(vm.injector.inject_route(&route), Injected::Unmapped);
    for n in 0..3 {
        let intid = Intid(LPI_BASE + n);
        vm.msi.map(DEVICE, EventId(5), intid, V0, LpiConfig::enabled(0xa0)).unwrap();
        assert_eq!(vm.injector.inject_route(&route), Injected::Pending);
        assert_eq!(vm.drain(V0), [n]);
        vm.msi.unmap(DEVICE, EventId(5)).unwrap();
        assert_eq!(vm.injector.inject_route(&route), Injected::Unmapped);
    }
}

#[test]
fn errors_change_nothing() {
    let config = Config {
        lpis: 4,
        max_lpis: 2,
        max_devices: 1,
        max_events: 3,
        device_bits: 4,
        event_bits: 4,
        participants: 5,
        ..Config::with_vcpus(2)
    };
    let mut vm = Vm::new(&config);
    let enabled = LpiConfig::enabled(0);
    let mut map = |device, event, n, target| {
        vm.msi.map(DeviceId(device), EventId(event), Intid(LPI_BASE + n), VcpuId(target), enabled)
    };
    assert_eq!(map(16, 0, 0, 0), Err(Error::DeviceRange(DeviceId(16))));
    assert_eq!(map(0, 16, 0, 0), Err(Error::EventRange(EventId(16))));
    assert_eq!(map(0, 0, 4, 0), Err(Error::IntidRange(Intid(LPI_BASE + 4))));
    assert_eq!(map(0, 0, 0, 2), Err(Error::NoSuchVcpu(VcpuId(2))));
    assert_eq!(map(0, 0, 0, 0), Ok(()));
    assert_eq!(map(0, 0, 1, 0), Err(Error::EventMapped));
    assert_eq!(map(1, 0, 1, 0), Err(Error::TooManyDevices));
    assert_eq!(map(0, 1, 1, 0), Ok(()));
    assert_eq!(map(0, 2, 2, 0), Err(Error::TooManyLpis));
    assert_eq!(map(0, 2, 1, 0), Ok(()));
    assert_eq!(map(0, 3, 1, 0), Err(Error::TooManyEvents));
    assert_eq!(vm.vgic.usage().lpis, 2);
    assert_eq!(vm.msi.unmap(DeviceId(0), EventId(3)), Err(Error::NotMapped));
    assert_eq!(vm.msi.route(DeviceId(1), EventId(0)).err(), Some(Error::TooManyDevices));
    assert_eq!(vm.vgic.vcpu(V1).err(), Some(Error::VcpuInUse(V1)));
    assert_eq!(vm.vgic.vcpu(VcpuId(2)).err(), Some(Error::NoSuchVcpu(VcpuId(2))));
    let _last = vm.vgic.injector().unwrap();
    assert_eq!(vm.vgic.injector().err(), Some(Error::TooManyParticipants));
    assert_eq!(vm.injector.pulse(Wired::Spi(Intid(31))), Err(Error::IntidRange(Intid(31))));
    assert_eq!(vm.injector.pulse(Wired::Spi(Intid(64))), Err(Error::IntidRange(Intid(64))));
    assert_eq!(vm.msi.unmap_device(DeviceId(0)), 3);
    // A device that only a route kept makes room once the route is gone.
    drop(vm.msi.route(DeviceId(1), EventId(0)).unwrap());
    assert!(vm.msi.route(DeviceId(2), EventId(0)).is_ok());
}
