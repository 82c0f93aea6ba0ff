//! Bugs that the comparison with QEMU and the fuzzer have found.

use vgic_core::engine::{Config, Engine as _, Injected};
use vgic_core::its::{Fault, ItsConfig};

use crate::guest::*;
use crate::world::RAM;

/// The doubleword for LPIs 8192 to 8255 in a vCPU's pending table.
fn pending_bits(guest: &mut Guest, vcpu: u64) -> u64 {
    for cpu in &mut guest.world.cpus {
        cpu.power_off();
    }
    guest.world.gic.save_pending_tables().unwrap();
    guest.entry(RAM + 0x1_0000 * (1 + vcpu) + 1024)
}

/// A table that was written once is written again after the LPI has moved away or is gone: a
/// machine that is restored from it must not see the LPI pending.
#[test]
fn a_pending_table_has_nothing_that_is_no_longer_pending_there() {
    let mut guest = Guest::new(2);
    guest.ok(mapd(1, 3));
    for event in 0..3 {
        guest.ok(mapti(1, event, 8192 + event, 0));
        assert_eq!(guest.msi(1, event), Injected::Pending);
    }
    assert_eq!(pending_bits(&mut guest, 0), 0b111);
    guest.ok(movi(1, 0, 1));
    guest.ok(discard(1, 1));
    assert_eq!([pending_bits(&mut guest, 0), pending_bits(&mut guest, 1)], [0b100, 0b001]);
    guest.ok(movall(0, 1));
    assert_eq!([pending_bits(&mut guest, 0), pending_bits(&mut guest, 1)], [0, 0b101]);
}

/// MAPTI fails if the collection table has no room for its collection, as MAPC does. The event is
/// not mapped, and a correct MAPTI can map it afterwards.
#[test]
fn mapti_wants_a_collection_that_can_be_mapped() {
    let mut guest = Guest::new(1);
    guest.ok(mapd(1, 3));
    // The collection table has 16 pages, for 8,192 collections.
    guest.fails(mapti(1, 0, 8192, 8192), Fault::CollectionRange);
    guest.ok(mapti(1, 0, 8192, 0));
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.ok(mapti(1, 1, 8193, 8191));
    // Some collections need no table.
    let few = ItsConfig { hardware_collections: 4, collection_bits: 4, ..ItsConfig::at(GITS) };
    let mut guest = Guest::with(1, few, Config::default());
    guest.world.w32(CTLR, 0);
    guest.world.w64(BASER1, 0);
    guest.world.w32(CTLR, 1);
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 3));
    guest.fails(mapti(1, 1, 8193, 4), Fault::CollectionRange);
}

/// MOVALL does not move collections. A MAPC of a collection to its present vCPU makes its LPIs go
/// there again.
#[test]
fn mapc_brings_back_what_movall_has_moved() {
    let mut guest = Guest::new(2);
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    guest.ok(movall(0, 1));
    guest.ok(mapc(0, 0));
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    assert_eq!([guest.take(0), guest.take(1)], [vec![8192], vec![]]);
}

/// A retired LPI that is queued in a mailbox counts until the vCPU processes its mailbox, and that
/// vCPU may be the one that gives the command. The command waits for this, and the vCPU does not
/// wait.
#[test]
fn a_command_that_meets_the_dead_waits_in_the_queue() {
    let bounds = Config { max_lpis: 1, ..Config::default() };
    let mut guest = Guest::with(1, ItsConfig::at(GITS), bounds);
    guest.ok(mapc(0, 0));
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.ok(discard(1, 0));
    let before = guest.end;
    for _ in 0..10 {
        guest.put(&mapti(1, 1, 8193, 0).encode());
    }
    guest.ring();
    // The locked engine takes an LPI that is not in a list register yet off its list at once.
    let waits = crate::Engine::NAME == "lockfree";
    for _ in 0..10 {
        assert_eq!(guest.world.r64(CREADR), if waits { before } else { guest.end });
    }
    // The guest continues.
    assert_eq!(guest.take(0), []);
    assert_eq!(guest.world.r64(CREADR), guest.end);
    assert_eq!(guest.msi(1, 1), Injected::Pending);
    assert_eq!(guest.take(0), [8193]);
}

