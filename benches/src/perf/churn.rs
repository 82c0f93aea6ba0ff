//! Injections through an ITS while its guest remaps events, a thousand times a second.
//!
//! The remaps are DISCARD and MAPTI by the command queue, on the events that are injected. They
//! alternate with the same injections without remaps.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use vgic_core::engine::{Config, Engine, Error, Injector, LpiConfig, MsiControl, Vcpu};
use vgic_core::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};
use vgic_core::locked::LockedVgic;

use super::data::Churn;
use super::paths::{LOCKED, SHIPPED, Shipped};
use crate::cost::NoKick;
use crate::host::Guest;
use crate::its::ViaIts;

const DEVICE: DeviceId = DeviceId(1);
const EVENTS: u32 = 256;
const REMAPS_PER_SECOND: u32 = 1000;
/// Injections between two checks for the end.
const STRETCH: u32 = 256;
/// Percentiles in a report.
const PERCENT: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 99.99];

/// The results of one thread in a slice of time.
struct Slice {
    injected: u64,
    cpu: Duration,
}

/// Returns the CPU time of this thread.
fn cpu_time() -> Option<Duration> {
    let times = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let ns = times.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(ns)).filter(|time| !time.is_zero())
}

/// A machine, its driver, its vCPU and its injector.
struct Stage<E: Engine> {
    driver: <ViaIts<E> as Engine>::Msi,
    vcpu: E::Vcpu,
    guest: Guest,
    injector: Option<(<ViaIts<E> as Engine>::Injector, Way<E>)>,
    remaps: u64,
    churning: Duration,
    _gic: ViaIts<E>,
}

enum Way<E: Engine> {
    Routes(Vec<<ViaIts<E> as Engine>::Route>),
    LookUp(<ViaIts<E> as Engine>::Domain),
}

impl<E: Engine> Stage<E> {
    fn new(by_route: bool) -> Result<Self> {
        let config = Config {
            lpis: EVENTS,
            max_lpis: EVENTS + 4096,
            max_bytes: u64::MAX,
            max_events: EVENTS,
            device_bits: 4,
            event_bits: 9,
            ..Config::with_vcpus(1)
        };
        let gic = ViaIts::<E>::new(&config, Arc::new(NoKick))?;
        let mut driver = gic.msi()?;
        for n in 0..EVENTS {
            let config = LpiConfig::enabled(0xa0);
            driver.map(DEVICE, EventId(n), Intid(LPI_BASE + n), VcpuId(0), config)?;
        }
        let way = if by_route {
            let route = |n| driver.route(DEVICE, EventId(n));
            Way::Routes((0..EVENTS).map(route).collect::<Result<_, _>>()?)
        } else {
            Way::LookUp(driver.domain())
        };
        let mut vcpu = gic.vcpu(VcpuId(0))?;
        vcpu.open();
        let injector = Some((gic.injector()?, way));
        let (guest, churning) = (Guest::new(4), Duration::ZERO);
        Ok(Self { driver, vcpu, guest, injector, remaps: 0, churning, _gic: gic })
    }

    /// Unmaps an event and maps it again, and takes all pending interrupts.
    fn remap(&mut self) -> Result<()> {
        let n = self.remaps as u32 % EVENTS;
        self.driver.unmap(DEVICE, EventId(n))?;
        let (event, intid) = (EventId(n), Intid(LPI_BASE + n));
        loop {
            match self.driver.map(DEVICE, event, intid, VcpuId(0), LpiConfig::enabled(0xa0)) {
                // A thread is pinned, so unmapped LPIs are not reclaimed yet.
                Err(Error::TooManyLpis) => self.driver.collect(),
                mapped => break mapped?,
            }
        }
        self.vcpu.flush(self.guest.lrs());
        while let Some(intid) = self.guest.acknowledge() {
            self.guest.end(intid);
        }
        self.vcpu.fold(self.guest.lrs());
        self.remaps += 1;
        Ok(())
    }

