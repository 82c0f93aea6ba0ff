//! A device: a thread that injects its events.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Instant;

use vgic_core::engine::{Engine, Injected, Injector};

use super::ledger::Ledger;
use super::plan::Length;
use crate::rng::Rng;

/// Every how manieth injection is sampled for its latency, on average. Reading the clock costs about as
/// much as an injection: at one in 64 it does not show.
const SAMPLE_MEAN: u32 = 64;

/// How many samples go between two times that an injector wakes the churn: about 1,000 injections.
const SAMPLES_PER_WAKE: u32 = 16;

/// How often a paced injector looks before it yields.
const SPINS: u32 = 64;

/// What became of injections.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Calls made, counted apart from what they returned.
    pub injected: u64,
    /// Calls that made an LPI pending.
    pub pending: u64,
    /// Calls that found it pending.
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

/// What the coordinator and an injector tell each other meanwhile. On a line of its own: the injector
/// writes it now and then, and nobody waits for it.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Injections made so far, roughly.
    pub(super) injected: AtomicU64,
}

/// One device.
pub(super) struct Device<E: Engine> {
    pub(super) injector: E::Injector,
    /// Index of its first event.
    pub(super) first: u32,
    /// The routes of its events.
    pub(super) routes: Vec<E::Route>,
    pub(super) length: Length,
    /// Whether to wait for each event until its last injection has been seen.
    pub(super) paced: bool,
    pub(super) rng: Rng,
}

/// What an injector brings back.
pub(super) struct Injections {
    pub(super) tally: Tally,
    pub(super) began: Instant,
    pub(super) ended: Instant,
}

impl<E: Engine> Device<E> {
    /// Injects until the storm is over. `churn` is the thread that disturbs the mappings meanwhile.
    pub(super) fn run(
        mut self,
        ledger: &Ledger,
        progress: &Progress,
        halt: &AtomicBool,
        churn: Option<&Thread>,
    ) -> Injections {
        let events = self.routes.len() as u32;
        let mut order: Vec<u32> = (0..events).collect();
        self.rng.shuffle(&mut order);
        let last = match self.length {
            Length::Iterations(iterations) => iterations,
            Length::Time(_) => u64::MAX,
        };

        let mut tally = Tally::default();
        // The first injection is sampled, so that even the shortest storm has a latency.
        let mut until_sample = 0;
        let mut samples = 0_u32;
        let mut number = 0;
        let began = Instant::now();
        'storm: while number < last {
            number += 1;
            // One order for the whole storm, begun elsewhere each time: cheaper than a new shuffle.
            let (tail, head) = order.split_at(self.rng.below(events) as usize);
            for &event in head.iter().chain(tail) {
                let index = self.first + event;
                let route = &self.routes[event as usize];
                if self.paced && !await_last(ledger, index, halt) {
                    break 'storm;
                }
                tally.injected += 1;
                if until_sample == 0 {
                    // A random distance: a fixed one would sample the same events again and again.
                    until_sample = self.rng.below(2 * SAMPLE_MEAN - 1);
                    let stamp = ledger.stamp(index);
                    ledger.send(index, number);
                    let result = self.injector.inject_route(route);
                    if let (Some(stamp), Injected::Coalesced | Injected::Unmapped) = (stamp, result)
                    {
                        ledger.withdraw(index, stamp);
                    }
                    tally.count(result);
                    // Relaxed: a picture for the progress bar, and a wish to stop soon.
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
                    tally.count(self.injector.inject_route(route));
                }
            }
        }
        progress.injected.store(tally.injected, Ordering::Relaxed);
        Injections { tally, began, ended: Instant::now() }
    }
}

/// Waits until an event's last injection has been seen. Returns whether it was; if not, the time is over, or the
/// coordinator has seen that nothing moves any more.
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
