//! Each command, and each of its errors (IHI 0069, 5.3).

use vgic_core::engine::{Config, Engine as _, Injected};
use vgic_core::ids::{DeviceId, EventId, Intid, VcpuId};
use vgic_core::its::{CollectionId, Command, Fault, ItsConfig, Kind, RdBase};

use crate::guest::*;
use crate::world::{RAM, rd};

/// Device 1 with 8 events, of which event 0 is LPI 8192 and event 1 is LPI 8193, both at vCPU 0.
fn mapped(vcpus: u32) -> Guest {
    let mut guest = Guest::new(vcpus);
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    guest.ok(mapti(1, 1, 8193, 0));
    guest
}

#[test]
fn mapti_and_mapi() {
    let mut guest = mapped(2);
    assert_eq!([guest.msi(1, 0), guest.msi(1, 1)], [Injected::Pending; 2]);
    assert_eq!(guest.take(0), [8192, 8193]);
    // MAPI uses the EventID as the INTID.
    guest.ok(mapd(2, 14));
    let mut raw = mapti(2, 8200, 0, 1).encode();
    raw[0] = 0x0b;
    raw[12..16].fill(0xff); // MAPI ignores these fields.
    guest.put(&raw);
    guest.ring();
    assert_eq!(guest.msi(2, 8200), Injected::Pending);
    assert_eq!(guest.take(1), [8200]);
}

#[test]
fn mapti_is_wrong() {
    let mut guest = mapped(1);
    guest.fails(mapti(2, 0, 8200, 0), Fault::DeviceUnmapped);
    guest.fails(mapti(1 << 16, 0, 8200, 0), Fault::DeviceRange);
    guest.fails(mapti(1, 8, 8200, 0), Fault::EventRange);
    guest.fails(mapti(1, u32::MAX, 8200, 0), Fault::EventRange);
    for intid in [0, 31, 1023, 8191, 1 << 16, 1 << 24, u32::MAX] {
        guest.fails(mapti(1, 2, intid, 0), Fault::IntidRange);
    }
    assert_eq!(guest.lpis(), 2);
    // MAPI with an EventID that is not a valid LPI number.
    let mut raw = mapti(1, 2, 0, 0).encode();
    raw[0] = 0x0b;
    guest.put(&raw);
    guest.ring();
    assert!(guest.its.stats().faults.contains(&("MAPI", "INTID out of range", 1)));
    assert_eq!(guest.its.stats().faults_of(Fault::IntidRange), 8);
}

#[test]
fn mapti_of_a_mapped_event_does_nothing() {
    let mut guest = mapped(2);
    guest.ok(mapti(1, 0, 9000, 1));
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    assert_eq!([guest.take(1), guest.take(0)], [vec![], vec![8192]]);
}

#[test]
fn two_events_of_one_lpi() {
    let mut guest = mapped(2);
    guest.ok(mapti(1, 2, 8192, 0));
    assert_eq!([guest.msi(1, 0), guest.msi(1, 2)], [Injected::Pending, Injected::Coalesced]);
    assert_eq!(guest.take(0), [8192]);
    guest.ok(discard(1, 0));
    assert_eq!([guest.msi(1, 0), guest.msi(1, 2)], [Injected::Unmapped, Injected::Pending]);
    assert_eq!(guest.take(0), [8192]);
}

#[test]
fn mapd_unmaps_first() {
    let mut guest = mapped(1);
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.ok(unmapd(1));
    assert_eq!(guest.take(0), [], "what was pending is gone");
    assert_eq!([guest.msi(1, 0), guest.msi(1, 1)], [Injected::Unmapped; 2]);
    guest.fails(mapti(1, 0, 8192, 0), Fault::DeviceUnmapped);
    guest.ok(unmapd(1));
    // A device that is mapped again has no events.
    guest.ok(mapd(1, 3));
    assert_eq!(guest.msi(1, 0), Injected::Unmapped);
    guest.ok(mapti(1, 0, 8192, 0));
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    // MAPD also removes the events of a device that is still mapped.
    guest.ok(mapd(1, 4));
    assert_eq!(guest.take(0), []);
    assert_eq!(guest.msi(1, 0), Injected::Unmapped);
    guest.ok(mapti(1, 15, 8192, 0));
}

