//! The registers of the ITS (IHI 0069, 12.18 and 12.19).

use vgic_core::engine::{Config, Injected};
use vgic_core::ids::DeviceId;
use vgic_core::its::ItsConfig;
use vgic_core::memory::GuestMemory;

use crate::guest::*;
use crate::world::{RAM, World, rd};

fn reset() -> Guest {
    Guest::reset(1, ItsConfig::at(GITS), Config::default())
}

#[test]
fn after_a_reset() {
    let mut guest = reset();
    let world = &mut guest.world;
    assert_eq!(world.r32(CTLR), 1 << 31, "quiescent, not enabled");
    assert_eq!(world.r32(GITS + 4), 0x5600_043b);
    // Physical LPIs; 8 bytes an ITT entry; 16 EventID and DeviceID bits; no collections without a
    // table.
    assert_eq!(world.r64(TYPER), 1 | 7 << 4 | 15 << 8 | 15 << 13);
    for register in [CBASER, CWRITER, CREADR] {
        assert_eq!(world.r64(register), 0);
    }
    let basers: Vec<u64> = (0..8).map(|n| world.r64(BASER0 + 8 * n)).collect();
    // Pages of 64 KiB, as with Linux and QEMU.
    assert_eq!(basers, [0x0107 << 48 | 0x200, 0x0407 << 48 | 0x200, 0, 0, 0, 0, 0, 0]);
    assert_eq!(world.r32(GITS + 0xffe8) >> 4 & 0xf, 3, "PIDR2.ArchRev");
    assert_eq!(world.r32(GITS + 0xffe0), 0x94, "PIDR0");
    let cidr: Vec<u32> = (0..4).map(|n| world.r32(GITS + 0xfff0 + 4 * n)).collect();
    assert_eq!(cidr, [0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn typer_says_what_was_configured() {
    let config = ItsConfig {
        device_bits: 12,
        event_bits: 5,
        collection_bits: 3,
        hardware_collections: 8,
        pta: true,
        ..ItsConfig::at(GITS)
    };
    let mut guest = Guest::reset(1, config, Config::default());
    let expected = 1 | 7 << 4 | 4 << 8 | 11 << 13 | 1 << 19 | 8 << 24 | 2 << 32 | 1 << 36;
    assert_eq!(guest.world.r64(TYPER), expected);
}

#[test]
fn with_an_its_lpis_are_not_set_directly() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.world.r64(rd(0) + 8) & 0xb, 1, "PLPIS, not DirectLPI");
    guest.world.w64(rd(0) + 0x40, 8192);
    assert_eq!(guest.take(0), []);
    // GICR_CTLR.IR is set: GICR_INVLPIR and GICR_INVALLR work.
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    guest.property(8192, 0);
    guest.world.w64(rd(0) + 0xa0, 8192);
    guest.ok(int(1, 0));
    assert_eq!(guest.take(0), []);
    guest.property(8192, 1);
    guest.world.w64(rd(0) + 0xb0, 0);
    assert_eq!(guest.take(0), [8192]);
}

#[test]
fn both_halves_of_registers() {
    let mut guest = reset();
    let world = &mut guest.world;
    world.w32(CBASER, RAM as u32 | 0x407);
    world.w32(CBASER + 4, 1 << 31);
    assert_eq!(world.r64(CBASER), VALID | RAM | 0x407);
    assert_eq!([world.r32(CBASER), world.r32(CBASER + 4)], [RAM as u32 | 0x407, 1 << 31]);
    world.w32(BASER0 + 4, 0xffff_0000);
    world.w32(BASER0, 0x0040_0001);
    assert_eq!(world.r64(BASER0), 0xf9e7_0000_0040_0001, "type and entry size are read-only");
    assert_eq!(world.r32(TYPER + 4), 0);
    world.w32(CWRITER, 0x20);
    world.w32(CWRITER + 4, u32::MAX);
    assert_eq!(world.r64(CWRITER), 0x20);
}

#[test]
fn what_of_cbaser_and_baser_is_kept() {
    let mut guest = reset();
    let world = &mut guest.world;
    world.w64(CBASER, u64::MAX);
    // Valid, the cacheabilities and an address at a multiple of 64 KiB are kept; the reserved
    // shareability is not.
    assert_eq!(world.r64(CBASER), VALID | 0x7 << 59 | 0x7 << 53 | 0x000f_ffff_ffff_0000 | 0xff);
    world.w64(BASER1, u64::MAX);
    assert_eq!(world.r64(BASER1), 0xfce7_ffff_ffff_f2ff);
    world.w64(BASER0 + 16, u64::MAX);
    assert_eq!(world.r64(BASER0 + 16), 0, "there are two tables");
}

#[test]
fn writing_cbaser_resets_the_queue() {
    let mut guest = Guest::new(1);
    assert_ne!(guest.world.r64(CREADR), 0);
    guest.world.w32(CTLR, 0);
    guest.world.w64(CBASER, VALID | QUEUE);
    assert_eq!([guest.world.r64(CREADR), guest.world.r64(CWRITER)], [0, 0]);
}

#[test]
fn while_enabled_tables_stay() {
    let mut guest = Guest::new(1);
    let before = [CBASER, BASER0, BASER1].map(|at| guest.world.r64(at));
    for at in [CBASER, BASER0, BASER1] {
        guest.world.w64(at, 0);
    }
    assert_eq!([CBASER, BASER0, BASER1].map(|at| guest.world.r64(at)), before);
}

#[test]
fn enabling_wants_a_queue_and_tables() {
    for missing in [CBASER, BASER0, BASER1] {
        let mut guest = reset();
        for at in [CBASER, BASER0, BASER1] {
            guest.world.w64(at, if at == missing { 0 } else { VALID | RAM });
        }
        guest.world.w32(CTLR, 1);
        assert_eq!(guest.world.r32(CTLR), 1 << 31);
        guest.world.w64(missing, VALID | RAM);
        guest.world.w32(CTLR, u32::MAX);
        assert_eq!(guest.world.r32(CTLR), 1);
        guest.world.w32(CTLR, 0);
        assert_eq!(guest.world.r32(CTLR), 1 << 31);
    }
    // These collections need no table.
    let config = ItsConfig { hardware_collections: 4, ..ItsConfig::at(GITS) };
    let mut guest = Guest::reset(1, config, Config::default());
    for at in [CBASER, BASER0] {
        guest.world.w64(at, VALID | QUEUE);
    }
    guest.world.w32(CTLR, 1);
    assert_eq!(guest.world.r32(CTLR), 1);
    guest.ok(mapc(3, 0));
    guest.fails(mapc(4, 0), vgic_core::its::Fault::CollectionRange);
}

#[test]
fn a_table_that_is_taken_away_unmaps() {
    let mut guest = Guest::new(1);
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.world.w32(CTLR, 0);
    // New collections first: pending LPIs stay pending.
    guest.world.w64(BASER1, 0);
    guest.world.w64(BASER1, VALID | COLLECTIONS);
    guest.world.w32(CTLR, 1);
    assert_eq!(guest.msi(1, 0), Injected::Unmapped);
    guest.ok(mapc(0, 0));
    assert_eq!(guest.take(0), [8192]);
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.world.w32(CTLR, 0);
    guest.world.w64(BASER0, 0);
    guest.world.w64(BASER0, VALID | DEVICES);
    guest.world.w32(CTLR, 1);
    assert_eq!(guest.msi(1, 0), Injected::Unmapped);
    assert_eq!(guest.take(0), []);
    assert_eq!(guest.its.dump().devices, []);
}

#[test]
fn not_enabled_nothing_is_translated() {
    let mut guest = Guest::new(1);
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    let route = guest.its.route(device(1), vgic_core::ids::EventId(0)).unwrap();
    guest.world.w32(CTLR, 0);
    assert_eq!(guest.msi(1, 0), Injected::Unmapped);
    assert_eq!(route.inject(guest.world.cpus[0].bus().injector()), Injected::Unmapped);
    assert_eq!(guest.take(0), []);
    assert_eq!(guest.its.stats().untranslated, 2);
    guest.world.w32(CTLR, 1);
    assert_eq!(route.inject(guest.world.cpus[0].bus().injector()), Injected::Pending);
    assert_eq!(guest.msi(1, 0), Injected::Coalesced);
    assert_eq!(guest.take(0), [8192]);
}

/// Writes an MSI to an address, as a device does.
fn send(guest: &Guest, device: u32, address: u64, data: u32) -> bool {
    let injector = guest.world.cpus[0].bus().injector();
    guest.world.gic.send_msi(injector, DeviceId(device), address, data).is_ok()
}

#[test]
fn devices_write_translater() {
    let mut guest = Guest::new(1);
    assert_eq!(guest.its.config().doorbell(), TRANSLATER);
    guest.ok(mapd(5, 3));
    guest.ok(mapti(5, 2, 8200, 0));
    assert!(send(&guest, 5, TRANSLATER, 2));
    assert_eq!(guest.take(0), [8200]);
    assert!(send(&guest, 5, TRANSLATER, 3), "not mapped");
    assert!(send(&guest, 4, TRANSLATER, 2), "another device's");
    assert_eq!(guest.take(0), []);
    assert_eq!(guest.log.untranslated.lock().unwrap().len(), 2);
    for address in [TRANSLATER - 4, TRANSLATER + 4, GITS + 0x40, RAM, 0, u64::MAX] {
        assert!(!send(&guest, 5, address, 2), "{address:#x}");
    }
}

#[test]
fn a_vcpu_that_writes_translater() {
    let setup = |cpu_device| {
        let config = ItsConfig { cpu_device, ..ItsConfig::at(GITS) };
        let mut guest = Guest::with(1, config, Config::default());
        guest.ok(mapc(0, 0));
        guest.ok(mapd(7, 8));
        guest.ok(mapti(7, 0x21, 8200, 0));
        guest.ok(mapti(7, 0, 8201, 0));
        guest
    };
    let mut guest = setup(None);
    guest.world.w32(TRANSLATER, 0x21);
    assert_eq!(guest.take(0), []);
    let mut guest = setup(Some(DeviceId(7)));
    guest.world.w32(TRANSLATER, 0x21);
    assert_eq!(guest.take(0), [8200]);
    guest.world.write_from(0, TRANSLATER, 2, 0x21).unwrap();
    assert_eq!(guest.take(0), [8200]);
    assert_eq!(guest.world.r32(TRANSLATER), 0, "write-only");
    guest.world.write_from(0, TRANSLATER, 1, 0x21).unwrap();
    guest.world.write_from(0, TRANSLATER + 2, 2, 0).unwrap();
    assert_eq!(guest.take(0), [], "too narrow");
    assert!(guest.world.write_from(0, TRANSLATER, 8, 0x21).is_err(), "too wide");
}

#[test]
fn t24_every_offset_width_and_value() {
    let mut fresh = reset();
    let initial: Vec<u32> = (0..0x1000).step_by(4).map(|n| fresh.world.r32(GITS + n)).collect();
    for enabled in [false, true] {
        for value in [0, 1, 0x20, 0x8000_0000_4000_0000, 0xaaaa_5555_aaaa_5555, u64::MAX] {
            let mut guest = if enabled { Guest::new(1) } else { reset() };
            // The commands that the ITS finds are garbage, too.
            let world: &mut World = &mut guest.world;
            world.ram.write(QUEUE, &value.to_le_bytes().repeat(512)).unwrap();
            let registers = (0..0x400).chain(0xfe00..0x1_0200).chain(0x1_fe00..0x2_0000);
            for offset in registers.chain((0x400..0xfe00).step_by(0x3fc)) {
                for width in [1, 2, 4, 8] {
                    // An access may be refused, but nothing breaks.
                    let _ = world.write_from(0, GITS + offset, width, value);
                    let _ = world.read_from(0, GITS + offset, width);
                }
            }
            for (offset, initial) in (0..0x1000).step_by(4).zip(&initial) {
                // The writable registers are GITS_CTLR, GITS_STATUSR, GITS_CBASER to GITS_CREADR,
                // GITS_BASER0 and 1.
                let writable = matches!(offset, 0 | 0x40 | 0x80..0x98 | 0x100..0x110);
                let now = world.r32(GITS + offset);
                assert!(writable || now == *initial, "{offset:#x} has changed");
            }
        }
    }
}

#[test]
fn wrong_accesses_are_recorded() {
    let mut guest = reset();
    let status = GITS + 0x40;
    guest.world.w32(status, u32::MAX);
    let world = &mut guest.world;
    world.w64(CREADR, 0);
    world.r32(GITS + 0x200);
    world.w32(GITS + 0x200, 0);
    assert_eq!(world.r32(status), 1 | 2 | 8);
    world.w32(status, 2);
    assert_eq!(world.r32(status), 1 | 8);
}
