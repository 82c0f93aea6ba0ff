//! Push against drain: no interrupt is lost, and none is delivered more often than it was made
//! pending.
#![cfg(any(loom, shuttle))]

use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

/// One producer raises two LPIs while the vCPU drains.
#[test]
fn push_vs_drain_one_producer() {
    model(6, 42, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        vm.map(1, A, ON);
        let (first, second) = (vm.source(0), vm.source(1));
        let mut cpu = vm.cpu(A);
        let producer = thread::spawn(move || (first.raise() + second.raise(), first, second));
        let taken = cpu.run();
        let (due, first, second) = producer.join().unwrap();
        assert_eq!(due, 2);
        assert_eq!(taken + cpu.settle(), due);
        drop((first, second));
        vm.end(cpu);
    });
}

/// Two producers raise an LPI each while the vCPU drains.
#[test]
fn push_vs_drain_two_producers() {
    model(4, 2_354, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        vm.map(1, A, ON);
        let mut cpu = vm.cpu(A);
        let producers = [vm.source(0), vm.source(1)].map(|s| thread::spawn(move || (s.raise(), s)));
        let mut taken = cpu.run();
        let sources = producers.map(|p| p.join().unwrap());
        taken += cpu.settle();
        assert_eq!(sources.iter().map(|(due, _)| due).sum::<usize>(), 2);
        assert_eq!(taken, 2);
        drop(sources);
        vm.end(cpu);
    });
}

/// Two producers raise the same LPI while the vCPU drains: there is one delivery for each injection
/// that did not coalesce.
#[test]
fn push_vs_drain_two_producers_of_one_lpi() {
    model(4, 1_455, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let mut cpu = vm.cpu(A);
        let producers = [vm.source(0), vm.source(0)].map(|s| thread::spawn(move || (s.raise(), s)));
        let mut taken = cpu.run();
        let sources = producers.map(|p| p.join().unwrap());
        taken += cpu.settle();
        let due = sources.iter().map(|(due, _)| due).sum::<usize>();
        assert!(due >= 1);
        assert_eq!(taken, due);
        drop(sources);
        vm.end(cpu);
    });
}

/// One producer raises the same LPI twice while the vCPU runs twice: the second injection can come
/// at any point of the first one's delivery.
#[test]
fn push_vs_delivery_of_the_same_lpi() {
    model(6, 100, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = vm.cpu(A);
        let producer = thread::spawn(move || (source.raise() + source.raise(), source));
        let taken = cpu.run() + cpu.run();
        let (due, source) = producer.join().unwrap();
        assert!(due >= 1);
        assert_eq!(taken + cpu.settle(), due);
        drop(source);
        vm.end(cpu);
    });
}

/// Two LPIs are raised for a vCPU with one list register: the LPI that waits is delivered when
/// there is room.
#[test]
fn push_vs_full_list_registers() {
    model(4, 74, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        vm.map(1, A, URGENT);
        let (calm, urgent) = (vm.source(0), vm.source(1));
        let mut cpu = vm.cpu(A).with_one_lr();
        assert_eq!(calm.raise(), 1);
        cpu.enter();
        // Evicts the other one, or comes after it.
        let producer = thread::spawn(move || (urgent.raise() + urgent.raise(), urgent));
        cpu.exit();
        let taken = cpu.run() + cpu.run();
        let (due, urgent) = producer.join().unwrap();
        assert_eq!(taken + cpu.settle(), due + 1);
        drop((calm, urgent));
        vm.end(cpu);
    });
}
