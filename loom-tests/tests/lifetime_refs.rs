//! Get and put: whoever still uses an LPI (an injector that looked it up, a mailbox, a bucket, a list register,
//! a reference in passing) against whoever takes its last mapping away and frees it.
//!
//! Every model ends with nothing allocated, so a put too few fails as well as a put too many.
#![cfg(any(loom, shuttle))]

use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_loom_tests::lifetime::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

/// What holds after the event has been unmapped, whatever went on meanwhile; and the end of the VM.
fn unmapped(vm: Vm, mut msi: Msi, mut cpu: Cpu, source: Source) {
    assert_eq!(cpu.settle(), 0, "what is unmapped is not delivered");
    assert_eq!(source.fire(), Injected::Unmapped);
    assert!(!cpu.vcpu.has_mail(), "an injection into nothing reached a mailbox");
    msi.collect();
    assert_eq!(vm.usage().lpis, 0, "the LPI outlives its mapping");
    drop((source, cpu, msi));
    vm.end();
}

/// An injector finds the LPI and schedules it, while its only mapping goes and its memory is freed.
#[test]
fn look_up_vs_last_put() {
    model(4, 4_588, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let cpu = vm.cpu(A);
        let injector = thread::spawn(move || {
            let _ = source.fire();
            source
        });
        msi.unmap(DEV, EV).unwrap();
        unmapped(vm, msi, cpu, injector.join().unwrap());
    });
}

/// The same through a route that has not been used: it holds the event's slot, and keeps the LPI that it finds there.
#[test]
fn new_route_vs_last_put() {
    model(4, 4_053, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.route(&mut msi, EV);
        let cpu = vm.cpu(A);
        let injector = thread::spawn(move || {
            let _ = source.fire();
            source
        });
        msi.unmap(DEV, EV).unwrap();
        unmapped(vm, msi, cpu, injector.join().unwrap());
    });
}

/// A route that has been used keeps its LPI, and injects without a pin. The mapping goes; the memory goes when the route
/// finds out.
#[test]
fn kept_by_a_route_vs_last_put() {
    model(4, 3_711, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.route(&mut msi, EV);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(cpu.settle(), 1);
        let injector = thread::spawn(move || {
            let _ = source.fire();
            let _ = source.fire();
            source
        });
        msi.unmap(DEV, EV).unwrap();
        unmapped(vm, msi, cpu, injector.join().unwrap());
    });
}

/// A route is dropped while its event is unmapped: either may hold the last reference to LPI and device.
#[test]
fn route_dropped_vs_last_put() {
    model(5, 160, || {
        let vm = Vm::new(1, 4);
        let mut msi = vm.mapped();
        let (route, source) = (vm.route(&mut msi, EV), vm.source(&msi, EV));
        let mut cpu = vm.cpu(A);
        assert_eq!(route.fire(), Injected::Pending);
        assert_eq!(cpu.settle(), 1);
        let dropper = thread::spawn(move || drop(route));
        msi.unmap(DEV, EV).unwrap();
        dropper.join().unwrap();
        unmapped(vm, msi, cpu, source);
    });
}

/// All three at once: the injector's reference goes to a mailbox that is being drained, while the mapping goes.
#[test]
fn look_up_vs_drain_vs_last_put() {
    model(3, 6_803, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || {
            let _ = source.fire();
            source
        });
        let vcpu = thread::spawn(move || (cpu.run(), cpu));
        msi.unmap(DEV, EV).unwrap();
        let source = injector.join().unwrap();
        let (taken, cpu) = vcpu.join().unwrap();
        assert!(taken <= 1);
        unmapped(vm, msi, cpu, source);
    });
}

/// The mailbox has a reference, and the vCPU takes it over, while the mapping goes.
#[test]
fn mailbox_vs_last_put() {
    model(5, 1_449, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.fire(), Injected::Pending);
        let vcpu = thread::spawn(move || (cpu.run() + cpu.run(), cpu));
        msi.unmap(DEV, EV).unwrap();
        let (taken, cpu) = vcpu.join().unwrap();
        assert!(taken <= 1);
        unmapped(vm, msi, cpu, source);
    });
}

/// The LPI waits in a bucket, since the list registers are full, and is looked at again while its mapping goes.
#[test]
fn bucket_vs_last_put() {
    model(4, 2_199, || {
        let vm = Vm::with(Config { participants: 5, lpis: 4, event_bits: 2, ..Vm::shape(1) });
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        let others = [1, 2].map(|n| {
            map(&mut msi, EventId(n), Intid(LPI.0 + n));
            vm.source(&msi, EventId(n))
        });
        for other in &others {
            assert_eq!(other.fire(), Injected::Pending);
        }
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(cpu.enter(), 2);
        cpu.leave();
        let vcpu = thread::spawn(move || (cpu.run() + cpu.run(), cpu));
        msi.unmap(DEV, EV).unwrap();
        let (taken, mut cpu) = vcpu.join().unwrap();
        assert!((2..=3).contains(&(taken + cpu.settle())), "the other two are taken");
        for n in [1, 2] {
            msi.unmap(DEV, EventId(n)).unwrap();
        }
        drop(others);
        unmapped(vm, msi, cpu, source);
    });
}

