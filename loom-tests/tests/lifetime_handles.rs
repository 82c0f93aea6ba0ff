//! Handles that are made and dropped while other threads run, and the end of the engine, which
//! comes with the last handle, on any thread.
#![cfg(any(loom, shuttle))]

use vgic_core::engine::*;
use vgic_loom_tests::lifetime::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

/// A vCPU's interface is dropped with an interrupt in its mailbox, and made again, beside an
/// injection.
#[test]
fn vcpu_dropped_and_made_vs_injection() {
    model(2, 63, || {
        let vm = Vm::new(1, 3);
        let msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let cpu = vm.cpu(A);
        let injector = thread::spawn(move || {
            assert_eq!(source.fire(), Injected::Pending);
            source
        });
        drop(cpu);
        let mut cpu = vm.cpu(A);
        let source = injector.join().unwrap();
        assert_eq!(cpu.settle(), 1, "pending all the time");
        drop((source, cpu, msi));
        vm.end();
    });
}

/// A vCPU's interface is dropped with an interrupt in its mailbox, beside an unmapping: the last
/// reference may be the one that the dropped interface gives up.
#[test]
fn vcpu_dropped_vs_last_put() {
    model(2, 3_432, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let cpu = vm.cpu(A);
        assert_eq!(source.fire(), Injected::Pending);
        let other = thread::spawn(move || drop(cpu));
        msi.unmap(DEV, EV).unwrap();
        other.join().unwrap();
        let mut cpu = vm.cpu(A);
        assert_eq!(cpu.settle(), 0);
        drop((source, cpu, msi));
        vm.end();
    });
}

/// A domain's control side is dropped beside an injection through the domain. The drop unmaps all
/// events.
#[test]
fn domain_dropped_vs_injection_and_drain() {
    model(2, 969, || {
        let vm = Vm::new(1, 3);
        let msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || {
            let _ = source.fire();
            source
        });
        let other = thread::spawn(move || drop(msi));
        let taken = cpu.run();
        let source = injector.join().unwrap();
        other.join().unwrap();
        assert!(taken + cpu.settle() <= 1);
        assert_eq!(source.fire(), Injected::Unmapped);
        drop((source, cpu));
        vm.end();
    });
}

/// Two threads drop the last handles at once, with an interrupt in the mailbox and retired objects
/// that no thread has collected. A canary detects a use of an object after its end.
#[test]
fn the_last_handles_at_once() {
    model(1, 1_495, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.route(&mut msi, EV);
        let cpu = vm.cpu(A);
        assert_eq!(source.fire(), Injected::Pending);
        drop(vm);
        let one = thread::spawn(move || drop((source, cpu)));
        let two = thread::spawn(move || drop(msi));
        one.join().unwrap();
        two.join().unwrap();
    });
}
