//! Tables and pending state, written to the guest's memory in Linux's format.

use vgic_core::engine::{Config, Injected};
use vgic_core::its::ItsConfig;
use vgic_core::memory::GuestMemory;

use crate::guest::*;
use crate::world::{RAM, rd};

#[test]
fn tables() {
    let mut guest = Guest::new(2);
    for (device, bits) in [(0, 5), (3, 6), (20, 16)] {
        guest.ok(mapd(device, bits));
    }
    guest.ok(mapti(3, 1, 8200, 1));
    guest.ok(mapti(3, 9, 8201, 0));
    guest.its.save_tables().unwrap();
    let device = |n: u64| guest.entry(DEVICES + 8 * n);
    let dte =
        |next: u64, device: u32, bits: u64| VALID | next << 49 | itt(device) >> 8 << 5 | (bits - 1);
    assert_eq!([device(0), device(3), device(20)], [dte(3, 0, 5), dte(17, 3, 6), dte(0, 20, 16)]);
    assert_eq!([device(1), device(4), device(21)], [0; 3]);
    let event = |n: u64| guest.entry(itt(3) + 8 * n);
    assert_eq!([event(1), event(9)], [8 << 48 | 8200 << 16 | 1, 8201 << 16]);
    let collection = |n: u64| guest.entry(COLLECTIONS + 8 * n);
    assert_eq!([collection(0), collection(1), collection(2)], [VALID, VALID | 1 << 16 | 1, 0]);
}

/// T15: an event or device that was unmapped must not be restored.
#[test]
fn what_is_unmapped_is_cleared() {
    let mut guest = Guest::new(2);
    guest.ok(mapd(3, 6));
    guest.ok(mapd(4, 6));
    guest.ok(mapti(3, 1, 8200, 1));
    guest.ok(mapti(3, 2, 8201, 1));
    guest.its.save_tables().unwrap();
    guest.ok(discard(3, 1));
    assert_eq!(guest.entry(itt(3) + 8), 0);
    guest.ok(unmapd(4));
    assert_eq!(guest.entry(DEVICES + 8 * 4), 0);
    guest.ok(unmapc(0));
    guest.its.save_tables().unwrap();
    assert_eq!(guest.entry(DEVICES + 8 * 3) >> 49 & 0x3fff, 0, "the last one");
    assert_eq!(guest.entry(COLLECTIONS), VALID | 1 << 16 | 1);
    assert_eq!(guest.entry(COLLECTIONS + 8), 0);
}

/// T16: the guest has removed the table pages of some entries.
#[test]
fn what_is_out_of_reach_is_left_out() {
    let mut guest = Guest::new(1);
    for device in [0, 5, 600, 700] {
        guest.ok(mapd(device, 3));
    }
    guest.world.w32(CTLR, 0);
    guest.world.w64(BASER0, VALID | DEVICES); // one page
    guest.its.save_tables().unwrap();
    assert_eq!(guest.entry(DEVICES) >> 49 & 0x3fff, 5);
    assert_eq!(guest.entry(DEVICES + 40) >> 49 & 0x3fff, 0, "the last one that can be reached");
}

/// Linux requires a collection for each event, mapped or not.
#[test]
fn collections_that_are_not_mapped() {
    let mut guest = Guest::new(1);
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 7));
    guest.its.save_tables().unwrap();
    assert_eq!(guest.entry(COLLECTIONS + 8), VALID | 0xffff_ffff << 16 | 7);
    assert_eq!(guest.entry(COLLECTIONS + 16), 0);
}

/// Each collection is at its number, if the table had a place for it when it was mapped.
#[test]
fn an_indirect_collection_table() {
    let mut guest = Guest::with(1, ItsConfig::at(GITS), Config::default());
    guest.world.w32(CTLR, 0);
    guest.world.w64(BASER1, VALID | 1 << 62 | COLLECTIONS);
    guest.world.w32(CTLR, 1);
    let second = RAM + 0x13_0000;
    guest.world.ram.write(COLLECTIONS + 8 * 3, &(VALID | second).to_le_bytes()).unwrap();
    guest.ok(mapc(1537, 0));
    guest.its.save_tables().unwrap();
    assert_eq!(guest.entry(second + 8), VALID | 1537);
}