/// Another event of the device is mapped, too: whether the command waits depends on the LPI alone.
#[test]
fn a_command_that_meets_the_dead_waits_whatever_else_the_device_has() {
    let bounds = Config { max_lpis: 2, ..Config::default() };
    let mut guest = Guest::with(1, ItsConfig::at(GITS), bounds);
    guest.ok(mapc(0, 0));
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    guest.ok(mapti(1, 7, 8200, 0));
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.world.look();
    guest.put(&discard(1, 0).encode());
    guest.put(&mapti(1, 1, 8193, 0).encode());
    guest.ring();
    guest.take(0);
    guest.poll(guest.end);
    assert_eq!(guest.its.stats().faults, []);
    assert_eq!(guest.msi(1, 1), Injected::Pending);
    assert_eq!(guest.take(0), [8193]);
}

/// At the bound on LPIs, with all of them mapped, a command fails, and those behind it are
/// performed, including one that gives an LPI back.
#[test]
fn at_the_bound_on_lpis_commands_fail_and_the_queue_goes_on() {
    let bounds = Config { max_lpis: 1, ..Config::default() };
    let mut guest = Guest::with(1, ItsConfig::at(GITS), bounds);
    guest.ok(mapc(0, 0));
    guest.ok(mapd(1, 3));
    guest.ok(mapd(2, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    let garbage = guest.world.gic.engine().usage().garbage;
    for _ in 0..3 {
        guest.fails(mapti(1, 1, 8193, 0), Fault::TooManyLpis);
        guest.fails(mapti(2, 0, 8193, 0), Fault::TooManyLpis);
    }
    assert_eq!(guest.world.gic.engine().usage().garbage, garbage, "made for nothing");
    guest.ok(discard(1, 0));
    guest.ok(mapti(2, 0, 8193, 0));
    // Events wait for the collection of this MAPC.
    guest.ok(mapti(1, 0, 8194, 1));
    guest.fails(mapc(1, 0), Fault::TooManyLpis);
    guest.fails(mapc(1, 0), Fault::TooManyLpis);
    guest.ok(discard(2, 0));
    guest.ok(mapc(1, 0));
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    assert_eq!(guest.take(0), [8194]);
}

/// A route remembers the LPI that it injected last. No command waits for a device that never sends
/// again.
#[test]
fn an_idle_route_keeps_nobody_waiting() {
    let bounds = Config { max_lpis: 1, ..Config::default() };
    let mut guest = Guest::with(1, ItsConfig::at(GITS), bounds);
    guest.ok(mapc(0, 0));
    guest.ok(mapd(1, 3));
    let mut routes = Vec::new();
    for (event, lpi) in [(0, 8192), (1, 8193), (2, 8194)] {
        guest.ok(mapti(1, event, lpi, 0));
        let route = guest.its.route(device(1), vgic_core::ids::EventId(event)).unwrap();
        assert_eq!(route.inject(guest.world.cpus[0].bus().injector()), Injected::Pending);
        assert_eq!(guest.take(0), [u64::from(lpi)]);
        guest.fails(mapti(1, 7, 8199, 0), Fault::TooManyLpis);
        guest.ok(discard(1, event));
        routes.push(route);
    }
    guest.ok(mapti(1, 7, 8199, 0));
    // An LPI that is kept in this way counts as any other once it is mapped again.
    guest.fails(mapti(1, 0, 8192, 0), Fault::TooManyLpis);
    drop(routes);
    guest.ok(discard(1, 7));
    guest.ok(mapti(1, 0, 8200, 0));
    guest.fails(mapti(1, 1, 8201, 0), Fault::TooManyLpis);
}
