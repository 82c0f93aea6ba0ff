//! Injection and retargeting against powering vCPUs on and off: an interrupt that a vCPU cannot
//! take stays pending until this vCPU, or another one, can take it.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::engine::*;
use vgic_core::ids::{Intid, PRIVATE_INTIDS};
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::sched::thread;
use vgic_loom_tests::{NoKick, model};

/// An LPI is raised while its vCPU opens: either the opener's scan finds the LPI, or the injector
/// finds the mailbox open.
#[test]
fn open_vs_inject() {
    model(6, 9_893, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = vm.closed_cpu(A);
        let injector = thread::spawn(move || (source.raise(), source));
        cpu.vcpu.open();
        let taken = cpu.run();
        let (due, source) = injector.join().unwrap();
        assert_eq!((due, taken + cpu.settle()), (1, 1));
        drop(source);
        vm.end(cpu);
    });
}

/// Two injectors raise an LPI while its vCPU opens.
#[test]
fn open_vs_two_injectors() {
    model(3, 15_843, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let sources = [vm.source(0), vm.source(0)];
        let mut cpu = vm.closed_cpu(A);
        let injectors = sources.map(|source| thread::spawn(move || (source.raise(), source)));
        cpu.vcpu.open();
        let taken = cpu.run();
        let sources = injectors.map(|injector| injector.join().unwrap());
        assert_eq!(taken + cpu.settle(), sources[0].0 + sources[1].0);
        drop(sources);
        vm.end(cpu);
    });
}

/// An LPI is mapped for the first time and raised while its vCPU opens: the scan may already be
/// past the place of the tree node that the mapping adds.
#[test]
fn open_vs_map_and_inject() {
    model(3, 502, || {
        let mut vm = Vm::new(1);
        let source = vm.source(0);
        let mut cpu = vm.closed_cpu(A);
        let control = thread::spawn(move || {
            vm.map(0, A, ON);
            (source.raise(), source, vm)
        });
        cpu.vcpu.open();
        let taken = cpu.run();
        let (due, source, vm) = control.join().unwrap();
        assert_eq!((due, taken + cpu.settle()), (1, 1));
        drop(source);
        vm.end(cpu);
    });
}

/// An LPI is raised while its vCPU runs and closes: it is delivered, or is pending when the vCPU
/// opens again.
#[test]
fn close_vs_inject() {
    model(4, 20, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || (source.raise() + source.raise(), source));
        cpu.enter();
        let mut taken = cpu.lrs.acknowledge();
        cpu.exit();
        cpu.close();
        let (due, source) = injector.join().unwrap();
        cpu.vcpu.open();
        taken += cpu.settle();
        assert_eq!(taken, due);
        drop(source);
        vm.end(cpu);
    });
}

/// An LPI is raised while its vCPU closes and opens.
#[test]
fn close_and_open_vs_inject() {
    model(4, 2_419, || {
        let mut vm = Vm::new(1);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut cpu = vm.cpu(A);
        // The LPI is in a list register, and then goes back to its pending bit.
        let due = source.raise();
        cpu.enter();
        cpu.exit();
        let injector = thread::spawn(move || (source.raise(), source));
        cpu.close();
        cpu.vcpu.open();
        let mut taken = cpu.run();
        let (more, source) = injector.join().unwrap();
        taken += cpu.settle();
        // The first was given back while the second came, or after it: one of the two is delivered,
        // or both.
        assert!(taken >= 1 && taken <= due + more, "{taken} of {due} + {more}");
        drop(source);
        vm.end(cpu);
    });
}

/// An LPI in the mailbox of a vCPU that closes moves to an open vCPU.
#[test]
fn close_with_mail_vs_retarget() {
    model(6, 7_572, || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        let due = source.raise();
        let control = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm
        });
        a.close();
        let taken = b.run();
        let vm = control.join().unwrap();
        assert_eq!(taken + b.settle(), due);
        drop(source);
        vm.end([a, b]);
    });
}

/// An LPI in a list register of a vCPU that closes moves to an open vCPU.
#[test]
fn close_of_the_owner_vs_retarget() {
    model(4, 6_440, || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        let due = source.raise();
        a.enter();
        a.exit();
        let control = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm
        });
        a.close();
        let taken = b.run();
        let vm = control.join().unwrap();
        assert_eq!(taken + b.settle(), due);
        drop(source);
        vm.end([a, b]);
    });
}

