//! The accounts of a storm, and the rules that they must satisfy.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use vgic_core::engine::Usage;
use vgic_core::ids::{DeviceId, EventId, Intid};

use super::churn::Churned;
use super::injector::Tally;
use super::plan::{Length, Plan};

/// The results of a finished storm.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The engine's name.
    pub engine: &'static str,
    /// The plan of the storm.
    pub plan: Plan,
    /// The results of all injections, including those of the last round after a churn.
    pub tally: Tally,
    /// Injections before that last round.
    pub stormed: u64,
    /// LPIs that guests acknowledged.
    pub delivered: u64,
    /// Acknowledged INTIDs that belong to no event.
    pub stray: u64,
    /// Acknowledges after which the guest read older data than before.
    pub stale: u64,
    /// Events with a last number that the guest did not see.
    pub lost: u64,
    /// The first few lost events.
    pub lost_events: Vec<LostEvent>,
    /// Kicks from the engine.
    pub kicks: u64,
    /// Guest entries: flushes of the list registers, including flushes with nothing pending.
    pub entries: u64,
    /// The operations of the churn.
    pub churned: Churned,
    /// ns from a sampled injection that made its LPI pending to the LPI's next acknowledge.
    pub latency: Histogram<u64>,
    /// The engine's usage with all events mapped, before the storm.
    pub usage: Usage,
    /// The engine's usage with all events unmapped again, after the storm.
    pub left: Usage,
    /// From the first injection to the last.
    pub injecting: Duration,
    /// CPU time of all injectors together. `None` if the kernel does not report it.
    pub injecting_cpu: Option<Duration>,
    /// From the first injection to the last delivery.
    pub delivering: Duration,
}

/// An event with a last number that the guest did not see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LostEvent {
    /// The event's device.
    pub device: DeviceId,
    /// The event's ID at its device.
    pub event: EventId,
    /// The event's LPI.
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

/// A rule that the accounts must satisfy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The rule, with the storm's numbers.
    pub text: String,
    /// Whether the rule holds.
    pub holds: bool,
}

/// The number of [`Accounts::rules`], from the first, that state the balance of the accounts.
pub const BALANCE_RULES: usize = 2;

/// Shortest CPU time from which a rate is computed: a few of the kernel's ticks.
const MEASURABLE: Duration = Duration::from_millis(20);

impl Accounts {
    /// Returns the name in reports: the engine's, marked if this is the storm with churn of a pair.
    pub fn name(&self) -> String {
        let churn = self.plan.its && self.plan.churn;
        format!("{}{}", self.engine, if churn { ", churn" } else { "" })
    }

    /// Returns the number of injections that made an LPI pending and were not delivered one by one.
    ///
    /// While an LPI is pending in a list register, its pending bit is clear, and the next injection
    /// sets it. If the guest acknowledges the LPI first, the injection leads to another delivery;
    /// otherwise both become one. With churn, the number includes LPIs that were pending when they
    /// were unmapped.
    pub fn merged(&self) -> u64 {
        self.tally.pending.saturating_sub(self.delivered)
    }

    /// Returns the LPIs injected per second.
    pub fn injected_per_s(&self) -> f64 {
        rate(self.stormed, self.injecting)
    }

    /// Returns the LPIs injected per second of the injectors' CPU time, which does not depend on
    /// other load of the machine. If the CPU time is unknown or too short to measure, returns the
    /// LPIs injected per second.
    pub fn injected_per_cpu_s(&self) -> f64 {
        let cpu = self.injecting_cpu.filter(|cpu| *cpu >= MEASURABLE);
        cpu.map_or(self.injected_per_s(), |cpu| rate(self.stormed, cpu))
    }

    /// Returns the LPIs delivered per second.
    pub fn delivered_per_s(&self) -> f64 {
        rate(self.delivered, self.delivering)
    }

    /// Returns the heap bytes of one mapped LPI.
    pub fn bytes_per_lpi(&self) -> f64 {
        self.usage.bytes as f64 / f64::from(self.plan.lpis())
    }

    /// Returns a latency percentile in ns.
    pub fn percentile(&self, percent: f64) -> u64 {
        self.latency.value_at_percentile(percent)
    }

    /// Returns the rules for this storm. They do not depend on the engine:
    ///
    /// * Every injection has one of three results.
    /// * Each delivery has an injection that made its LPI pending; none is delivered twice. (The
    ///   reverse does not hold, see [`Accounts::merged`].)
    /// * Without churn every event is mapped all the time, and every event was delivered.
    /// * In a paced storm every injection is delivered separately, as the next one waits until it
    ///   has been seen.
    /// * Injections of an unmapped event have no effect.
    /// * When all is unmapped, no LPI is left: every reference has been dropped.
    /// * Unless the storm is timed, the number of injections is the requested one.
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
                // Lost events are reported as lost, and not a second time here.
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

    /// Returns whether nothing is lost, and every rule holds.
    pub fn balance(&self) -> bool {
        self.lost == 0 && self.rules().iter().all(|rule| rule.holds)
    }
}

/// Returns a rate per second. A time of 0 counts as 1 ns.
fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}
