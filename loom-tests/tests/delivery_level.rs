//! Lines against delivery: a level-sensitive interrupt is offered while its line is high, withdrawn when it has fallen,
//! and never stuck in between.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::VgicInjector;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::reclaim::Slots;
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::sched::thread;
use vgic_loom_tests::{NoKick, model};

/// A device's thread: it drives the line of the SPI.
struct Line(VgicInjector<Slots>);

impl Line {
    fn set(&self, high: bool) {
        self.0.set_level(SPI, high).unwrap();
    }

    fn target(&self, target: VcpuId) {
        let config = WiredConfig {
            enabled: true,
            priority: Priority::new(PRIORITY),
            group: Group::Group1,
            trigger: Trigger::Level,
            target,
        };
        self.0.configure(SPI, config).unwrap();
    }
}

/// A VM whose SPI is for A.
fn spi_vm(vcpus: u16) -> (Vm, Line) {
    let vm = Vm::with(vcpus, 1, Arc::new(NoKick));
    let line = Line(vm.injector());
    line.target(A);
    (vm, line)
}

/// Entry, a guest whose handler makes its device lower the line, exit; returns how often it was interrupted.
fn run(cpu: &mut Cpu, line: &Line) -> usize {
    cpu.enter();
    let taken = cpu.lrs.acknowledge();
    if taken != 0 {
        line.set(false);
    }
    cpu.lrs.eoi();
    cpu.exit();
    taken
}

/// Entry, to see what the guest is offered in the end.
fn offered(cpu: &mut Cpu) -> usize {
    cpu.enter();
    let offered = cpu.lrs.pending();
    cpu.exit();
    offered
}

/// Rises while the vCPU runs.
fn level_rise_vs_flush_on(at_least: usize, cpu: MakeCpu) {
    model(4, at_least, move || {
        let (mut vm, line) = spi_vm(1);
        let guest = Line(vm.injector());
        let mut cpu = cpu(&mut vm, A);
        let device = thread::spawn(move || {
            line.set(true);
            line
        });
        let mut taken = run(&mut cpu, &guest) + run(&mut cpu, &guest);
        let line = device.join().unwrap();
        taken += run(&mut cpu, &guest) + run(&mut cpu, &guest);
        assert_eq!(taken, 1);
        assert_eq!(offered(&mut cpu), 0);
        drop((line, guest));
        vm.end(cpu);
    });
}

#[test]
fn level_rise_vs_flush() {
    level_rise_vs_flush_on(1, Vm::cpu);
}

#[test]
fn level_rise_vs_flush_busy() {
    level_rise_vs_flush_on(1, Vm::busy_cpu);
}

/// Falls while the vCPU runs, with a guest that does not look.
fn level_fall_vs_flush_on(at_least: usize, cpu: MakeCpu) {
    model(4, at_least, move || {
        let (mut vm, line) = spi_vm(1);
        let mut cpu = cpu(&mut vm, A);
        line.set(true);
        let device = thread::spawn(move || {
            line.set(false);
            line
        });
        cpu.enter();
        cpu.lrs.eoi();
        cpu.exit();
        cpu.enter();
        cpu.exit();
        let line = device.join().unwrap();
        assert_eq!(offered(&mut cpu), 0);
        drop(line);
        vm.end(cpu);
    });
}

#[test]
fn level_fall_vs_flush() {
    level_fall_vs_flush_on(1, Vm::cpu);
}

#[test]
fn level_fall_vs_flush_busy() {
    level_fall_vs_flush_on(1, Vm::busy_cpu);
}

/// Falls while the vCPU delivers it.
#[test]
fn level_fall_vs_delivery() {
    model(4, 40_696, || {
        let (mut vm, line) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        line.set(true);
        let device = thread::spawn(move || {
            line.set(false);
            line
        });
        // Each time it finds the line high, as the guest does not lower it.
        let _ = cpu.run() + cpu.run();
        cpu.enter();
        cpu.exit();
        let line = device.join().unwrap();
        assert_eq!(offered(&mut cpu), 0);
        drop(line);
        vm.end(cpu);
    });
}

