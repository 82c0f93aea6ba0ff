//! Active and pending state, read and written through registers, against the vCPU that has the
//! interrupt.
//!
//! A register access kicks a vCPU that is in the guest, and waits for it. In each of these models,
//! the vCPU's thread reaches its exit.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::sync::atomic::{AtomicBool, Ordering};
use vgic_loom_tests::sched::thread;

/// An SPI is made inactive while the guest handles it. It is raised after that, so it is delivered
/// again, and the second delivery stays active.
#[test]
fn clear_active_vs_running_guest() {
    model(3, 59_152, || {
        let (mut vm, registers) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        pulse(&registers);
        cpu.enter();
        assert_eq!(cpu.lrs.acknowledge(), 1);
        let writer = thread::spawn(move || {
            registers.set_active(SPI, false).unwrap();
            assert_eq!(registers.is_active(SPI), Ok(false));
            pulse(&registers);
            registers
        });
        cpu.exit();
        let mut taken = 0;
        for _ in 0..2 {
            cpu.enter();
            taken += cpu.lrs.acknowledge();
            cpu.exit();
        }
        let registers = writer.join().unwrap();
        cpu.enter();
        taken += cpu.lrs.acknowledge();
        cpu.exit();
        assert_eq!(taken, 1, "inactive, it is delivered again");
        assert_eq!(registers.is_active(SPI), Ok(true), "that was taken later");
        cpu.enter();
        cpu.lrs.eoi();
        cpu.exit();
        assert_eq!(registers.is_active(SPI), Ok(false));
        drop(registers);
        vm.end(cpu);
    });
}

/// Once the write that makes the SPI inactive is done, it undoes no acknowledge that comes later:
/// the guest waits for the write in its handler.
#[test]
fn clear_active_before_acknowledge() {
    model(3, 10_375, || {
        let (mut vm, registers) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        let done = Arc::new(AtomicBool::new(false));
        pulse(&registers);
        let flag = Arc::clone(&done);
        let writer = thread::spawn(move || {
            registers.set_active(SPI, false).unwrap();
            flag.store(true, Ordering::Release);
            registers
        });
        cpu.enter();
        let late = done.load(Ordering::Acquire);
        assert_eq!(cpu.lrs.acknowledge(), 1);
        cpu.exit();
        cpu.enter();
        if late {
            assert_eq!(cpu.lrs.used(), 1, "taken after the write");
        }
        cpu.lrs.eoi();
        cpu.exit();
        let registers = writer.join().unwrap();
        assert_eq!(cpu.settle(), 0);
        assert_eq!(registers.is_active(SPI), Ok(false));
        drop(registers);
        vm.end(cpu);
    });
}

/// As [`clear_active_before_acknowledge`], while a third thread is about to post the interrupt: the
/// interrupt is not in the mailbox yet when the write is done.
#[test]
fn clear_active_before_acknowledge_vs_another_change() {
    model(2, 32_164, || {
        let (mut vm, registers) = spi_vm(1);
        let other = vm.injector();
        let mut cpu = vm.cpu(A);
        let done = Arc::new(AtomicBool::new(false));
        pulse(&registers);
        cpu.enter();
        cpu.exit();
        let change = thread::spawn(move || {
            target(&other, A);
            other
        });
        let flag = Arc::clone(&done);
        let writer = thread::spawn(move || {
            registers.set_active(SPI, false).unwrap();
            flag.store(true, Ordering::Release);
            registers
        });
        cpu.enter();
        let late = done.load(Ordering::Acquire);
        assert_eq!(cpu.lrs.acknowledge(), 1);
        cpu.exit();
        cpu.enter();
        if late {
            assert_eq!(cpu.lrs.used(), 1, "taken after the write");
        }
        cpu.lrs.eoi();
        cpu.exit();
        let (registers, other) = (writer.join().unwrap(), change.join().unwrap());
        assert_eq!(cpu.settle(), 0);
        drop((registers, other));
        vm.end(cpu);
    });
}

