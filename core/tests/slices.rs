//! Long work of a vCPU's thread is done a slice at a time. The work of one entry does not grow with
//! the guest's set-up, nothing is lost on the way, and the vCPU comes back for the rest.
#![allow(clippy::disallowed_types)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::*;
use vgic_core::gic::{Affinity, Gic, Model, Setup};
use vgic_core::ids::*;
use vgic_core::lr::{ListRegisters, Lr, LrState, Maintenance};
use vgic_core::{Msi, MsiRoute, VcpuInterface, Vgic, VgicInjector};

const DEV: DeviceId = DeviceId(1);
/// More LPIs than several slices process.
const MANY: u32 = 10_000;
/// More LPIs than one entry takes in, and far fewer than `MANY`.
const SLICE: usize = 2_600;

#[derive(Default)]
struct Kicks(AtomicUsize);

impl Kick for Kicks {
    fn kick(&self, _: VcpuId) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct World {
    host: Arc<Kicks>,
    vgic: Vgic,
    msi: Msi,
    routes: Vec<MsiRoute>,
    injector: VgicInjector,
}

/// A VM with `MANY` LPIs of vCPU 0.
fn world(vcpus: u16) -> World {
    let host = Arc::new(Kicks::default());
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(vcpus), host.clone()).unwrap();
    let mut msi = vgic.msi().unwrap();
    let routes = (0..MANY)
        .map(|n| {
            let (event, intid) = (EventId(n), Intid(LPI_BASE + n));
            msi.map(DEV, event, intid, VcpuId(0), LpiConfig::enabled(0xa0)).unwrap();
            msi.route(DEV, event).unwrap()
        })
        .collect();
    let injector = vgic.injector().unwrap();
    World { host, vgic, msi, routes, injector }
}

impl World {
    fn inject_all(&self) {
        for route in &self.routes {
            assert_ne!(self.injector.inject_route(route), Injected::Unmapped);
        }
    }

    /// Returns the number of LPIs in a vCPU's buckets and list registers.
    fn held_by(&self, vcpu: VcpuId) -> usize {
        self.count(|place| place == LpiPlace::Held(vcpu))
    }

    fn count(&self, f: impl Fn(LpiPlace) -> bool) -> usize {
        let mut n = 0;
        self.msi.lpis_from(Intid(LPI_BASE), &mut |lpi| {
            n += usize::from(f(lpi.place));
            std::ops::ControlFlow::Continue(())
        });
        n
    }

    fn kicks(&self) -> usize {
        self.host.0.swap(0, Ordering::Relaxed)
    }
}

fn guest() -> CpuInterface {
    guest_with(4)
}

fn guest_with(list_registers: usize) -> CpuInterface {
    let mut cpu = CpuInterface::new(list_registers).unwrap();
    cpu.set_pmr(0xff);
    cpu.set_igrpen1(1);
    cpu
}

/// Enters a guest that does nothing, until the vCPU has no reason to come back. Checks each entry,
/// and returns their number.
fn enter_until_done(
    world: &World,
    vcpu: &mut VcpuInterface,
    cpu: &mut impl ListRegisters,
) -> usize {
    for n in 1.. {
        let before = world.held_by(vcpu.id());
        let _ = world.kicks();
        vcpu.flush(cpu);
        let kicked = world.kicks() > 0;
        vcpu.fold(cpu);
        let after = world.held_by(vcpu.id());
        assert!(before.abs_diff(after) <= SLICE, "{before} -> {after} in one entry");
        if !vcpu.has_mail() {
            return n;
        }
        assert!(kicked, "it must come back without a further event");
    }
    unreachable!()
}

/// Takes all interrupts in order, and returns their INTIDs.
fn take_all(vcpu: &mut VcpuInterface, cpu: &mut CpuInterface) -> Vec<u32> {
    let mut taken = Vec::new();
    loop {
        vcpu.flush(cpu);
        let before = taken.len();
        while let intid @ Intid(LPI_BASE..) = cpu.iar1() {
            let _ = cpu.eoir1(intid);
            taken.push(intid.0);
        }
        vcpu.fold(cpu);
        if taken.len() == before && !vcpu.has_mail() {
            return taken;
        }
    }
}

fn all() -> Vec<u32> {
    (0..MANY).map(|n| LPI_BASE + n).collect()
}