    /// Injects for some time, on a thread of its own. Records the time of each injection in
    /// `times`, if given.
    fn slice(
        &mut self,
        time: Duration,
        churn: bool,
        times: Option<&mut Histogram<u64>>,
    ) -> Result<Slice> {
        let (injector, way) = self.injector.take().context("it is given back")?;
        let over = AtomicBool::new(false);
        let (slice, injector, way) = thread::scope(|scope| -> Result<_> {
            let over = &over;
            let thread = scope.spawn(move || {
                let slice = inject::<E>(&injector, &way, over, times);
                (slice, injector, way)
            });
            let start = Instant::now();
            let before = self.remaps;
            let mut result = Ok(());
            while start.elapsed() < time {
                let due = start.elapsed().as_secs_f64() * f64::from(REMAPS_PER_SECOND);
                if churn && self.remaps - before < due as u64 {
                    result = self.remap();
                    if result.is_err() {
                        break;
                    }
                } else {
                    thread::sleep(Duration::from_micros(200));
                }
            }
            if churn {
                self.churning += start.elapsed();
            }
            over.store(true, Ordering::Relaxed);
            let injected = thread.join().expect("no panic");
            result.map(|()| injected)
        })?;
        self.injector = Some((injector, way));
        Ok(slice)
    }
}

fn inject<E: Engine>(
    injector: &<ViaIts<E> as Engine>::Injector,
    way: &Way<E>,
    over: &AtomicBool,
    mut times: Option<&mut Histogram<u64>>,
) -> Slice {
    let one = |n: u32| match way {
        Way::Routes(routes) => injector.inject_route(&routes[n as usize]),
        Way::LookUp(domain) => injector.inject(domain, DEVICE, EventId(n)),
    };
    let (start, cpu, mut injected) = (Instant::now(), cpu_time(), 0);
    // Relaxed: a request to stop soon.
    while !over.load(Ordering::Relaxed) {
        for n in 0..STRETCH {
            match &mut times {
                None => {
                    let _ = one(n % EVENTS);
                }
                Some(times) => {
                    let start = Instant::now();
                    let _ = one(n % EVENTS);
                    times.saturating_record(start.elapsed().as_nanos() as u64);
                }
            }
        }
        injected += u64::from(STRETCH);
    }
    let cpu = cpu_time().zip(cpu).map(|(after, before)| after.saturating_sub(before));
    Slice { injected, cpu: cpu.filter(|cpu| !cpu.is_zero()).unwrap_or(start.elapsed()) }
}

fn measure<E: Engine>(
    who: String,
    by_route: bool,
    (rounds, time): (u32, Duration),
    bar: &ProgressBar,
) -> Result<Churn> {
    bar.set_message(format!("injections while mappings change: {who}"));
    let mut stage = Stage::<E>::new(by_route)?;
    let rate = |slice: Slice| slice.injected as f64 / slice.cpu.as_secs_f64() / 1e6;
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let calm = rate(stage.slice(time, false, None)?);
        rates.push((calm, rate(stage.slice(time, true, None)?)));
        bar.inc(1);
    }
    let remaps = stage.remaps as f64 / stage.churning.as_secs_f64();
    let mut of = [false, true].map(|_| Histogram::<u64>::new(3).expect("three digits"));
    for _ in 0..rounds {
        for churn in [false, true] {
            stage.slice(time, churn, Some(&mut of[usize::from(churn)]))?;
        }
        bar.inc(1);
    }
    let injection =
        PERCENT.map(|p| (p, of[0].value_at_percentile(p), of[1].value_at_percentile(p))).to_vec();
    Ok(Churn { who, remaps, rate: rates, injection })
}

/// Measures both engines, by route and by look-up.
///
/// # Errors
/// If an engine fails.
pub fn all(rounds: u32, time: Duration, bar: &ProgressBar) -> Result<Vec<Churn>> {
    let pace = (rounds, time);
    Ok(vec![
        measure::<Shipped>(format!("{SHIPPED}, by MsiRoute"), true, pace, bar)?,
        measure::<Shipped>(format!("{SHIPPED}, by device and event"), false, pace, bar)?,
        measure::<LockedVgic>(format!("{LOCKED}, by route"), true, pace, bar)?,
        measure::<LockedVgic>(format!("{LOCKED}, by device and event"), false, pace, bar)?,
    ])
}

/// Returns the number of steps of the progress bar in [`all`].
pub fn count(rounds: u32) -> u64 {
    u64::from(rounds) * 8
}
