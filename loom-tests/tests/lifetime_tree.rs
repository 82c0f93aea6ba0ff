//! The radix trees (INTIDs, blocks of pending bits, devices, events), as commands and injections
//! use them. Under loom a level has one bit, so these VMs have trees of two or three levels, with
//! nodes that are added and pruned as mappings change.
//!
//! These operations race in one tree: look-ups, `map`s of several domains, and collections, which
//! take out retired objects and prune the nodes that are empty then.
#![cfg(any(loom, shuttle))]

use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_loom_tests::lifetime::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::thread;

/// Two levels for INTIDs (of one block), devices and events.
fn two_levels(participants: u16) -> Vm {
    let config = Config { lpis: 4, device_bits: 2, event_bits: 2, ..Vm::shape(1) };
    Vm::with(Config { participants, ..config })
}

/// The `n`th LPI. 0 and 1 share their lowest node, as do 2 and 3.
fn lpi(n: u32) -> Intid {
    Intid(LPI.0 + n)
}

/// The `n`th device. 0 and 1 share their lowest node, as do 2 and 3.
fn dev(n: u32) -> DeviceId {
    DeviceId(n)
}

/// Fires, and expects the interrupt to arrive.
fn arrives(source: &Source, cpu: &mut Cpu) {
    assert_eq!(source.fire(), Injected::Pending);
    assert_eq!(cpu.settle(), 1, "lost");
}

/// Two domains map neighbours at once: the node above both is made once, and has both.
#[test]
fn neighbours_mapped_at_once() {
    model(2, 211, || {
        let vm = two_levels(5);
        let (mut one, mut two) = (vm.msi(), vm.msi());
        let (first, second) = (vm.source(&one, EV), vm.source(&two, EV));
        let mut cpu = vm.cpu(A);
        let other = thread::spawn(move || {
            map(&mut two, EV, lpi(1));
            two
        });
        map(&mut one, EV, lpi(0));
        let two = other.join().unwrap();
        one.set_config(lpi(0), ON).expect("it is in the tree");
        one.set_config(lpi(1), ON).expect("it is in the tree");
        arrives(&first, &mut cpu);
        arrives(&second, &mut cpu);
        drop((first, second, cpu, one, two));
        vm.end();
    });
}

/// A domain unmaps an LPI that was alone in its node and its block of pending bits, so that both
/// are pruned, while another domain maps LPI `n`. (Routes hold the devices of both domains, so that
/// the devices exist already.)
fn prune_vs_insert(lpis: u32, n: u32) {
    let vm = Vm::with(Config { lpis, participants: 5, ..Vm::shape(1) });
    let (mut one, mut two) = (vm.mapped(), vm.msi());
    let (old, new) = (vm.route(&mut one, EV), vm.route(&mut two, EV));
    let mut cpu = vm.cpu(A);
    let other = thread::spawn(move || {
        map(&mut two, EV, lpi(n));
        two
    });
    one.unmap(DEV, EV).unwrap();
    let two = other.join().unwrap();
    one.set_config(lpi(n), ON).expect("it is in the tree");
    arrives(&new, &mut cpu);
    assert_eq!(old.fire(), Injected::Unmapped);
    drop((old, new, cpu, one, two));
    vm.end();
}

/// Two levels: the new LPI is the neighbour, in the same node and block.
#[test]
fn prune_vs_insert_of_the_neighbour() {
    model(2, 9_557, || prune_vs_insert(4, 1));
}

/// Three levels: the pruning continues upwards, and meets the insertion there.
#[test]
fn prune_upwards_vs_insert_of_the_cousin() {
    model(2, 10_494, || prune_vs_insert(8, 2));
}

/// Two domains unmap neighbours at once. The collecting thread takes out both, and the node with
/// the second.
#[test]
fn neighbours_unmapped_at_once() {
    model(1, 1_047, || {
        let vm = two_levels(3);
        let (mut one, mut two) = (vm.mapped(), vm.msi());
        map(&mut two, EV, lpi(1));
        let other = thread::spawn(move || {
            two.unmap(DEV, EV).unwrap();
            two
        });
        one.unmap(DEV, EV).unwrap();
        let two = other.join().unwrap();
        one.collect();
        assert_eq!(vm.usage(), Usage::default());
        drop((one, two));
        vm.end();
    });
}

/// Two threads collect at once, each pinned while the other waits for a grace period: the work of
/// neither is lost.
#[test]
fn two_collect_at_once() {
    model(2, 12_270, || {
        let vm = Vm::new(1, 3);
        let (mut one, mut two) = (vm.mapped(), vm.msi());
        map(&mut two, EV, lpi(1));
        let source = vm.source(&one, EV);
        let other = thread::spawn(move || {
            two.unmap(DEV, EV).unwrap();
            let _ = source.fire();
            (two, source)
        });
        one.unmap(DEV, EV).unwrap();
        let (two, source) = other.join().unwrap();
        drop((one, two, source));
        vm.end();
    });
}

