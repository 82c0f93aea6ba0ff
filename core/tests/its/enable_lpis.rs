//! GICR_CTLR.EnableLPIs, cleared and set: then exactly those LPIs are pending that the pending
//! table lists (IHI 0069, 12.11, 5.1.2).

#![allow(clippy::disallowed_types)] // a test's host, not the engine

use std::sync::{Arc, Mutex};

use vgic_core::engine::{Config, Engine as _, Injected, Kick};
use vgic_core::gic::Gic;
use vgic_core::ids::{DeviceId, EventId, VcpuId};
use vgic_core::its::ItsConfig;
use vgic_core::memory::GuestMemory;

use crate::Engine;
use crate::guest::*;
use crate::world::{RAM, World, rd};

const RWP: u32 = 1 << 3;
const PENDBASER: u64 = 0x78;
const INVALLR: u64 = 0xb0;
const SYNCR: u64 = 0xc0;
const PTZ: u64 = 1 << 62;
/// vCPU 0's pending table, and a table that is all zero.
const TABLE: u64 = RAM + 0x1_0000;
const ZEROED: u64 = RAM + 0x30_0000;

/// Clears EnableLPIs, and polls RWP as software does. Returns the number of polls.
fn disable(world: &mut World, vcpu: usize) -> u32 {
    world.w32(rd(vcpu), 0);
    let looks = (0..10_000).find(|_| world.r32(rd(vcpu)) & RWP == 0);
    looks.expect("it takes effect")
}

/// Sets GICR_PENDBASER and then EnableLPIs.
fn enable(world: &mut World, vcpu: usize, pendbaser: u64) {
    world.w64(rd(vcpu) + PENDBASER, pendbaser);
    world.w32(rd(vcpu), 1);
    assert_eq!(world.r32(rd(vcpu)) & 1, 1);
}

/// A machine in which collection 0 is at vCPU 0 and device 1 has 8,192 events.
fn guest(bounds: Config) -> Guest {
    let mut guest = Guest::with(2, ItsConfig::at(GITS), bounds);
    (0..2).for_each(|n| guest.ok(mapc(n as u16, n)));
    guest.ok(mapd(1, 13));
    guest
}

#[test]
fn another_table_says_what_is_pending() {
    for pendbaser in [ZEROED, TABLE | PTZ] {
        let mut guest = guest(Config::default());
        (0..3).for_each(|n| guest.ok(mapti(1, n, 8192 + n, 0)));
        // One LPI is in a list register, not acknowledged; the other is queued in the vCPU's
        // mailbox.
        assert_eq!(guest.msi(1, 0), Injected::Pending);
        guest.world.cpus[0].enter();
        assert_eq!(guest.msi(1, 1), Injected::Pending);
        disable(&mut guest.world, 0);
        enable(&mut guest.world, 0, pendbaser);
        assert_eq!(guest.take(0), [], "{pendbaser:#x}");
        // LPIs that come from now on are kept.
        assert_eq!(guest.msi(1, 1), Injected::Pending);
        assert_eq!(guest.take(0), [8193]);
        // So are the LPIs in the table.
        disable(&mut guest.world, 0);
        guest.world.ram.write(TABLE + 1024, &[0b101]).unwrap();
        enable(&mut guest.world, 0, TABLE);
        assert_eq!(guest.take(0), [8192, 8194]);
    }
}

#[test]
fn msis_have_no_effect_while_lpis_are_disabled() {
    let mut guest = guest(Config::default());
    guest.ok(mapti(1, 0, 8192, 0));
    guest.ok(mapti(1, 1, 8193, 1));
    disable(&mut guest.world, 0);
    assert_eq!(guest.msi(1, 0), Injected::Unmapped);
    guest.ok(int(1, 0));
    // An LPI that is pending elsewhere, and is moved to vCPU 0.
    guest.world.cpus[1].exit();
    assert_eq!(guest.msi(1, 1), Injected::Pending);
    guest.ok(movi(1, 1, 0));
    guest.world.look();
    enable(&mut guest.world, 0, TABLE | PTZ);
    assert_eq!(guest.take(0), []);
    assert_eq!(guest.take(1), []);
    for event in 0..2 {
        assert_eq!(guest.msi(1, event), Injected::Pending);
        assert_eq!(guest.take(0), [8192 + u64::from(event)]);
    }
}

