//! The memory that a guest can make its interrupt controller allocate, in bytes: no more than the
//! bound, for any mappings.
//!
//! This is one test in a process of its own, as it measures all of the process's memory.

#![allow(unsafe_code)] // an allocator that counts
#![allow(clippy::disallowed_types)] // a test's own
#![allow(dead_code)] // a driver that other tests use more of

type Engine = vgic_core::Vgic;

#[path = "its/guest.rs"]
mod guest;
#[path = "gicv3/world.rs"]
mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use guest::*;
use vgic_core::engine::{Config, Engine as _, Error, Injected, Kick};
use vgic_core::gic::{Gic, SetupError};
use vgic_core::ids::VcpuId;
use vgic_core::its::{Command, Fault, ItsConfig};
use world::{RAM, World, no_kick, rd};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is forwarded to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The bound on the memory of a default machine.
const BUDGET: usize = 64 << 20;

/// Returns the peak memory of this process in bytes, or 0 where it cannot be determined.
fn peak_rss() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok()).unwrap_or(0) << 10
}

fn machine(host: Arc<dyn Kick>) -> Guest {
    let mut setup = silent_setup(1, ItsConfig::at(GITS), Config::default());
    let ram = Guest::new(1).world.ram.clone();
    setup.set_memory(ram.clone()).unwrap();
    let gic: Gic<Engine> = setup.init(host).unwrap();
    let (its, cpus) = (gic.its(0).unwrap(), vec![gic.cpu(VcpuId(0)).unwrap()]);
    let log = Arc::default();
    let mut guest = Guest { world: World { cpus, gic, ram }, its, log, end: 0 };
    guest.start();
    guest.world.w32(CTLR, 0);
    // Eight pages of 64 KiB have room for all devices and collections.
    guest.world.w64(BASER0, VALID | DEVICES | 2 << 8 | 7);
    guest.world.w64(BASER1, VALID | COLLECTIONS | 2 << 8 | 7);
    guest.world.w32(CTLR, 1);
    guest
}

/// Gives commands in batches that fit into the queue. Stops when the ITS refuses many commands in
/// each of ten batches in a row.
fn give(guest: &mut Guest, commands: impl Iterator<Item = Command>) {
    let mut commands = commands.peekable();
    let refused = |guest: &Guest| guest.its.stats().faults.iter().map(|f| f.2).sum::<u64>();
    let mut rounds = 0;
    while commands.peek().is_some() && rounds < 10 {
        let before = refused(guest);
        for command in commands.by_ref().take(127) {
            guest.put(&command.encode());
        }
        guest.ring();
        guest.poll(guest.end);
        rounds = if refused(guest) - before >= 60 { rounds + 1 } else { 0 };
    }
}

fn mapd_all(device: u32) -> Command {
    Command::Mapd { device: guest::device(device), valid: true, size: 15, itt: itt(device) }
}

/// Returns the commands that map devices and events so far apart that each has nodes of its own.
fn sparse(devices: u32, events: u32, apart: u32) -> impl Iterator<Item = Command> {
    (0..devices).flat_map(move |n| {
        let device = n.reverse_bits() >> 16;
        let event = move |e: u32| mapti(device, e * apart, 8192 + (n * 7919 + e * 613) % 57_344, 0);
        std::iter::once(mapd_all(device)).chain((0..events).map(event))
    })
}

