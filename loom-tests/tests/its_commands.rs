//! Commands against injection, entry, and other accesses of the guest at the same time.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;
use vgic_core::engine::Injected;
use vgic_loom_tests::its::*;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::sync::atomic::{AtomicBool, Ordering};
use vgic_loom_tests::sched::thread;

/// The number of deliveries that an injection makes due, if no command unmaps or clears the LPI.
fn due(sent: Injected) -> usize {
    usize::from(sent == Injected::Pending)
}

/// The time of an injection, relative to commands.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
enum When {
    /// The injection returned before the commands were given.
    Before,
    /// The injection overlaps with the commands.
    Meanwhile,
    /// The injection began after the commands had been performed.
    After,
}

/// Sends one MSI from `source` while another vCPU gives the commands up to `end`. Returns the
/// result of the MSI, and its time relative to the commands.
fn msi_vs_commands(
    source: Source,
    guest: Guest,
    watch: &Guest,
    end: End,
) -> (Source, Guest, Injected, When) {
    let sent = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&sent);
    let commands = thread::spawn(move || {
        // Acquire: pairs with the store below.
        let before = seen.load(Ordering::Acquire);
        guest.ring(end);
        (guest, before)
    });
    let after = watch.is_done(end);
    let injected = source.send();
    // Release: pairs with the load above.
    sent.store(true, Ordering::Release);
    let (guest, before) = commands.join().unwrap();
    let when = match (before, after) {
        (true, _) => When::Before,
        (false, false) => When::Meanwhile,
        (false, true) => When::After,
    };
    (source, guest, injected, when)
}

/// A device sends an MSI, by look-up or through a route, while its event is discarded.
fn inject_vs_discard(source: fn(&Machine) -> Source) {
    model(3, 2_498, move || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let (source, guest, watch) = (source(&machine), machine.guest(), machine.guest());
        let mut cpu = machine.cpu(0);
        let end = machine.put(&[discard(0)]);
        let (source, guest, sent, when) = msi_vs_commands(source, guest, &watch, end);
        if when == When::After {
            assert_eq!(sent, Injected::Unmapped);
        }
        assert_eq!(cpu.settle(), [], "what is unmapped is not pending");
        drop((source, guest, watch));
        machine.end(cpu);
    });
}

#[test]
fn t01_inject_vs_discard() {
    inject_vs_discard(|machine| machine.source(0));
}

#[test]
fn t01_route_vs_discard() {
    inject_vs_discard(|machine| machine.route(0));
}

/// A device sends an MSI while its event is discarded and mapped again: to the same LPI (`n` is 0),
/// or to another one.
fn inject_vs_discard_and_mapti(n: u32, source: fn(&Machine) -> Source) {
    model(2, 915, move || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let (source, guest, watch) = (source(&machine), machine.guest(), machine.guest());
        let mut cpu = machine.cpu(0);
        // The route keeps the LPI that it found.
        assert_eq!(source.send(), Injected::Pending);
        assert_eq!(cpu.settle(), [lpi(0)]);
        let end = machine.put(&[discard(0), mapti(0, n, 0)]);
        let (source, guest, sent, when) = msi_vs_commands(source, guest, &watch, end);
        let taken = cpu.settle();
        match when {
            When::Before => assert_eq!(taken, [], "injected before it was discarded"),
            When::After => assert_eq!((sent, &*taken), (Injected::Pending, &[lpi(n)][..])),
            When::Meanwhile => assert!(taken.is_empty() || taken == [lpi(n)]),
        }
        // With each of these results, the next MSI is delivered.
        assert_eq!(source.send(), Injected::Pending);
        assert_eq!(cpu.settle(), [lpi(n)]);
        drop((source, guest, watch));
        machine.end(cpu);
    });
}

#[test]
fn t01_inject_vs_discard_and_mapti() {
    inject_vs_discard_and_mapti(1, |machine| machine.source(0));
}

#[test]
fn t01_route_vs_discard_and_mapti() {
    inject_vs_discard_and_mapti(1, |machine| machine.route(0));
}

#[test]
fn t01_route_vs_discard_and_mapti_of_the_same_lpi() {
    inject_vs_discard_and_mapti(0, |machine| machine.route(0));
}

#[test]
fn t01_inject_vs_discard_and_mapti_of_the_same_lpi() {
    inject_vs_discard_and_mapti(0, |machine| machine.source(0));
}

/// A device sends an MSI, by look-up, while its event is discarded and mapped to another LPI, and
/// the vCPU enters.
#[test]
fn t01_inject_vs_discard_and_mapti_vs_entry() {
    model(1, 348, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let (source, guest) = (machine.source(0), machine.guest());
        let mut cpu = machine.cpu(0);
        let end = machine.put(&[discard(0), mapti(0, 1, 0)]);
        let commands = thread::spawn(move || {
            guest.ring(end);
            guest
        });
        let device = thread::spawn(move || {
            let _ = source.send();
            source
        });
        let mut taken = cpu.run();
        let (guest, source) = (commands.join().unwrap(), device.join().unwrap());
        taken.extend(cpu.settle());
        assert!(taken.len() <= 1);
        drop((source, guest));
        machine.end(cpu);
    });
}