#[test]
fn much_mail() {
    let world = world(1);
    let (mut vcpu, mut cpu) = (world.vgic.vcpu(VcpuId(0)).unwrap(), guest());
    vcpu.open();
    world.inject_all();
    assert!(enter_until_done(&world, &mut vcpu, &mut cpu) > 3);
    assert_eq!(take_all(&mut vcpu, &mut cpu), all(), "first come, first served");
}

/// An LPI comes while earlier mail is taken in. Its kick brings the vCPU back once, and that flush
/// has other things to do.
#[test]
fn mail_behind_much_mail() {
    let world = world(1);
    let (mut vcpu, mut cpu) = (world.vgic.vcpu(VcpuId(0)).unwrap(), guest());
    vcpu.open();
    let (last, others) = world.routes.split_last().unwrap();
    for route in others {
        assert_eq!(world.injector.inject_route(route), Injected::Pending);
    }
    vcpu.flush(&mut cpu);
    vcpu.fold(&mut cpu);
    let _ = world.kicks();
    assert_eq!(world.injector.inject_route(last), Injected::Pending);
    assert_eq!(world.kicks(), 1);
    enter_until_done(&world, &mut vcpu, &mut cpu);
    assert_eq!(take_all(&mut vcpu, &mut cpu), all(), "first come, first served");
}

/// Register writes make one SPI inactive and another SPI active, while the mail about that waits
/// behind other mail. Both changes take effect before the guest is entered, even for the SPI that
/// gets the other one's list register.
#[test]
fn active_state_written_behind_much_mail() {
    let world = world(1);
    let (mut vcpu, mut cpu) = (world.vgic.vcpu(VcpuId(0)).unwrap(), guest_with(2));
    vcpu.open();
    let config = WiredConfig {
        enabled: true,
        priority: Priority::new(0x80),
        group: Group::Group1,
        trigger: Trigger::Edge,
        target: VcpuId(0),
    };
    let [active, pending, waits] = [32, 33, 34].map(|n| Wired::Spi(Intid(n)));
    for spi in [active, pending, waits] {
        world.injector.configure(spi, config).unwrap();
        let _ = world.injector.pulse(spi).unwrap();
        vcpu.flush(&mut cpu);
        if spi == active {
            assert_eq!(cpu.iar1(), Intid(32));
        }
        vcpu.fold(&mut cpu);
    }
    world.inject_all();
    vcpu.flush(&mut cpu);
    vcpu.fold(&mut cpu);
    world.injector.set_active(active, false).unwrap();
    world.injector.set_active(waits, true).unwrap();
    vcpu.flush(&mut cpu);
    let lrs: Vec<_> = (0..2).map(|n| ListRegisters::read(&cpu, n)).collect();
    let offered = lrs.iter().filter(|lr| lr.state() == LrState::Pending).map(|lr| lr.intid().0);
    assert!(!offered.clone().any(|n| n == 34), "active, and offered");
    assert!(offered.clone().any(|n| n == 33));
    vcpu.fold(&mut cpu);
    assert_eq!(world.injector.is_active(waits), Ok(true));
    assert_eq!(world.injector.is_active(active), Ok(false));
    enter_until_done(&world, &mut vcpu, &mut cpu);
}

#[test]
fn power_off_in_the_midst_of_much_mail() {
    let mut world = world(2);
    let [mut a, mut b] = [0, 1].map(|n| world.vgic.vcpu(VcpuId(n)).unwrap());
    let (mut cpu_a, mut cpu_b) = (guest(), guest());
    a.open();
    b.open();
    for slices in 0..8 {
        world.inject_all();
        for _ in 0..slices {
            a.flush(&mut cpu_a);
            a.fold(&mut cpu_a);
        }
        a.close(&mut cpu_a);
        assert_eq!(world.held_by(VcpuId(0)), 0);
        let _ = world.msi.move_all(VcpuId(0), VcpuId(1)).unwrap();
        assert_eq!(take_all(&mut b, &mut cpu_b).len(), MANY as usize, "after {slices} slices");
        let _ = world.msi.move_all(VcpuId(1), VcpuId(0)).unwrap();
        a.open();
        assert_eq!(take_all(&mut a, &mut cpu_a), []);
    }
}