/// An injector walks down the trees of a domain, while device, event and LPI are taken out and
/// their nodes are pruned, and the neighbour of each is inserted.
#[test]
fn look_up_vs_prune() {
    model(3, 7_314, || {
        let vm = two_levels(3);
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || {
            let _ = source.fire();
            source
        });
        msi.unmap(DEV, EV).unwrap();
        msi.map(dev(1), EventId(1), lpi(1), A, ON).unwrap();
        let source = injector.join().unwrap();
        assert_eq!(source.fire(), Injected::Unmapped);
        assert_eq!(cpu.settle(), 0);
        msi.unmap(dev(1), EventId(1)).unwrap();
        drop((source, cpu, msi));
        vm.end();
    });
}

/// A retired device is still in its domain's tree. Another thread collects it while the domain maps
/// an event of the same device again: the retired device is replaced or taken out, and the new one
/// stays.
#[test]
fn device_collected_vs_mapped_again() {
    model(1, 350, || {
        let vm = two_levels(4);
        let (mut one, mut two) = (vm.msi(), vm.msi());
        // A route was the only user of the device.
        drop(vm.route(&mut one, EV));
        let source = vm.source(&one, EV);
        let mut cpu = vm.cpu(A);
        let mapper = thread::spawn(move || {
            map(&mut one, EV, lpi(0));
            one
        });
        two.collect();
        let one = mapper.join().unwrap();
        arrives(&source, &mut cpu);
        drop((source, cpu, one, two));
        vm.end();
    });
}

/// A route holds the slot of its event while the event is unmapped, collected and mapped again, in
/// a tree in which possibly only that slot is left.
#[test]
fn held_slot_vs_unmap_and_collect() {
    model(4, 4_938, || {
        let vm = two_levels(3);
        let mut msi = vm.mapped();
        let source = vm.route(&mut msi, EV);
        let mut cpu = vm.cpu(A);
        let injector = thread::spawn(move || {
            let _ = source.fire();
            source
        });
        msi.unmap(DEV, EV).unwrap();
        let source = injector.join().unwrap();
        assert_eq!(source.fire(), Injected::Unmapped);
        assert_eq!(cpu.settle(), 0);
        map(&mut msi, EV, lpi(3));
        arrives(&source, &mut cpu);
        msi.unmap(DEV, EV).unwrap();
        assert_eq!(source.fire(), Injected::Unmapped);
        drop((source, cpu, msi));
        vm.end();
    });
}

/// A dropped route gives its slot back through the collecting thread, which prunes the device's
/// tree of events, while the domain maps the slot's neighbour.
#[test]
fn slot_released_vs_insert_of_the_neighbour() {
    model(3, 14_471, || {
        let vm = two_levels(6);
        let (mut one, mut two) = (vm.msi(), vm.msi());
        // Another slot of the device, so that the device stays.
        let stays = vm.route(&mut one, EventId(2));
        drop(vm.route(&mut one, EV));
        let source = vm.source(&one, EventId(1));
        let mut cpu = vm.cpu(A);
        let other = thread::spawn(move || {
            two.collect();
            two
        });
        map(&mut one, EventId(1), lpi(0));
        let two = other.join().unwrap();
        arrives(&source, &mut cpu);
        assert_eq!(stays.fire(), Injected::Unmapped);
        drop((source, stays, cpu, one, two));
        vm.end();
    });
}

/// A vCPU is powered on, and scans all blocks of pending bits, while the block that it reads is
/// removed and another is added.
#[test]
fn scan_vs_prune() {
    model(2, 2_698, || {
        // Four blocks: two levels.
        let vm = Vm::with(Config { lpis: 16, event_bits: 2, participants: 4, ..Vm::shape(1) });
        let mut msi = vm.mapped();
        let source = vm.source(&msi, EV);
        map(&mut msi, EventId(2), lpi(12));
        let stays = vm.source(&msi, EventId(2));
        let mut cpu = vm.cpu(A);
        cpu.close();
        assert_eq!(source.fire(), Injected::Pending);
        assert_eq!(stays.fire(), Injected::Pending);
        let vcpu = thread::spawn(move || {
            cpu.vcpu.open();
            cpu
        });
        msi.unmap(DEV, EV).unwrap();
        map(&mut msi, EventId(1), lpi(4));
        let mut cpu = vcpu.join().unwrap();
        assert_eq!(cpu.settle(), 1, "the one that is mapped all the time");
        drop((source, stays, cpu, msi));
        vm.end();
    });
}

/// MOVALL goes through all LPIs while some of them are unmapped and others mapped.
#[test]
fn move_all_vs_prune() {
    model(3, 8_573, || {
        let vm = Vm::with(Config { lpis: 4, participants: 5, ..Vm::shape(2) });
        let (mut one, mut two) = (vm.mapped(), vm.msi());
        map(&mut two, EV, lpi(2));
        let source = vm.source(&two, EV);
        let (a, mut b) = (vm.cpu(A), vm.cpu(B));
        let other = thread::spawn(move || {
            assert!(two.move_all(A, B).unwrap() >= 1);
            two
        });
        one.unmap(DEV, EV).unwrap();
        map(&mut one, EV, lpi(1));
        let two = other.join().unwrap();
        arrives(&source, &mut b);
        drop((source, a, b, one, two));
        vm.end();
    });
}
