//! LPIs at the redistributors: their tables in guest memory, and LPIs that the guest makes pending
//! without an ITS.

use vgic_core::engine::{Config, Engine, Injected, Injector, LpiConfig, MsiControl};
use vgic_core::ids::{DeviceId, EventId, Intid, VcpuId};
use vgic_core::memory::GuestMemory;

use crate::world::*;

const SETLPIR: u64 = 0x40;
const CLRLPIR: u64 = 0x48;
const PROPBASER: u64 = 0x70;
const PENDBASER: u64 = 0x78;
const INVLPIR: u64 = 0xa0;
const INVALLR: u64 = 0xb0;
/// GICR_PROPBASER.IDbits for 16-bit INTIDs.
const IDBITS: u64 = 15;
const PTZ: u64 = 1 << 62;
/// GICR_CTLR.RWP.
const RWP: u32 = 1 << 3;

/// The pending table of a vCPU.
fn pending_table(vcpu: usize) -> u64 {
    RAM + 0x1_0000 * (1 + vcpu as u64)
}

/// A running machine with the LPI tables of its redistributors set. LPIs are not enabled yet.
fn world(vcpus: u32) -> World {
    let mut world = World::running(vcpus);
    for n in 0..vcpus as usize {
        world.w64(rd(n) + PROPBASER, RAM | IDBITS);
        world.w64(rd(n) + PENDBASER, pending_table(n));
    }
    world
}

impl World {
    /// Writes an LPI's byte of the configuration table.
    fn property(&self, intid: u32, byte: u8) {
        self.ram.write(RAM + u64::from(intid - 8192), &[byte]).unwrap();
    }
}

#[test]
fn what_there_is() {
    let mut world = world(1);
    assert_eq!(world.r64(rd(0) + 0x8) & 0xb, 0x9, "PLPIS, DirectLPI");
    assert_eq!(world.r32(rd(0)), 6, "CES, IR");
    let mut none = World::without_lpis(&[0]);
    assert_eq!(none.r64(rd(0) + 0x8) & 0xb, 0);
    none.w32(rd(0), 1);
    none.w64(rd(0) + SETLPIR, 8192);
    assert_eq!(none.r32(rd(0)), 0);
}

#[test]
fn set_and_cleared_by_the_guest() {
    let mut world = world(2);
    world.property(8192, 0xa1);
    world.property(8300, 0x41);
    world.w64(rd(1) + SETLPIR, 8192);
    world.w32(rd(1), 1);
    assert_eq!(world.take(1), [], "set while LPIs were not enabled");
    world.w64(rd(1) + SETLPIR, 8192);
    world.w64(rd(1) + SETLPIR, 8300);
    assert_eq!(world.take(0), []);
    assert_eq!(world.take(1), [8300, 8192], "by priority");
    assert_eq!(world.take(1), []);
    world.w32(rd(1) + SETLPIR, 8192);
    world.w32(rd(1) + SETLPIR + 4, 8300);
    assert_eq!(world.take(1), [8192], "the upper half names no LPI");
    world.w64(rd(1) + SETLPIR, 8192);
    world.w64(rd(1) + CLRLPIR, 8192);
    assert_eq!(world.take(1), []);
}

#[test]
fn moved_to_the_redistributor_where_it_is_set() {
    let mut world = world(2);
    world.property(8192, 0xa1);
    world.w32(rd(0), 1);
    world.w32(rd(1), 1);
    world.w64(rd(0) + SETLPIR, 8192);
    assert_eq!(world.take(0), [8192]);
    world.w64(rd(1) + SETLPIR, 8192);
    world.look();
    assert_eq!([world.take(0), world.take(1)], [vec![], vec![8192]]);
    world.w64(rd(1) + SETLPIR, 8192);
    world.w64(rd(0) + CLRLPIR, 8192);
    assert_eq!(world.take(1), [8192], "pending elsewhere");
}

