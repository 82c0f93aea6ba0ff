//! Lines against delivery: a level-sensitive interrupt is presented to the guest while its line is
//! high, is withdrawn when the line has fallen, and is never stuck in between.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::VgicInjector;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::reclaim::Slots;
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::sched::thread;
use vgic_loom_tests::{NoKick, model};

/// The handle of a device's thread, which drives the line of the SPI.
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

/// Creates a VM with one level-sensitive SPI that targets A.
fn spi_vm(vcpus: u16) -> (Vm, Line) {
    let vm = Vm::with(vcpus, 1, Arc::new(NoKick));
    let line = Line(vm.injector());
    line.target(A);
    (vm, line)
}

/// Enters, lets the guest's handler make its device lower the line, and exits. Returns how often
/// the guest was interrupted.
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

/// Enters and exits. Returns how many interrupts are pending in the list registers in the end.
fn offered(cpu: &mut Cpu) -> usize {
    cpu.enter();
    let offered = cpu.lrs.pending();
    cpu.exit();
    offered
}

/// The line rises while the vCPU runs.
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
    level_rise_vs_flush_on(34, Vm::busy_cpu);
}

/// The line falls while the vCPU runs, with a guest that does not acknowledge the interrupt.
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
    level_fall_vs_flush_on(2_729, Vm::busy_cpu);
}

/// The line falls while the vCPU delivers the interrupt.
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
        // Each run takes the interrupt if it finds the line high, because the guest does not lower
        // it.
        let _ = cpu.run() + cpu.run();
        cpu.enter();
        cpu.exit();
        let line = device.join().unwrap();
        assert_eq!(offered(&mut cpu), 0);
        drop(line);
        vm.end(cpu);
    });
}

/// The line rises and stays high, because the guest's handler does not lower it: the interrupt is
/// presented again after each EOI.
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

/// The line falls and rises again while the interrupt is in a list register.
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

/// The line rises again after the guest's handler has lowered it: before the EOI, at the EOI, or
/// after it.
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

/// The SPI moves to another vCPU while its line is high: one of the two vCPUs presents it, and in
/// the end the new one does.
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

/// The line falls and rises while the SPI's vCPU closes and opens.
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

/// The line falls and rises while the SPI's vCPU closes and opens, and the guest still handles the
/// interrupt: the interrupt is active again afterwards, and is not presented before the guest has
/// ended it.
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
