//! Machines with ITSs, and invalid setups.

use std::sync::Arc;

use vgic_core::engine::{Config, Engine as _, Error, Injected};
use vgic_core::gic::{Gic, Model, Setup, SetupError};
use vgic_core::ids::{DeviceId, EventId};
use vgic_core::its::ItsConfig;
use vgic_core::memory::GuestMemory;

use crate::Engine;
use crate::guest::*;
use crate::world::{GICD, RAM, World, no_kick, rd};

/// The address of a second ITS.
const SECOND: u64 = 0x0900_0000;

fn v3() -> Setup {
    let mut setup = Setup::new(40);
    setup.create(Model::V3).unwrap();
    setup
}

#[test]
fn where_it_cannot_be() {
    let mut setup = Setup::new(40);
    assert_eq!(setup.add_its(ItsConfig::at(GITS)), Err(SetupError::NotCreated));
    setup.create(Model::V2).unwrap();
    assert_eq!(setup.add_its(ItsConfig::at(GITS)), Err(SetupError::WrongModel));
    let mut setup = v3();
    let base = GITS + 0x1000;
    let error = SetupError::Misaligned { base, align: 0x1_0000 };
    assert_eq!(setup.add_its(ItsConfig::at(base)), Err(error));
    let last = (1 << 40) - 0x1_0000;
    assert_eq!(setup.add_its(ItsConfig::at(last)), Err(SetupError::OutOfRange(1 << 40)));
    let end = !0xffff;
    assert_eq!(setup.add_its(ItsConfig::at(end)), Err(SetupError::OutOfRange(end)));
    // The second frame does not fit, so the first one is not added either.
    setup.set_distributor(GICD).unwrap();
    let below = GICD - 0x1_0000;
    let error = SetupError::Overlap { base: GICD, other: GICD };
    assert_eq!(setup.add_its(ItsConfig::at(below)), Err(error));
    setup.add_redistributors(below - 0x1_0000, 1).unwrap();
}

#[test]
fn what_it_cannot_be() {
    let at = ItsConfig::at(GITS);
    for config in [
        ItsConfig { device_bits: 0, ..at },
        ItsConfig { device_bits: 33, ..at },
        ItsConfig { event_bits: 0, ..at },
        ItsConfig { event_bits: 33, ..at },
        ItsConfig { collection_bits: 0, ..at },
        ItsConfig { collection_bits: 17, ..at },
        ItsConfig { collection_bits: 2, hardware_collections: 5, ..at },
        ItsConfig { slice: 0, ..at },
        ItsConfig { most: 0, ..at },
    ] {
        assert!(matches!(v3().add_its(config), Err(SetupError::Value(_))), "{config:?}");
    }
    let log = Arc::new(Log::default());
    let init = |setup: &Setup| setup.init::<Engine>(no_kick()).map(drop);
    let mut incomplete = setup(1, at, Config::default(), &log);
    assert!(matches!(init(&incomplete), Err(SetupError::NotInitialised(_))), "no memory");
    incomplete.set_memory(Guest::new(1).world.ram.clone()).unwrap();
    assert_eq!(init(&incomplete), Ok(()));
    incomplete.set_bounds(Config { lpis: 0, ..Config::default() });
    assert!(matches!(init(&incomplete), Err(SetupError::NotInitialised(_))), "no LPIs");
    incomplete.set_bounds(Config { device_bits: 15, ..Config::default() });
    assert!(matches!(init(&incomplete), Err(SetupError::Value(_))));
    incomplete.set_bounds(Config { event_bits: 15, ..Config::default() });
    assert!(matches!(init(&incomplete), Err(SetupError::Value(_))));
}

#[test]
fn routes_that_cannot_be() {
    let config = ItsConfig { device_bits: 4, event_bits: 3, ..ItsConfig::at(GITS) };
    let guest = Guest::with(1, config, Config::default());
    let route = |device, event| guest.its.route(DeviceId(device), EventId(event)).map(drop);
    assert_eq!(route(15, 7), Ok(()));
    assert_eq!(route(16, 7), Err(Error::DeviceRange(DeviceId(16))));
    assert_eq!(route(15, 8), Err(Error::EventRange(EventId(8))));
}

/// Two ITSs share the LPIs of the machine. Each has its own DeviceIDs, doorbell and collections.
#[test]
fn several() {
    let log = Arc::new(Log::default());
    let mut setup = setup(2, ItsConfig::at(GITS), Config::default(), &log);
    setup.add_its(ItsConfig::at(SECOND)).unwrap();
    let mut world = World::init(&setup, 2);
    assert!(world.gic.its(2).is_none());
    world.start();
    let gic: Gic<Engine> = world.gic.clone();
    let mut guests = Vec::new();
    for (n, base) in [GITS, SECOND].into_iter().enumerate() {
        let offset = 0x8000 * n as u64;
        world.w64(base + 0x80, VALID | (QUEUE + 0x2_0000 * n as u64));
        world.w64(base + 0x100, VALID | (DEVICES + offset));
        world.w64(base + 0x108, VALID | (COLLECTIONS + offset));
        world.w32(base, 1);
        guests.push(gic.its(n).unwrap());
    }
    world.ram.write(RAM, &[0xa1; 0x1_0000]).unwrap();
    for n in 0..2 {
        world.w64(rd(n) + 0x70, RAM | 15);
        world.w64(rd(n) + 0x78, (RAM + 0x1_0000) | 1 << 62);
        world.w32(rd(n), 1);
    }
    // Both ITSs map the same device, event and collection: one LPI at vCPU 0, the other at vCPU 1.
    for n in 0..2u32 {
        let queue = QUEUE + 0x2_0000 * u64::from(n);
        let commands = [mapc(0, n.into()), mapd(1, 3), mapti(1, 0, 8192 + n, 0)];
        for (i, command) in commands.iter().enumerate() {
            world.ram.write(queue + 32 * i as u64, &command.encode()).unwrap();
        }
        world.w64([GITS, SECOND][n as usize] + 0x88, 96);
    }
    let (device, event) = (DeviceId(1), EventId(0));
    let injector = gic.engine().injector().unwrap();
    assert_eq!(guests[0].port().inject(&injector, device, event), Injected::Pending);
    assert_eq!([world.take(0), world.take(1)], [vec![8192], vec![]]);
    gic.send_msi(&injector, device, SECOND + 0x1_0040, 0).unwrap();
    assert_eq!([world.take(0), world.take(1)], [vec![], vec![8193]]);
    // When one ITS is disabled, the other one continues to work.
    world.w32(GITS, 0);
    assert_eq!(guests[0].port().inject(&injector, device, event), Injected::Unmapped);
    assert_eq!(guests[1].port().inject(&injector, device, event), Injected::Pending);
    assert_eq!(world.take(1), [8193]);
}