#[test]
fn mapd_is_wrong() {
    let mut guest = mapped(1);
    guest.fails(mapd(1 << 16, 3), Fault::DeviceRange);
    guest.fails(unmapd(u32::MAX), Fault::DeviceRange);
    guest.fails(mapd(1, 17), Fault::SizeRange);
    guest.ok(mapd(3, 16));
    // The device table has 16 pages, for 8,192 devices.
    guest.ok(mapd(8191, 3));
    guest.fails(mapd(8192, 3), Fault::DeviceRange);
    assert_eq!(guest.msi(1, 0), Injected::Pending, "nothing happened to device 1");
}

#[test]
fn mapc_moves_what_is_mapped() {
    let mut guest = mapped(2);
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.ok(mapc(0, 1));
    assert_eq!([guest.take(0), guest.take(1)], [vec![], vec![8192]], "pending state moves, too");
    assert_eq!(guest.msi(1, 1), Injected::Pending);
    assert_eq!([guest.take(0), guest.take(1)], [vec![], vec![8193]]);
    guest.ok(mapc(0, 1));
    assert_eq!(guest.msi(1, 1), Injected::Pending);
    assert_eq!(guest.take(1), [8193]);
    // MAPC also moves LPIs back that a MOVALL has moved away.
    guest.ok(movall(1, 0));
    guest.ok(mapc(0, 1));
    assert_eq!(guest.msi(1, 1), Injected::Pending);
    assert_eq!([guest.take(0), guest.take(1)], [vec![], vec![8193]]);
}

#[test]
fn mapc_is_wrong() {
    let mut guest = mapped(2);
    guest.fails(mapc(0, 2), Fault::RdbaseRange);
    guest.fails(mapc(7, u64::from(u32::MAX)), Fault::RdbaseRange);
    // The collection table has 16 pages, for 8,192 collections.
    guest.ok(mapc(8191, 0));
    guest.fails(mapc(8192, 0), Fault::CollectionRange);
    guest.ok(unmapc(9000));
    let few = ItsConfig { collection_bits: 4, ..ItsConfig::at(GITS) };
    let mut guest = Guest::with(1, few, Config::default());
    guest.ok(mapc(15, 0));
    guest.fails(mapc(16, 0), Fault::CollectionRange);
    guest.fails(unmapc(16), Fault::CollectionRange);
    guest.ok(mapd(1, 3));
    guest.fails(mapti(1, 0, 8192, 16), Fault::CollectionRange);
    guest.fails(movi(1, 0, 16), Fault::CollectionRange);
    guest.fails(invall(16), Fault::CollectionRange);
}

#[test]
fn t22_the_target_is_a_processor_number() {
    // The target is GICR_TYPER.Processor_Number, independent of the affinity.
    let mut guest = Guest::new(3);
    for n in 0..3 {
        let number = guest.world.r64(rd(n) + 8) >> 8 & 0xffff;
        guest.ok(mapc(9, number));
        guest.ok(mapd(n as u32, 3));
        guest.ok(mapti(n as u32, 0, 8200 + n as u32, 9));
        assert_eq!(guest.msi(n as u32, 0), Injected::Pending);
        assert_eq!(guest.take(n), [8200 + n as u64]);
    }
    // With GITS_TYPER.PTA set, the target is the address of the redistributor.
    let pta = ItsConfig { pta: true, ..ItsConfig::at(GITS) };
    let mut guest = Guest::with(3, pta, Config::default());
    assert_ne!(guest.world.r64(TYPER) & 1 << 19, 0);
    guest.fails(mapc(0, 1), Fault::RdbaseRange);
    guest.fails(mapc(0, (rd(1) >> 16) + 1), Fault::RdbaseRange);
    guest.ok(mapc(0, rd(1) >> 16));
    guest.ok(mapc(1, rd(2) >> 16));
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.ok(movall(rd(1) >> 16, rd(2) >> 16));
    assert_eq!([guest.take(1), guest.take(2)], [vec![], vec![8192]]);
}