/// The pending LPIs in the table of a big machine are read in pieces, each of bounded work. None is
/// lost if the tables are saved before the end.
#[test]
fn a_table_is_read_in_pieces() {
    const LPIS: u64 = 57_344;
    let mut guest = guest(Config::default());
    disable(&mut guest.world, 0);
    let ones = vec![0xff; LPIS as usize / 8];
    guest.world.ram.write(TABLE + 1024, &ones).unwrap();
    enable(&mut guest.world, 0, TABLE);
    let exist = |guest: &Guest| guest.world.gic.engine().usage().lpis;
    let mut before = exist(&guest);
    assert!(before > 0, "the write itself does a piece");
    assert!(guest.world.gic.save_pending_tables().is_ok());
    let mut saved = vec![0; ones.len()];
    guest.world.ram.read(TABLE + 1024, &mut saved).unwrap();
    assert!(saved == ones, "what has not been read is pending, too");
    // While the table is read, MSIs are kept, and other accesses succeed.
    let mut looks = 0;
    while before < LPIS as usize {
        guest.world.r32(rd(0));
        let now = exist(&guest);
        assert!(now > before && now - before <= 512, "{} in one access", now - before);
        (before, looks) = (now, looks + 1);
    }
    assert!(looks > 50);
    // Disabling works in pieces, too.
    guest.world.w32(rd(0), 0);
    assert_eq!(guest.world.r32(rd(0)) & (RWP | 1), RWP, "not done yet");
    let looks = (0..10_000).find(|_| guest.world.r32(rd(0)) & RWP == 0).unwrap();
    assert!(looks > 5);
    assert_eq!(guest.lpis(), 0, "nothing is mapped but what an ITS maps");
}

#[test]
fn toggled_in_the_midst_of_it() {
    let mut guest = guest(Config::default());
    (0..2).for_each(|n| guest.ok(mapti(1, n, 65_000 + n, 0)));
    disable(&mut guest.world, 0);
    let ones = vec![0xff; 57_344 / 8];
    guest.world.ram.write(TABLE + 1024, &ones).unwrap();
    enable(&mut guest.world, 0, TABLE);
    let mapped = guest.lpis();
    assert!((1..57_344).contains(&mapped), "{mapped}");
    // LPIs are disabled and enabled at once, without a wait for RWP, and with an MSI in between.
    guest.world.w32(rd(0), 0);
    assert_eq!(guest.msi(1, 0), Injected::Unmapped);
    guest.world.w64(rd(0) + PENDBASER, ZEROED);
    guest.world.w32(rd(0), 1);
    for _ in 0..100 {
        guest.world.r32(rd(0));
    }
    assert_eq!(guest.world.r32(rd(0)) & (RWP | 1), 1);
    assert_eq!(guest.msi(1, 1), Injected::Pending);
    assert_eq!(guest.take(0), [65_001]);
    assert_eq!(guest.lpis(), 2);
}

/// A restarted guest gets rid of the LPIs that were mapped for a pending table.
#[test]
fn the_bound_of_lpis_is_not_used_up_for_good() {
    let mut guest = guest(Config { max_lpis: 8, ..Config::default() });
    disable(&mut guest.world, 0);
    guest.world.ram.write(TABLE + 1024, &[0xff; 1024]).unwrap();
    enable(&mut guest.world, 0, TABLE);
    assert_eq!(guest.lpis(), 8);
    assert_eq!(guest.world.gic.dump().refused, 1, "it ends at the first that it cannot have");
    disable(&mut guest.world, 0);
    guest.world.look();
    (0..8).for_each(|n| guest.ok(mapti(1, n, 8192 + n, 0)));
}

/// LPIs that have been taken do not use up the bound either.
#[test]
fn idle_ones_give_way() {
    let mut guest = guest(Config { max_lpis: 8, ..Config::default() });
    disable(&mut guest.world, 0);
    guest.world.ram.write(TABLE + 1024, &[0xff]).unwrap();
    enable(&mut guest.world, 0, TABLE);
    assert_eq!(guest.take(0), (8192..8200).collect::<Vec<_>>());
    assert_eq!(guest.lpis(), 8);
    (0..8).for_each(|n| guest.ok(mapti(1, n, 8200 + n, 0)));
    assert_eq!(guest.lpis(), 8);
}

