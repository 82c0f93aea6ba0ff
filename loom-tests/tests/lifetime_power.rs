//! LPIs that are unmapped, and mapped again, while the vCPU that has them in its mailbox is powered
//! off. A thread that holds such an LPI in passing does not make it mapped: no new mapping inherits
//! an old interrupt, and no LPI without an event is presented to a guest.
#![cfg(any(loom, shuttle))]

use vgic_core::engine::*;
use vgic_loom_tests::lifetime::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

/// An injection overlaps with the unmapping, and is over before the INTID is mapped again.
fn leftover_close(queued: bool) {
    let vm = Vm::new(1, 3);
    let mut msi = vm.mapped();
    let source = vm.source(&msi, EV);
    let mut cpu = vm.cpu(A);
    if queued {
        assert_eq!(source.fire(), Injected::Pending);
    }
    let injector = thread::spawn(move || {
        let _ = source.fire();
        source
    });
    msi.unmap(DEV, EV).unwrap();
    // The injection is over here: it overlapped with the unmapping only.
    let source = injector.join().unwrap();
    let vcpu = thread::spawn(move || {
        cpu.close();
        cpu
    });
    map(&mut msi, EV, LPI);
    let mut cpu = vcpu.join().unwrap();
    cpu.vcpu.open();
    assert_eq!(cpu.settle(), 0, "an interrupt of the old mapping");
    assert_eq!(source.fire(), Injected::Pending);
    assert_eq!(cpu.settle(), 1, "lost");
    drop((source, cpu, msi));
    vm.end();
}

#[test]
fn leftover_of_a_queued_object_vs_close() {
    model(2, 12_347, || leftover_close(true));
}

/// `detach` leaves the bit behind, deterministically: no injection overlaps with another operation.
fn detached_leftover(close: bool) {
    let vm = Vm::new(1, 3);
    let mut msi = vm.mapped();
    let source = vm.source(&msi, EV);
    let mut cpu = vm.cpu(A);
    assert_eq!(source.fire(), Injected::Pending);
    msi.detach(DEV, EV).unwrap();
    let vcpu = thread::spawn(move || {
        if close {
            cpu.close();
            (0, cpu)
        } else {
            (cpu.run(), cpu)
        }
    });
    map(&mut msi, EV, LPI);
    let (taken, mut cpu) = vcpu.join().unwrap();
    cpu.vcpu.open();
    assert_eq!(taken + cpu.settle(), 0, "an interrupt of the old mapping");
    assert_eq!(source.fire(), Injected::Pending);
    assert_eq!(cpu.settle(), 1, "lost");
    drop((source, cpu, msi));
    vm.end();
}

/// The control experiment: the vCPU runs and is not powered off.
#[test]
fn detached_leftover_vs_run() {
    model(4, 44_523, || detached_leftover(false));
}

#[test]
fn detached_leftover_vs_close() {
    model(4, 11_682, || detached_leftover(true));
}

/// An LPI without an event must not be presented to a guest: B is powered on, and scans, while A,
/// which has the LPI in its mailbox, is powered off.
#[test]
fn unmapped_lpi_is_offered() {
    model(3, 142, || {
        let vm = Vm::new(2, 4);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        b.close();
        assert_eq!(source.fire(), Injected::Pending);
        // The LPI is in A's mailbox, and now targets B. Then its event is unmapped, and nothing is
        // injected from here on.
        msi.retarget(DEV, EV, B).unwrap();
        msi.detach(DEV, EV).unwrap();
        assert_eq!(source.fire(), Injected::Unmapped);
        let closing = thread::spawn(move || {
            a.close();
            a
        });
        b.vcpu.open();
        let offered = b.enter();
        assert_eq!(offered, 0, "offered, though nothing is mapped to it");
        b.leave();
        let a = closing.join().unwrap();
        drop((source, a, b, msi));
        vm.end();
    });
}