#[test]
fn movi_moves_pending_state() {
    let mut guest = mapped(2);
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.ok(movi(1, 0, 1));
    assert_eq!([guest.take(0), guest.take(1)], [vec![], vec![8192]]);
    assert_eq!([guest.msi(1, 0), guest.msi(1, 1)], [Injected::Pending; 2]);
    assert_eq!([guest.take(0), guest.take(1)], [vec![8193], vec![8192]]);
    // The event now belongs to the new collection.
    guest.ok(mapc(0, 1));
    guest.ok(mapc(1, 0));
    assert_eq!([guest.msi(1, 0), guest.msi(1, 1)], [Injected::Pending; 2]);
    assert_eq!([guest.take(0), guest.take(1)], [vec![8192], vec![8193]]);
}

#[test]
fn movi_is_wrong() {
    let mut guest = mapped(2);
    guest.fails(movi(2, 0, 1), Fault::DeviceUnmapped);
    guest.fails(movi(1, 8, 1), Fault::EventRange);
    guest.fails(movi(1, 2, 1), Fault::EventUnmapped);
    guest.fails(movi(1, 0, 5), Fault::CollectionUnmapped);
    guest.ok(unmapc(0));
    guest.fails(movi(1, 0, 1), Fault::CollectionUnmapped);
}

#[test]
fn movall_moves_one_redistributors_lpis() {
    let mut guest = mapped(3);
    guest.ok(mapti(1, 2, 8194, 1));
    for event in 0..3 {
        assert_eq!(guest.msi(1, event), Injected::Pending);
    }
    guest.ok(movall(0, 2));
    let taken: [_; 3] = std::array::from_fn(|n| guest.take(n));
    assert_eq!(taken, [vec![], vec![8194], vec![8192, 8193]]);
    // MOVALL leaves the collection at vCPU 0, which gets the LPIs that are mapped from now on.
    guest.ok(mapti(1, 3, 8195, 0));
    assert_eq!(guest.msi(1, 3), Injected::Pending);
    assert_eq!(guest.take(0), [8195]);
    guest.fails(movall(0, 3), Fault::RdbaseRange);
    guest.fails(movall(3, 0), Fault::RdbaseRange);
}

#[test]
fn discard_forgets_what_is_pending() {
    let mut guest = mapped(2);
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.ok(discard(1, 0));
    assert_eq!(guest.take(0), []);
    assert_eq!(guest.msi(1, 0), Injected::Unmapped);
    guest.fails(discard(1, 0), Fault::EventUnmapped);
    guest.fails(discard(1, 8), Fault::EventRange);
    guest.fails(discard(9, 0), Fault::DeviceUnmapped);
    guest.ok(mapti(1, 0, 8192, 0));
    assert_eq!(guest.take(0), [], "and does not come back with the mapping");
    // DISCARD removes an LPI from a list register if the guest has not acknowledged it.
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    guest.world.cpus[0].enter();
    assert!(guest.world.cpus[0].irq_line());
    let injector = guest.world.gic.engine().injector().unwrap();
    guest.put(&discard(1, 0).encode());
    let end = guest.end;
    let bus = guest.world.gic.bus().unwrap();
    bus.write(VcpuId(1), CWRITER, &end.to_le_bytes()).unwrap();
    assert_eq!(guest.its.port().inject(&injector, DeviceId(1), EventId(0)), Injected::Unmapped);
    assert_eq!(guest.take(0), []);
}