/// An event is discarded while its LPI is queued or in a list register, and the same LPI is mapped
/// again and raised: the end of the old mapping takes nothing from the new one, and an old pending
/// interrupt does not come back.
fn entry_vs_discard_and_mapti(prepare: fn(&mut Cpu)) {
    model(3, 5_010, move || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let guest = machine.guest();
        let mut cpu = machine.cpu(0);
        machine.run(int(0));
        prepare(&mut cpu);
        let end = machine.put(&[discard(0), mapti(0, 0, 0), int(0)]);
        let commands = thread::spawn(move || {
            guest.ring(end);
            guest
        });
        let first = cpu.run();
        let guest = commands.join().unwrap();
        let rest = cpu.settle();
        assert!(first.len() + rest.len() >= 1, "the second one is lost");
        assert!(first.len() + rest.len() <= 2, "there were two");
        assert_eq!(machine.lpis(), 1, "the old one is still there");
        machine.run(int(0));
        assert_eq!(cpu.settle(), [lpi(0)]);
        drop(guest);
        machine.end(cpu);
    });
}

#[test]
fn t05_discard_and_mapti_vs_drain() {
    entry_vs_discard_and_mapti(|_| {});
}

#[test]
fn t05_discard_and_mapti_vs_list_register() {
    entry_vs_discard_and_mapti(Cpu::look);
}

/// An event is discarded while its LPI is queued, and mapped to the same LPI again, without an INT:
/// an interrupt that was pending before the DISCARD and not taken by then is gone.
#[test]
fn t05_discarded_is_not_pending() {
    model(3, 3_940, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let guest = machine.guest();
        let mut cpu = machine.cpu(0);
        machine.run(int(0));
        let end = machine.put(&[discard(0), mapti(0, 0, 0)]);
        let commands = thread::spawn(move || {
            guest.ring(end);
            guest
        });
        cpu.look();
        let guest = commands.join().unwrap();
        assert_eq!(cpu.settle(), []);
        assert_eq!(machine.lpis(), 1, "the old one is still there");
        drop(guest);
        machine.end(cpu);
    });
}

/// CLEAR and an MSI: the outcome is that of one of the two orders.
#[test]
fn t21_clear_vs_inject() {
    model(3, 398, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let (source, guest, watch) = (machine.route(0), machine.guest(), machine.guest());
        let mut cpu = machine.cpu(0);
        let end = machine.put(&[clear(0)]);
        let (source, guest, sent, when) = msi_vs_commands(source, guest, &watch, end);
        assert_eq!(sent, Injected::Pending);
        let taken = cpu.settle().len();
        match when {
            When::Before => assert_eq!(taken, 0),
            When::Meanwhile => assert!(taken <= 1),
            When::After => assert_eq!(taken, 1),
        }
        drop((source, guest, watch));
        machine.end(cpu);
    });
}

/// CLEAR of an LPI that is pending in a list register, and an MSI: if the CLEAR came first, the MSI
/// is not lost.
#[test]
fn t21_clear_vs_inject_and_list_register() {
    model(3, 423, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let (source, guest, watch) = (machine.route(0), machine.guest(), machine.guest());
        let mut cpu = machine.cpu(0);
        machine.run(int(0));
        cpu.look();
        let end = machine.put(&[clear(0)]);
        let (source, guest, sent, when) = msi_vs_commands(source, guest, &watch, end);
        let taken = cpu.settle().len();
        match when {
            When::Before => assert_eq!(taken, 0),
            When::Meanwhile => assert!(taken <= 1),
            When::After => assert_eq!((sent, taken), (Injected::Pending, 1)),
        }
        drop((source, guest, watch));
        machine.end(cpu);
    });
}

/// CLEAR of one LPI, and an MSI of another LPI with its pending bit in the same word.
#[test]
fn t21_clear_vs_inject_of_another() {
    model(3, 118, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        machine.run(mapti(1, 1, 0));
        let (source, guest, watch) = (machine.route(1), machine.guest(), machine.guest());
        let mut cpu = machine.cpu(0);
        let end = machine.put(&[clear(0)]);
        let (source, guest, sent, _) = msi_vs_commands(source, guest, &watch, end);
        assert_eq!((sent, cpu.settle()), (Injected::Pending, vec![lpi(1)]));
        drop((source, guest, watch));
        machine.end(cpu);
    });
}

