//! Injection against enabling and disabling: an LPI stays pending while it is disabled, and is
//! delivered when it is enabled.
#![cfg(any(loom, shuttle))]

use vgic_core::engine::*;
use vgic_core::ids::{Group, Priority};
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

/// An LPI is enabled while it is raised. The vCPU runs in between.
fn inject_vs_enable_on(at_least: usize, cpu: MakeCpu) {
    model(3, at_least, move || {
        let mut vm = Vm::new(1);
        vm.map(0, A, OFF);
        let source = vm.source(0);
        let mut cpu = cpu(&mut vm, A);
        let injector = thread::spawn(move || (source.raise(), source));
        let control = thread::spawn(move || {
            vm.msi.set_config(lpi(0), ON).unwrap();
            vm
        });
        let taken = cpu.run();
        let (due, source) = injector.join().unwrap();
        let vm = control.join().unwrap();
        assert_eq!(due, 1);
        assert_eq!(taken + cpu.settle(), due);
        drop(source);
        vm.end(cpu);
    });
}

#[test]
fn inject_vs_enable() {
    inject_vs_enable_on(1, Vm::cpu);
}

#[test]
fn inject_vs_enable_busy() {
    inject_vs_enable_on(4_572, Vm::busy_cpu);
}

/// An LPI is disabled while it is raised: if it has not been delivered by then, it is pending, and
/// is delivered when it is enabled.
fn inject_vs_disable_on(at_least: usize, cpu: MakeCpu) {
    model(3, at_least, move || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = cpu(&mut vm, A);
        let injector = thread::spawn(move || (source.raise(), source));
        let control = thread::spawn(move || {
            vm.msi.set_config(lpi(0), OFF).unwrap();
            vm
        });
        // A slow guest: the LPI is in a list register when it is disabled.
        cpu.enter();
        cpu.exit();
        let mut taken = cpu.run();
        let (due, source) = injector.join().unwrap();
        let mut vm = control.join().unwrap();
        assert_eq!(due, 1);
        assert_eq!(cpu.settle(), 0, "it is disabled");
        vm.msi.set_config(lpi(0), ON).unwrap();
        taken += cpu.settle();
        assert_eq!(taken, due);
        drop(source);
        vm.end(cpu);
    });
}

#[test]
fn inject_vs_disable() {
    inject_vs_disable_on(1, Vm::cpu);
}

#[test]
fn inject_vs_disable_busy() {
    inject_vs_disable_on(21_209, Vm::busy_cpu);
}

/// An LPI that is pending in a list register is disabled and enabled, and raised once more.
#[test]
fn inject_vs_disable_and_enable() {
    model(3, 10_574, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = vm.cpu(A);
        let mut due = source.raise();
        cpu.enter();
        let injector = thread::spawn(move || (source.raise(), source));
        let control = thread::spawn(move || {
            vm.msi.set_config(lpi(0), OFF).unwrap();
            vm.msi.set_config(lpi(0), ON).unwrap();
            vm
        });
        cpu.exit();
        let mut taken = cpu.run();
        let (more, source) = injector.join().unwrap();
        let vm = control.join().unwrap();
        due += more;
        taken += cpu.settle();
        // The second injection may have come while the first was back in the pending bit, or the
        // other way round.
        assert!(taken >= 1 && taken <= due, "{taken} of {due}");
        drop(source);
        vm.end(cpu);
    });
}

/// Another thread enables the LPI while a vCPU thread sends itself an MSI: at least one of the two
/// threads sees the other's change.
fn self_inject_vs_enable_on(at_least: usize, cpu: MakeCpu) {
    model(3, at_least, move || {
        let mut vm = Vm::new(1);
        vm.map(0, A, OFF);
        let source = vm.source(0);
        let mut cpu = cpu(&mut vm, A);
        let control = thread::spawn(move || {
            vm.msi.set_config(lpi(0), ON).unwrap();
            vm
        });
        let due = source.raise();
        let taken = cpu.run();
        let vm = control.join().unwrap();
        assert_eq!(taken + cpu.settle(), due);
        drop(source);
        vm.end(cpu);
    });
}

#[test]
fn self_inject_vs_enable() {
    self_inject_vs_enable_on(1, Vm::cpu);
}

#[test]
fn self_inject_vs_enable_busy() {
    self_inject_vs_enable_on(8_208, Vm::busy_cpu);
}

/// The configuration of an LPI changes while the LPI is delivered, so that it can be in a mailbox
/// when it is raised again.
#[test]
fn inject_into_a_mailbox() {
    model(6, 642, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = vm.cpu(A);
        let mut due = source.raise();
        cpu.enter();
        let control = thread::spawn(move || {
            vm.msi.set_config(lpi(0), URGENT).unwrap();
            (source.raise(), source, vm)
        });
        let mut taken = cpu.lrs.take();
        cpu.exit();
        taken += cpu.run();
        let (more, source, vm) = control.join().unwrap();
        due += more;
        assert_eq!(taken + cpu.settle(), due);
        drop(source);
        vm.end(cpu);
    });
}

/// As [`inject_into_a_mailbox`], while another LPI waits for the only list register.
#[test]
fn inject_into_a_mailbox_behind_another() {
    model(4, 5, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        vm.map(1, A, ON);
        let (source, other) = (vm.source(0), vm.source(1));
        let mut cpu = vm.cpu(A).with_one_lr();
        let mut due = source.raise();
        cpu.enter();
        let mut taken = cpu.lrs.acknowledge();
        cpu.exit();
        due += other.raise();
        cpu.enter();
        let control = thread::spawn(move || {
            vm.msi.set_config(lpi(0), URGENT).unwrap();
            (source.raise(), source, vm)
        });
        cpu.lrs.eoi();
        cpu.exit();
        taken += cpu.run();
        let (more, source, vm) = control.join().unwrap();
        due += more;
        assert_eq!(taken + cpu.settle(), due);
        drop((source, other));
        vm.end(cpu);
    });
}

/// An SPI that is pending and disabled is already in the mailbox when it is enabled: the mail
/// carries the change.
#[test]
fn enable_of_what_is_in_the_mailbox() {
    model(3, 139, || {
        let mut vm = Vm::with(1, 1, std::sync::Arc::new(vgic_loom_tests::NoKick));
        let config = |enabled| WiredConfig {
            enabled,
            priority: Priority::new(PRIORITY),
            group: Group::Group1,
            trigger: Trigger::Edge,
            target: A,
        };
        let registers = vm.injector();
        registers.configure(SPI, config(false)).unwrap();
        let mut cpu = vm.cpu(A);
        let _ = registers.pulse(SPI).unwrap();
        let control = thread::spawn(move || {
            registers.configure(SPI, config(true)).unwrap();
            registers
        });
        let taken = cpu.run();
        let registers = control.join().unwrap();
        assert_eq!(taken + cpu.settle(), 1);
        drop(registers);
        vm.end(cpu);
    });
}
