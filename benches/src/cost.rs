//! The cost of an engine's paths on one thread: nanoseconds, and multiples of one uncontended
//! atomic read-modify-write measured in the same rounds.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use vgic_core::engine::{
    Config, Engine, Error, Injected, Injector, Kick, LpiConfig, MsiControl, Vcpu,
};
use vgic_core::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};

use crate::host::Guest;

/// List registers of the measured vCPU.
pub const LRS: usize = 4;

const DEVICE: DeviceId = DeviceId(8);

/// Most injections of a batch before the vCPU takes them.
const BATCH: u32 = 256;

/// A host with one thread: there is no thread to wake.
pub(crate) struct NoKick;

impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

/// One vCPU, some LPIs, and everything needed to drive them from one thread.
pub struct Bench<E: Engine> {
    vcpu: E::Vcpu,
    injector: E::Injector,
    routes: Vec<E::Route>,
    msi: E::Msi,
    guest: Guest,
    engine: E,
    next: u32,
}

impl<E: Engine> Bench<E> {
    /// Creates a VM with `lpis` mapped LPIs, and room for one more.
    ///
    /// # Errors
    /// The engine's error, if the setup fails.
    pub fn new(lpis: u32) -> Result<Self, Error> {
        let config = Config {
            lpis: lpis + 1,
            // Unmapped LPIs count until they are reclaimed.
            max_lpis: lpis + 4096,
            max_bytes: u64::MAX,
            max_events: lpis + 1,
            device_bits: 8,
            event_bits: 20,
            ..Config::with_vcpus(2)
        };
        let engine = E::new(&config, Arc::new(NoKick))?;
        let mut vcpu = engine.vcpu(VcpuId(0))?;
        vcpu.open();
        let mut msi = engine.msi()?;
        let mut routes = Vec::new();
        for n in 0..lpis {
            let event = EventId(n);
            msi.map(DEVICE, event, Intid(LPI_BASE + n), VcpuId(0), LpiConfig::enabled(0xa0))?;
            routes.push(msi.route(DEVICE, event)?);
        }
        let injector = engine.injector()?;
        Ok(Self { vcpu, injector, routes, msi, guest: Guest::new(LRS), engine, next: 1 })
    }

    /// Returns the engine.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Makes the first `n` LPIs pending.
    pub fn pend(&self, n: usize) {
        for route in &self.routes[..n] {
            let _ = self.injector.inject_route(route);
        }
    }

    /// Returns the index of a random LPI.
    fn pick(&mut self) -> usize {
        // xorshift: the measured loop must not wait for a better generator.
        self.next ^= self.next << 13;
        self.next ^= self.next >> 17;
        self.next ^= self.next << 5;
        // Multiplies instead of dividing: a division would cost as much as an atomic operation.
        ((u64::from(self.next) * self.routes.len() as u64) >> 32) as usize
    }

    /// Injects through a route, when the interrupt is already pending.
    #[inline]
    pub fn coalesced_by_route(&mut self) {
        let n = self.pick();
        assert_eq!(self.injector.inject_route(&self.routes[n]), Injected::Coalesced);
    }

    /// Injects by device and event, when the interrupt is already pending.
    #[inline]
    pub fn coalesced_by_event(&mut self, domain: &<E::Msi as MsiControl>::Domain) {
        let n = self.pick() as u32;
        assert_eq!(self.injector.inject(domain, DEVICE, EventId(n)), Injected::Coalesced);
    }

    /// Returns the injection side of the VM's MSI domain.
    pub fn domain(&self) -> <E::Msi as MsiControl>::Domain {
        self.msi.domain()
    }

    /// Injects an LPI, flushes, acknowledges, ends, and folds.
    #[inline]
    pub fn cycle(&mut self) {
        let n = self.pick();
        assert_eq!(self.injector.inject_route(&self.routes[n]), Injected::Pending);
        self.vcpu.flush(self.guest.lrs());
        let intid = self.guest.acknowledge();
        assert_eq!(intid, Some(Intid(LPI_BASE + n as u32)));
        intid.into_iter().for_each(|intid| self.guest.end(intid));
        self.vcpu.fold(self.guest.lrs());
    }

    /// Enters with many pending interrupts: the guest takes one, which is made pending again after
    /// the exit.
    #[inline]
    pub fn entry_with_pending(&mut self) {
        self.vcpu.flush(self.guest.lrs());
        let Some(intid) = self.guest.acknowledge() else { panic!("something is pending") };
        self.guest.end(intid);
        self.vcpu.fold(self.guest.lrs());
        let route = &self.routes[(intid.0 - LPI_BASE) as usize];
        assert_eq!(self.injector.inject_route(route), Injected::Pending);
    }