/// CLEAR while the vCPU enters.
#[test]
fn t21_clear_vs_entry() {
    model(3, 456, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let (guest, watch) = (machine.guest(), machine.guest());
        let mut cpu = machine.cpu(0);
        machine.run(int(0));
        let end = machine.put(&[clear(0)]);
        let commands = thread::spawn(move || {
            guest.ring(end);
            guest
        });
        let cleared = watch.is_done(end);
        let taken = cpu.run().len();
        assert!(!cleared || taken == 0, "cleared, and taken afterwards");
        let guest = commands.join().unwrap();
        assert_eq!(cpu.settle(), []);
        drop((guest, watch));
        machine.end(cpu);
    });
}

/// A collection is unmapped while an MSI is sent: an MSI that came before stays pending, and one
/// that comes after has no effect.
#[test]
fn unmapc_vs_inject() {
    model(3, 1_652, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let (source, guest, watch) = (machine.route(0), machine.guest(), machine.guest());
        let mut cpu = machine.cpu(0);
        let end = machine.put(&[unmapc(0)]);
        let (source, guest, sent, when) = msi_vs_commands(source, guest, &watch, end);
        match when {
            When::Before => assert_eq!(sent, Injected::Pending),
            When::Meanwhile => {}
            When::After => assert_eq!(sent, Injected::Unmapped),
        }
        assert_eq!(source.send(), Injected::Unmapped);
        assert_eq!(cpu.settle().len(), due(sent));
        drop((source, guest, watch));
        machine.end(cpu);
    });
}

/// A collection is unmapped while the configuration of its LPIs is read again: the last value read
/// counts.
#[test]
fn unmapc_vs_invallr() {
    model(3, 1_783, || {
        let (mut machine, _log) = Machine::new(1);
        machine.run(mapti(0, 0, 0));
        let (guest, other) = (machine.guest(), machine.guest());
        let mut cpu = machine.cpu(0);
        machine.run(int(0));
        let end = machine.put(&[unmapc(0)]);
        machine.configure(0, 0);
        let commands = thread::spawn(move || {
            guest.ring(end);
            guest
        });
        other.invalidate_all(0);
        let guest = commands.join().unwrap();
        assert_eq!(cpu.settle(), [], "it is disabled");
        machine.configure(0, 0xa1);
        other.invalidate_all(0);
        assert_eq!(cpu.settle(), [lpi(0)]);
        drop((guest, other));
        machine.end(cpu);
    });
}

/// A collection is mapped again while an MSI is sent, and its LPI is pending from before.
#[test]
fn mapc_vs_inject() {
    model(3, 3_165, || {
        let (mut machine, _log) = Machine::new(2);
        machine.run(mapti(0, 0, 0));
        let (source, guest, watch) = (machine.route(0), machine.guest(), machine.guest());
        let mut cpus = [machine.cpu(0), machine.cpu(1)];
        machine.run(int(0));
        machine.run(unmapc(0));
        assert_eq!(source.send(), Injected::Unmapped);
        let end = machine.put(&[mapc(0, 1)]);
        let (source, guest, sent, when) = msi_vs_commands(source, guest, &watch, end);
        if when == When::Before {
            assert_eq!(sent, Injected::Unmapped);
        }
        assert_ne!(sent, Injected::Pending, "it was pending");
        assert!(when != When::After || sent == Injected::Coalesced);
        assert_eq!(settle(&mut cpus), [vec![], vec![lpi(0)]]);
        assert_eq!(source.send(), Injected::Pending);
        assert_eq!(settle(&mut cpus), [vec![], vec![lpi(0)]]);
        drop((source, guest, watch));
        machine.end(cpus);
    });
}

/// A collection is unmapped and mapped to another vCPU, while the vCPU that has its pending LPI
/// enters.
fn mapc_vs_entry_on(prepare: fn(&mut Cpu)) {
    model(3, 1_642, move || {
        let (mut machine, _log) = Machine::new(2);
        machine.run(mapti(0, 0, 0));
        let guest = machine.guest();
        let mut cpus = [machine.cpu(0), machine.cpu(1)];
        machine.run(int(0));
        prepare(&mut cpus[0]);
        let end = machine.put(&[unmapc(0), mapc(0, 1)]);
        let commands = thread::spawn(move || {
            guest.ring(end);
            guest
        });
        let mut taken = cpus[0].run().len();
        let guest = commands.join().unwrap();
        taken += settle(&mut cpus).concat().len();
        assert_eq!(taken, 1);
        machine.run(int(0));
        assert_eq!(settle(&mut cpus), [vec![], vec![lpi(0)]]);
        drop(guest);
        machine.end(cpus);
    });
}

#[test]
fn mapc_vs_drain() {
    mapc_vs_entry_on(|_| {});
}

#[test]
fn mapc_vs_list_register() {
    mapc_vs_entry_on(Cpu::look);
}
