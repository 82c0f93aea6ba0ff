//! SPIs that several vCPUs may take, while routes, and the interrupts that vCPUs take, change at
//! the same time: in the end, each SPI is at a vCPU that takes it.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::engine::*;
use vgic_core::gic::{Affinity, Gic, GicBus, GicCpu, Model, Setup};
use vgic_core::ids::*;
use vgic_loom_tests::sched::thread;
use vgic_loom_tests::{NoKick, Vgic, end, model};

const GICD: u64 = 0x0800_0000;
/// The base address of GICC or GICR.
const OTHER: u64 = 0x0900_0000;

/// Two SPIs. Threads change the route of `CHANGED`, and each model checks `SPI` in the end. The
/// first choice of both is vCPU 0.
const CHANGED: u32 = 34;
const SPI: u32 = 32;

/// A machine with two vCPUs that take every interrupt.
struct Machine {
    gic: Gic<Vgic>,
    bus: GicBus<Vgic>,
    cpus: [Box<GicCpu<Vgic>>; 2],
}

fn write(bus: &GicBus<Vgic>, address: u64, value: u32) {
    bus.write(VcpuId(0), address, &value.to_le_bytes()).unwrap();
}

/// Writes the route of an SPI: both vCPUs may take it, or only vCPU 0.
fn route(bus: &GicBus<Vgic>, model: Model, spi: u32, both: bool) {
    let spi = u64::from(spi);
    if model == Model::V2 {
        bus.write(VcpuId(0), GICD + 0x800 + spi, &[if both { 3 } else { 1 }]).unwrap();
    } else {
        write(bus, GICD + 0x6000 + 8 * spi, if both { 1 << 31 } else { 0 });
    }
}

/// Lets a guest mask all priorities or none.
fn mask(cpu: &mut GicCpu<Vgic>, all: bool) {
    cpu.cpu_interface().set_pmr(if all { 0 } else { 0xff });
    cpu.enter();
    cpu.exit();
}

impl Machine {
    fn new(model: Model) -> Self {
        let mut setup = Setup::new(40);
        setup.create(model).unwrap();
        setup.set_spis(32).unwrap();
        setup.set_lrs(1).unwrap();
        (0..2).for_each(|n| _ = setup.add_vcpu(Affinity(n)).unwrap());
        setup.set_bounds(Config { lpis: 0, participants: 8, ..Config::default() });
        setup.set_distributor(GICD).unwrap();
        if model == Model::V2 {
            setup.set_cpu_interface(OTHER).unwrap();
        } else {
            setup.add_redistributors(OTHER, 2).unwrap();
        }
        let gic: Gic<Vgic> = setup.init(Arc::new(NoKick)).unwrap();
        let bus = gic.bus().unwrap();
        write(&bus, GICD, 3);
        write(&bus, GICD + 0x104, 1 << (SPI % 32) | 1 << (CHANGED % 32));
        let cpus = [0, 1].map(|n| {
            let mut cpu = Box::new(gic.cpu(VcpuId(n)).unwrap());
            cpu.power_on();
            let interface = cpu.cpu_interface();
            interface.set_igrpen0(1);
            interface.set_igrpen1(1);
            mask(&mut cpu, false);
            cpu
        });
        route(&bus, model, SPI, true);
        Self { gic, bus, cpus }
    }

    /// Ends the model: checks that `SPI` is at vCPU `expected`.
    fn end(self, expected: usize) {
        let Self { gic, bus, cpus, .. } = self;
        let config = bus.injector().config(Wired::Spi(Intid(SPI))).unwrap();
        assert_eq!((config.enabled, config.target.index()), (true, expected));
        let engine = gic.engine().clone();
        drop((gic, bus, cpus));
        end(engine);
    }
}

/// One thread gives another SPI a choice of targets, and a second thread takes it away. A vCPU that
/// stops taking `SPI` at the same time has to find that `SPI` has a choice.
fn another_route_changed_twice(model: Model) {
    let mut machine = Machine::new(model);
    let writers = [true, false].map(|both| {
        let bus = machine.gic.bus().unwrap();
        thread::spawn(move || route(&bus, model, CHANGED, both))
    });
    mask(&mut machine.cpus[0], true);
    for writer in writers {
        writer.join().unwrap();
    }
    machine.end(1);
}

#[test]
fn targets_another_route_changed_twice() {
    model(2, 1_395, || another_route_changed_twice(Model::V2));
}

#[test]
fn any_another_route_changed_twice() {
    model(2, 2_015, || another_route_changed_twice(Model::V3));
}

/// One vCPU stops taking `SPI` while the other begins to take it.
fn one_stops_and_one_begins(model: Model) {
    let mut machine = Machine::new(model);
    mask(&mut machine.cpus[1], true);
    let [mut first, mut second] = machine.cpus;
    let stops = thread::spawn(move || {
        mask(&mut first, true);
        first
    });
    mask(&mut second, false);
    machine.cpus = [stops.join().unwrap(), second];
    machine.end(1);
}

#[test]
fn targets_one_stops_and_one_begins() {
    model(4, 440, || one_stops_and_one_begins(Model::V2));
}

#[test]
fn any_one_stops_and_one_begins() {
    model(4, 336, || one_stops_and_one_begins(Model::V3));
}

/// `SPI` gets its choice of targets while a vCPU stops taking it.
fn route_written_while_one_stops(model: Model) {
    let mut machine = Machine::new(model);
    route(&machine.bus, model, SPI, false);
    let bus = machine.gic.bus().unwrap();
    let writer = thread::spawn(move || route(&bus, model, SPI, true));
    mask(&mut machine.cpus[0], true);
    writer.join().unwrap();
    machine.end(1);
}

#[test]
fn targets_route_written_while_one_stops() {
    model(3, 426, || route_written_while_one_stops(Model::V2));
}

#[test]
fn any_route_written_while_one_stops() {
    model(3, 130, || route_written_while_one_stops(Model::V3));
}