    /// Returns the time of batches of injections of LPIs that are not pending, by route or by
    /// device and event. The entries that take them afterwards are not timed.
    pub fn first(
        &mut self,
        calls: u32,
        by_event: Option<&<E::Msi as MsiControl>::Domain>,
    ) -> Duration {
        let lpis = self.routes.len() as u32;
        let (mut time, mut left) = (Duration::ZERO, calls);
        while left > 0 {
            let batch = lpis.min(BATCH).min(left);
            let from = self.pick() as u32;
            let start = Instant::now();
            for n in 0..batch {
                let n = (from + n) % lpis;
                let injected = match by_event {
                    None => self.injector.inject_route(&self.routes[n as usize]),
                    Some(domain) => self.injector.inject(domain, DEVICE, EventId(n)),
                };
                assert_eq!(injected, Injected::Pending);
            }
            time += start.elapsed();
            for _ in 0..batch {
                self.take_one();
            }
            left -= batch;
        }
        time
    }

    /// Performs an entry, acknowledge, end and exit.
    fn take_one(&mut self) {
        self.vcpu.flush(self.guest.lrs());
        let Some(intid) = self.guest.acknowledge() else { panic!("something is pending") };
        self.guest.end(intid);
        self.vcpu.fold(self.guest.lrs());
    }

    /// Injects for a device that is not mapped.
    #[inline]
    pub fn unmapped(&self, domain: &<E::Msi as MsiControl>::Domain) {
        let injected = self.injector.inject(domain, DeviceId(DEVICE.0 + 1), EventId(0));
        assert_eq!(injected, Injected::Unmapped);
    }

    /// Maps one more LPI, and unmaps it.
    #[inline]
    pub fn map_and_unmap(&mut self) {
        let n = self.routes.len() as u32;
        let (event, intid) = (EventId(n), Intid(LPI_BASE + n));
        let mapped = self.msi.map(DEVICE, event, intid, VcpuId(0), LpiConfig::enabled(0xa0));
        mapped.expect("there is room");
        self.msi.unmap(DEVICE, event).expect("it is mapped");
    }

    /// Moves an LPI, pending or not, to the other vCPU and back.
    #[inline]
    pub fn move_there_and_back(&mut self) {
        let event = EventId(self.pick() as u32);
        for vcpu in [VcpuId(1), VcpuId(0)] {
            self.msi.retarget(DEVICE, event, vcpu).expect("it is mapped");
        }
    }

    /// Looks up an LPI's target by INTID.
    #[inline]
    pub fn look_up(&mut self) {
        let n = self.pick() as u32;
        assert_eq!(self.msi.target_of(Intid(LPI_BASE + n)), Some(VcpuId(0)));
    }

    /// Performs an entry and exit with nothing to do.
    #[inline]
    pub fn idle_entry(&mut self) {
        black_box(self.vcpu.flush(self.guest.lrs()));
        self.vcpu.fold(self.guest.lrs());
    }
}

/// Returns the time of `n` calls.
#[inline]
pub fn time_of(n: u32, mut f: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..n {
        f();
    }
    start.elapsed()
}

/// Returns the nanoseconds of one call, averaged over `n` calls.
#[inline]
pub fn ns_per_call(n: u32, f: impl FnMut()) -> f64 {
    time_of(n, f).as_nanos() as f64 / f64::from(n)
}

/// Returns the nanoseconds of one uncontended atomic read-modify-write.
pub fn rmw_ns(n: u32) -> f64 {
    let word = AtomicU64::new(0);
    let word = black_box(&word);
    ns_per_call(n, || {
        word.fetch_add(1, Ordering::AcqRel);
    })
}

/// The statistics of one figure over several rounds.
#[derive(Serialize)]
pub struct Figure {
    /// The engine's name.
    pub engine: &'static str,
    /// The path's name.
    pub path: String,
    /// Nanoseconds: the quickest round.
    pub min_ns: f64,
    /// Nanoseconds: the median round.
    pub median_ns: f64,
    /// Nanoseconds: the slowest round.
    pub max_ns: f64,
    /// The median of the rounds' ratios to the read-modify-write of the same round.
    pub rmws: f64,
    /// The quickest round divided by the quickest read-modify-write: the cost when nothing else
    /// runs.
    pub rmws_undisturbed: f64,
}

impl Figure {
    /// Computes a figure from the nanoseconds of rounds, and the read-modify-writes of the same
    /// rounds.
    pub fn new(engine: &'static str, path: String, ns: &[f64], rmw: &[f64]) -> Self {
        let mut sorted = ns.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mut ratios: Vec<f64> = ns.iter().zip(rmw).map(|(ns, rmw)| ns / rmw).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |v: &[f64], i: usize| v.get(i).copied().unwrap_or(f64::NAN);
        Self {
            engine,
            path,
            min_ns: at(&sorted, 0),
            median_ns: at(&sorted, sorted.len() / 2),
            max_ns: at(&sorted, sorted.len().saturating_sub(1)),
            rmws: at(&ratios, ratios.len() / 2),
            rmws_undisturbed: at(&sorted, 0) / rmw.iter().copied().fold(f64::INFINITY, f64::min),
        }
    }
}
