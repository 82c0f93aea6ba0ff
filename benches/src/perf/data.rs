//! What a run brings back, as it is written to `report.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::path::Key;
use super::stats::Spread;

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Where, when, and of what.
    pub about: About,
    /// What was measured in turns.
    pub sets: Vec<Set>,
    /// `lpi-storm`s.
    pub storms: Vec<Storm>,
    /// Injections while mappings change.
    pub churn: Vec<Churn>,
    /// Heap bytes.
    pub memory: Vec<Memory>,
    /// What could not be measured, and why.
    pub missing: Vec<String>,
}

/// Where a run was made, when, and of what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// In UTC (ISO 8601).
    pub date: String,
    /// The commit, with `+` if there were changes that are not in it.
    pub commit: String,
    /// rustc's version.
    pub compiler: String,
    /// The processor and the number of CPUs.
    pub machine: String,
    /// CPUs that the run could use.
    pub cpus: usize,
    /// Kernel release.
    pub kernel: String,
    /// The load of the last minute, before and after.
    pub load: (f64, f64),
    /// Rounds of each figure.
    pub rounds: u32,
    /// A smoke test, whose figures mean nothing.
    pub quick: bool,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Several who did the same, in turns.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Set {
    /// What they did.
    pub key: Key,
    /// One uncontended read-modify-write, in nanoseconds, of each round.
    pub rmw: Vec<f64>,
    /// Nanoseconds of one call, of each round, in the order in which they took turns in the first one.
    pub ns: Vec<(String, Vec<f64>)>,
}

impl Set {
    /// The rounds of one of them.
    pub fn of(&self, who: &str) -> Option<&[f64]> {
        self.ns.iter().find(|(name, _)| name == who).map(|(_, ns)| &ns[..])
    }

    /// In nanoseconds.
    pub fn ns_of(&self, who: &str) -> Option<Spread> {
        Spread::of(self.of(who)?.iter().copied())
    }

    /// In read-modify-writes of the same rounds.
    pub fn rmws_of(&self, who: &str) -> Option<Spread> {
        Spread::of(self.of(who)?.iter().zip(&self.rmw).map(|(ns, rmw)| ns / rmw))
    }

    /// How many times as long `peer` took as `who`, in the same rounds.
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
    /// Numbers of vCPUs, devices, and events of each.
    pub shape: (u16, u32, u32),
    /// Whether each injection waits for the last one's delivery.
    pub paced: bool,
    /// The engine.
    pub who: String,
    /// Millions per second, of each round.
    pub injected: Vec<f64>,
    /// The same per second of the injectors' CPU time.
    pub injected_cpu: Vec<f64>,
    /// Millions per second, of each round.
    pub delivered: Vec<f64>,
    /// Events whose last injection was not seen, in all rounds.
    pub lost: u64,
    /// Percentiles of the time from injection to acknowledge, in ns, of all rounds.
    pub latency: Vec<(f64, u64)>,
}

/// Injections through an ITS while a guest remaps, and while it does not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Churn {
    /// The engine, and how it was injected.
    pub who: String,
    /// Remaps per second that there were.
    pub remaps: f64,
    /// Millions of injections per second of the injector's CPU time, of each round: without and with churn.
    pub rate: Vec<(f64, f64)>,
    /// Percentiles of one injection, in ns, the clock's own time included: (percent, without, with churn).
    pub injection: Vec<(f64, u64, u64)>,
}

/// What mapped LPIs cost in memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// Who.
    pub who: String,
    /// How many events there are to a device.
    pub events_per_device: u32,
    /// Heap bytes as the allocator was asked for them, by number of LPIs.
    pub bytes: BTreeMap<u32, u64>,
}

impl Memory {
    /// Bytes for each LPI, where there are most.
    pub fn per_lpi(&self) -> Option<f64> {
        self.bytes.last_key_value().map(|(&lpis, &bytes)| bytes as f64 / f64::from(lpis))
    }
}

impl Report {
    /// What was measured for a key.
    pub fn set(&self, what: &str, at: Option<u64>) -> Option<&Set> {
        self.sets.iter().find(|set| set.key.what == what && set.key.at == at)
    }
}
