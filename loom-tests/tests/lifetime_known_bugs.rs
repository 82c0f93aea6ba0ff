//! Bugs that other interrupt controllers have had with the lifetime of an LPI. The numbers are
//! those of `docs/known-bugs.md`; several bugs have a CVE.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;
use vgic_core::engine::*;
use vgic_loom_tests::lifetime::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use vgic_loom_tests::sched::thread;

/// A value that a device writes to memory before it raises its event, and that the guest reads
/// after it has taken the interrupt. The guest has missed an interrupt if the last value that it
/// read is not the last one written.
#[derive(Clone)]
struct Data {
    written: Arc<AtomicUsize>,
    read: usize,
}

impl Data {
    fn new() -> Self {
        Self { written: Arc::new(AtomicUsize::new(0)), read: 0 }
    }

    fn write(&self, value: usize) {
        self.written.store(value, Ordering::Relaxed);
    }

    /// Reads the value if the guest has taken interrupts. Returns how many it has taken.
    fn read_after(&mut self, taken: usize) -> usize {
        if taken > 0 {
            self.read = self.written.load(Ordering::Relaxed);
        }
        taken
    }
}

/// T01 (CVE-2024-26598): injections while the event is unmapped and mapped again. There is no use
/// after free. An injection that began after `unmap` returned and ended before `map` began is not
/// delivered. After `map`, delivery continues.
#[test]
fn t01_inject_vs_discard_and_map() {
    model(2, 24_766, || {
        let vm = Vm::new(1, 4);
        let mut msi = vm.mapped();
        let (source, last) = (vm.source(&msi, EV), vm.source(&msi, EV));
        let mut cpu = vm.cpu(A);
        let (gone, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (seen_gone, set_ended) = (Arc::clone(&gone), Arc::clone(&ended));
        let injector = thread::spawn(move || {
            let first = source.fire();
            let began_after = seen_gone.load(Ordering::Acquire);
            let second = source.fire();
            set_ended.store(true, Ordering::Release);
            let _ = first;
            (began_after, second, source)
        });
        msi.unmap(DEV, EV).unwrap();
        gone.store(true, Ordering::Release);
        let ended_before = ended.load(Ordering::Acquire);
        map(&mut msi, EV, LPI);
        let mut taken = cpu.settle();
        let (began_after, second, source) = injector.join().unwrap();
        taken += cpu.settle();
        if ended_before {
            assert_eq!(taken, 0, "delivered, though it was unmapped");
            assert!(!began_after || second == Injected::Unmapped);
        }
        assert!(taken <= 2);
        assert_eq!(last.fire(), Injected::Pending);
        assert_eq!(cpu.settle(), 1, "lost");
        msi.unmap(DEV, EV).unwrap();
        drop((source, last, cpu, msi));
        vm.end();
    });
}

/// T03 (CVE-2026-72288): an LPI is pending on B. B's LPIs are disabled while the LPI moves to A and
/// B runs. The LPI arrives once, and is not left behind.
fn disable_vs_move(offered_before: bool) {
    let vm = Vm::new(2, 5);
    let mut msi = vm.msi();
    msi.map(DEV, EV, LPI, B, ON).unwrap();
    let source = vm.source(&msi, EV);
    let redistributor = vm.injector();
    let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
    assert_eq!(source.fire(), Injected::Pending);
    if offered_before {
        assert_eq!(b.enter(), 1);
        b.leave();
    }
    let disabler = thread::spawn(move || {
        redistributor.set_lpis_enabled(B, false).unwrap();
        redistributor
    });
    let vcpu = thread::spawn(move || (b.run(), b));
    msi.retarget(DEV, EV, A).unwrap();
    let redistributor = disabler.join().unwrap();
    let (mut taken, mut b) = vcpu.join().unwrap();
    taken += b.settle();
    taken += a.settle();
    assert_eq!(taken, 1, "lost, or delivered twice");
    msi.unmap(DEV, EV).unwrap();
    drop((source, redistributor, a, b, msi));
    vm.end();
}

#[test]
fn t03_disable_vs_move_of_a_queued_lpi() {
    model(3, 3_069, || disable_vs_move(false));
}

#[test]
fn t03_disable_vs_move_of_an_offered_lpi() {
    model(3, 12_935, || disable_vs_move(true));
}

/// T04 (CVE-2026-72289): the LPI moves away from B and back, while B's LPIs are disabled and B
/// re-checks its interrupts. The target is the same before and after, so only the owner counts.
/// Once B's LPIs are enabled again, the LPI arrives, once.
#[test]
fn t04_disable_vs_move_and_back() {
    model(2, 34_297, || {
        let vm = Vm::new(2, 5);
        let mut msi = vm.msi();
        msi.map(DEV, EV, LPI, B, ON).unwrap();
        let source = vm.source(&msi, EV);
        let redistributor = vm.injector();
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(b.enter(), 1);
        b.leave();
        let on_b = thread::spawn(move || {
            redistributor.set_lpis_enabled(B, false).unwrap();
            (b.run(), b, redistributor)
        });
        let on_a = thread::spawn(move || (a.run(), a));
        msi.retarget(DEV, EV, A).unwrap();
        msi.retarget(DEV, EV, B).unwrap();
        let (taken_by_b, mut b, redistributor) = on_b.join().unwrap();
        let (mut taken, mut a) = on_a.join().unwrap();
        assert_eq!(taken_by_b, 0, "its LPIs are disabled");
        taken += a.settle();
        assert_eq!(b.settle(), 0, "its LPIs are disabled");
        redistributor.set_lpis_enabled(B, true).unwrap();
        taken += b.settle();
        assert_eq!(taken, 1, "lost, or delivered twice");
        msi.unmap(DEV, EV).unwrap();
        drop((source, redistributor, a, b, msi));
        vm.end();
    });
}

/// T05 (CVE-2026-74568): the event is unmapped while its LPI is queued, and the same INTID is
/// mapped again, while the vCPU takes the old object from its mailbox. The end of the old mapping
/// does not end the new one, and there is one object in the end.
#[test]
fn t05_discard_then_remap_same_intid() {
    model(3, 25_668, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let (mut cpu, data) = (vm.cpu(A), Data::new());
        data.write(1);
        assert_eq!(source.fire(), Injected::Pending);
        let mut guest = data.clone();
        let vcpu = thread::spawn(move || {
            let taken = cpu.run();
            (guest.read_after(taken), guest, cpu)
        });
        msi.unmap(DEV, EV).unwrap();
        map(&mut msi, EV, LPI);
        data.write(2);
        assert_ne!(source.fire(), Injected::Unmapped);
        let (taken, mut guest, mut cpu) = vcpu.join().unwrap();
        let more = cpu.settle();
        assert!(taken + guest.read_after(more) <= 2);
        assert_eq!(guest.read, 2, "lost");
        msi.collect();
        assert_eq!(vm.usage().lpis, 1);
        msi.unmap(DEV, EV).unwrap();
        drop((source, cpu, msi));
        vm.end();
    });
}

