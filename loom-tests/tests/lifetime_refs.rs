//! Get and put: the users of an LPI (an injector that looked it up, a mailbox, a bucket, a list
//! register, a reference in passing) against the thread that takes its last mapping away and frees
//! it.
//!
//! Every model ends with no object left, so a missing put fails as well as a put too many.
#![cfg(any(loom, shuttle))]

use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_loom_tests::lifetime::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

/// Checks the state after the event has been unmapped, which does not depend on concurrent
/// operations. Then ends the VM.
fn unmapped(vm: Vm, mut msi: Msi, mut cpu: Cpu, source: Source) {
    assert_eq!(cpu.settle(), 0, "what is unmapped is not delivered");
    assert_eq!(source.fire(), Injected::Unmapped);
    assert!(!cpu.vcpu.has_mail(), "an injection into nothing reached a mailbox");
    msi.collect();
    assert_eq!(vm.usage().lpis, 0, "the LPI outlives its mapping");
    drop((source, cpu, msi));
    vm.end();
}

/// An injector finds the LPI and schedules it, while its only mapping is removed and its memory is
/// freed.
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

/// An injector uses a route for the first time, while the only mapping is removed. The route holds
/// the event's slot, and keeps the LPI that it finds there.
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

/// A route that has been used keeps its LPI, and injects without a pin. The mapping is removed. The
/// memory is freed when the route finds that out.
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

/// A route is dropped while its event is unmapped: either may hold the last reference to LPI and
/// device.
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

/// An injection, a drain and an unmapping at once: the injector's reference goes to a mailbox that
/// is being drained, while the mapping is removed.
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

/// The mailbox has a reference, and the vCPU takes it over, while the mapping is removed.
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

/// The LPI waits in a bucket, because the list registers are full, and the vCPU re-checks it while
/// its mapping is removed.
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

/// The LPI is pending in a list register when its mapping is removed, and the guest has not
/// acknowledged it: it is withdrawn.
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

/// The guest has acknowledged the LPI. The mapping is removed, and an injector that still sees the
/// LPI raises it once more, before the guest ends it.
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

/// The vCPU is powered off with the LPI in a list register and in its mailbox, while the mapping is
/// removed.
#[test]
fn power_off_vs_last_put() {
    model(3, 662, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(cpu.enter(), 1);
        // The second injection: the LPI is in the list register and in the mailbox.
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

/// A closed mailbox gives the interrupt back: the injector holds a reference in passing, and its
/// put may be the last.
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

/// A whole domain is dropped while one of its devices sends MSIs and the vCPU runs.
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

/// A `map` that fails leaves nothing behind, on any of its error paths. The memory that it needs is
/// still held by an injector's pin, or has been freed in time.
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
                // Nothing is mapped. The error is transient.
                assert_eq!(error, Error::TooMuchGarbage);
                msi.map(DeviceId(1), EV, Intid(LPI.0 + 1), A, ON).expect("the injector is gone");
            }
        }
        msi.unmap(DeviceId(1), EV).unwrap();
        unmapped(vm, msi, cpu, source);
    });
}
