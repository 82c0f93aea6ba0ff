//! The command queue.

#![allow(clippy::disallowed_types)] // a test's host, not the engine

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vgic_core::engine::{Config, Injected, Kick};
use vgic_core::gic::Gic;
use vgic_core::ids::VcpuId;
use vgic_core::its::{Fault, ItsConfig};
use vgic_core::memory::GuestMemory;

use crate::Engine;
use crate::guest::*;
use crate::world::{RAM, World};

#[test]
fn wraps_around() {
    let mut guest = Guest::new(1);
    guest.ok(mapd(1, 8));
    for n in 0..300 {
        guest.ok(mapti(1, n % 256, 8192 + n % 256, 0));
        guest.ok(discard(1, n % 256));
    }
    // Many commands at once, across the end of the queue.
    for n in 0..100 {
        guest.put(&mapti(1, n, 8192 + n, 0).encode());
    }
    guest.ring();
    guest.poll(guest.end);
    assert_eq!(guest.lpis(), 100);
}

#[test]
fn wrong_commands_change_nothing_and_stop_nothing() {
    let mut guest = Guest::new(1);
    guest.ok(mapd(1, 3));
    for n in 0..8 {
        guest.put(&mapti(1, n, 8192 + n, 0).encode());
        guest.put(&mapti(2, n, 8192 + n, 0).encode());
        guest.put(&[0xee; 32]);
    }
    guest.ring();
    assert_eq!(guest.lpis(), 8);
    assert_eq!(guest.its.stats().faults_of(Fault::DeviceUnmapped), 8);
}

#[test]
fn the_queues_end_can_be_anywhere() {
    let mut guest = Guest::new(1);
    let at = guest.world.r64(CREADR);
    // With CWRITER beyond the end, the ITS does nothing.
    guest.world.w64(CWRITER, QUEUE_SIZE);
    assert_eq!(guest.world.r64(CREADR), at);
    guest.world.w64(CWRITER, u64::MAX);
    assert_eq!(guest.world.r64(CREADR), at);
    assert_eq!(guest.world.r64(CWRITER), 0xf_ffe0);
    // With CWRITER one command behind CREADR, the ITS performs the whole queue, including the old
    // commands in it.
    guest.world.w64(CWRITER, at - 32);
    assert_eq!(guest.world.r64(CREADR), at - 32);
    guest.end = at - 32;
    guest.ok(mapd(1, 3));
}

#[test]
fn t26_a_queue_that_is_not_there() {
    let mut guest = Guest::new(1);
    guest.world.w32(CTLR, 0);
    guest.world.w64(CBASER, VALID | 0xf_ffff_ffff_0000 | 0xff);
    guest.world.w32(CTLR, 1);
    guest.world.w64(CWRITER, 0xf_ffe0);
    guest.poll(0xf_ffe0);
    assert_eq!(guest.its.stats().faults_of(Fault::QueueMemory), 0x7fff);
    // A queue that ends in a hole.
    guest.world.w32(CTLR, 0);
    guest.world.w64(CBASER, VALID | (RAM + 0x3f_0000) | 0x1f);
    guest.world.ram.write(RAM + 0x3f_0000, &[0; 0x1_0000]).unwrap();
    guest.world.w32(CTLR, 1);
    guest.world.w64(CWRITER, 0x1_ffe0);
    guest.poll(0x1_ffe0);
    assert_eq!(guest.its.stats().faults_of(Fault::UnknownCommand), 0x800);
}

#[test]
fn stalled_until_it_is_retried() {
    let config = ItsConfig { stall: true, ..ItsConfig::at(GITS) };
    let mut guest = Guest::with(1, config, Config::default());
    guest.ok(mapc(0, 0));
    let at = guest.end;
    guest.put(&mapti(1, 0, 8192, 0).encode());
    guest.put(&mapti(1, 1, 8193, 0).encode());
    guest.ring();
    assert_eq!(guest.world.r64(CREADR), at | 1, "stalled at the first one");
    guest.ring();
    assert_eq!(guest.world.r64(CREADR), at | 1);
    // The guest corrects the command.
    guest.world.ram.write(QUEUE + at, &mapd(1, 3).encode()).unwrap();
    let end = guest.end;
    guest.world.w64(CWRITER, end | 1);
    assert_eq!(guest.world.r64(CREADR), end);
    assert_eq!(guest.world.r64(CWRITER), end, "Retry reads as 0");
    guest.ok(int(1, 1));
    assert_eq!(guest.take(0), [8193]);
}

