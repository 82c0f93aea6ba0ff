//! One storm on one engine, from an empty controller to the accounts.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Builder, Scope, ScopedJoinHandle, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vgic_core::engine::{Engine, Kick, MsiControl, Usage};
use vgic_core::ids::{DeviceId, VcpuId};

use super::accounts::{Accounts, LostEvent};
use super::bar::Bar;
use super::churn::{Churn, Churned};
use super::injector::{Device, Injections, Progress, Tally, Way};
use super::ledger::Ledger;
use super::phase::{Gate, Phase, Phases};
use super::plan::{Length, Plan};
use super::vcpu::{self, Pulse, Takings, latencies};
use crate::host::{Guest, HostKick};
use crate::rng::Rng;

/// Interval at which the coordinator checks the injectors' progress, and the end of a timed storm.
const LOOK: Duration = Duration::from_millis(50);

/// Interval at which the coordinator checks for the last delivery, after the injectors are done.
const LOOK_AT_END: Duration = Duration::from_millis(1);

/// Most lost events that are described one by one.
const DESCRIBED: usize = 8;

/// Most calls of `collect` in which everything must have been reclaimed.
const RECLAIM_ROUNDS: usize = 100;

/// The state that all threads of a storm share.
struct Stage {
    plan: Plan,
    kick: Arc<HostKick>,
    ledger: Ledger,
    gate: Gate,
    phases: Phases,
    /// Set to stop the injectors before their last iteration.
    halt: AtomicBool,
    /// Number of injectors that are done.
    done: AtomicUsize,
    /// Set to stop the churn.
    calm: AtomicBool,
    /// The thread of the churn.
    control: OnceLock<Thread>,
    progress: Box<[Progress]>,
    pulses: Box<[Pulse]>,
}

/// The handles that an engine gives out before any thread runs.
struct Parts<E: Engine> {
    vcpus: Vec<E::Vcpu>,
    devices: Vec<Device<E>>,
    msi: E::Msi,
    last_injector: E::Injector,
}

/// The threads of a storm.
struct Threads<'scope, E: Engine> {
    vcpus: Vec<ScopedJoinHandle<'scope, Takings>>,
    devices: Vec<ScopedJoinHandle<'scope, Option<Injections>>>,
    control: ScopedJoinHandle<'scope, Result<Control<E>>>,
}

/// The state of the churn's thread, which the thread returns at its end.
struct Control<E: Engine> {
    msi: E::Msi,
    /// Checks that unmapped events have no effect, and injects the last round.
    injector: E::Injector,
    churn: Option<Churn>,
}

/// Runs a storm on an engine of type `E`.
///
/// # Errors
/// If the engine rejects the plan's configuration, or a thread cannot be created. Losses are not
/// errors: they are part of the accounts.
pub fn run<E: Engine>(plan: &Plan) -> Result<Accounts> {
    let kick = Arc::new(HostKick::new(plan.vcpus));
    let host: Arc<dyn Kick> = Arc::<HostKick>::clone(&kick);
    let engine = E::new(&plan.config(), host).context("making the interrupt controller")?;
    let parts = prepare::<E>(&engine, plan)?;
    // All is mapped now, and no other thread runs.
    let usage = engine.usage();
    let stage = Stage {
        plan: plan.clone(),
        kick,
        ledger: Ledger::new(plan.lpis(), plan.churn),
        gate: Gate::default(),
        phases: Phases::default(),
        halt: AtomicBool::new(false),
        done: AtomicUsize::new(0),
        calm: AtomicBool::new(false),
        control: OnceLock::new(),
        progress: (0..plan.threads()).map(|_| Progress::default()).collect(),
        pulses: (0..plan.vcpus).map(|_| Pulse::default()).collect(),
    };
    let (mut accounts, msi) = thread::scope(|scope| stage.play::<E>(scope, parts))?;
    accounts.left = tear_down(&engine, msi, plan);
    accounts.engine = E::NAME;
    accounts.usage = usage;
    accounts.kicks = stage.kick.kicks();
    Ok(accounts)
}

/// Maps every event, and takes all handles of the threads from the engine.
fn prepare<E: Engine>(engine: &E, plan: &Plan) -> Result<Parts<E>> {
    let mut msi = engine.msi()?;
    for index in 0..plan.lpis() {
        let (device, event) = plan.event(index);
        msi.map(device, event, plan.intid(index), plan.target(index), plan.config_of(index))
            .with_context(|| format!("mapping event {} of device {}", event.0, device.0))?;
    }
    let mut devices = Vec::with_capacity(plan.threads() as usize);
    for number in 0..plan.threads() {
        let range = plan.events_of(number);
        let way = if plan.lookup {
            Way::LookUp(msi.domain(), plan.events)
        } else {
            let routes = range.clone().map(|index| {
                let (device, event) = plan.event(index);
                msi.route(device, event)
            });
            Way::Routes(routes.collect::<Result<_, _>>()?)
        };
        devices.push(Device {
            injector: engine.injector()?,
            range,
            way,
            length: plan.length,
            hot: plan.hot,
            paced: plan.paced,
            rng: Rng::new(plan.seed, u64::from(number)),
        });
    }
    let vcpus = (0..plan.vcpus).map(|v| engine.vcpu(VcpuId(v))).collect::<Result<_, _>>()?;
    Ok(Parts { vcpus, devices, msi, last_injector: engine.injector()? })
}