/// A host with a kick that lasts until it is told to return: the injector stays pinned.
struct Slow {
    armed: AtomicBool,
    reached: SyncSender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Kick for Slow {
    fn kick(&self, _: VcpuId) {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.reached.send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
    }
}

/// Maps and unmaps everything, far apart, while an injector is in the middle of its injection.
fn churn() {
    let (reached, has_reached) = sync_channel(1);
    let (proceed, go_on) = sync_channel(1);
    let host = Arc::new(Slow { armed: AtomicBool::new(false), reached, go_on: go_on.into() });
    let mut guest = machine(host.clone());
    give(&mut guest, std::iter::once(mapc(0, 0)));
    give(&mut guest, [mapd_all(1), mapti(1, 0, 8192, 0)].into_iter());
    let (port, injector) = (guest.its.port(), guest.world.gic.engine().injector().unwrap());
    std::thread::scope(|scope| {
        // Dropped if this panics, so that the kick returns.
        let proceed = proceed;
        guest.world.look();
        host.armed.store(true, Ordering::SeqCst);
        scope.spawn(move || {
            let id = vgic_core::ids::EventId(0);
            assert_eq!(port.inject(&injector, device(1), id), Injected::Pending);
        });
        has_reached.recv().unwrap();
        let mut waits = 0;
        for n in 0..60_000_u32 {
            let (device, intid) = ((n * 257) % 65_536, 8193 + (n * 613) % 57_343);
            for command in
                [mapd_all(device), mapti(device, n * 64 % 65_536, intid, 0), unmapd(device)]
            {
                guest.put(&command.encode());
            }
            guest.ring();
            let end = guest.end;
            waits = if guest.world.r64(CREADR) == end { 0 } else { waits + 1 };
            if waits > 20 {
                break;
            }
        }
        assert!(waits > 20, "the queue waits in the end");
        proceed.send(()).unwrap();
    });
}

#[test]
fn a_default_machine_costs_no_more_than_it_may() {
    let most = Config::default().max_bytes as usize;
    let base_rss = {
        drop(machine(no_kick()));
        peak_rss()
    };
    let commands = |name: &str, f: &dyn Fn(&mut Guest)| {
        let mut guest = machine(no_kick());
        let base = LIVE.load(Ordering::Relaxed);
        PEAK.store(base, Ordering::Relaxed);
        give(&mut guest, std::iter::once(mapc(0, 0)));
        f(&mut guest);
        let peak = PEAK.load(Ordering::Relaxed) - base;
        let usage = guest.world.gic.engine().usage();
        let refused = guest.its.stats().faults_of(Fault::TooManyBytes);
        println!(
            "{name:30} {:5.1} MiB at most, {usage:?}, {:?}",
            peak as f64 / 1048576.0,
            guest.its.stats().faults
        );
        assert!(peak <= most, "{name}: {peak} bytes");
        assert!(usage.bytes <= most, "{name}: {usage:?}");
        refused
    };
    let refused = commands("sparse devices", &|guest| give(guest, sparse(1 << 16, 1, 1)));
    assert!(refused > 0, "the bound is met");
    let refused = commands("sparse events", &|guest| give(guest, sparse(1 << 16, 16, 4096)));
    assert!(refused > 0, "the bound is met");
    commands("events of a few devices", &|guest| give(guest, sparse(16, 1024, 64)));
    commands("parked and back", &|guest| {
        give(guest, sparse(1 << 16, 16, 4096));
        give(guest, [unmapc(0), mapc(0, 0), unmapc(0)].into_iter());
    });
    commands("collections", &|guest| {
        give(guest, (0..=u16::MAX).map(|n| mapc(n, 0)));
        let event = |n: u32| mapti(n % 2, n / 2, 8192, n as u16);
        let devices = [mapd_all(0), mapd_all(1)].into_iter();
        give(guest, devices.chain((0..1 << 16).map(event)));
        give(guest, (0..20).map(unmapc));
    });
    commands("events without effect", &|guest| {
        let events =
            |d| (0..1 << 16).map(move |n| mapti(d, (n as u32).reverse_bits() >> 16, 8192, 9));
        (0..3).for_each(|d| give(guest, std::iter::once(mapd_all(d)).chain(events(d))));
    });
    let base = LIVE.load(Ordering::Relaxed);
    PEAK.store(base, Ordering::Relaxed);
    churn();
    let peak = PEAK.load(Ordering::Relaxed) - base;
    println!("{:30} {:5.1} MiB at most", "churn while one is pinned", peak as f64 / 1048576.0);
    // This includes the guest's memory.
    assert!(peak <= most + (8 << 20), "churn: {peak} bytes");
    let rss = peak_rss().saturating_sub(base_rss);
    println!("the process grew by {:.1} MiB", rss as f64 / 1048576.0);
    // AddressSanitizer's allocator keeps freed memory (`cargo xtask asan` sets the variable). The
    // allocated memory has been checked above.
    let kept = std::env::var_os("VGIC_KEEPS_FREED_MEMORY").is_some();
    assert!(kept || rss <= BUDGET, "{rss} bytes");
    let _ = (RAM, rd(0));
}

#[test]
fn a_bound_with_which_nothing_can_be_mapped_is_refused() {
    let least = Config::default().bytes_of_one();
    let bounds = Config { max_bytes: least - 1, ..Config::default() };
    let mut setup = silent_setup(1, ItsConfig::at(GITS), bounds.clone());
    setup.set_memory(Guest::new(1).world.ram.clone()).unwrap();
    let refused = setup.init::<Engine>(no_kick()).err();
    let needs = Error::Needs { field: "max_bytes", least };
    assert_eq!(refused, Some(SetupError::Engine(needs)));
    assert!(needs.to_string().contains(&least.to_string()));
}