/// An SPI is made active while it is pending: from then on it is not presented to the guest, until
/// the guest ends it.
#[test]
fn set_active_vs_delivery() {
    model(2, 115, || {
        let (mut vm, registers) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        pulse(&registers);
        let writer = thread::spawn(move || {
            registers.set_active(SPI, true).unwrap();
            registers
        });
        cpu.enter();
        let early = cpu.lrs.acknowledge();
        if early != 0 {
            cpu.lrs.eoi();
        }
        cpu.exit();
        let registers = writer.join().unwrap();
        cpu.enter();
        let active = cpu.lrs.used() == 1 && cpu.lrs.pending() == 0 || {
            // Pending and active.
            cpu.lrs.acknowledge() == 0
        };
        assert!(active, "it is active");
        cpu.lrs.eoi();
        cpu.exit();
        assert_eq!(early + cpu.settle(), 1, "delivered before, or after");
        assert_eq!(registers.is_active(SPI), Ok(false));
        drop(registers);
        vm.end(cpu);
    });
}

/// An SPI is made inactive while its vCPU, where it is active, powers off and on.
#[test]
fn clear_active_vs_close_and_open() {
    model(2, 217, || {
        let (mut vm, registers) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        pulse(&registers);
        cpu.enter();
        assert_eq!(cpu.lrs.acknowledge(), 1);
        let writer = thread::spawn(move || {
            registers.set_active(SPI, false).unwrap();
            registers
        });
        cpu.close();
        cpu.vcpu.open();
        let registers = writer.join().unwrap();
        cpu.enter();
        assert_eq!(cpu.lrs.used(), 0, "it is not active");
        cpu.exit();
        assert_eq!(registers.is_active(SPI), Ok(false));
        pulse(&registers);
        assert_eq!(cpu.settle(), 1);
        drop(registers);
        vm.end(cpu);
    });
}

/// A group of the VM is disabled and enabled while an interrupt of the group is injected: the
/// interrupt is not lost, and not forwarded while the group is disabled.
#[test]
fn inject_vs_group_gate() {
    model(3, 125, || {
        let (mut vm, registers) = spi_vm(1);
        let gate = vm.injector();
        let mut cpu = vm.cpu(A);
        gate.update_gates(A, |g| Gates { groups: [true, false], ..g }).unwrap();
        let source = thread::spawn(move || {
            pulse(&registers);
            registers
        });
        let taken = cpu.run();
        assert_eq!(taken, 0, "its group is not forwarded");
        gate.update_gates(A, |g| Gates { groups: [true; 2], ..g }).unwrap();
        let taken = cpu.run();
        let registers = source.join().unwrap();
        assert_eq!(taken + cpu.settle(), 1);
        drop((registers, gate));
        vm.end(cpu);
    });
}

/// Two senders send an SGI, and one of them takes it back: the other's is delivered once, and the
/// first one's at most once.
#[test]
fn senders_vs_delivery_vs_recall() {
    model(2, 155, || {
        let mut vm = Vm::with_exits(1, 0);
        let sgi = Intid(1);
        let (one, two) = (vm.injector(), vm.injector());
        let config = WiredConfig {
            enabled: true,
            priority: Priority::new(PRIORITY),
            group: Group::Group1,
            trigger: Trigger::Edge,
            target: A,
        };
        one.configure(Wired::Private(A, sgi), config).unwrap();
        let mut cpu = vm.cpu(A);
        let first = thread::spawn(move || {
            one.pulse_from(A, sgi, 1 << 0).unwrap();
            one.clear_from(A, sgi, 1 << 0).unwrap();
            one
        });
        let second = thread::spawn(move || {
            two.pulse_from(A, sgi, 1 << 3).unwrap();
            two
        });
        let early = cpu.run();
        let (one, two) = (first.join().unwrap(), second.join().unwrap());
        let taken = early + cpu.settle();
        assert!((1..=2).contains(&taken), "{taken}");
        assert_eq!(one.senders(A, sgi), Ok(0));
        drop((one, two));
        vm.end(cpu);
    });
}