/// The LPI is pending in a list register when its mapping goes, and the guest has not looked: it is withdrawn.
#[test]
fn pending_in_list_register_vs_last_put() {
    model(5, 661, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(cpu.enter(), 1);
        let vcpu = thread::spawn(move || {
            cpu.leave();
            cpu.enter();
            cpu.leave();
            cpu
        });
        msi.unmap(DEV, EV).unwrap();
        unmapped(vm, msi, vcpu.join().unwrap(), source);
    });
}

/// The guest has acknowledged the LPI; the mapping goes, and it is raised once more through what an injector still sees,
/// before the guest ends it.
#[test]
fn active_in_list_register_vs_last_put() {
    model(2, 9_280, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(cpu.enter(), 1);
        assert_eq!(cpu.acknowledge(), 1);
        let injector = thread::spawn(move || {
            let _ = source.fire();
            source
        });
        let vcpu = thread::spawn(move || {
            cpu.leave();
            cpu.enter();
            cpu.eoi();
            cpu.leave();
            (cpu.run(), cpu)
        });
        msi.unmap(DEV, EV).unwrap();
        let source = injector.join().unwrap();
        let (taken, cpu) = vcpu.join().unwrap();
        assert!(taken <= 1);
        unmapped(vm, msi, cpu, source);
    });
}

/// The vCPU is powered off with the LPI in a list register or in its mailbox, while the mapping goes.
#[test]
fn power_off_vs_last_put() {
    model(3, 662, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(cpu.enter(), 1);
        // A second time: it is in the list register and in the mailbox.
        assert_eq!(source.fire(), Injected::Pending);
        let vcpu = thread::spawn(move || {
            cpu.close();
            cpu
        });
        msi.unmap(DEV, EV).unwrap();
        let mut cpu = vcpu.join().unwrap();
        cpu.vcpu.open();
        unmapped(vm, msi, cpu, source);
    });
}

/// A closed mailbox gives the interrupt back: the injector holds a reference in passing, and may be the last to put it.
#[test]
fn passing_reference_vs_last_put() {
    model(4, 5_754, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        cpu.close();
        let injector = thread::spawn(move || {
            let _ = source.fire();
            source
        });
        msi.unmap(DEV, EV).unwrap();
        let source = injector.join().unwrap();
        cpu.vcpu.open();
        unmapped(vm, msi, cpu, source);
    });
}

/// A whole domain goes while a device of it sends its MSIs, and the vCPU runs.
#[test]
fn t17_domain_dropped_under_injection() {
    model(2, 3_564, || {
        let vm = Vm::new(1, 3);
        let msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.fire(), Injected::Pending);
        let injector = thread::spawn(move || {
            let _ = source.fire();
            source
        });
        let vcpu = thread::spawn(move || (cpu.run(), cpu));
        drop(msi);
        let source = injector.join().unwrap();
        let (taken, mut cpu) = vcpu.join().unwrap();
        assert!(taken <= 2);
        assert_eq!(cpu.settle(), 0);
        assert_eq!(source.fire(), Injected::Unmapped);
        drop((source, cpu));
        vm.end();
    });
}

/// What `map` refuses leaves nothing behind, on any of its ways out: with the memory that it needs still held by an
/// injector's pin, or given back in time.
#[test]
fn refused_maps_leave_nothing() {
    model(3, 3_820, || {
        let vm = Vm::with(Config { max_lpis: 1, max_devices: 1, max_events: 1, ..Vm::shape(1) });
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        assert_eq!(msi.map(DEV, EV, LPI, A, ON), Err(Error::EventMapped));
        assert_eq!(msi.map(DEV, EventId(1), LPI, A, ON), Err(Error::TooManyEvents));
        let injector = thread::spawn(move || {
            let _ = source.fire();
            source
        });
        msi.unmap(DEV, EV).unwrap();
        let refused = msi.map(DeviceId(1), EV, Intid(LPI.0 + 1), A, ON);
        let source = injector.join().unwrap();
        // The injection may have come first: then the LPI is still in the mailbox.
        assert_eq!(cpu.settle(), 0);
        match refused {
            Ok(()) => {}
            Err(error) => {
                // Nothing is mapped: that passes.
                assert_eq!(error, Error::TooMuchGarbage);
                msi.map(DeviceId(1), EV, Intid(LPI.0 + 1), A, ON).expect("the injector is gone");
            }
        }
        msi.unmap(DeviceId(1), EV).unwrap();
        unmapped(vm, msi, cpu, source);
    });
}
