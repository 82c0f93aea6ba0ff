//! Active and pending state as registers read it, while the interrupt goes from one place to
//! another: at every moment, a reader finds it in one of these places.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::engine::*;
use vgic_loom_tests::delivery::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::sync::atomic::{AtomicBool, Ordering};
use vgic_loom_tests::sched::thread;

/// The interrupt is presented and never taken: a reader finds it pending, wherever it is at that
/// moment.
#[test]
fn read_pending_vs_entries() {
    model(3, 14_141, || {
        let (mut vm, registers) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        pulse(&registers);
        let reader = thread::spawn(move || {
            assert_eq!(registers.is_pending(SPI), Ok(true));
            assert_eq!(registers.is_active(SPI), Ok(false));
            registers
        });
        for _ in 0..2 {
            cpu.enter();
            cpu.exit();
        }
        let registers = reader.join().unwrap();
        assert_eq!(cpu.settle(), 1);
        assert_eq!(registers.is_pending(SPI), Ok(false));
        drop(registers);
        vm.end(cpu);
    });
}

/// The interrupt moves to another vCPU: a reader finds it pending all the time.
#[test]
fn read_pending_vs_retarget() {
    model(4, 48_601, || {
        let (mut vm, registers) = spi_vm(2);
        let (mut a, mut b) = (vm.cpu(A), vm.cpu(B));
        pulse(&registers);
        a.enter();
        a.exit();
        let mover = vm.injector();
        let reader = thread::spawn(move || {
            assert_eq!(registers.is_pending(SPI), Ok(true));
            registers
        });
        target(&mover, B);
        a.enter();
        a.exit();
        b.enter();
        b.exit();
        let registers = reader.join().unwrap();
        assert_eq!((a.settle(), b.settle()), (0, 1));
        drop((registers, mover));
        vm.end([a, b]);
    });
}

/// The guest takes the interrupt, and ends it one entry later: it is pending, then active, then
/// neither.
#[test]
fn read_vs_delivery() {
    model(3, 14_195, || {
        let (mut vm, registers) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        pulse(&registers);
        let reader = thread::spawn(move || {
            let seen = [0; 2].map(|_| {
                let (active, pending) = (registers.is_active(SPI), registers.is_pending(SPI));
                (active.unwrap(), pending.unwrap())
            });
            // Once it is active, it is not pending again. Once it is neither, it stays so.
            let stage = |&(active, pending): &(bool, bool)| match (active, pending) {
                // The reader read the active state before the interrupt was taken, and the pending
                // state after.
                (false, false) => 1,
                (false, true) => 0,
                (true, false) => 1,
                (true, true) => panic!("pending and active"),
            };
            assert!(stage(&seen[0]) <= stage(&seen[1]), "{seen:?}");
            registers
        });
        cpu.enter();
        assert_eq!(cpu.lrs.acknowledge(), 1);
        cpu.exit();
        cpu.enter();
        cpu.lrs.eoi();
        cpu.exit();
        let registers = reader.join().unwrap();
        assert_eq!((registers.is_active(SPI), registers.is_pending(SPI)), (Ok(false), Ok(false)));
        drop(registers);
        vm.end(cpu);
    });
}

/// A more urgent LPI takes the only list register, and then the interrupt comes back into it:
/// between a reader's two looks, it goes from one place to the other and back.
#[test]
fn read_pending_vs_displacement() {
    model(4, 33_100, || {
        let (mut vm, registers) = spi_vm(1);
        vm.map(1, A, URGENT);
        let urgent = vm.source(1);
        let mut cpu = vm.cpu(A).with_one_lr();
        pulse(&registers);
        // It is in the only list register. The guest does not take it.
        cpu.enter();
        cpu.exit();
        assert_eq!(urgent.raise(), 1);
        let reader = thread::spawn(move || {
            assert_eq!(registers.is_pending(SPI), Ok(true), "pending all the time");
            registers
        });
        // The urgent LPI displaces it and is taken. Then it comes back.
        cpu.enter();
        assert_eq!(cpu.lrs.take(), 1);
        cpu.exit();
        cpu.enter();
        cpu.exit();
        let registers = reader.join().unwrap();
        assert_eq!(cpu.settle(), 1);
        drop((registers, urgent));
        vm.end(cpu);
    });
}

/// The interrupt gets the only list register, and loses it to a more urgent LPI: a reader finds it
/// pending all the time.
#[test]
fn read_pending_vs_taking_and_displacement() {
    model(4, 17_552, || {
        let (mut vm, registers) = spi_vm(1);
        vm.map(1, A, URGENT);
        let mut cpu = vm.busy_cpu(A);
        let urgent = vm.source(1);
        pulse(&registers);
        cpu.enter();
        cpu.lrs.eoi();
        cpu.exit();
        let reader = thread::spawn(move || {
            assert_eq!(registers.is_pending(SPI), Ok(true), "pending all the time");
            registers
        });
        cpu.enter();
        cpu.exit();
        assert_eq!(urgent.raise(), 1);
        cpu.enter();
        cpu.exit();
        let registers = reader.join().unwrap();
        assert_eq!(cpu.settle(), 2);
        drop((registers, urgent));
        vm.end(cpu);
    });
}