#[test]
fn not_enabled_commands_wait() {
    let mut guest = Guest::new(1);
    guest.world.w32(CTLR, 0);
    let at = guest.end;
    guest.put(&mapd(1, 3).encode());
    guest.put(&mapti(1, 0, 8192, 0).encode());
    guest.ring();
    assert_eq!(guest.world.r64(CREADR), at);
    assert_eq!(guest.world.r32(CTLR), 1 << 31);
    guest.world.w32(CTLR, 1);
    assert_eq!(guest.world.r64(CREADR), guest.end);
    assert_eq!(guest.msi(1, 0), Injected::Pending);
}

#[test]
fn a_visit_is_bounded_and_reading_creadr_goes_on() {
    // A MAPTI costs 14 units.
    let config = ItsConfig { slice: 4 * 14, most: 10 * 14, ..ItsConfig::at(GITS) };
    let mut guest = Guest::with(1, config, Config::default());
    guest.ok(mapc(0, 0));
    guest.ok(mapd(1, 8));
    let start = guest.end;
    for n in 0..100 {
        guest.put(&mapti(1, n, 8192 + n, 0).encode());
    }
    guest.ring();
    assert_eq!(guest.lpis(), 12, "three slices");
    let seen: Vec<u64> = (0..8).map(|_| (guest.world.r64(CREADR) - start) / 32).collect();
    assert_eq!(seen, [24, 36, 48, 60, 72, 84, 96, 100]);
    assert_eq!(guest.world.r64(CREADR), guest.end);
}

/// A host with a worker that performs the commands before the vCPU has returned.
struct Eager(std::sync::Mutex<Option<vgic_core::its::Its<Engine>>>);

impl Kick for Eager {
    fn kick(&self, _: VcpuId) {}

    fn commands_left(&self, _: usize) -> bool {
        let its = self.0.lock().unwrap().clone().unwrap();
        std::thread::spawn(move || its.work()).join().unwrap();
        true
    }
}

#[test]
fn a_host_that_is_quick_finds_the_turn_free() {
    let host = Arc::new(Eager(None.into()));
    let config = ItsConfig { slice: 8, ..ItsConfig::at(GITS) };
    let mut guest = with_host(config, host.clone());
    *host.0.lock().unwrap() = Some(guest.its.clone());
    for n in 0..20 {
        guest.put(&mapd(n, 3).encode());
    }
    guest.ring();
    assert_eq!(guest.its.stats().commands_of(vgic_core::its::Kind::Mapd), 20);
    // Breaks the cycle of references between the host and the controller.
    *host.0.lock().unwrap() = None;
}

/// A host that performs remaining commands itself.
struct Worker(AtomicUsize);

impl Kick for Worker {
    fn kick(&self, _: VcpuId) {}

    fn commands_left(&self, its: usize) -> bool {
        assert_eq!(its, 0);
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// A machine on a given host, with its ITS enabled.
fn with_host(config: ItsConfig, host: Arc<dyn Kick>) -> Guest {
    let log = Arc::new(Log::default());
    let mut setup = setup(1, config, Config::default(), &log);
    let ram = Guest::new(1).world.ram.clone();
    setup.set_memory(ram.clone()).unwrap();
    let gic: Gic<Engine> = setup.init(host).unwrap();
    let its = gic.its(0).unwrap();
    let mut world = World { cpus: vec![gic.cpu(VcpuId(0)).unwrap()], gic, ram };
    world.w64(CBASER, VALID | QUEUE);
    world.w64(BASER0, VALID | DEVICES);
    world.w64(BASER1, VALID | COLLECTIONS);
    world.w32(CTLR, 1);
    Guest { world, its, log, end: 0 }
}

#[test]
fn the_host_may_go_on() {
    let host = Arc::new(Worker(AtomicUsize::new(0)));
    // A MAPD costs 3 units.
    let config = ItsConfig { slice: 24, ..ItsConfig::at(GITS) };
    let mut guest = with_host(config, host.clone());
    for n in 0..20 {
        guest.put(&mapd(n, 3).encode());
    }
    guest.ring();
    let done = |guest: &Guest| guest.its.stats().commands_of(vgic_core::its::Kind::Mapd);
    assert_eq!((done(&guest), host.0.load(Ordering::Relaxed)), (8, 1));
    guest.its.work();
    assert_eq!((done(&guest), host.0.load(Ordering::Relaxed)), (16, 2));
    guest.its.work();
    assert_eq!((done(&guest), host.0.load(Ordering::Relaxed)), (20, 2));
    assert_eq!(guest.world.r64(CREADR), 20 * 32);
}