/// Unmaps everything, when no other thread is left, and returns the remaining usage.
fn tear_down<E: Engine>(engine: &E, mut msi: E::Msi, plan: &Plan) -> Usage {
    for device in 0..plan.devices {
        msi.unmap_device(DeviceId(device));
    }
    // Reclamation may need several rounds: each one only proves that a moment has passed.
    for _ in 0..RECLAIM_ROUNDS {
        msi.collect();
        if engine.usage().lpis == 0 {
            break;
        }
    }
    engine.usage()
}

impl Stage {
    /// Starts the threads, watches them, and adds up their results.
    fn play<'scope, E: Engine>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        parts: Parts<E>,
    ) -> Result<(Accounts, E::Msi)> {
        let Parts { vcpus, devices, msi, last_injector } = parts;
        let stop = Stop(self);
        let churn = self.plan.churn.then(|| Churn::new(&self.plan));
        let control = Control { msi, injector: last_injector, churn };
        let threads = self.start(scope, vcpus, devices, control).context("starting a thread")?;
        self.gate.open(self.plan.threads() as usize + 1);
        let began = Instant::now();
        self.watch(&threads.devices, began);

        let mut sent = Vec::with_capacity(threads.devices.len());
        for device in threads.devices {
            // With the gate open there is always a result. A panic propagates here.
            sent.extend(join(device));
        }
        self.calm_down();
        let Control { mut msi, injector, mut churn } = join(threads.control)?;
        let last_round = match &mut churn {
            Some(churn) => churn
                .finish::<E>(&mut msi, &injector, &self.plan, &self.ledger)
                .context("mapping what the churn had unmapped")?,
            None => Tally::default(),
        };
        let churned = churn.map_or_else(Churned::default, |churn| churn.done);
        if self.settle() {
            self.phases.set(Phase::Over);
        }
        drop(stop);
        let takings = threads.vcpus.into_iter().map(join).collect();
        Ok((self.add_up(&sent, last_round, churned, takings), msi))
    }

    /// Creates all threads. Injectors and the churn wait at the gate.
    fn start<'scope, E: Engine>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        vcpus: Vec<E::Vcpu>,
        devices: Vec<Device<E>>,
        mut control: Control<E>,
    ) -> io::Result<Threads<'scope, E>> {
        let lrs = usize::from(self.plan.lrs);
        let vcpus = vcpus.into_iter().zip(&self.pulses).enumerate().map(|(v, (vcpu, pulse))| {
            let id = VcpuId(v as u16);
            named("vcpu", v).spawn_scoped(scope, move || {
                let guest = Guest::new(lrs);
                let host = vcpu::Host {
                    kick: &self.kick,
                    halt_poll: self.plan.halt_poll,
                    ledger: &self.ledger,
                    phases: &self.phases,
                    pulse,
                };
                vcpu::run(id, vcpu, guest, &host)
            })
        });
        let vcpus = vcpus.collect::<io::Result<_>>()?;

        // Without churn this thread only returns its handles.
        let control = named("control", 0).spawn_scoped(scope, move || {
            if let (true, Some(churn)) = (self.gate.pass(), &mut control.churn) {
                let (msi, injector) = (&mut control.msi, &control.injector);
                let (plan, ledger) = (&self.plan, &self.ledger);
                churn.run::<E>(msi, injector, plan, ledger, || self.injected(), &self.calm)?;
            }
            Ok(control)
        })?;
        self.control.get_or_init(|| control.thread().clone());

        let coordinator = thread::current();
        let devices = devices.into_iter().zip(&self.progress).enumerate();
        let devices = devices.map(|(d, (device, progress))| {
            let coordinator = coordinator.clone();
            named("device", d).spawn_scoped(scope, move || {
                let churn = self.control.get().filter(|_| self.plan.churn);
                let injections =
                    self.gate.pass().then(|| device.run(&self.ledger, progress, &self.halt, churn));
                // Relaxed: the coordinator joins the thread; the count only tells it when to do so.
                self.done.fetch_add(1, Ordering::Relaxed);
                coordinator.unpark();
                injections
            })
        });
        let devices = devices.collect::<io::Result<_>>()?;
        Ok(Threads { vcpus, devices, control })
    }

    /// Waits for the injectors, shows their progress, and stops them when the time is over.
    fn watch<T>(&self, devices: &[ScopedJoinHandle<'_, T>], began: Instant) {
        let bar = Bar::new(&self.plan);
        let mut still = Still::new();
        // A thread that panics does not count itself as done.
        while self.done.load(Ordering::Relaxed) < devices.len()
            && !devices.iter().all(ScopedJoinHandle::is_finished)
        {
            let mut pause = LOOK;
            if let Length::Time(time) = self.plan.length {
                match time.checked_sub(began.elapsed()) {
                    Some(left) if !left.is_zero() => pause = pause.min(left),
                    _ => self.halt.store(true, Ordering::Relaxed),
                }
            }
            thread::park_timeout(pause);
            let injected = self.injected();
            bar.show(injected, began.elapsed());
            // A paced injector would wait for a lost LPI forever.
            if self.plan.paced && still.since((injected, self.delivered())) >= self.plan.stall {
                self.halt.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Returns the approximate number of deliveries so far.
    fn delivered(&self) -> u64 {
        self.pulses.iter().map(|pulse| pulse.delivered.load(Ordering::Relaxed)).sum()
    }

    /// Returns the approximate number of injections so far.
    fn injected(&self) -> u64 {
        self.progress.iter().map(|progress| progress.injected.load(Ordering::Relaxed)).sum()
    }

    /// Ends the churn.
    fn calm_down(&self) {
        // Relaxed: a request to stop soon, and the unpark orders it before the thread's next check.
        self.calm.store(true, Ordering::Relaxed);
        if let Some(control) = self.control.get() {
            control.unpark();
        }
    }

    /// Waits until the last number of every event has been seen, and returns whether that happened.
    /// Gives up if nothing progresses for [`Plan::stall`].
    fn settle(&self) -> bool {
        let mut settled = 0;
        let mut still = Still::new();
        loop {
            // Settled events stay settled, as all injectors are done.
            while settled < self.plan.lpis() && self.ledger.settled(settled) {
                settled += 1;
            }
            if settled == self.plan.lpis() {
                return true;
            }
            if still.since((u64::from(settled), self.delivered())) >= self.plan.stall {
                return false;
            }
            thread::park_timeout(LOOK_AT_END);
        }
    }

    /// Combines the results of all threads.
    fn add_up(
        &self,
        sent: &[Injections],
        last_round: Tally,
        churned: Churned,
        takings: Vec<Takings>,
    ) -> Accounts {
        let mut accounts = Accounts {
            engine: "",
            plan: self.plan.clone(),
            tally: Tally::default(),
            stormed: 0,
            delivered: 0,
            stray: 0,
            stale: 0,
            lost: 0,
            lost_events: Vec::new(),
            kicks: 0,
            entries: 0,
            churned,
            latency: latencies(),
            usage: Usage::default(),
            left: Usage::default(),
            injecting: Duration::ZERO,
            injecting_cpu: sent.iter().map(|injections| injections.cpu).sum(),
            delivering: Duration::ZERO,
        };
        let began = sent.iter().map(|injections| injections.began).min();
        let ended = sent.iter().map(|injections| injections.ended).max();
        for injections in sent {
            accounts.tally.add(&injections.tally);
        }
        accounts.stormed = accounts.tally.injected;
        accounts.tally.add(&last_round);
        let last_taken = takings.iter().map(|taking| taking.last).max();
        if let (Some(began), Some(ended), Some(last)) = (began, ended, last_taken) {
            accounts.injecting = ended - began;
            accounts.delivering = last.max(ended) - began;
        }
        for taking in takings {
            accounts.delivered += taking.delivered;
            accounts.entries += taking.entries;
            accounts.stray += taking.stray;
            accounts.stale += taking.stale;
            accounts.latency.add(taking.latency).expect("all have the same bounds");
        }
        for index in (0..self.plan.lpis()).filter(|index| !self.ledger.settled(*index)) {
            accounts.lost += 1;
            if accounts.lost_events.len() < DESCRIBED {
                let (device, event) = self.plan.event(index);
                accounts.lost_events.push(LostEvent {
                    device,
                    event,
                    intid: self.plan.intid(index),
                    sent: self.ledger.sent(index),
                    seen: self.ledger.seen(index),
                });
            }
        }
        accounts
    }
}

/// Measures for how long the storm has made no progress.
struct Still {
    last: Option<(u64, u64)>,
    moved: Instant,
}

impl Still {
    fn new() -> Self {
        Self { last: None, moved: Instant::now() }
    }

    /// Returns the time for which the counts have not changed.
    fn since(&mut self, counts: (u64, u64)) -> Duration {
        if self.last != Some(counts) {
            *self = Self { last: Some(counts), moved: Instant::now() };
        }
        self.moved.elapsed()
    }
}

/// Ends the storm when dropped, also on an error or a panic. Otherwise the scope, which joins all
/// threads, would wait forever for sleeping vCPUs.
struct Stop<'a>(&'a Stage);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        let Self(stage) = self;
        stage.gate.cancel();
        // Relaxed: a request to stop soon.
        stage.halt.store(true, Ordering::Relaxed);
        stage.calm_down();
        if stage.phases.now() == Phase::Going {
            stage.phases.set(Phase::Abandoned);
        }
        for vcpu in 0..stage.plan.vcpus {
            stage.kick.nudge(VcpuId(vcpu));
        }
    }
}

fn named(what: &str, number: usize) -> Builder {
    Builder::new().name(format!("{what}{number}"))
}

/// Joins a thread, and propagates its panic.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
