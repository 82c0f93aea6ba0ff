//! The checks of an ITS in kvm-unit-tests, re-created from their description.

use vgic_core::engine::{Config, Injected};
use vgic_core::its::ItsConfig;
use vgic_core::memory::GuestMemory;

use crate::guest::*;
use crate::world::{RAM, rd};

/// The test its-introspection.
#[test]
fn introspection() {
    let mut guest = Guest::reset(4, ItsConfig::at(GITS), Config::default());
    let world = &mut guest.world;
    let typer = world.r64(TYPER);
    assert_eq!(typer & 1, 1, "physical LPIs");
    world.w64(TYPER, 0);
    assert_eq!(world.r64(TYPER), typer, "read-only");
    world.w32(GITS + 4, 0);
    assert_eq!(world.r32(GITS + 4), 0x5600_043b);
    world.w64(CREADR, 0x40);
    assert_eq!(world.r64(CREADR), 0, "read-only");
    let types: Vec<u64> = (0..8).map(|n| world.r64(BASER0 + 8 * n) >> 56 & 7).collect();
    assert_eq!(types.iter().filter(|&&t| t == 1).count(), 1, "one device table");
    assert_eq!(types.iter().filter(|&&t| t == 4).count(), 1, "one collection table");
    assert_eq!(world.r64(BASER0) >> 48 & 0x1f, 7);
    assert!(!(0..8).any(|n| world.r64(BASER0 + 8 * n) & VALID != 0));
}

/// The machine of the tests: collections 2 and 3 at vCPUs 2 and 3, device 2 with event 20 as LPI
/// 8195 at collection 3, device 7 with event 255 as LPI 8196 at collection 2.
fn prepared() -> Guest {
    let mut guest = Guest::with(4, ItsConfig::at(GITS), Config::default());
    guest.ok(mapd(2, 8));
    guest.ok(mapd(7, 8));
    guest.ok(mapc(2, 2));
    guest.ok(mapc(3, 3));
    guest.ok(invall(2));
    guest.ok(invall(3));
    guest.ok(mapti(2, 20, 8195, 3));
    guest.ok(mapti(7, 255, 8196, 2));
    guest
}

/// The test its-trigger.
#[test]
fn trigger() {
    let mut guest = prepared();
    guest.ok(int(2, 20));
    assert_eq!(guest.take(3), [8195]);
    guest.ok(int(7, 255));
    assert_eq!(guest.take(2), [8196]);
    // The LPI is disabled, and the redistributor has been told: it stays pending.
    guest.property(8195, 0xa0);
    guest.ok(invall(3));
    guest.ok(int(2, 20));
    assert_eq!(guest.take(3), []);
    guest.property(8195, 0xa1);
    assert_eq!(guest.take(3), [], "it has not been told");
    guest.ok(invall(3));
    guest.ok(int(2, 20));
    assert_eq!(guest.take(3), [8195]);
    // INV tells the redistributor, too.
    guest.property(8196, 0xa0);
    guest.ok(inv(7, 255));
    guest.ok(int(7, 255));
    assert_eq!(guest.take(2), []);
    guest.property(8196, 0xa1);
    guest.ok(inv(7, 255));
    assert_eq!(guest.take(2), [8196]);
    // An unmapped device is silent. After MAPD its events must be mapped again.
    guest.ok(unmapd(2));
    guest.fails(int(2, 20), vgic_core::its::Fault::DeviceUnmapped);
    assert_eq!(guest.take(3), []);
    guest.ok(int(7, 255));
    assert_eq!(guest.take(2), [8196]);
}

/// The test its-migration, and the effect of a live migration on the machine: its tables are saved,
/// and another machine reads them.
#[test]
fn migration() {
    let mut guest = prepared();
    guest.ok(int(2, 20));
    guest.ok(movi(2, 20, 2));
    assert_eq!([guest.take(3), guest.take(2)], [vec![], vec![8195]]);
    guest.ok(int(7, 255));
    guest.ok(movall(2, 3));
    assert_eq!([guest.take(2), guest.take(3)], [vec![], vec![8196]]);
}

/// The test its-pending-migration: 256 LPIs are in the pending tables before LPIs are enabled.
#[test]
fn pending_migration() {
    let mut guest = Guest::new(2);
    guest.ok(mapd(2, 8));
    for n in 0..256 {
        guest.ok(mapti(2, n, 8192 + n, (n % 2) as u16));
    }
    // All LPIs are in both tables; each redistributor takes its own.
    for vcpu in 0..2 {
        let table = RAM + 0x1_0000 * (1 + vcpu as u64);
        guest.world.w32(rd(vcpu), 0);
        guest.world.ram.write(table + 1024, &[0xff; 32]).unwrap();
        guest.world.w64(rd(vcpu) + 0x78, table);
    }
    for vcpu in 0..2 {
        guest.world.w32(rd(vcpu), 1);
        let taken = guest.take(vcpu);
        let expected: Vec<u64> =
            (0..256).filter(|n| n % 2 == vcpu as u64).map(|n| 8192 + n).collect();
        assert_eq!(taken, expected, "PTZ is clear: the table is read");
    }
}

/// The test its-migrate-unmapped-collection.
#[test]
fn migrate_unmapped_collection() {
    let mut guest = Guest::with(4, ItsConfig::at(GITS), Config::default());
    guest.ok(mapd(2, 8));
    guest.ok(mapd(7, 8));
    guest.ok(mapc(2, 2));
    guest.ok(mapti(7, 0, 8196, 2));
    // Collection 3 is not mapped.
    guest.ok(mapti(2, 20, 8195, 3));
    guest.its.save_tables().unwrap();
    assert_eq!(guest.msi(2, 20), Injected::Unmapped);
    guest.ok(int(7, 0));
    assert_eq!(guest.take(2), [8196]);
    guest.ok(mapc(3, 3));
    guest.property(8195, 0x21);
    guest.ok(invall(3));
    guest.ok(int(2, 20));
    assert_eq!(guest.take(3), [8195]);
}