/// An SPI is active on a vCPU that closes, and already targets another vCPU: the injector sees the
/// owner, and posts to the owner's mailbox.
#[test]
fn close_of_the_owner_vs_inject_for_another() {
    model(3, 4_548, || {
        let (mut vm, registers) = spi_vm(2);
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        pulse(&registers);
        a.enter();
        assert_eq!(a.lrs.acknowledge(), 1);
        a.exit();
        target(&registers, B);
        let injector = thread::spawn(move || {
            pulse(&registers);
            registers
        });
        a.close();
        let taken = b.run();
        let registers = injector.join().unwrap();
        // The first round may end it, and the second may take it again.
        assert_eq!(taken + b.settle() + b.settle(), 1);
        drop(registers);
        vm.end([a, b]);
    });
}

/// An LPI is raised while it moves away from a closed vCPU.
#[test]
fn retarget_from_a_closed_vcpu_vs_inject() {
    model(3, 2_744, || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let mut b = vm.cpu(B);
        let injector = thread::spawn(move || (source.raise(), source));
        let control = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm
        });
        let taken = b.run();
        let (due, source) = injector.join().unwrap();
        let vm = control.join().unwrap();
        assert_eq!((due, taken + b.settle()), (1, 1));
        drop(source);
        vm.end(b);
    });
}

/// An LPI that is pending for a closed vCPU moves to one that opens.
#[test]
fn open_vs_retarget() {
    model(4, 5_820, || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let due = source.raise();
        let mut b = vm.closed_cpu(B);
        let control = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm
        });
        b.vcpu.open();
        let taken = b.run();
        let vm = control.join().unwrap();
        assert_eq!(taken + b.settle(), due);
        drop(source);
        vm.end(b);
    });
}

/// An LPI moves from a vCPU that closes to one that opens.
#[test]
fn close_vs_open_vs_retarget() {
    model(2, 18_287, || {
        let mut vm = Vm::new(2);
        vm.map(0, A, ON);
        let source = vm.source(0);
        let (mut a, mut b) = (vm.cpu(A), vm.closed_cpu(B));
        let due = source.raise();
        let control = thread::spawn(move || {
            vm.msi.retarget(DEVICE, EVENT, B).unwrap();
            vm
        });
        let closing = thread::spawn(move || {
            a.enter();
            a.exit();
            a.close();
            a
        });
        b.vcpu.open();
        let taken = b.run();
        let vm = control.join().unwrap();
        let a = closing.join().unwrap();
        assert_eq!(taken + b.settle(), due);
        drop(source);
        vm.end([a, b]);
    });
}

/// A vCPU is powered off in pieces, with more SPIs than a piece gives back. One of the remaining
/// SPIs moves to another vCPU, and another is raised again.
#[test]
fn close_in_pieces_vs_retarget_and_inject() {
    const SPIS: u16 = 10;
    fn spi(n: u16) -> Wired {
        Wired::Spi(Intid(PRIVATE_INTIDS + u32::from(n)))
    }
    model(3, 3_097, || {
        let mut vm = Vm::with(2, SPIS, Arc::new(NoKick));
        let registers = vm.injector();
        let raise =
            |registers: &Registers, n| registers.pulse(spi(n)).unwrap() == Injected::Pending;
        for n in 0..SPIS {
            registers.configure(spi(n), edge_for(A)).unwrap();
            assert!(raise(&registers, n));
        }
        let (mut a, mut b) = (vm.cpu(A).with_one_lr(), vm.cpu(B));
        a.enter();
        a.exit();
        assert!(!a.vcpu.close_some(&mut a.lrs), "there is more than a piece");
        let control = thread::spawn(move || {
            registers.configure(spi(SPIS - 1), edge_for(B)).unwrap();
            (raise(&registers, SPIS - 2), registers)
        });
        while !a.vcpu.close_some(&mut a.lrs) {}
        let moved = b.run();
        let (again, registers) = control.join().unwrap();
        assert_eq!(moved + b.settle(), 1, "the last one, once");
        a.vcpu.open();
        let stayed = a.settle();
        let least = usize::from(SPIS) - 1;
        // One was given back before it was raised again, or after it: one of the two is delivered,
        // or both.
        assert!(stayed >= least && stayed <= least + usize::from(again), "{stayed}");
        drop(registers);
        vm.end([a, b]);
    });
}
