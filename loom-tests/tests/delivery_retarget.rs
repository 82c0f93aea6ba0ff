//! Injection and delivery against retargeting: the interrupt is delivered once, by any vCPU, and no
//! vCPU keeps a reference.
#![cfg(any(loom, shuttle))]

use vgic_core::engine::*;
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

/// Runs vCPUs until no interrupt comes any more: one vCPU can have an interrupt to hand over to
/// another.
fn settle(cpus: &mut [&mut Cpu]) -> usize {
    let mut all = 0;
    loop {
        let taken = cpus.iter_mut().map(|cpu| cpu.settle()).sum::<usize>();
        all += taken;
        if taken == 0 && !cpus.iter().any(|cpu| cpu.vcpu.has_mail()) {
            return all;
        }
    }
}

/// An LPI is raised while it moves from A, which runs, to B.
fn inject_vs_retarget_on(at_least: usize, cpu: MakeCpu) {
    model(4, at_least, move || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let (mut a, mut b) = (cpu(&mut vm, A), vm.cpu(B));
        let injector = thread::spawn(move || (source.raise(), source));
        let control = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm
        });
        let mut taken = a.run();
        let (due, source) = injector.join().unwrap();
        let vm = control.join().unwrap();
        taken += settle(&mut [&mut a, &mut b]);
        assert_eq!((due, taken), (1, 1));
        drop(source);
        vm.end([a, b]);
    });
}

#[test]
fn inject_vs_retarget() {
    inject_vs_retarget_on(1, Vm::cpu);
}

#[test]
fn inject_vs_retarget_busy() {
    inject_vs_retarget_on(7_693, Vm::busy_cpu);
}

/// A pending LPI moves from A to B, and both run: A may have it in a list register, or hand it
/// over.
fn retarget_vs_both_on(preemptions: usize, at_least: usize, cpu: MakeCpu) {
    model(preemptions, at_least, move || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let (mut a, mut b) = (cpu(&mut vm, A), vm.cpu(B));
        let due = source.raise();
        let first = thread::spawn(move || {
            // A slow guest.
            a.enter();
            a.exit();
            (a.run(), a)
        });
        let control = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm
        });
        let mut taken = b.run();
        let (by_a, mut a) = first.join().unwrap();
        let vm = control.join().unwrap();
        taken += by_a + settle(&mut [&mut a, &mut b]);
        assert_eq!(taken, due);
        drop(source);
        vm.end([a, b]);
    });
}

#[test]
fn retarget_vs_both() {
    retarget_vs_both_on(4, 5_263, Vm::cpu);
}

#[test]
fn retarget_vs_both_busy() {
    retarget_vs_both_on(3, 9_491, Vm::busy_cpu);
}

/// A pending LPI moves to B and back while both vCPUs run.
#[test]
fn retarget_there_and_back() {
    model(3, 2_984, || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        let due = source.raise();
        let first = thread::spawn(move || (a.run(), a));
        let control = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm.msi.retarget(DEVICE, EVENT, A).unwrap();
            vm
        });
        let mut taken = b.run();
        let (by_a, mut a) = first.join().unwrap();
        let vm = control.join().unwrap();
        taken += by_a + settle(&mut [&mut a, &mut b]);
        assert_eq!(taken, due);
        drop(source);
        vm.end([a, b]);
    });
}

/// A pending LPI moves in a chain, from A over B to C, while all three run.
#[test]
fn retarget_chain() {
    model(3, 11_609, || {
        let mut vm = Vm::new(3);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut c = vm.cpu(C);
        let cpus = [vm.cpu(A), vm.cpu(B)];
        let due = source.raise();
        let others = cpus.map(|mut cpu| thread::spawn(move || (cpu.run(), cpu)));
        vm.msi.retarget(DEVICE, EVENT, B).unwrap();
        vm.msi.retarget(DEVICE, EVENT, C).unwrap();
        let mut taken = c.run();
        let [(by_a, mut a), (by_b, mut b)] = others.map(|other| other.join().unwrap());
        taken += by_a + by_b + settle(&mut [&mut a, &mut b, &mut c]);
        assert_eq!(taken, due);
        drop(source);
        vm.end([a, b, c]);
    });
}

/// An LPI moves while A's guest has it acknowledged, and is raised again: A ends the first, and the
/// second is delivered once.
#[test]
fn retarget_vs_fold_of_an_active_one() {
    model(4, 19_303, || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        let mut due = source.raise();
        a.enter();
        let mut taken = a.lrs.acknowledge();
        let injector = thread::spawn(move || (source.raise(), source));
        let control = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm
        });
        a.exit();
        a.enter();
        a.lrs.eoi();
        a.exit();
        taken += b.run();
        let (more, source) = injector.join().unwrap();
        let vm = control.join().unwrap();
        due += more;
        taken += settle(&mut [&mut a, &mut b]);
        assert_eq!((due, taken), (2, 2));
        drop(source);
        vm.end([a, b]);
    });
}

/// All LPIs move while one of them is raised.
#[test]
fn inject_vs_move_all() {
    model(3, 4_062, || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        vm.map(1, B, ON);
        let source = vm.source(0);
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        let injector = thread::spawn(move || (source.raise(), source));
        let control = thread::spawn(move || {
            assert_eq!(vm.msi.move_all(A, B).unwrap(), 1);
            vm
        });
        let mut taken = a.run();
        let (due, source) = injector.join().unwrap();
        let vm = control.join().unwrap();
        taken += settle(&mut [&mut b, &mut a]);
        assert_eq!((due, taken), (1, 1));
        // From now on, the LPI is B's.
        assert_eq!(source.raise(), 1);
        assert_eq!((a.settle(), b.settle()), (0, 1));
        drop(source);
        vm.end([a, b]);
    });
}

/// A pending LPI moves to B by a command of its own domain, while a command of another domain moves
/// all of A's LPIs to C.
#[test]
fn retarget_vs_move_all() {
    model(2, 1_099, || {
        let mut vm = Vm::new(3);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut other = vm.domain();
        let (mut a, mut b, mut c) = (vm.cpu(A), vm.cpu(B), vm.cpu(C));
        let due = source.raise();
        let one = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm
        });
        let all = thread::spawn(move || {
            let moved = other.move_all(A, C).unwrap();
            (moved, other)
        });
        let mut taken = a.run();
        let vm = one.join().unwrap();
        let (moved, other) = all.join().unwrap();
        assert!(moved <= 1);
        taken += settle(&mut [&mut a, &mut b, &mut c]);
        assert_eq!(taken, due);
        drop((source, other));
        vm.end([a, b, c]);
    });
}

/// An LPI moves that is pending, and that no vCPU has, because LPIs are not enabled at its old
/// vCPU.
#[test]
fn retarget_of_what_nobody_has() {
    model(3, 5, || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let (source, redist) = (vm.source(0), vm.injector());
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        redist.set_lpis_enabled(A, false).unwrap();
        let due = source.raise();
        a.enter();
        a.exit();
        let control = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm
        });
        let taken = b.run();
        let vm = control.join().unwrap();
        assert_eq!(taken + settle(&mut [&mut a, &mut b]), due);
        drop((source, redist));
        vm.end((a, b));
    });
}
