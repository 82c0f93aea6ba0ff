//! Storms through an ITS: all is mapped by commands, nothing is lost, and faults of the ITS or its
//! driver are found.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use common::{Fault, Faulty, Forgetful};
use vgic_benches::host::HostKick;
use vgic_benches::its::ViaIts;
use vgic_benches::storm::accounts::Accounts;
use vgic_benches::storm::plan::{Length, MAX_PRIORITIES, Plan};
use vgic_benches::storm::run;
use vgic_benches::storm::sweep::{MODES, Sweep};
use vgic_core::engine::{Config, Engine, Error, Injected, Injector, LpiConfig, MsiControl};
use vgic_core::ids::{DeviceId, EventId, Intid, Priority, VcpuId};
use vgic_core::its::Kind;

/// A storm that ends within a moment, even without optimization.
fn small() -> Plan {
    let length = Length::Iterations(100);
    Plan { vcpus: 2, devices: 2, events: 16, its: true, length, ..Plan::default() }
}

fn succeeds<E: Engine>(plan: &Plan) -> Accounts {
    let accounts = run::<ViaIts<E>>(plan).unwrap();
    let wrong: Vec<_> = accounts.rules().into_iter().filter(|rule| !rule.holds).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(accounts.lost, 0, "{:?}", accounts.lost_events);
    assert_eq!(accounts.engine, E::NAME);
    accounts
}

fn loses_nothing<E: Engine>() {
    let accounts = succeeds::<E>(&small());
    assert_eq!((accounts.tally.injected, accounts.tally.unmapped), (2 * 16 * 100, 0));
    succeeds::<E>(&Plan::default());
    succeeds::<E>(&Plan { vcpus: 5, devices: 3, events: 7, ..small() });
    succeeds::<E>(&Plan { lrs: 1, priorities: MAX_PRIORITIES, ..small() });
    succeeds::<E>(&Plan { paced: true, ..small() });
    succeeds::<E>(&Plan { vcpus: 17, devices: 1, events: 2, ..small() });
}

fn survives_churn<E: Engine>() {
    // In such a short storm the churn may have had no CPU.
    let churned = |accounts: &Accounts| accounts.churned.probes > 0;
    let mut storms = (0..1000).map(|_| succeeds::<E>(&Plan { churn: true, ..small() }));
    let accounts = storms.find(churned).unwrap();
    assert_eq!(accounts.tally.injected, accounts.stormed + 8);
    succeeds::<E>(&Plan { churn: true, ..Plan::default() });
    let length = Length::Time(Duration::from_millis(200));
    succeeds::<E>(&Plan { churn: true, vcpus: 4, events: 100, priorities: 5, length, ..small() });
}

/// Fewer threads than devices, a look-up at each injection, and a device table with two levels.
fn many_devices<E: Engine>() {
    let plan = Plan {
        devices: 2000,
        events: 3,
        threads: Some(2),
        lookup: true,
        length: Length::Iterations(3),
        ..small()
    };
    assert_eq!(succeeds::<E>(&plan).stormed, 2000 * 3 * 3);
    succeeds::<E>(&Plan { churn: true, ..plan });
}

fn every_cell_of_a_sweep_balances<E: Engine>() {
    let length = Length::Time(Duration::from_millis(10));
    let plan = Plan { length, hot: Some(16), ..Plan::default() };
    let swept = Sweep { plan, max_lpis: 4096 }.run::<E>().unwrap();
    assert!(swept.balances(), "{swept:?}");
    let sizes: Vec<_> = swept.cells.iter().map(|cell| (cell.devices, cell.events)).collect();
    let expected =
        [(1, 1), (1, 16), (1, 256), (1, 4096), (16, 1), (16, 16), (16, 256), (256, 1), (256, 16)];
    assert_eq!(sizes[..9], expected);
    assert_eq!(sizes[9..], [(4096, 1)]);
    for measured in swept.cells.iter().flat_map(|cell| MODES.map(|mode| cell.of(mode))) {
        assert!(measured.injected > 0 && measured.delivered > 0);
        assert!(measured.mode.churn || measured.churn_operations == 0);
    }
    let reference = swept.reference().unwrap();
    assert_eq!((reference.devices, reference.events), (1, 16));
}

