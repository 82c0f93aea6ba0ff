//! An injector: a thread that injects the events of one or several devices.

use std::fs;
use std::hint;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use vgic_core::engine::{Engine, Injected, Injector};
use vgic_core::ids::{DeviceId, EventId};

use super::ledger::Ledger;
use super::plan::Length;
use crate::rng::Rng;

/// Average number of injections per latency sample. Reading the clock costs about as much as an
/// injection: at one sample in 64 the cost is not visible.
const SAMPLE_MEAN: u32 = 64;

/// Samples between two wake-ups of the churn: about 1,000 injections.
const SAMPLES_PER_WAKE: u32 = 16;

/// Spins of a paced injector before it yields.
const SPINS: u32 = 64;

/// The results of injections.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Calls made, counted apart from their results.
    pub injected: u64,
    /// Calls that made an LPI pending.
    pub pending: u64,
    /// Calls that found the LPI pending.
    pub coalesced: u64,
    /// Calls that found nothing mapped.
    pub unmapped: u64,
}

impl Tally {
    /// Counts a result.
    #[inline]
    pub fn count(&mut self, result: Injected) {
        match result {
            Injected::Pending => self.pending += 1,
            Injected::Coalesced => self.coalesced += 1,
            Injected::Unmapped => self.unmapped += 1,
        }
    }

    /// Adds another tally to this one.
    pub fn add(&mut self, other: &Self) {
        self.injected += other.injected;
        self.pending += other.pending;
        self.coalesced += other.coalesced;
        self.unmapped += other.unmapped;
    }
}

/// The data that an injector shares with the coordinator during the storm. On a line of its own:
/// the injector writes it rarely, and no thread waits for it.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Approximate number of injections so far.
    pub(super) injected: AtomicU64,
}

/// The way in which an injector reaches its events.
pub(super) enum Way<E: Engine> {
    /// By the routes of all events.
    Routes(Vec<E::Route>),
    /// By (DeviceID, EventID) in this domain, with this number of events for each device.
    LookUp(E::Domain, u32),
}

/// One or several devices of an injector thread.
pub(super) struct Device<E: Engine> {
    pub(super) injector: E::Injector,
    /// The indices of the events.
    pub(super) range: Range<u32>,
    pub(super) way: Way<E>,
    pub(super) length: Length,
    /// Most events that are injected.
    pub(super) hot: Option<u32>,
    /// Whether to wait for each event until its last injection has been seen.
    pub(super) paced: bool,
    pub(super) rng: Rng,
}

/// The result of an injector thread.
pub(super) struct Injections {
    pub(super) tally: Tally,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    /// The thread's CPU time of the injections, if known.
    pub(super) cpu: Option<Duration>,
}

impl<E: Engine> Device<E> {
    /// Injects until the storm is over. `churn` is the thread that changes mappings during the
    /// storm.
    pub(super) fn run(
        self,
        ledger: &Ledger,
        progress: &Progress,
        halt: &AtomicBool,
        churn: Option<&Thread>,
    ) -> Injections {
        let Self { injector, range, way, length, hot, paced, rng } = self;
        let shots = Shots { range: range.clone(), length, hot, paced, rng };
        // A separate loop for each way.
        match way {
            Way::Routes(routes) => shots.run(ledger, progress, halt, churn, |index| {
                injector.inject_route(&routes[(index - range.start) as usize])
            }),
            Way::LookUp(domain, events) => shots.run(ledger, progress, halt, churn, |index| {
                injector.inject(&domain, DeviceId(index / events), EventId(index % events))
            }),
        }
    }
}

/// The choice and the order of injections.
struct Shots {
    range: Range<u32>,
    length: Length,
    hot: Option<u32>,
    paced: bool,
    rng: Rng,
}

impl Shots {
    #[inline(always)]
    fn run(
        mut self,
        ledger: &Ledger,
        progress: &Progress,
        halt: &AtomicBool,
        churn: Option<&Thread>,
        inject: impl Fn(u32) -> Injected,
    ) -> Injections {
        let mut order: Vec<u32> = (0..self.range.len() as u32).collect();
        self.rng.shuffle(&mut order);
        order.truncate(self.hot.map_or(order.len(), |hot| hot as usize));
        let events = order.len() as u32;
        let last = match self.length {
            Length::Iterations(iterations) => iterations,
            Length::Time(_) => u64::MAX,
        };

        let mut tally = Tally::default();
        // The first injection is sampled, so that even the shortest storm has a latency.
        let mut until_sample = 0;
        let mut samples = 0_u32;
        let mut number = 0;
        let cpu = cpu_time();
        let began = Instant::now();
        'storm: while number < last {
            number += 1;
            // One order for the whole storm, with a random start in each round: cheaper than a new
            // shuffle.
            let (tail, head) = order.split_at(self.rng.below(events) as usize);
            for &event in head.iter().chain(tail) {
                let index = self.range.start + event;
                if self.paced && !await_last(ledger, index, halt) {
                    break 'storm;
                }
                tally.injected += 1;
                if until_sample == 0 {
                    // A random distance: a fixed one would sample the same events again and again.
                    until_sample = self.rng.below(2 * SAMPLE_MEAN - 1);
                    let stamp = ledger.stamp(index);
                    ledger.send(index, number);
                    let result = inject(index);
                    if let (Some(stamp), Injected::Coalesced | Injected::Unmapped) = (stamp, result)
                    {
                        ledger.withdraw(index, stamp);
                    }
                    tally.count(result);
                    // Relaxed: a value for the progress bar, and a request to stop soon.
                    progress.injected.store(tally.injected, Ordering::Relaxed);
                    samples = samples.wrapping_add(1);
                    if let Some(thread) = churn
                        && samples.is_multiple_of(SAMPLES_PER_WAKE)
                    {
                        thread.unpark();
                    }
                    if halt.load(Ordering::Relaxed) {
                        break 'storm;
                    }
                } else {
                    until_sample -= 1;
                    ledger.send(index, number);
                    tally.count(inject(index));
                }
            }
        }
        progress.injected.store(tally.injected, Ordering::Relaxed);
        let ended = Instant::now();
        let cpu = cpu_time().zip(cpu).map(|(after, before)| after.saturating_sub(before));
        Injections { tally, began, ended, cpu }
    }
}

/// Returns the CPU time of this thread so far. The kernel may update it only at its ticks.
fn cpu_time() -> Option<Duration> {
    let times = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let ns = times.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(ns)).filter(|time| !time.is_zero())
}

/// Waits until an event's last injection has been seen, and returns whether it was. It was not if
/// the time is over, or if the coordinator has found that nothing progresses.
#[inline]
fn await_last(ledger: &Ledger, index: u32, halt: &AtomicBool) -> bool {
    for _ in 0..SPINS {
        if ledger.settled(index) {
            return true;
        }
        hint::spin_loop();
    }
    while !ledger.settled(index) {
        if halt.load(Ordering::Relaxed) {
            return false;
        }
        // The vCPU may need this very core.
        thread::yield_now();
    }
    true
}