/// A redistributor with LPIs disabled has no pending table.
#[test]
fn no_pending_table() {
    let mut guest = Guest::new(2);
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 1));
    guest.world.w32(rd(1), 0);
    guest.world.w64(rd(1) + 0x78, 0);
    assert_eq!(guest.msi(1, 0), Injected::Unmapped);
    guest.world.gic.save_pending_tables().unwrap();
}

#[test]
fn memory_that_is_not_there() {
    let mut guest = Guest::new(1);
    guest.ok(vgic_core::its::Command::Mapd {
        device: device(1),
        valid: true,
        size: 3,
        itt: 0xf_ffff_ffff_ff00,
    });
    guest.ok(mapti(1, 0, 8192, 0));
    assert!(guest.its.save_tables().is_err());
    assert_ne!(guest.entry(COLLECTIONS), 0, "the others are written");
}

#[test]
fn pending_tables() {
    let mut guest = Guest::new(2);
    guest.ok(mapd(1, 8));
    for n in 0..64 {
        guest.ok(mapti(1, n, 8192 + n, (n % 2) as u16));
    }
    for n in [0, 1, 5, 40] {
        assert_eq!(guest.msi(1, n), Injected::Pending);
    }
    let table = |vcpu: u64| RAM + 0x1_0000 * (1 + vcpu);
    // Stale bits are cleared, whether or not their LPIs exist.
    guest.world.ram.write(table(0) + 1024, &[0xff; 9]).unwrap();
    for cpu in &mut guest.world.cpus {
        cpu.power_off();
    }
    guest.world.gic.save_pending_tables().unwrap();
    let bits = |vcpu| guest.entry(table(vcpu) + 1024);
    assert_eq!([bits(0), bits(1)], [1 | 1 << 40, 1 << 1 | 1 << 5]);
    assert_eq!(guest.entry(table(0) + 1032) & 0xff, 0);
}

/// T16 for collections: a collection that cannot be reached is left out, and the others are
/// written.
#[test]
fn collections_that_are_out_of_reach_are_left_out() {
    let mut guest = Guest::with(1, ItsConfig::at(GITS), Config::default());
    guest.world.w32(CTLR, 0);
    guest.world.w64(BASER1, VALID | 1 << 62 | COLLECTIONS);
    guest.world.w32(CTLR, 1);
    let second = |n: u64| RAM + 0x13_0000 + 0x1000 * n;
    for n in 0..4 {
        let level1 = VALID | second(n);
        guest.world.ram.write(COLLECTIONS + 8 * n, &level1.to_le_bytes()).unwrap();
    }
    for collection in [1, 600, 1537] {
        guest.ok(mapc(collection, 0));
    }
    guest.world.ram.write(COLLECTIONS + 8, &[0; 8]).unwrap();
    assert_eq!(guest.its.save_tables(), Ok(()));
    let saved = [second(0) + 8, second(1) + 8 * 88, second(3) + 8].map(|at| guest.entry(at));
    assert_eq!(saved, [VALID | 1, 0, VALID | 1537]);
}

/// Saving returns an error for entries that lie outside memory, and no other entry links to them.
#[test]
fn the_chain_leaves_out_what_is_not_in_memory() {
    let mut guest = Guest::new(1);
    // The end of memory is in the middle of this table of events.
    let itt = RAM + 0x40_0000 - 0x100;
    let mapd = vgic_core::its::Command::Mapd { device: device(1), valid: true, size: 9, itt };
    guest.ok(mapd);
    for event in [3, 31, 32, 600] {
        guest.ok(mapti(1, event, 8192 + event, 0));
    }
    assert!(guest.its.save_tables().is_err());
    let entry = |n: u64| guest.entry(itt + 8 * n);
    assert_eq!([entry(3) >> 48, entry(31) >> 48], [28, 0]);
    assert_eq!(guest.entry(DEVICES + 8) >> 49 & 0x3fff, 0);
    assert_eq!(guest.entry(COLLECTIONS), VALID);
}