/// Rises and stays high, as the guest's handler does not lower it: it is offered again after each EOI.
#[test]
fn level_held_vs_delivery() {
    model(6, 22, || {
        let (mut vm, line) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        let device = thread::spawn(move || {
            line.set(true);
            line
        });
        let mut taken = cpu.run() + cpu.run();
        let line = device.join().unwrap();
        assert_eq!(offered(&mut cpu), 1);
        taken += cpu.run();
        assert!(taken >= 1);
        assert_eq!(offered(&mut cpu), 1);
        line.set(false);
        assert_eq!(offered(&mut cpu), 0);
        drop(line);
        vm.end(cpu);
    });
}

/// Falls and rises again while it is in a list register.
#[test]
fn level_fall_and_rise_vs_flush() {
    model(4, 1_424, || {
        let (mut vm, line) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        line.set(true);
        cpu.enter();
        let device = thread::spawn(move || {
            line.set(false);
            line.set(true);
            line
        });
        cpu.exit();
        cpu.enter();
        cpu.exit();
        let line = device.join().unwrap();
        assert_eq!(offered(&mut cpu), 1);
        line.set(false);
        assert_eq!(offered(&mut cpu), 0);
        drop(line);
        vm.end(cpu);
    });
}

/// Rises again after the guest's handler has lowered it: before its EOI, at it, or after it.
#[test]
fn level_rise_vs_eoi() {
    model(4, 10_226, || {
        let (mut vm, line) = spi_vm(1);
        let guest = Line(vm.injector());
        let mut cpu = vm.cpu(A);
        line.set(true);
        cpu.enter();
        assert_eq!(cpu.lrs.acknowledge(), 1);
        line.set(false);
        let device = thread::spawn(move || {
            line.set(true);
            line
        });
        cpu.exit();
        cpu.enter();
        cpu.lrs.eoi();
        cpu.exit();
        let mut taken = run(&mut cpu, &guest);
        let line = device.join().unwrap();
        taken += run(&mut cpu, &guest) + run(&mut cpu, &guest);
        assert_eq!(taken, 1);
        assert_eq!(offered(&mut cpu), 0);
        drop((line, guest));
        vm.end(cpu);
    });
}

/// Moves to another vCPU while its line is high: one of them offers it, in the end the new one.
#[test]
fn level_retarget_vs_both() {
    model(4, 5_536, || {
        let (mut vm, line) = spi_vm(2);
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        line.set(true);
        let control = thread::spawn(move || {
            line.target(B);
            line
        });
        let second = thread::spawn(move || {
            b.enter();
            b.exit();
            b
        });
        a.enter();
        a.exit();
        a.enter();
        a.exit();
        let line = control.join().unwrap();
        let mut b = second.join().unwrap();
        assert_eq!((offered(&mut a), offered(&mut b)), (0, 1));
        drop(line);
        vm.end([a, b]);
    });
}

/// Falls while its vCPU closes and opens.
#[test]
fn level_fall_vs_close_and_open() {
    model(3, 13_986, || {
        let (mut vm, line) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        line.set(true);
        cpu.enter();
        cpu.exit();
        let device = thread::spawn(move || {
            line.set(false);
            line.set(true);
            line
        });
        cpu.close();
        cpu.vcpu.open();
        cpu.enter();
        cpu.exit();
        let line = device.join().unwrap();
        assert_eq!(offered(&mut cpu), 1);
        line.set(false);
        assert_eq!(offered(&mut cpu), 0);
        drop(line);
        vm.end(cpu);
    });
}

/// Falls and rises while its vCPU closes and opens, and the guest is still at work on it: it is active again afterwards,
/// and not offered before the guest has ended it.
#[test]
fn level_active_vs_close_and_open() {
    model(2, 2_124, || {
        let (mut vm, line) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        line.set(true);
        cpu.enter();
        assert_eq!(cpu.lrs.acknowledge(), 1);
        cpu.exit();
        let device = thread::spawn(move || {
            line.set(false);
            line.set(true);
            line
        });
        cpu.close();
        cpu.vcpu.open();
        assert_eq!(offered(&mut cpu), 0, "it is active");
        let line = device.join().unwrap();
        cpu.enter();
        assert_eq!((cpu.lrs.used(), cpu.lrs.pending()), (1, 0), "it is active");
        cpu.lrs.eoi();
        cpu.exit();
        assert_eq!(offered(&mut cpu), 1);
        line.set(false);
        assert_eq!(offered(&mut cpu), 0);
        drop(line);
        vm.end(cpu);
    });
}