#[test]
fn int_and_clear() {
    let mut guest = mapped(1);
    guest.ok(int(1, 0));
    guest.ok(int(1, 1));
    guest.ok(clear(1, 0));
    assert_eq!(guest.take(0), [8193]);
    guest.ok(clear(1, 1));
    for command in [int, clear, inv] {
        guest.fails(command(1, 2), Fault::EventUnmapped);
        guest.fails(command(1, 8), Fault::EventRange);
        guest.fails(command(2, 0), Fault::DeviceUnmapped);
        guest.fails(command(1 << 20, 0), Fault::DeviceRange);
    }
    guest.ok(unmapc(0));
    guest.fails(int(1, 0), Fault::EventUnmapped);
    guest.ok(clear(1, 0));
    guest.ok(inv(1, 0));
}

#[test]
fn inv_reads_one_configuration() {
    let mut guest = mapped(1);
    guest.property(8192, 0xa0);
    guest.property(8193, 0x20);
    guest.ok(int(1, 0));
    assert_eq!(guest.take(0), [8192], "not told");
    guest.ok(inv(1, 0));
    guest.ok(int(1, 0));
    guest.ok(int(1, 1));
    assert_eq!(guest.take(0), [8193], "of which nobody was told");
    guest.property(8192, 0xa1);
    guest.ok(inv(1, 0));
    assert_eq!(guest.take(0), [8192]);
}

#[test]
fn invall_reads_a_redistributors_configuration() {
    let mut guest = mapped(2);
    guest.ok(mapti(1, 2, 8194, 1));
    for intid in 8192..8195 {
        guest.property(intid, 0);
    }
    guest.ok(invall(0));
    for event in 0..3 {
        guest.ok(int(1, event));
    }
    assert_eq!([guest.take(0), guest.take(1)], [vec![], vec![8194]]);
    guest.property(8192, 0x81);
    guest.property(8193, 0x41);
    guest.ok(invall(0));
    assert_eq!(guest.take(0), [8193, 8192], "by priority");
    guest.fails(invall(5), Fault::CollectionUnmapped);
}

#[test]
fn configuration_is_read_when_an_event_is_mapped() {
    let mut guest = Guest::new(1);
    guest.ok(mapd(1, 3));
    guest.property(8192, 0);
    guest.ok(mapti(1, 0, 8192, 0));
    guest.ok(int(1, 0));
    assert_eq!(guest.take(0), []);
    // An LPI beyond the end of the configuration table is disabled.
    guest.world.w32(rd(0), 0);
    guest.world.w64(rd(0) + 0x70, RAM | 13);
    guest.world.w32(rd(0), 1);
    guest.ok(mapti(1, 1, 16_384, 0));
    guest.ok(int(1, 1));
    assert_eq!(guest.take(0), []);
}

/// A redistributor without a configuration table configures nothing: an LPI that comes from there
/// is configured at its new redistributor.
#[test]
fn configuration_is_read_when_an_lpi_moves() {
    for how in 0..3 {
        let mut guest = Guest::new(2);
        guest.world.w32(rd(1), 0);
        guest.world.w64(rd(1) + 0x70, 0);
        guest.ok(mapd(1, 3));
        guest.ok(mapti(1, 0, 8192, 1));
        guest.ok(match how {
            0 => movi(1, 0, 0),
            1 => mapc(1, 0),
            _ => movall(1, 0),
        });
        guest.ok(int(1, 0));
        assert_eq!(guest.take(0), [8192], "{how}");
    }
}

#[test]
fn sync_has_nothing_to_wait_for() {
    let mut guest = mapped(1);
    guest.ok(Command::Sync(RdBase(0)));
    guest.fails(Command::Sync(RdBase(1)), Fault::RdbaseRange);
    assert_eq!(guest.its.stats().commands_of(Kind::Sync), 1);
}

