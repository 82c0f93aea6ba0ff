//! One INTID with several mappings: events that share an LPI, and an INTID that is mapped again
//! while its old object is retired and injectors still see the old object.
//!
//! Pending bits belong to INTIDs and outlive the objects (`core/src/lockfree/map/lpis.rs`), so each
//! model checks two properties. An injection that began after `map` returned is delivered, even if
//! stale injectors left a bit behind. No interrupt of the old mapping reaches the new one.
#![cfg(any(loom, shuttle))]

use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_loom_tests::lifetime::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

const OTHER: EventId = EventId(1);

/// Two events share an LPI. One of them is unmapped, which makes the LPI not pending. An MSI of the
/// other event that comes after the unmapping is delivered. An MSI that overlaps with the unmapping
/// is delivered or cleared, but not stuck.
#[test]
fn shared_lpi_unmap_of_one_event_vs_the_other() {
    model(3, 1_408, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        map(&mut msi, OTHER, LPI);
        let source = vm.source(&msi, OTHER);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.fire(), Injected::Pending);
        let injector = thread::spawn(move || {
            assert_ne!(source.fire(), Injected::Unmapped);
            source
        });
        let vcpu = thread::spawn(move || (cpu.run() + cpu.run(), cpu));
        msi.unmap(DEV, EV).unwrap();
        let source = injector.join().unwrap();
        let (taken, mut cpu) = vcpu.join().unwrap();
        assert!(taken + cpu.settle() <= 2);
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(cpu.settle(), 1, "lost");
        msi.unmap(DEV, OTHER).unwrap();
        drop((source, cpu, msi));
        vm.end();
    });
}

/// Two domains share an LPI, and both unmap it at once while it is in a list register: one of three
/// puts is the last.
#[test]
fn shared_lpi_unmapped_by_both_domains() {
    model(2, 31_517, || {
        let vm = Vm::new(1, 4);
        let (mut one, mut two) = (vm.mapped(), vm.mapped());
        let source = vm.source(&one, EV);
        let mut cpu = vm.cpu(A);
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(vm.usage().lpis, 1, "it is shared");
        assert_eq!(cpu.enter(), 1);
        let other = thread::spawn(move || {
            two.unmap(DEV, EV).unwrap();
            two
        });
        let vcpu = thread::spawn(move || {
            let taken = cpu.serve();
            cpu.leave();
            (taken + cpu.run(), cpu)
        });
        one.unmap(DEV, EV).unwrap();
        let mut two = other.join().unwrap();
        let (taken, mut cpu) = vcpu.join().unwrap();
        assert_eq!((taken, cpu.settle()), (1, 0));
        two.collect();
        assert_eq!(vm.usage().lpis, 0);
        drop((source, cpu, one, two));
        vm.end();
    });
}

/// The event is mapped to its INTID again while an injector still sees the old object. The injector
/// sets the INTID's pending bit, perhaps before the new object exists, perhaps after the mapper has
/// looked at the bit. The next injection must not coalesce with a bit that no thread schedules.
#[test]
fn mapped_again_vs_stale_injector() {
    model(3, 7_102, || {
        let vm = Vm::new(1, 4);
        let mut msi = vm.mapped();
        let (stale, source) = (vm.source(&msi, EV), vm.source(&msi, EV));
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || {
            let _ = stale.fire();
            stale
        });
        msi.unmap(DEV, EV).unwrap();
        map(&mut msi, EV, LPI);
        assert_ne!(source.fire(), Injected::Unmapped);
        let stale = injector.join().unwrap();
        assert_eq!(cpu.settle(), 1, "lost");
        drop((stale, source, cpu, msi));
        vm.end();
    });
}

/// The event is mapped to its INTID again while a route keeps the old object: the object is not
/// retired, and is mapped once more.
#[test]
fn mapped_again_vs_route_that_keeps_it() {
    model(3, 4_432, || {
        let vm = Vm::new(1, 4);
        let mut msi = vm.mapped();
        let (stale, source) = (vm.route(&mut msi, EV), vm.source(&msi, EV));
        let mut cpu = vm.cpu(A);
        assert_eq!(stale.fire(), Injected::Pending);
        assert_eq!(cpu.settle(), 1);
        let injector = thread::spawn(move || {
            let _ = stale.fire();
            stale
        });
        msi.unmap(DEV, EV).unwrap();
        map(&mut msi, EV, LPI);
        assert_ne!(source.fire(), Injected::Unmapped);
        let stale = injector.join().unwrap();
        assert_eq!(cpu.settle(), 1, "lost");
        msi.collect();
        assert_eq!(vm.usage().lpis, 1);
        drop((stale, source, cpu, msi));
        vm.end();
    });
}

