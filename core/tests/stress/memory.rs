//! The memory that mappings need while they come and go, and the memory that is left of a VM.

#![allow(unsafe_code)] // an allocator that counts

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread;

use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::*;
use vgic_core::ids::*;

use crate::world::*;

/// Heap bytes that counting threads have allocated, minus those that they have freed.
static LIVE: AtomicI64 = AtomicI64::new(0);

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

impl Counting {
    fn count(bytes: i64) {
        if COUNTS.get() {
            LIVE.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call is forwarded to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size() as i64);
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        Self::count(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `f` with the counting of this thread's allocations on or off.
fn counting<T>(counts: bool, f: impl FnOnce() -> T) -> T {
    let before = COUNTS.replace(counts);
    let result = f();
    COUNTS.set(before);
    result
}

/// The largest number of LPIs, of devices and of events.
const MAX: u32 = 256;

/// Trees of three to four levels, so that mappings far apart share few nodes.
fn sparse() -> Config {
    Config {
        lpis: 1 << 22,
        max_lpis: MAX,
        device_bits: 20,
        event_bits: 18,
        max_devices: MAX,
        max_events: MAX,
        max_garbage: 4 * MAX,
        ..config(1)
    }
}

/// Checks the peak usage against the bounds that follow from [`sparse`].
///
/// A mapping has an LPI, a block of pending bits and a device. It has nodes of its own in the trees
/// of LPIs (3), of blocks (2), of devices (3) and of the device's events (2). Objects that wait for
/// a grace period count as existing, except for nodes and blocks. These become garbage when their
/// LPI is retired or freed: they can wait while as many new LPIs come and go, and the blocks' nodes
/// can wait for that once more.
fn check(most: Usage) {
    const NODE: usize = 640;
    const OBJECTS: usize = 1 + 1 + 1 + 3 + 2 + 3 + 2;
    const BYTES: usize = 64 + (16 * 128 + 128) + (2 * NODE) + 10 * NODE;
    let (objects, bytes) = (MAX as usize * 3 * OBJECTS, MAX as usize * 3 * BYTES);
    println!("at most {most:?}; the bounds are {objects} objects, {bytes} bytes");
    assert!(most.lpis <= MAX as usize, "{most:?}");
    assert!(most.garbage <= objects && most.bytes <= bytes, "{most:?}");
}

/// Returns a mapping far away from others: device, event, INTID.
fn far(rng: &mut Rng) -> (DeviceId, EventId, Intid) {
    let (device, event, intid) = (rng.below(200), rng.below(60), rng.below(800));
    (DeviceId(device * 5000), EventId(event * 4099), lpi(intid * 5000))
}

/// Records the maximum of each value.
fn record(most: &mut Usage, now: Usage) {
    most.lpis = most.lpis.max(now.lpis);
    most.garbage = most.garbage.max(now.garbage);
    most.bytes = most.bytes.max(now.bytes);
}

/// `times` times, makes the mapping that `next` returns and unmaps the oldest one. Returns the peak
/// usage.
fn churn<E: Engine>(
    vgic: &E,
    msi: &mut E::Msi,
    times: u32,
    mut next: impl FnMut(&mut E::Msi) -> (DeviceId, EventId, Intid),
) -> Usage {
    let (mut mapped, mut most) = (VecDeque::new(), Usage::default());
    for _ in 0..times {
        let (device, event, intid) = next(msi);
        let mut map = || msi.map(device, event, intid, VcpuId(0), LpiConfig::enabled(0xa0));
        let mut result = map();
        record(&mut most, vgic.usage());
        if let Err(Error::TooManyLpis | Error::TooManyDevices | Error::TooMuchGarbage) = result {
            // The bounds hold. Retired objects are freed as soon as no thread can reach them.
            thread::yield_now();
            result = map();
        }
        match result {
            Ok(()) => mapped.push_back((device, event)),
            Err(
                Error::TooManyLpis
                | Error::TooManyDevices
                | Error::TooMuchGarbage
                | Error::EventMapped,
            ) => {}
            Err(error) => panic!("{error}"),
        }
        if (mapped.len() > 32 || result.is_err())
            && let Some((device, event)) = mapped.pop_front()
        {
            msi.unmap(device, event).unwrap();
            record(&mut most, vgic.usage());
        }
    }
    for (device, event) in mapped {
        msi.unmap(device, event).unwrap();
    }
    most
}

/// A host with a kick that can stall, like a thread that is preempted while it injects.
struct Stalling {
    stall: AtomicBool,
    stalled: AtomicBool,
}

impl Kick for Stalling {
    fn kick(&self, _: VcpuId) {
        if self.stall.load(Ordering::Acquire) {
            self.stalled.store(true, Ordering::Release);
            while self.stall.load(Ordering::Acquire) {
                thread::yield_now();
            }
        }
    }
}

/// Returns the peak usage of [`churn`] while an injector that holds LPI 3 is stalled.
fn churn_while_pinned<E: Build>(
    times: u32,
    mut next: impl FnMut() -> (DeviceId, EventId, Intid),
) -> Usage {
    let host = Arc::new(Stalling { stall: true.into(), stalled: false.into() });
    let vgic = E::build(&sparse(), host.clone());
    let (injector, mut msi) = (vgic.injector().unwrap(), vgic.msi().unwrap());
    let mut vcpu = vgic.vcpu(VcpuId(0)).unwrap();
    vcpu.open();
    let domain = msi.domain();
    map::<E>(&mut msi, 3, 0, 0xa0);
    let stalled = thread::spawn(move || injector.inject(&domain, DEV, EventId(3)));
    while !host.stalled.load(Ordering::Acquire) {
        thread::yield_now();
    }
    let most = churn(&vgic, &mut msi, scaled(times), |_| next());
    host.stall.store(false, Ordering::Release);
    assert_eq!(stalled.join().unwrap(), Injected::Pending);
    drop(vcpu);
    msi.unmap(DEV, EventId(3)).unwrap();
    nothing_left(&vgic, &mut msi);
    most
}

/// A VM that ends with LPIs pending, queued and active, while a thread still injects.
fn short_life<E: Build>(rng: &mut Rng) {
    const LPIS: u32 = 24;
    let host = Host::new(2, LPIS, Rules::default());
    let vgic = E::build(&config(2), host.clone());
    let mut msi = vgic.msi().unwrap();
    let mut vcpus = [0, 1].map(|v| vgic.vcpu(VcpuId(v)).unwrap());
    (0..LPIS).for_each(|n| map::<E>(&mut msi, n, n % 2, (n % 4 * 0x40) as u8));
    let (injector, domain) = (vgic.injector().unwrap(), msi.domain());
    let route = msi.route(DEV, EventId(5)).unwrap();
    let shots = rng.below(100);
    // Does not count the thread itself, which std allocates.
    let injections = counting(false, || {
        thread::spawn(move || {
            let work = move || {
                for n in 0..shots {
                    let _ = injector.inject(&domain, DEV, EventId(n % LPIS));
                    let _ = injector.inject_route(&route);
                }
            };
            counting(true, work);
        })
    });
    let mut cpu = CpuInterface::new(2).unwrap();
    cpu.set_pmr(0xff);
    cpu.set_igrpen1(1);
    vcpus[0].open();
    for _ in 0..2 {
        rng.dawdle();
        vcpus[0].flush(&mut cpu);
        let _ = cpu.iar1();
        if rng.one_in(2) {
            vcpus[0].fold(&mut cpu);
        }
    }
    let _ = msi.move_all(VcpuId(0), VcpuId(1));
    let _ = msi.unmap(DEV, EventId(rng.below(LPIS)));
    let kept = rng.one_in(2).then(|| vgic.clone());
    let [a, b] = vcpus;
    match rng.below(4) {
        0 => drop((msi, a, b, vgic)),
        1 => drop((a, b, msi, vgic)),
        2 => drop((vgic, a, msi, b)),
        _ => drop((b, vgic, msi, a)),
    }
    counting(false, || injections.join().unwrap());
    if let Some(vgic) = kept {
        let mut msi = vgic.msi().unwrap();
        nothing_left(&vgic, &mut msi);
    }
}

on_every_engine! {
    fn t05_t14_stress_churn_is_bounded<E>() {
        let host = Host::new(1, 64, Rules::default());
        let mut world = World::<E>::new(&sparse(), 4, &host);
        // Both handles map the same INTIDs.
        let mut msis = [0, 1].map(|_| world.vgic.msi().unwrap());
        let mut storms = [0, 1].map(|seed| {
            let mut storm = world.storm(0, seed);
            storm.domain = msis[seed as usize].domain();
            storm
        });
        let vgic = &world.vgic;
        let running = &AtomicUsize::new(msis.len());
        let mut most = [Usage::default(); 2];
        let controls = msis.iter_mut().zip(&mut most).zip(0..).map(|((msi, most), seed)| -> Work<'_> {
            Box::new(move |_| {
                let mut rng = Rng::new(seed);
                *most = churn(vgic, msi, scaled(10_000), |msi| {
                    if rng.one_in(16) {
                        msi.collect();
                    }
                    far(&mut rng)
                });
                running.fetch_sub(1, Ordering::Relaxed);
            })
        });
        let injectors = storms.iter_mut().map(|storm| -> Work<'_> {
            Box::new(|stage| {
                let Storm { injector, domain, rng, .. } = storm;
                while stage.goes_on() && running.load(Ordering::Relaxed) > 0 {
                    let (device, event, intid) = far(rng);
                    let _ = host.book(intid).send(|| injector.inject(domain, device, event));
                }
            })
        });
        together(&mut world.guests, injectors.chain(controls).collect());
        most.into_iter().for_each(check);
        drop((storms, msis));
        world.wind_up();
    }

    fn t14_stress_garbage_is_bounded_while_someone_is_pinned<E>() {
        let mut rng = Rng::new(0);
        let most = churn_while_pinned::<E>(20_000, || far(&mut rng));
        check(most);
    }

    fn t14_stress_event_tables_are_bounded_while_someone_is_pinned<E>() {
        let mut n = 0;
        let most = churn_while_pinned::<E>(20_000, || {
            n += 1;
            (DEV, EventId(n % 60 * 4099 + 64), lpi(3))
        });
        check(most);
    }

    fn t17_stress_vms_come_and_go<E>() {
        let threads: Vec<_> = (0..3)
            .map(|seed| {
                thread::spawn(move || {
                    let mut rng = Rng::new(seed);
                    counting(true, || (0..scaled(300)).for_each(|_| short_life::<E>(&mut rng)));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(LIVE.load(Ordering::Relaxed), 0, "bytes are left of VMs that are gone");
    }
}