/// The interrupt in the list register has been cleared, and has come again: the vCPU takes in the
/// new one and displaces it between a reader's two looks.
#[test]
fn read_pending_vs_displacement_after_a_clear() {
    model(4, 1_724, || {
        let (mut vm, registers) = spi_vm(1);
        vm.map(1, A, URGENT);
        let urgent = vm.source(1);
        let mut cpu = vm.cpu(A).with_one_lr();
        pulse(&registers);
        // It is in the only list register. The guest does not take it.
        cpu.enter();
        cpu.exit();
        registers.clear_pulse(SPI).unwrap();
        pulse(&registers);
        assert_eq!(urgent.raise(), 1);
        let reader = thread::spawn(move || {
            assert_eq!(registers.is_pending(SPI), Ok(true), "pending all the time");
            registers
        });
        cpu.enter();
        assert_eq!(cpu.lrs.take(), 1);
        cpu.exit();
        let registers = reader.join().unwrap();
        assert_eq!(cpu.settle(), 1);
        drop((registers, urgent));
        vm.end(cpu);
    });
}

/// An SGI of GICv2, which is pending for a sender, is displaced by a more urgent LPI and comes back
/// between a reader's two looks.
#[test]
fn read_sender_vs_displacement() {
    model(3, 10_617, || {
        let mut vm = Vm::with_exits(1, 0);
        let registers = vm.injector();
        vm.map(1, A, URGENT);
        let urgent = vm.source(1);
        let sgi = Wired::Private(A, SGI);
        registers.configure(sgi, edge_for(A)).unwrap();
        let mut cpu = vm.cpu(A).with_one_lr();
        registers.pulse_from(A, SGI, 1 << 1).unwrap();
        cpu.enter();
        cpu.exit();
        assert_eq!(urgent.raise(), 1);
        let reader = thread::spawn(move || {
            assert_eq!(registers.senders(A, SGI), Ok(1 << 1), "sent all the time");
            registers
        });
        cpu.enter();
        assert_eq!(cpu.lrs.take(), 1);
        cpu.exit();
        cpu.enter();
        cpu.exit();
        let registers = reader.join().unwrap();
        assert_eq!(cpu.settle(), 1);
        drop((registers, urgent));
        vm.end(cpu);
    });
}

/// An active interrupt becomes pending and is read, while its vCPU looks at its list register for
/// another reason: the vCPU does not take the pending bit without showing the interrupt as pending.
#[test]
fn read_pending_vs_injection_of_an_active_one() {
    model(3, 2_539, || {
        let (mut vm, registers) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        pulse(&registers);
        cpu.enter();
        assert_eq!(cpu.lrs.acknowledge(), 1);
        cpu.exit();
        // A reason to look at the list register.
        registers.update(SPI, |config| config).unwrap();
        let reader = thread::spawn(move || {
            pulse(&registers);
            assert_eq!(registers.is_pending(SPI), Ok(true), "just injected, and not acknowledged");
            registers
        });
        cpu.enter();
        cpu.exit();
        let registers = reader.join().unwrap();
        cpu.enter();
        cpu.lrs.eoi();
        cpu.exit();
        assert_eq!(cpu.settle(), 1);
        drop(registers);
        vm.end(cpu);
    });
}

/// The guest has acknowledged the interrupt and says so: a reader that sees this finds the
/// interrupt active, and not pending.
#[test]
fn read_active_after_acknowledge() {
    model(3, 1_190, || {
        let (mut vm, registers) = spi_vm(1);
        let mut cpu = vm.cpu(A);
        pulse(&registers);
        let acknowledged = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&acknowledged);
        let reader = thread::spawn(move || {
            let told = flag.load(Ordering::Acquire);
            let (active, pending) = (registers.is_active(SPI), registers.is_pending(SPI));
            if told {
                assert_eq!((active, pending), (Ok(true), Ok(false)), "acknowledged, and not ended");
            }
            registers
        });
        cpu.enter();
        assert_eq!(cpu.lrs.acknowledge(), 1);
        acknowledged.store(true, Ordering::Release);
        cpu.exit();
        let registers = reader.join().unwrap();
        cpu.enter();
        cpu.lrs.eoi();
        cpu.exit();
        assert_eq!((registers.is_active(SPI), cpu.settle()), (Ok(false), 0));
        drop(registers);
        vm.end(cpu);
    });
}