/// The event is mapped to another INTID: a route that keeps the old object sees this and drops its
/// reference.
#[test]
fn mapped_to_another_intid_vs_route() {
    model(4, 1_330, || {
        let vm = Vm::new(1, 3);
        let mut msi = vm.mapped();
        let route = vm.route(&mut msi, EV);
        let mut cpu = vm.cpu(A);
        assert_eq!(route.fire(), Injected::Pending);
        assert_eq!(cpu.settle(), 1);
        let injector = thread::spawn(move || {
            let _ = route.fire();
            route
        });
        msi.unmap(DEV, EV).unwrap();
        map(&mut msi, EV, Intid(LPI.0 + 1));
        let route = injector.join().unwrap();
        assert_ne!(route.fire(), Injected::Unmapped);
        assert_eq!(cpu.settle(), 1, "lost, or delivered to the old one as well");
        msi.collect();
        assert_eq!(vm.usage().lpis, 1);
        drop((route, cpu, msi));
        vm.end();
    });
}

/// Another domain maps the INTID again while the first one unmaps and frees it, and an injector
/// still sees the old object.
#[test]
fn mapped_by_another_domain_vs_stale_injector() {
    model(1, 4_096, || {
        let vm = Vm::new(1, 5);
        let (mut one, mut two) = (vm.mapped(), vm.msi());
        let (stale, source) = (vm.source(&one, EV), vm.source(&two, EV));
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || {
            let _ = stale.fire();
            stale
        });
        let mapper = thread::spawn(move || {
            map(&mut two, EV, LPI);
            two
        });
        one.unmap(DEV, EV).unwrap();
        let two = mapper.join().unwrap();
        assert_ne!(source.fire(), Injected::Unmapped);
        let stale = injector.join().unwrap();
        assert_eq!(cpu.settle(), 1, "lost");
        drop((stale, source, cpu, one, two));
        vm.end();
    });
}

/// The last put of an INTID's object races `map` of the same INTID: the mapper gets the old object
/// in time or makes a new one, and an injection through it afterwards is delivered.
#[test]
fn last_put_vs_get_or_insert() {
    model(2, 3_113, || {
        let vm = Vm::new(1, 4);
        let (mut one, mut two) = (vm.mapped(), vm.msi());
        let source = vm.source(&two, EV);
        let mut cpu = vm.cpu(A);
        let mapper = thread::spawn(move || {
            map(&mut two, EV, LPI);
            two
        });
        one.unmap(DEV, EV).unwrap();
        let mut two = mapper.join().unwrap();
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(cpu.settle(), 1, "lost");
        two.collect();
        assert_eq!(vm.usage().lpis, 1);
        two.unmap(DEV, EV).unwrap();
        two.collect();
        assert_eq!(vm.usage().lpis, 0);
        drop((source, cpu, one, two));
        vm.end();
    });
}

/// Two domains map the same INTID at once: there is one object, with a reference for each domain.
/// Neither domain makes the other's injection disappear.
#[test]
fn get_or_insert_by_two_domains() {
    model(3, 5_647, || {
        let vm = Vm::new(1, 5);
        let (mut one, mut two) = (vm.msi(), vm.msi());
        let (first, second) = (vm.source(&one, EV), vm.source(&two, EV));
        let mut cpu = vm.cpu(A);
        let mapper = thread::spawn(move || {
            map(&mut two, EV, LPI);
            assert_ne!(second.fire(), Injected::Unmapped);
            (two, second)
        });
        map(&mut one, EV, LPI);
        let (mut two, second) = mapper.join().unwrap();
        one.collect();
        assert_eq!(vm.usage().lpis, 1, "two objects of one INTID");
        assert_eq!(cpu.settle(), 1, "lost");
        one.unmap(DEV, EV).unwrap();
        assert_eq!(first.fire(), Injected::Unmapped);
        assert_eq!(second.fire(), Injected::Pending);
        assert_eq!(cpu.settle(), 1, "lost with the other domain's mapping");
        two.unmap(DEV, EV).unwrap();
        drop((first, second, cpu, one, two));
        vm.end();
    });
}

/// An injection overlaps with the unmapping only, and is over when the INTID is mapped again. The
/// bit that it leaves behind does not belong to the new mapping, whether the old object is retired
/// by then (`queued` false) or still in a mailbox that is drained while the INTID is mapped.
fn leftover(queued: bool) {
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
    let source = injector.join().unwrap();
    let vcpu = thread::spawn(move || (cpu.run(), cpu));
    map(&mut msi, EV, LPI);
    let (taken, mut cpu) = vcpu.join().unwrap();
    assert_eq!(taken + cpu.settle(), 0, "an interrupt of the old mapping");
    assert_eq!(source.fire(), Injected::Pending);
    assert_eq!(cpu.settle(), 1, "lost");
    drop((source, cpu, msi));
    vm.end();
}

#[test]
fn leftover_of_a_dead_object() {
    model(3, 16_887, || leftover(false));
}

#[test]
fn leftover_of_a_queued_object() {
    model(2, 15_832, || leftover(true));
}
