//! The results as other programs read them.

use serde::Serialize;

use super::accounts::Accounts;
use super::machine::Machine;
use super::plan::Length;

#[derive(Serialize)]
struct Report<'a> {
    runs: Vec<Run>,
    machine: &'a Machine,
}

#[derive(Serialize)]
struct Run {
    engine: &'static str,
    vcpus: u16,
    devices: u32,
    events: u32,
    /// Null if the storm was a timed one.
    iterations: Option<u64>,
    /// The time asked for; null if the storm was one of iterations.
    duration_s: Option<f64>,
    lrs: u8,
    priorities: u8,
    churn: bool,
    paced: bool,
    halt_poll_us: u64,
    seed: u64,
    injected: u64,
    pending: u64,
    coalesced: u64,
    unmapped: u64,
    delivered: u64,
    merged: u64,
    lost: u64,
    stray: u64,
    stale: u64,
    /// Whether nothing is lost and all accounts balance.
    balanced: bool,
    injected_per_s: f64,
    delivered_per_s: f64,
    kicks: u64,
    entries: u64,
    churn_operations: u64,
    latency_ns: Latency,
    bytes_per_lpi: f64,
    /// From the first injection to the last delivery; the rate of injection is over `injecting_s`.
    seconds: f64,
    injecting_s: f64,
}

#[derive(Serialize)]
struct Latency {
    p50: u64,
    p99: u64,
    p999: u64,
    max: u64,
    samples: u64,
}

/// The whole report.
pub(super) fn report(runs: &[Accounts], machine: &Machine) -> String {
    let report = Report { runs: runs.iter().map(run).collect(), machine };
    let mut text = serde_json::to_string_pretty(&report).expect("all keys are strings");
    text.push('\n');
    text
}

fn run(a: &Accounts) -> Run {
    let (iterations, duration_s) = match a.plan.length {
        Length::Iterations(iterations) => (Some(iterations), None),
        Length::Time(time) => (None, Some(time.as_secs_f64())),
    };
    Run {
        engine: a.engine,
        vcpus: a.plan.vcpus,
        devices: a.plan.devices,
        events: a.plan.events,
        iterations,
        duration_s,
        lrs: a.plan.lrs,
        priorities: a.plan.priorities,
        churn: a.plan.churn,
        paced: a.plan.paced,
        halt_poll_us: a.plan.halt_poll.as_micros() as u64,
        seed: a.plan.seed,
        injected: a.tally.injected,
        pending: a.tally.pending,
        coalesced: a.tally.coalesced,
        unmapped: a.tally.unmapped,
        delivered: a.delivered,
        merged: a.merged(),
        lost: a.lost,
        stray: a.stray,
        stale: a.stale,
        balanced: a.balance(),
        injected_per_s: a.injected_per_s(),
        delivered_per_s: a.delivered_per_s(),
        kicks: a.kicks,
        entries: a.entries,
        churn_operations: a.churned,
        latency_ns: Latency {
            p50: a.percentile(50.0),
            p99: a.percentile(99.0),
            p999: a.percentile(99.9),
            max: a.latency.max(),
            samples: a.latency.len(),
        },
        bytes_per_lpi: a.bytes_per_lpi(),
        seconds: a.delivering.as_secs_f64(),
        injecting_s: a.injecting.as_secs_f64(),
    }
}
