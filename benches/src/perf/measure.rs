//! Measures the time of paths, in turns.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::ProgressBar;

use super::data::Set;
use super::path::{Kernel, Key, Path};
use crate::cost::rmw_ns;

/// The effort of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rounds of each figure.
    pub rounds: u32,
    /// Approximate time of a slice of one path's round.
    pub slice: Duration,
}

/// Read-modify-writes in each slice.
const RMWS: u32 = 50_000;
/// Slices of a round, of which the quickest counts: a slice in which another process had the CPU
/// says nothing about the code.
const SLICES: u32 = 5;
/// Most calls of a slice.
const MOST_CALLS: u32 = 1 << 22;

/// A path with at most this many calls in a slice is too slow to be repeated for each LPI.
const FEW: u32 = 10;
/// With more mapped LPIs than this, a slice need not reach all of them.
const MANY: u64 = 1 << 16;

/// A path that is set up, and its results so far.
struct Running {
    who: &'static str,
    kernel: Kernel,
    calls: u32,
    ns: Vec<f64>,
}

/// Returns the number of calls that take about `time`, at least one.
fn calibrate(kernel: &mut Kernel, time: Duration) -> Result<u32> {
    // The first calls are atypical: they process accumulated state.
    kernel(2)?;
    let mut calls = 1;
    loop {
        let took = kernel(calls)?;
        if took * 4 >= time || calls >= MOST_CALLS {
            let one = took.as_secs_f64() / f64::from(calls);
            let calls = time.as_secs_f64() / one.max(1e-10);
            return Ok((calls as u32).clamp(1, MOST_CALLS));
        }
        calls *= 4;
    }
}

/// Measures the paths of one group. Each round runs all of them in turn, and starts with a
/// different one.
///
/// # Errors
/// If a path fails.
pub fn group(paths: &[Path], pace: Pace, bar: &ProgressBar) -> Result<Vec<Set>> {
    let mut sets: BTreeMap<Key, Vec<Running>> = BTreeMap::new();
    let mut order = Vec::new();
    for path in paths {
        let describe = || format!("{}: {}", path.who, path.key);
        bar.set_message(describe());
        let mut kernel = (path.make)().with_context(describe)?;
        // The calibration also warms the path up.
        let calls = calibrate(&mut kernel, pace.slice).with_context(describe)?;
        let calls = match path.key.at {
            // With LPIs chosen at random, a slice has at least one call per LPI. Otherwise it would
            // find the caches as cold as the other paths have left them, and colder the longer a
            // call takes.
            Some(at @ ..=MANY) if path.key.of == "mapped" && calls > FEW => calls.max(at as u32),
            _ => calls,
        };
        let running = Running { who: path.who, kernel, calls, ns: Vec::new() };
        if !sets.contains_key(&path.key) {
            order.push(path.key.clone());
        }
        sets.entry(path.key.clone()).or_default().push(running);
        bar.inc(1);
    }
    let mut rmw: BTreeMap<Key, Vec<f64>> = BTreeMap::new();
    for round in 0..pace.rounds {
        for (key, runnings) in &mut sets {
            bar.set_message(format!("round {} of {}: {key}", round + 1, pace.rounds));
            let quickest = (0..SLICES).map(|_| rmw_ns(RMWS)).fold(f64::INFINITY, f64::min);
            rmw.entry(key.clone()).or_default().push(quickest);
            let count = runnings.len();
            for turn in 0..count {
                let running = &mut runnings[(turn + round as usize) % count];
                let mut quickest = f64::INFINITY;
                for _ in 0..SLICES {
                    let took = (running.kernel)(running.calls).with_context(|| key.to_string())?;
                    quickest = quickest.min(took.as_nanos() as f64 / f64::from(running.calls));
                }
                running.ns.push(quickest);
                bar.inc(1);
            }
        }
    }
    let sets = order.into_iter().map(|key| {
        let ns = sets.remove(&key).unwrap_or_default();
        let ns = ns.into_iter().map(|r| (r.who.to_owned(), r.ns)).collect();
        let rmw = rmw.remove(&key).unwrap_or_default();
        Set { key, rmw, ns }
    });
    Ok(sets.collect())
}
