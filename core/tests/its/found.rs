//! What the comparison with QEMU and the fuzzer have found.

use vgic_core::engine::{Config, Injected};
use vgic_core::its::{Fault, ItsConfig};

use crate::guest::*;
use crate::world::RAM;

/// The doubleword of a vCPU's pending table that LPIs 8192 to 8255 are in.
fn pending_bits(guest: &mut Guest, vcpu: u64) -> u64 {
    for cpu in &mut guest.world.cpus {
        cpu.power_off();
    }
    guest.world.gic.save_pending_tables().unwrap();
    guest.entry(RAM + 0x1_0000 * (1 + vcpu) + 1024)
}

/// A table that has been written before is written again after the LPI has moved away, or is gone: a machine that is restored from it must not
/// see the LPI pending.
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

/// MAPTI of a collection that the collection table has no room for is wrong, as MAPC of it is: the event is not mapped, and can be mapped
/// rightly afterwards.
#[test]
fn mapti_wants_a_collection_that_can_be_mapped() {
    let mut guest = Guest::new(1);
    guest.ok(mapd(1, 3));
    // 16 pages of collections.
    guest.fails(mapti(1, 0, 8192, 8192), Fault::CollectionRange);
    guest.ok(mapti(1, 0, 8192, 0));
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.ok(mapti(1, 1, 8193, 8191));
    // Some need no table.
    let few = ItsConfig { hardware_collections: 4, collection_bits: 4, ..ItsConfig::at(GITS) };
    let mut guest = Guest::with(1, few, Config::default());
    guest.world.w32(CTLR, 0);
    guest.world.w64(BASER1, 0);
    guest.world.w32(CTLR, 1);
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 3));
    guest.fails(mapti(1, 1, 8193, 4), Fault::CollectionRange);
}