/// The vCPU is powered off in pieces, with the LPIs in various places. LPIs that are injected in
/// between are kept.
#[test]
fn power_off_in_pieces() {
    for slices in [0, 2, 20] {
        let mut world = world(2);
        let [mut a, mut b] = [0, 1].map(|n| world.vgic.vcpu(VcpuId(n)).unwrap());
        let (mut cpu_a, mut cpu_b) = (guest(), guest());
        a.open();
        b.open();
        world.inject_all();
        for _ in 0..slices {
            a.flush(&mut cpu_a);
            a.fold(&mut cpu_a);
        }
        let given_back = || world.count(|place| place == LpiPlace::Idle);
        let mut pieces = 1;
        loop {
            let before = given_back();
            let done = a.close_some(&mut cpu_a);
            assert!(given_back() - before <= SLICE, "{before} and more, after {slices} slices");
            world.inject_all();
            if done {
                break;
            }
            assert!(a.has_mail(), "it has to come back");
            pieces += 1;
        }
        assert!(pieces > 3, "{pieces} after {slices} slices");
        assert!(a.close_some(&mut cpu_a), "that has no effect");
        assert_eq!(given_back(), MANY as usize);
        let _ = world.msi.move_all(VcpuId(0), VcpuId(1)).unwrap();
        assert_eq!(take_all(&mut b, &mut cpu_b).len(), MANY as usize, "after {slices} slices");
        // The vCPU is powered on in the middle of a power-off.
        let _ = world.msi.move_all(VcpuId(1), VcpuId(0)).unwrap();
        a.open();
        world.inject_all();
        assert!(!a.close_some(&mut cpu_a));
        a.open();
        assert_eq!(take_all(&mut a, &mut guest()).len(), MANY as usize);
    }
}

#[test]
fn a_scan_of_many() {
    let world = world(1);
    let (mut vcpu, mut cpu) = (world.vgic.vcpu(VcpuId(0)).unwrap(), guest());
    world.inject_all();
    vcpu.open();
    assert!(world.count(|place| place == LpiPlace::Queued) <= SLICE, "opening is no exception");
    assert!(enter_until_done(&world, &mut vcpu, &mut cpu) > 3);
    assert_eq!(take_all(&mut vcpu, &mut cpu).len(), MANY as usize);
}

/// LPIs that wait in a bucket were cleared, and the mail about that is not taken in yet.
#[test]
fn a_bucket_of_what_was_cleared() {
    let mut world = world(1);
    let (mut vcpu, mut cpu) = (world.vgic.vcpu(VcpuId(0)).unwrap(), guest());
    vcpu.open();
    world.inject_all();
    enter_until_done(&world, &mut vcpu, &mut cpu);
    vcpu.flush(&mut cpu);
    while let intid @ Intid(LPI_BASE..) = cpu.iar1() {
        let _ = cpu.eoir1(intid);
    }
    vcpu.fold(&mut cpu);
    for n in 0..MANY {
        world.msi.clear(DEV, EventId(n)).unwrap();
    }
    assert!(enter_until_done(&world, &mut vcpu, &mut cpu) > 3);
    assert_eq!(take_all(&mut vcpu, &mut cpu), []);
}

/// Another thread's access opens a gate, and does not visit any LPI.
#[test]
fn a_gate_that_opens_and_closes() {
    let world = world(1);
    let (mut vcpu, mut cpu) = (world.vgic.vcpu(VcpuId(0)).unwrap(), guest());
    vcpu.open();
    let enable = |on| world.injector.update_gates(VcpuId(0), |g| Gates { lpis: on, ..g }).unwrap();
    enable(false);
    world.inject_all();
    assert!(enter_until_done(&world, &mut vcpu, &mut cpu) > 1);
    assert_eq!(world.held_by(VcpuId(0)), 0);
    enable(true);
    assert_eq!(world.count(|place| place == LpiPlace::Queued), 0, "the vCPU looks for itself");
    assert!(world.kicks() > 0, "and is told to");
    // The gate is closed and opened again in the middle of the search, which then starts from the
    // beginning.
    for _ in 0..2 {
        vcpu.flush(&mut cpu);
        vcpu.fold(&mut cpu);
    }
    enable(false);
    vcpu.flush(&mut cpu);
    vcpu.fold(&mut cpu);
    enable(true);
    let mut taken = take_all(&mut vcpu, &mut cpu);
    taken.sort_unstable();
    assert_eq!(taken, all());
}