/// T20: the LPI is raised again after the guest's EOI, but before the exit that folds the list
/// register. (The model also explores an injection before the acknowledge or after the exit.)
#[test]
fn t20_raised_again_after_eoi_before_exit() {
    model(4, 108, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let (mut cpu, data) = (vm.cpu(A), Data::new());
        let mut guest = data.clone();
        data.write(1);
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(cpu.enter(), 1);
        let injector = thread::spawn(move || {
            data.write(2);
            assert_ne!(source.fire(), Injected::Unmapped);
            source
        });
        assert_eq!(guest.read_after(cpu.serve()), 1);
        cpu.leave();
        let again = cpu.run();
        guest.read_after(again);
        let source = injector.join().unwrap();
        let last = cpu.settle();
        guest.read_after(last);
        assert!(again + last <= 1, "delivered more often than it was raised");
        assert_eq!(guest.read, 2, "lost");
        msi.unmap(DEV, EV).unwrap();
        drop((source, cpu, msi));
        vm.end();
    });
}

/// T40: the LPI is raised again after the guest's acknowledge, before or after the exit that takes
/// it out of its list register: it is presented again, once.
#[test]
fn t40_raised_again_after_acknowledge_before_exit() {
    model(4, 108, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let (mut cpu, data) = (vm.cpu(A), Data::new());
        let mut guest = data.clone();
        data.write(1);
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(cpu.enter(), 1);
        let injector = thread::spawn(move || {
            data.write(2);
            assert_ne!(source.fire(), Injected::Unmapped);
            source
        });
        assert_eq!(guest.read_after(cpu.acknowledge()), 1);
        cpu.leave();
        cpu.enter();
        cpu.eoi();
        let again = cpu.serve();
        guest.read_after(again);
        cpu.leave();
        let source = injector.join().unwrap();
        let last = cpu.settle();
        guest.read_after(last);
        assert!(again + last <= 1, "delivered more often than it was raised");
        assert_eq!(guest.read, 2, "lost");
        msi.unmap(DEV, EV).unwrap();
        drop((source, cpu, msi));
        vm.end();
    });
}
