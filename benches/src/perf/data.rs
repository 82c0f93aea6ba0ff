//! The data of a run, as it is written to `report.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::path::Key;
use super::stats::Spread;

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The circumstances of the run.
    pub about: About,
    /// Paths that were measured in turns.
    pub sets: Vec<Set>,
    /// The results of `lpi-storm`.
    pub storms: Vec<Storm>,
    /// Injections while mappings change.
    pub churn: Vec<Churn>,
    /// The heap bytes of mapped LPIs.
    pub memory: Vec<Memory>,
    /// Figures that could not be measured, with the reasons.
    pub missing: Vec<String>,
}

/// The place, the time and the subject of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// Date and time in UTC (ISO 8601).
    pub date: String,
    /// The commit, followed by `+` if there were uncommitted changes.
    pub commit: String,
    /// rustc's version.
    pub compiler: String,
    /// The processor and the number of CPUs.
    pub machine: String,
    /// CPUs that the run could use.
    pub cpus: usize,
    /// Kernel release.
    pub kernel: String,
    /// The load of the last minute, before and after the run.
    pub load: (f64, f64),
    /// Rounds of each figure.
    pub rounds: u32,
    /// Whether the run was a smoke test, with meaningless figures.
    pub quick: bool,
    /// Duration of the run in seconds.
    pub seconds: f64,
}

/// One path, with the implementations that were measured in turns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Set {
    /// The path.
    pub key: Key,
    /// Nanoseconds of one uncontended read-modify-write, of each round.
    pub rmw: Vec<f64>,
    /// Nanoseconds of one call, of each round, by implementation, in the order of the first round's
    /// turns.
    pub ns: Vec<(String, Vec<f64>)>,
}

impl Set {
    /// Returns the rounds of one implementation.
    pub fn of(&self, who: &str) -> Option<&[f64]> {
        self.ns.iter().find(|(name, _)| name == who).map(|(_, ns)| &ns[..])
    }

    /// Returns the spread in nanoseconds.
    pub fn ns_of(&self, who: &str) -> Option<Spread> {
        Spread::of(self.of(who)?.iter().copied())
    }

    /// Returns the spread in read-modify-writes of the same rounds.
    pub fn rmws_of(&self, who: &str) -> Option<Spread> {
        Spread::of(self.of(who)?.iter().zip(&self.rmw).map(|(ns, rmw)| ns / rmw))
    }

    /// Returns the ratio of `peer`'s time to `who`'s, in the same rounds.
    pub fn ratio(&self, who: &str, peer: &str) -> Option<Spread> {
        let (who, peer) = (self.of(who)?, self.of(peer)?);
        Spread::of(who.iter().zip(peer).map(|(who, peer)| peer / who))
    }
}

/// One shape of storm on one engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Storm {
    /// The flags of `lpi-storm`.
    pub flags: String,
    /// Numbers of vCPUs, of devices, and of events per device.
    pub shape: (u16, u32, u32),
    /// Whether each injection waits for the last one's delivery.
    pub paced: bool,
    /// The engine.
    pub who: String,
    /// Millions of injections per second, of each round.
    pub injected: Vec<f64>,
    /// Millions of injections per second of the injectors' CPU time, of each round.
    pub injected_cpu: Vec<f64>,
    /// Millions of deliveries per second, of each round.
    pub delivered: Vec<f64>,
    /// Events with a last injection that was not seen, in all rounds.
    pub lost: u64,
    /// Percentiles of the time from injection to acknowledge, in ns, over all rounds.
    pub latency: Vec<(f64, u64)>,
}

/// Injections through an ITS while a guest remaps events, and while it does not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Churn {
    /// The engine, and the way of the injections.
    pub who: String,
    /// Remaps per second.
    pub remaps: f64,
    /// Millions of injections per second of the injector's CPU time, of each round: (without, with
    /// churn).
    pub rate: Vec<(f64, f64)>,
    /// Percentiles of one injection, in ns, including the time of the clock: (percent, without,
    /// with churn).
    pub injection: Vec<(f64, u64, u64)>,
}

/// The memory of mapped LPIs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// The implementation.
    pub who: String,
    /// Number of events per device.
    pub events_per_device: u32,
    /// Heap bytes requested from the allocator, by number of LPIs.
    pub bytes: BTreeMap<u32, u64>,
}

impl Memory {
    /// Returns the bytes per LPI at the largest number of LPIs.
    pub fn per_lpi(&self) -> Option<f64> {
        self.bytes.last_key_value().map(|(&lpis, &bytes)| bytes as f64 / f64::from(lpis))
    }
}

impl Report {
    /// Returns the measurements of a path.
    pub fn set(&self, what: &str, at: Option<u64>) -> Option<&Set> {
        self.sets.iter().find(|set| set.key.what == what && set.key.at == at)
    }
}