#[test]
fn configurations_are_read_in_pieces() {
    let mut guest = guest(Config::default());
    for n in 0..4096 {
        guest.ok(mapti(1, n, 8192 + n, 0));
    }
    guest.world.w64(rd(0) + INVALLR, 0);
    assert_eq!(guest.world.r32(rd(0) + SYNCR), 1, "busy");
    let looks = (0..1000).find(|_| guest.world.r32(rd(0) + SYNCR) == 0);
    assert!((1..100).contains(&looks.unwrap()));
    guest.world.ram.write(RAM, &[0; 4096]).unwrap();
    guest.world.w64(rd(0) + INVALLR, 0);
    while guest.world.r32(rd(0) + SYNCR) == 1 {}
    assert_eq!(guest.msi(1, 4095), Injected::Pending);
    assert_eq!(guest.take(0), [], "disabled");
}

type Others = Box<dyn FnOnce() + Send>;

/// A host on which other threads run in the middle of a kick. The number counts the kicks that come
/// before that one.
#[derive(Default)]
struct Meanwhile(Mutex<Option<(u32, Others)>>);

impl Meanwhile {
    fn due(&self) -> Option<Others> {
        let mut others = self.0.lock().unwrap();
        match &mut *others {
            Some((0, _)) => others.take().map(|(_, others)| others),
            Some((kicks, _)) => {
                *kicks -= 1;
                None
            }
            None => None,
        }
    }
}

impl Kick for Meanwhile {
    fn kick(&self, _: VcpuId) {
        if let Some(others) = self.due() {
            std::thread::spawn(others).join().unwrap();
        }
    }
}

/// LPIs are being disabled at vCPU 0. At the same time, another vCPU moves one of them to vCPU 1,
/// and then its device sends an MSI, which belongs to vCPU 1.
#[test]
fn what_is_moved_away_meanwhile_is_not_cleared() {
    let mut moved = 0;
    for kicks in 0..3 {
        let (host, log) = (Arc::new(Meanwhile::default()), Arc::new(Log::default()));
        let mut setup = setup(2, ItsConfig::at(GITS), Config::default(), &log);
        let ram = Guest::new(1).world.ram.clone();
        setup.set_memory(ram.clone()).unwrap();
        let gic: Gic<Engine> = setup.init(host.clone()).unwrap();
        let (its, cpu) = (gic.its(0).unwrap(), |n| gic.cpu(VcpuId(n)).unwrap());
        let mut guest =
            Guest { world: World { cpus: vec![cpu(0), cpu(1)], gic, ram }, its, log, end: 0 };
        guest.start();
        (0..2).for_each(|n| guest.ok(mapc(n as u16, n)));
        guest.ok(mapd(1, 2));
        (0..2).for_each(|n| guest.ok(mapti(1, n, 8192 + n, 0)));
        // The first LPI is in a list register: withdrawing it takes a kick.
        assert_eq!(guest.msi(1, 0), Injected::Pending);
        guest.world.cpus[0].enter();
        guest.world.cpus[0].exit();
        guest.put(&movi(1, 1, 1).encode());
        let (end, port) = (guest.end, guest.its.port());
        let (bus, injector) = (guest.world.gic.bus().unwrap(), guest.world.gic.engine().injector());
        let (injector, done) = (injector.unwrap(), Arc::new(Mutex::new(false)));
        let others = {
            let done = done.clone();
            move || {
                bus.write(VcpuId(1), CWRITER, &end.to_le_bytes()).unwrap();
                let sent = port.inject(&injector, DeviceId(1), EventId(1));
                *done.lock().unwrap() = sent == Injected::Pending;
            }
        };
        *host.0.lock().unwrap() = Some((kicks, Box::new(others)));
        disable(&mut guest.world, 0);
        *host.0.lock().unwrap() = None;
        if *done.lock().unwrap() {
            assert_eq!(guest.take(1), [8193], "after {kicks} kicks");
            moved += 1;
        }
    }
    assert!(moved > 0);
}
