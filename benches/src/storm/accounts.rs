//! The accounts of a storm, and what must hold of them.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use vgic_core::engine::Usage;
use vgic_core::ids::{DeviceId, EventId, Intid};

use super::churn::Churned;
use super::injector::Tally;
use super::plan::{Length, Plan};

/// All that is known of a storm when it is over.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The engine's name.
    pub engine: &'static str,
    /// What was to be done.
    pub plan: Plan,
    /// What became of the injections, those of the last round after a churn included.
    pub tally: Tally,
    /// Injections before that last round.
    pub stormed: u64,
    /// LPIs that guests acknowledged.
    pub delivered: u64,
    /// INTIDs acknowledged that no event has.
    pub stray: u64,
    /// Acknowledges after which the guest read older data than it had read before.
    pub stale: u64,
    /// Events whose last number was not seen.
    pub lost: u64,
    /// Some of those.
    pub lost_events: Vec<LostEvent>,
    /// Kicks that the engine gave.
    pub kicks: u64,
    /// Guest entries: flushes of the list registers, those that found nothing included.
    pub entries: u64,
    /// What the churn has done.
    pub churned: Churned,
    /// ns from injections that made their LPI pending to the next acknowledge of that LPI, sampled.
    pub latency: Histogram<u64>,
    /// What the engine used when all was mapped, before the storm.
    pub usage: Usage,
    /// What it still used when all was unmapped again, after the storm.
    pub left: Usage,
    /// From the first injection to the last.
    pub injecting: Duration,
    /// For how long the injectors have had a CPU, together. Unknown where the kernel does not say.
    pub injecting_cpu: Option<Duration>,
    /// From the first injection to the last delivery.
    pub delivering: Duration,
}

/// An event whose last number was not seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LostEvent {
    /// Its device.
    pub device: DeviceId,
    /// Its number there.
    pub event: EventId,
    /// Its LPI.
    pub intid: Intid,
    /// The last number that was sent.
    pub sent: u64,
    /// The last number that was seen.
    pub seen: u64,
}

impl fmt::Display for LostEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "device {} event {} (INTID {}): number {} was sent, {} was the last one seen",
            self.device.0, self.event.0, self.intid, self.sent, self.seen
        )
    }
}

/// Something that must hold of the accounts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// In numbers.
    pub text: String,
    /// Whether it does.
    pub holds: bool,
}

/// How many of [`Accounts::rules`], from the first, are what the accounts are about.
pub const BALANCE_RULES: usize = 2;

/// Least CPU time that a rate is made of: a few of the kernel's ticks.
const MEASURABLE: Duration = Duration::from_millis(20);

impl Accounts {
    /// What reports call it: the engine's name, and whether it is the storm with churn of two.
    pub fn name(&self) -> String {
        let churn = self.plan.its && self.plan.churn;
        format!("{}{}", self.engine, if churn { ", churn" } else { "" })
    }

    /// Injections that made an LPI pending and were not delivered one by one.
    ///
    /// While an LPI is pending in a list register its pending bit is clear, and the next injection sets it:
    /// if the guest is faster, that is another delivery; if it is not, both become one. With churn this counts the
    /// LPIs, too, that were pending when they were unmapped.
    pub fn merged(&self) -> u64 {
        self.tally.pending.saturating_sub(self.delivered)
    }

    /// LPIs injected per second.
    pub fn injected_per_s(&self) -> f64 {
        rate(self.stormed, self.injecting)
    }

    /// LPIs injected per second of CPU time that the injectors have had, as long as that is known and can be measured: however busy the
    /// machine is otherwise. If not, per second.
    pub fn injected_per_cpu_s(&self) -> f64 {
        let cpu = self.injecting_cpu.filter(|cpu| *cpu >= MEASURABLE);
        cpu.map_or(self.injected_per_s(), |cpu| rate(self.stormed, cpu))
    }

    /// LPIs delivered per second.
    pub fn delivered_per_s(&self) -> f64 {
        rate(self.delivered, self.delivering)
    }

    /// Heap bytes that one mapped LPI costs.
    pub fn bytes_per_lpi(&self) -> f64 {
        self.usage.bytes as f64 / f64::from(self.plan.lpis())
    }

    /// A latency percentile in ns.
    pub fn percentile(&self, percent: f64) -> u64 {
        self.latency.value_at_percentile(percent)
    }

    /// What must hold, whichever engine it is:
    ///
    /// * Every injection came back as one of three things.
    /// * A delivery needs an injection that made its LPI pending; none is delivered twice. (The reverse does not
    ///   hold, see [`Accounts::merged`].)
    /// * Without churn every event is mapped all the time, and every event was delivered.
    /// * In a paced storm every injection is delivered for itself, as the next one waits until it has been seen.
    /// * After an event was unmapped, injections of it have no effect.
    /// * When all is unmapped, no LPI is left: every reference has been dropped.
    /// * A timed storm aside, there were as many injections as asked for.
    pub fn rules(&self) -> Vec<Rule> {
        let Tally { injected, pending, coalesced, unmapped } = self.tally;
        let delivered = self.delivered;
        let mut rules = vec![
            Rule {
                text: format!(
                    "{injected} injected = {pending} made pending + {coalesced} coalesced + {unmapped} unmapped"
                ),
                holds: injected == pending + coalesced + unmapped,
            },
            Rule {
                text: format!("{delivered} delivered <= {pending} made pending"),
                holds: delivered <= pending,
            },
        ];
        if let Length::Iterations(_) = self.plan.length {
            let planned = self.plan.injections().unwrap_or(0);
            let stormed = self.stormed;
            rules.push(Rule {
                text: format!("{stormed} injected in the storm = {planned} planned"),
                holds: stormed == planned,
            });
            let lpis = u64::from(self.plan.lpis());
            let reached = delivered + self.lost;
            rules.push(Rule {
                text: format!("{delivered} delivered >= {lpis} LPIs, each at least once"),
                // What is lost is reported as lost, and not once more here.
                holds: reached >= lpis,
            });
        }
        if self.plan.paced {
            rules.push(Rule {
                text: format!("{delivered} delivered = {injected} injected, one by one"),
                holds: delivered == injected,
            });
        }
        if !self.plan.churn {
            rules.push(Rule {
                text: format!("{unmapped} unmapped = 0, as every event stayed mapped"),
                holds: unmapped == 0,
            });
        }
        if self.plan.churn {
            let Churned { probes, effective, .. } = self.churned;
            rules.push(Rule {
                text: format!("{effective} of {probes} injections right after their event was unmapped had an effect"),
                holds: effective == 0,
            });
        }
        rules.push(Rule {
            text: format!("{} acknowledged INTIDs that nothing is mapped to = 0", self.stray),
            holds: self.stray == 0,
        });
        rules.push(Rule {
            text: format!("{} acknowledges that saw stale data = 0", self.stale),
            holds: self.stale == 0,
        });
        rules.push(Rule {
            text: format!("{} LPIs left when all are unmapped and reclaimed = 0", self.left.lpis),
            holds: self.left.lpis == 0,
        });
        rules
    }

    /// Whether nothing is lost, and every rule holds.
    pub fn balance(&self) -> bool {
        self.lost == 0 && self.rules().iter().all(|rule| rule.holds)
    }
}

/// Per second. A time of 0 is one of 1 ns: less cannot be measured.
fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}
