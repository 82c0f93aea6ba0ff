//! CLEAR against injection and delivery (T21): the outcome is that of one of the two orders. A
//! CLEAR that returned before the injection began does not cancel it. An injection that returned
//! before the CLEAR began is cancelled, wherever the interrupt is, unless the guest has
//! acknowledged it.
#![cfg(any(loom, shuttle))]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vgic_core::engine::*;
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

/// The order of events in an interleaving. The counter is not loom's, so that accesses to it order
/// nothing.
#[derive(Clone, Default)]
struct Clock(Arc<AtomicUsize>);

impl Clock {
    fn during<T>(&self, f: impl FnOnce() -> T) -> (Range<usize>, T) {
        let begin = self.0.fetch_add(1, Ordering::Relaxed);
        let result = f();
        (begin..self.0.fetch_add(1, Ordering::Relaxed), result)
    }
}

fn clear(vm: &mut Vm) {
    vm.msi.clear(DEVICE, EVENT).unwrap();
}

/// A CLEAR against an injection. The vCPU does not run until both are done.
#[test]
fn t21_clear_vs_inject() {
    model(6, 45, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = vm.cpu(A);
        let clock = Clock::default();
        let control = thread::spawn({
            let clock = clock.clone();
            move || (clock.during(|| clear(&mut vm)).0, vm)
        });
        let (injected, due) = clock.during(|| source.raise());
        let (cleared, vm) = control.join().unwrap();
        assert_eq!(due, 1);
        let taken = cpu.settle();
        if cleared.end < injected.start {
            assert_eq!(taken, 1);
        } else if injected.end < cleared.start {
            assert_eq!(taken, 0);
        }
        assert!(taken <= 1);
        drop(source);
        vm.end(cpu);
    });
}

/// A CLEAR against an injection while the vCPU runs, with a guest that is slow at first.
fn t21_clear_vs_inject_vs_delivery_on(at_least: usize, cpu: MakeCpu) {
    model(3, at_least, move || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = cpu(&mut vm, A);
        let clock = Clock::default();
        let control = thread::spawn({
            let clock = clock.clone();
            move || (clock.during(|| clear(&mut vm)).0, vm)
        });
        let injector = thread::spawn({
            let clock = clock.clone();
            move || (clock.during(|| source.raise()), source)
        });
        cpu.enter();
        cpu.exit();
        let before = cpu.run();
        let (cleared, vm) = control.join().unwrap();
        let ((injected, _), source) = injector.join().unwrap();
        let after = cpu.settle();
        if cleared.end < injected.start {
            assert_eq!(before + after, 1);
        } else if injected.end < cleared.start {
            assert_eq!(after, 0);
        }
        assert!(before + after <= 1);
        drop(source);
        vm.end(cpu);
    });
}

#[test]
fn t21_clear_vs_inject_vs_delivery() {
    t21_clear_vs_inject_vs_delivery_on(1, Vm::cpu);
}

#[test]
fn t21_clear_vs_inject_vs_delivery_busy() {
    t21_clear_vs_inject_vs_delivery_on(1_067, Vm::busy_cpu);
}

/// A CLEAR while another LPI with its pending bit in the same word is raised: the other LPI is not
/// affected.
#[test]
fn t21_clear_vs_inject_of_a_neighbour() {
    model(6, 2, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        vm.map(1, A, ON);
        let (source, neighbour) = (vm.source(0), vm.source(1));
        let mut cpu = vm.cpu(A);
        assert_eq!(source.raise(), 1);
        let control = thread::spawn(move || {
            clear(&mut vm);
            vm
        });
        let due = neighbour.raise();
        let vm = control.join().unwrap();
        assert_eq!((due, cpu.settle()), (1, 1));
        drop((source, neighbour));
        vm.end(cpu);
    });
}

/// The LPI is in a list register, and the guest has not acknowledged it: the vCPU withdraws it.
#[test]
fn t21_clear_vs_list_register() {
    model(6, 379, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.raise(), 1);
        let control = thread::spawn(move || {
            clear(&mut vm);
            vm
        });
        cpu.enter();
        cpu.exit();
        cpu.enter();
        cpu.exit();
        let vm = control.join().unwrap();
        assert_eq!(cpu.settle(), 0);
        drop(source);
        vm.end(cpu);
    });
}

/// The LPI was disabled, and is on its way from a list register back to its pending bit.
#[test]
fn t21_clear_vs_withdrawal() {
    model(6, 3_839, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.raise(), 1);
        cpu.enter();
        cpu.exit();
        vm.msi.set_config(lpi(0), OFF).unwrap();
        let control = thread::spawn(move || {
            clear(&mut vm);
            vm
        });
        cpu.enter();
        cpu.exit();
        let mut vm = control.join().unwrap();
        vm.msi.set_config(lpi(0), ON).unwrap();
        assert_eq!(cpu.settle(), 0);
        drop(source);
        vm.end(cpu);
    });
}

/// As [`t21_clear_vs_withdrawal`], and the LPI is raised again after the CLEAR: the second
/// injection stands.
#[test]
fn t21_clear_and_inject_vs_withdrawal() {
    model(6, 18_190, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.raise(), 1);
        cpu.enter();
        cpu.exit();
        vm.msi.set_config(lpi(0), OFF).unwrap();
        let control = thread::spawn(move || {
            clear(&mut vm);
            (source.raise(), source, vm)
        });
        cpu.enter();
        cpu.exit();
        let (due, source, mut vm) = control.join().unwrap();
        vm.msi.set_config(lpi(0), ON).unwrap();
        assert_eq!((due, cpu.settle()), (1, 1));
        drop(source);
        vm.end(cpu);
    });
}

/// The LPI is in the only list register, and a more urgent LPI evicts it.
#[test]
fn t21_clear_vs_eviction() {
    model(6, 1_878, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        vm.map(1, A, URGENT);
        let (source, urgent) = (vm.source(0), vm.source(1));
        let mut cpu = vm.cpu(A).with_one_lr();
        assert_eq!(source.raise(), 1);
        cpu.enter();
        assert_eq!(urgent.raise(), 1);
        let control = thread::spawn(move || {
            clear(&mut vm);
            vm
        });
        cpu.exit();
        assert_eq!(cpu.run(), 1, "the urgent one");
        let vm = control.join().unwrap();
        assert_eq!(cpu.settle(), 0);
        drop((source, urgent));
        vm.end(cpu);
    });
}

/// The LPI moves to another vCPU: the CLEAR finds it there, too.
#[test]
fn t21_clear_vs_hand_over() {
    model(4, 6_958, || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        assert_eq!(source.raise(), 1);
        a.enter();
        a.exit();
        vm.msi.retarget(DEVICE, EVENT, B).unwrap();
        let control = thread::spawn(move || {
            clear(&mut vm);
            vm
        });
        let giver = thread::spawn(move || {
            a.enter();
            a.exit();
            a
        });
        b.enter();
        b.exit();
        let vm = control.join().unwrap();
        let mut a = giver.join().unwrap();
        assert_eq!(a.settle() + b.settle(), 0);
        drop(source);
        vm.end([a, b]);
    });
}