#[test]
fn unknown_commands_are_counted() {
    let mut guest = Guest::new(1);
    for number in [0, 2, 6, 7, 0x10, 0x21, 0x29, 0xff] {
        let mut raw = [0xff; 32];
        raw[0] = number;
        guest.put(&raw);
    }
    guest.ring();
    let end = guest.end;
    assert_eq!(guest.world.r64(CREADR), end);
    assert_eq!(guest.its.stats().faults_of(Fault::UnknownCommand), 8);
}

#[test]
fn bounds_fail_the_command_and_nothing_else() {
    let config = ItsConfig { max_devices: 2, max_events: 3, ..ItsConfig::at(GITS) };
    let mut guest = Guest::with(1, config, Config::default());
    guest.ok(mapc(0, 0));
    for device in 0..2 {
        guest.ok(mapd(device, 3));
    }
    guest.fails(mapd(2, 3), Fault::TooManyDevices);
    guest.ok(mapd(1, 4));
    for event in 0..3 {
        guest.ok(mapti(0, event, 8192 + event, 0));
    }
    guest.fails(mapti(1, 0, 8195, 0), Fault::TooManyEvents);
    // An event of an unmapped collection counts as much.
    guest.fails(mapti(1, 0, 8195, 7), Fault::TooManyEvents);
    guest.ok(discard(0, 1));
    guest.ok(mapti(1, 0, 8195, 7));
    guest.fails(mapti(1, 1, 8196, 0), Fault::TooManyEvents);
    guest.ok(int(0, 0));
    assert_eq!(guest.take(0), [8192]);
    assert_eq!(guest.its.stats().faults_of(Fault::TooManyEvents), 3);
    guest.ok(unmapd(0));
    guest.ok(mapd(7, 3));
}

#[test]
fn the_vms_bound_on_lpis() {
    let bounds = Config { max_lpis: 2, ..Config::default() };
    let mut guest = Guest::with(1, ItsConfig::at(GITS), bounds);
    guest.ok(mapc(0, 0));
    guest.ok(mapd(1, 3));
    guest.ok(mapti(1, 0, 8192, 0));
    guest.ok(mapti(1, 1, 8193, 0));
    guest.fails(mapti(1, 2, 8194, 0), Fault::TooManyLpis);
    guest.ok(mapti(1, 2, 8193, 0));
    guest.ok(discard(1, 0));
    guest.ok(mapti(1, 0, 8194, 0));
    assert_eq!(guest.msi(1, 0), Injected::Pending);
    assert_eq!(guest.take(0), [8194]);
}

#[test]
fn every_device_and_every_event() {
    let bounds = Config { max_events: 100, max_devices: 10, ..Config::default() };
    let mut guest = Guest::with(1, ItsConfig::at(GITS), bounds);
    guest.ok(mapc(0, 0));
    for n in 0..8192 {
        guest.ok(mapd(n, 16));
        let mapped = guest.run(mapti(n, n, 8192 + n, 0));
        assert_eq!(mapped, if n < 10 { Ok(()) } else { Err(Fault::TooManyDevices) });
    }
    assert_eq!(guest.lpis(), 10);
    guest.ok(unmapd(3));
    guest.ok(mapti(8000, 0, 9000, 0));
    guest.ok(int(8000, 0));
    assert_eq!(guest.take(0), [9000]);
}

#[test]
fn commands_have_names() {
    let mut guest = mapped(1);
    assert!(guest.run(mapti(9, 0, 8192, 0)).is_err());
    let stats = guest.its.stats();
    assert_eq!(stats.commands, [("MAPD", 1), ("MAPC", 1), ("MAPTI", 2)]);
    assert_eq!(stats.faults, [("MAPTI", "device not mapped", 1)]);
    let ids = (DeviceId(1), Intid(8192), CollectionId(0));
    let log = guest.log.results.lock().unwrap();
    assert!(log.iter().any(|(command, _)| matches!(
        *command,
        Some(Command::Mapti { device, intid, collection, .. }) if (device, intid, collection) == ids
    )));
}
