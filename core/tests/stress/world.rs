//! One VM, and operations on it that the tests share.

use std::sync::Arc;

use vgic_core::Vgic;
use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::reclaim::Reclaim;

pub(crate) use crate::guest::{Guest, settle};
pub(crate) use crate::host::{Host, Rng, Rules, scaled};
pub(crate) use crate::threads::{Work, together, together_with};

/// An engine that dawdles at its critical points, if it was built with tracing.
pub(crate) trait Build: Engine {
    fn build(config: &Config, kick: Arc<dyn Kick>) -> Self {
        Self::new(config, kick).expect("a good configuration")
    }
}

#[cfg(feature = "locked")]
impl Build for vgic_core::locked::LockedVgic {}

#[cfg(not(feature = "trace"))]
impl<R: Reclaim> Build for Vgic<R> {}

#[cfg(feature = "trace")]
impl<R: Reclaim> Build for Vgic<R> {
    fn build(config: &Config, kick: Arc<dyn Kick>) -> Self {
        use vgic_core::trace::{TraceEvent, Tracer};
        /// Dawdles whenever a reference is taken or given back, which is in the middle of an
        /// operation on it.
        struct Dawdler;
        impl Tracer for Dawdler {
            fn event(&self, _: &TraceEvent) {
                crate::host::dawdle();
            }
        }
        Self::with_tracer(config, kick, Arc::new(Dawdler)).expect("a good configuration")
    }
}

pub(crate) const DEV: DeviceId = DeviceId(7);

/// The n-th LPI.
pub(crate) fn lpi(n: u32) -> Intid {
    Intid(LPI_BASE + n)
}

/// One VM.
pub(crate) struct World<E: Build> {
    pub(crate) guests: Vec<Guest<E>>,
    pub(crate) msi: E::Msi,
    pub(crate) host: Arc<Host>,
    pub(crate) vgic: E,
}

pub(crate) fn config(vcpus: u16) -> Config {
    Config { participants: 32, ..Config::with_vcpus(vcpus) }
}

impl<E: Build> World<E> {
    /// A VM with all vCPUs open, `lrs` list registers each, and the given host.
    pub(crate) fn new(config: &Config, lrs: usize, host: &Arc<Host>) -> Self {
        let vgic = E::build(config, host.clone());
        let guest = |id: u16| {
            let mut cpu = CpuInterface::new(lrs).expect("1 to 16");
            cpu.set_pmr(0xff);
            cpu.set_igrpen1(1);
            let mut vcpu = vgic.vcpu(VcpuId(id)).expect("a free vCPU");
            vcpu.open();
            Guest::new(id.into(), vcpu, cpu, host.clone())
        };
        let guests = (0..config.vcpus).map(guest).collect();
        let msi = vgic.msi().expect("room");
        Self { guests, msi, host: host.clone(), vgic }
    }

    /// A VM with `vcpus` vCPUs, and LPIs 0 to `lpis` of one priority, distributed among them. Event
    /// n of [`DEV`] is LPI n.
    pub(crate) fn with_lpis(vcpus: u16, lrs: usize, lpis: u32) -> Self {
        let rules = Rules { exclusive: true, letters: false };
        Self::with_rules(vcpus, lrs, lpis, rules)
    }

    pub(crate) fn with_rules(vcpus: u16, lrs: usize, lpis: u32, rules: Rules) -> Self {
        let mut world = Self::new(&config(vcpus), lrs, &Host::new(vcpus, lpis, rules));
        (0..lpis).for_each(|n| map::<E>(&mut world.msi, n, n % u32::from(vcpus), 0xa0));
        world
    }

    /// Returns the handles with which a thread injects LPIs 0 to `lpis`.
    pub(crate) fn storm(&mut self, lpis: u32, seed: u64) -> Storm<E> {
        Storm {
            injector: self.vgic.injector().expect("room"),
            domain: self.msi.domain(),
            routes: (0..lpis).map(|n| self.msi.route(DEV, EventId(n)).expect("room")).collect(),
            host: self.host.clone(),
            rng: Rng::new(seed + 100),
        }
    }

    /// Injects each LPI below `lpis` once, and checks that each is delivered once. No other thread
    /// may run.
    pub(crate) fn probe(&mut self, storm: &mut Storm<E>, lpis: u32) {
        for n in 0..lpis {
            assert_eq!(storm.inject(n), Injected::Pending, "LPI {n} was not pending");
        }
        settle(&mut self.guests);
        for n in 0..lpis {
            assert_eq!(self.host.book(lpi(n)).taken(), 1, "LPI {n} was injected once");
        }
        self.host.balance();
    }

    /// Unmaps all events of [`DEV`], and checks that nothing is left, though the vCPUs are still
    /// there.
    pub(crate) fn wind_up(mut self) {
        self.msi.unmap_device(DEV);
        settle(&mut self.guests);
        nothing_left(&self.vgic, &mut self.msi);
    }
}

/// Checks that everything is reclaimed. Nothing may be mapped, and no other thread may run.
pub(crate) fn nothing_left<E: Engine>(vgic: &E, msi: &mut E::Msi) {
    // One call may not see the end of a grace period, and freed objects can leave garbage of their
    // own.
    let mut calls = 0;
    while vgic.usage() != Usage::default() && calls < 32 {
        msi.collect();
        calls += 1;
    }
    assert_eq!(vgic.usage(), Usage::default());
}

/// Maps event `n` of [`DEV`] to LPI `n`.
pub(crate) fn map<E: Engine>(msi: &mut E::Msi, n: u32, target: u32, priority: u8) {
    let (target, config) = (VcpuId(target as u16), LpiConfig::enabled(priority));
    msi.map(DEV, EventId(n), lpi(n), target, config).expect("a good mapping");
}

/// The handles with which one thread injects.
pub(crate) struct Storm<E: Engine> {
    pub(crate) injector: E::Injector,
    pub(crate) domain: E::Domain,
    routes: Vec<E::Route>,
    host: Arc<Host>,
    pub(crate) rng: Rng,
}

impl<E: Engine> Storm<E> {
    /// Injects LPI `n`, by table or by route.
    pub(crate) fn inject(&mut self, n: u32) -> Injected {
        let by_route = self.rng.one_in(2);
        self.host.book(lpi(n)).send(|| {
            if by_route {
                self.injector.inject_route(&self.routes[n as usize])
            } else {
                self.injector.inject(&self.domain, DEV, EventId(n))
            }
        })
    }

    /// Writes a letter and announces it by LPI `n`, unless the last letter has not been read yet.
    pub(crate) fn write(&mut self, n: u32) {
        if self.host.book(lpi(n)).write() {
            assert_eq!(self.inject(n), Injected::Pending, "the last one was taken");
        }
    }

    /// Injects LPIs below `lpis` at random, `times` times.
    pub(crate) fn run(&mut self, lpis: u32, times: u32) {
        for _ in 0..times {
            let n = self.rng.below(lpis);
            let _ = self.inject(n);
            self.rng.dawdle();
        }
    }
}