#[test]
fn configuration_is_read_when_it_is_invalidated() {
    let mut world = world(1);
    world.w32(rd(0), 1);
    for intid in [8192, 8193] {
        world.w64(rd(0) + SETLPIR, intid);
    }
    assert_eq!(world.take(0), [], "disabled");
    world.property(8192, 1);
    world.property(8193, 1);
    assert_eq!(world.take(0), []);
    world.w64(rd(0) + INVLPIR, 8193);
    assert_eq!(world.take(0), [8193]);
    world.w64(rd(0) + INVALLR, 0);
    assert_eq!(world.take(0), [8192]);
    world.property(8192, 0);
    world.w32(rd(0) + INVLPIR, 8192);
    world.w64(rd(0) + SETLPIR, 8192);
    assert_eq!(world.take(0), []);
}

#[test]
fn the_pending_table_is_read_unless_it_is_said_to_be_zero() {
    let mut world = world(2);
    for intid in [8192, 8255, 8256, 9000] {
        world.property(intid, 0xa1);
        let (byte, bit) = (pending_table(1) + u64::from(intid / 8), intid % 8);
        let mut old = [0];
        world.ram.read(byte, &mut old).unwrap();
        world.ram.write(byte, &[old[0] | 1 << bit]).unwrap();
    }
    // These bits of the table are not those of LPIs.
    world.ram.write(pending_table(1), &[0xff; 1024]).unwrap();
    world.w64(rd(1) + PENDBASER, pending_table(1) | PTZ);
    assert_eq!(world.r64(rd(1) + PENDBASER), pending_table(1));
    world.w32(rd(1), 1);
    assert_eq!(world.take(1), []);
    world.w32(rd(1), 0);
    world.w64(rd(1) + PENDBASER, pending_table(1));
    world.w32(rd(1), 1);
    assert_eq!(world.take(1), [8192, 8255, 8256, 9000]);
    world.w32(rd(0), 1);
    assert_eq!(world.take(0), []);
}

#[test]
fn lpis_of_the_host_are_configured_by_the_guest() {
    let mut world = world(1);
    let mut msi = world.gic.engine().msi().unwrap();
    let (device, event) = (DeviceId(3), EventId(1));
    msi.map(device, event, Intid(8200), VcpuId(0), LpiConfig::enabled(0)).unwrap();
    world.w32(rd(0), 1);
    let domain = msi.domain();
    let injected = world.cpus[0].bus().injector().inject(&domain, device, event);
    assert_eq!(injected, Injected::Pending);
    assert_eq!(world.take(0), [], "disabled in the guest's table");
    world.property(8200, 1);
    world.w64(rd(0) + INVLPIR, 8200);
    assert_eq!(world.take(0), [8200]);
}

#[test]
fn tables_that_are_not_there() {
    let mut world = world(1);
    world.w64(rd(0) + PROPBASER, 0xf_ffff_ffff_f000 | IDBITS);
    world.w64(rd(0) + PENDBASER, 0xf_ffff_ffff_0000);
    world.w32(rd(0), 1);
    world.w64(rd(0) + SETLPIR, 8192);
    world.w64(rd(0) + INVALLR, 0);
    assert_eq!(world.take(0), [], "what cannot be read is disabled");
    // This table is too small for any LPI.
    world.w32(rd(0), 0);
    world.w64(rd(0) + PROPBASER, RAM | 12);
    world.property(8192, 1);
    world.w32(rd(0), 1);
    world.w64(rd(0) + SETLPIR, 8192);
    assert_eq!(world.take(0), []);
}

#[test]
fn t24_any_intid() {
    let mut world = world(1);
    world.w32(rd(0), 1);
    for offset in [SETLPIR, CLRLPIR, INVLPIR, INVALLR] {
        for value in [0, 15, 1023, 8191, 65_536, 1 << 24, u64::MAX] {
            world.w64(rd(0) + offset, value);
        }
    }
    assert_eq!(world.take(0), []);
    assert_eq!(world.gic.engine().usage().lpis, 0);
}