/// All operations of the driver go through the queue, and only through it.
fn operations_are_commands<E: Engine>() {
    let config = Config { device_bits: 4, event_bits: 4, lpis: 64, ..Config::with_vcpus(3) };
    let engine = ViaIts::<E>::new(&config, Arc::new(HostKick::new(3))).unwrap();
    let mut driver = engine.msi().unwrap();
    assert_eq!(engine.msi().err(), Some(Error::TooManyParticipants), "an ITS has one driver");
    let of = |kind| engine.its().stats().commands_of(kind);
    let (device, event, intid) = (DeviceId(3), EventId(5), Intid(8200));
    let state = |driver: &<ViaIts<E> as Engine>::Msi| {
        let mut state = None;
        driver.lpis_from(intid, &mut |lpi| {
            state = Some(lpi);
            ControlFlow::Break(())
        });
        state
    };
    assert_eq!(of(Kind::Mapc), 3);
    let low = LpiConfig { enabled: false, priority: Priority::new(0x40) };
    driver.map(device, event, intid, VcpuId(1), low).unwrap();
    driver.map(device, EventId(6), Intid(8201), VcpuId(1), low).unwrap();
    assert_eq!((of(Kind::Mapd), of(Kind::Mapti)), (1, 2));
    let mapped = state(&driver).unwrap();
    assert_eq!((mapped.target, mapped.config, mapped.pending), (VcpuId(1), low, false));
    assert_eq!(driver.map(device, event, intid, VcpuId(1), low), Err(Error::EventMapped));

    driver.retarget(device, event, VcpuId(2)).unwrap();
    driver.set_config(intid, LpiConfig::enabled(0xa0)).unwrap();
    driver.set_pending(intid, true).unwrap();
    let moved = state(&driver).unwrap();
    assert_eq!((moved.target, moved.config), (VcpuId(2), LpiConfig::enabled(0xa0)));
    assert!(moved.pending);
    driver.clear(device, event).unwrap();
    assert!(!state(&driver).unwrap().pending);
    assert_eq!(driver.move_all(VcpuId(2), VcpuId(0)), Ok(1));
    assert_eq!(driver.target_of(intid), Some(VcpuId(0)));
    for kind in [Kind::Movi, Kind::Inv, Kind::Int, Kind::Clear, Kind::Movall] {
        assert_eq!(of(kind), 1, "{}", kind.name());
    }

    let injector = engine.injector().unwrap();
    let route = driver.route(device, event).unwrap();
    assert_eq!(injector.inject_route(&route), Injected::Pending);
    assert_eq!(injector.inject(&driver.domain(), device, event), Injected::Coalesced);
    driver.unmap(device, event).unwrap();
    assert_eq!(of(Kind::Discard), 1);
    assert_eq!(injector.inject_route(&route), Injected::Unmapped);
    assert_eq!(driver.unmap(device, event), Err(Error::NotMapped));
    assert_eq!(driver.unmap_device(device), 1);
    assert_eq!((of(Kind::Mapd), driver.unmap_device(device)), (2, 0));
    assert_eq!(engine.its().stats().faults, []);

    assert_eq!(
        driver.map(DeviceId(16), event, intid, VcpuId(0), low),
        Err(Error::DeviceRange(DeviceId(16)))
    );
    assert_eq!(
        driver.map(device, EventId(16), intid, VcpuId(0), low),
        Err(Error::EventRange(EventId(16)))
    );
    assert_eq!(driver.map(device, event, intid, VcpuId(3), low), Err(Error::NoSuchVcpu(VcpuId(3))));
}

fn a_bound_is_an_error_and_passes<E: Engine>() {
    let config = Config { lpis: 64, max_lpis: 2, ..Config::with_vcpus(1) };
    let engine = ViaIts::<E>::new(&config, Arc::new(HostKick::new(1))).unwrap();
    let mut driver = engine.msi().unwrap();
    let mut map = |event| {
        let config = LpiConfig::enabled(0xa0);
        driver.map(DeviceId(0), EventId(event), Intid(8192 + event), VcpuId(0), config)
    };
    assert_eq!((map(0), map(1), map(2)), (Ok(()), Ok(()), Err(Error::TooManyLpis)));
    driver.unmap(DeviceId(0), EventId(0)).unwrap();
    driver.collect();
    let config = LpiConfig::enabled(0xa0);
    driver.map(DeviceId(0), EventId(2), Intid(8194), VcpuId(0), config).unwrap();
}

/// Drops one injection, but reports that it made the LPI pending.
#[derive(Clone)]
struct DropsOne;

impl Fault for DropsOne {
    fn strike(n: u64) -> Option<Injected> {
        (n == 9).then_some(Injected::Pending)
    }
}

fn an_msi_that_gets_lost_is_found<E: Engine>() {
    let plan = Plan {
        devices: 1,
        length: Length::Iterations(1),
        stall: Duration::from_millis(300),
        ..small()
    };
    let accounts = run::<Faulty<ViaIts<E>, DropsOne>>(&plan).unwrap();
    assert_eq!((accounts.lost, accounts.delivered), (1, 15));
    assert!(!accounts.balance());
}

/// An event that is still mapped after its DISCARD loses nothing: its injections have an effect.
fn a_discard_that_gets_lost_is_found<E: Engine>() {
    let plan = Plan { churn: true, length: Length::Iterations(1000), ..small() };
    // As in `storm.rs`: the churn may have had no CPU.
    let unmaps = |accounts: &Accounts| accounts.churned.probes >= 4;
    let accounts =
        (0..1000).map(|_| run::<Forgetful<ViaIts<E>>>(&plan).unwrap()).find(unmaps).unwrap();
    assert!(accounts.churned.effective > 0, "{:?}", accounts.churned);
    assert!(!accounts.balance());
}

macro_rules! on_each_engine {
    ($($test:ident),* $(,)?) => {
        mod lockfree {
            $(#[test] fn $test() { super::$test::<vgic_core::Vgic>(); })*
        }
        mod locked {
            $(#[test] fn $test() { super::$test::<vgic_core::locked::LockedVgic>(); })*
        }
    };
}

on_each_engine!(
    loses_nothing,
    survives_churn,
    many_devices,
    every_cell_of_a_sweep_balances,
    operations_are_commands,
    a_bound_is_an_error_and_passes,
    an_msi_that_gets_lost_is_found,
    a_discard_that_gets_lost_is_found,
);