/// LPIs that wait in buckets and may not be delivered any more are dropped a slice at a time. None
/// of them goes into a list register in between.
#[test]
fn a_review_of_many() {
    let world = world(1);
    let (mut vcpu, mut cpu) = (world.vgic.vcpu(VcpuId(0)).unwrap(), guest());
    vcpu.open();
    world.inject_all();
    enter_until_done(&world, &mut vcpu, &mut cpu);
    assert_eq!(world.held_by(VcpuId(0)), MANY as usize);
    world.injector.update_gates(VcpuId(0), |g| Gates { lpis: false, ..g }).unwrap();
    for _ in 0..2 {
        let flushed = vcpu.flush(&mut cpu);
        assert_eq!((flushed.in_lrs, cpu.iar1()), (0, Intid(SPURIOUS)));
        vcpu.fold(&mut cpu);
    }
    enter_until_done(&world, &mut vcpu, &mut cpu);
    assert_eq!(world.held_by(VcpuId(0)), 0);
    world.injector.update_gates(VcpuId(0), |g| Gates { lpis: true, ..g }).unwrap();
    assert_eq!(take_all(&mut vcpu, &mut cpu).len(), MANY as usize);
}

/// Many LPIs are cleared while they wait.
#[test]
fn many_that_were_cleared() {
    let mut world = world(1);
    let (mut vcpu, mut cpu) = (world.vgic.vcpu(VcpuId(0)).unwrap(), Busy);
    vcpu.open();
    world.inject_all();
    enter_until_done(&world, &mut vcpu, &mut cpu);
    for n in 0..MANY {
        world.msi.clear(DEV, EventId(n)).unwrap();
    }
    assert!(enter_until_done(&world, &mut vcpu, &mut cpu) > 3);
    let _ = world.msi.unmap_device(DEV);
    enter_until_done(&world, &mut vcpu, &mut cpu);
    assert_eq!(world.held_by(VcpuId(0)), 0);
}

/// An interface without any list register.
struct Busy;

impl ListRegisters for Busy {
    fn count(&self) -> usize {
        0
    }
    fn read(&self, _: usize) -> Lr {
        Lr::EMPTY
    }
    fn write(&mut self, _: usize, _: Lr) {}
    fn take_eoi_count(&mut self) -> u32 {
        0
    }
    fn set_maintenance(&mut self, _: Maintenance) {}
}

/// A vCPU that is powered on, or entered, before its power-off is complete comes up with a CPU
/// interface that has been reset.
#[test]
fn power_on_in_the_midst_of_a_power_off() {
    for entered in [false, true] {
        let mut setup = Setup::new(40);
        setup.create(Model::V3).unwrap();
        setup.add_vcpu(Affinity(0)).unwrap();
        setup.set_distributor(0x0800_0000).unwrap();
        setup.add_redistributors(0x0900_0000, 1).unwrap();
        let gic: Gic<Vgic> = setup.init(Arc::new(Kicks::default())).unwrap();
        let (mut msi, injector) = (gic.engine().msi().unwrap(), gic.engine().injector().unwrap());
        injector.update_gates(VcpuId(0), |_| Gates::OPEN).unwrap();
        let mut cpu = gic.cpu(VcpuId(0)).unwrap();
        cpu.power_on();
        cpu.cpu_interface().set_pmr(0xf0);
        cpu.cpu_interface().set_igrpen1(1);
        for n in 0..MANY {
            let (event, intid) = (EventId(n), Intid(LPI_BASE + n));
            msi.map(DEV, event, intid, VcpuId(0), LpiConfig::enabled(0xa0)).unwrap();
            let _ = injector.inject(&msi.domain(), DEV, event);
        }
        while cpu.cpu_interface().iar1() == Intid(SPURIOUS) {
            assert!(cpu.has_mail(), "nothing comes");
            cpu.exit();
            cpu.enter();
        }
        cpu.exit();
        assert!(!cpu.power_off_some(), "there is more than a piece");
        assert!(cpu.is_going_off());
        if entered {
            cpu.enter();
            cpu.exit();
        }
        cpu.power_on();
        assert!(!cpu.is_going_off());
        let interface = cpu.cpu_interface();
        assert_eq!((interface.pmr(), interface.igrpen1(), interface.rpr()), (0, 0, 0xff));
    }
}