/// A machine with a bound of one LPI. A retired LPI still counts until vCPU 0 processes its
/// mailbox.
fn world_with_a_dead_lpi() -> World {
    let mut setup = setup(&[0, 1]);
    setup.set_bounds(Config { max_lpis: 1, ..Config::default() });
    let mut world = World::of(setup, 2);
    world.start();
    for n in 0..2 {
        world.w64(rd(n) + PROPBASER, RAM | IDBITS);
        world.w64(rd(n) + PENDBASER, pending_table(n) | PTZ);
        world.w32(rd(n), 1);
    }
    (8192..8200).for_each(|intid| world.property(intid, 0xa1));
    world.w64(rd(0) + SETLPIR, 8192);
    world.w32(rd(0), 0);
    world.w32(rd(0), 1);
    world
}

/// An LPI that finds the bound taken up by a retired LPI waits: it is not lost, and the vCPU does
/// not wait.
#[test]
fn set_while_the_dead_take_up_the_room() {
    let mut world = world_with_a_dead_lpi();
    world.w64(rd(1) + SETLPIR, 8193);
    if crate::Engine::NAME == "locked" {
        // The locked engine takes an LPI that is not in a list register yet off its list at once.
        assert_eq!(world.take(1), [8193]);
        return;
    }
    assert_eq!(world.take(1), []);
    let table = pending_table(1) + 8193 / 8;
    world.gic.save_pending_tables().unwrap();
    let mut byte = [0];
    world.ram.read(table, &mut byte).unwrap();
    assert_eq!(byte, [1 << (8193 % 8)], "saved as pending");
    assert_eq!(world.take(0), []);
    // The next access resumes the work.
    world.r32(rd(1));
    assert_eq!([world.take(0), world.take(1)], [vec![], vec![8193]]);
    world.r32(rd(1));
    assert_eq!([world.take(0), world.take(1)], [vec![], vec![]], "once");
}

/// An LPI that waits is pending, and can be cleared.
#[test]
fn cleared_while_the_dead_take_up_the_room() {
    for (register, value) in [(CLRLPIR, 8193), (0, 0)] {
        let mut world = world_with_a_dead_lpi();
        world.w64(rd(1) + SETLPIR, 8193);
        if register == CLRLPIR {
            world.w64(rd(1) + register, value);
        } else {
            world.w32(rd(1), 0);
            world.w32(rd(1), 1);
        }
        world.w64(rd(1) + SETLPIR, 8194);
        assert_eq!(world.take(0), []);
        world.r32(rd(1));
        assert_eq!(world.take(1), [8194]);
    }
}

/// LPIs that are set directly count as memory until LPIs are disabled.
#[test]
fn what_is_set_directly_counts() {
    const LPIS: u32 = 1000;
    let bytes = |world: &World| {
        world.gic.engine().msi().unwrap().collect();
        world.gic.engine().usage().bytes
    };
    let mut world = world(1);
    world.w32(rd(0), 1);
    let before = bytes(&world);
    (0..LPIS).for_each(|n| world.w64(rd(0) + SETLPIR, (8192 + n).into()));
    let direct = bytes(&world) - before;
    world.w32(rd(0), 0);
    while world.r32(rd(0)) & RWP != 0 {}
    world.look();
    assert_eq!(bytes(&world), before, "it ends with EnableLPIs");
    // Maps the same LPIs through `Msi::map`.
    let mut msi = world.gic.engine().msi().unwrap();
    for n in 0..LPIS {
        let (intid, config) = (Intid(8192 + n), LpiConfig::enabled(0));
        msi.map(DeviceId(0), EventId(n), intid, VcpuId(0), config).unwrap();
    }
    let mapped = bytes(&world) - before;
    assert!(direct >= mapped + LPIS as usize * size_of::<u32>(), "{direct} and {mapped}");
}
