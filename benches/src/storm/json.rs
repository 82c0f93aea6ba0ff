//! The results in machine-readable form.

use serde::Serialize;

use super::accounts::Accounts;
use super::machine::Machine;
use super::plan::{Length, Plan};
use super::sweep::{Cell, Measured, Swept, ratio};

#[derive(Serialize)]
struct Report<'a> {
    runs: Vec<Run>,
    /// One entry for each engine that was run both without and with churn.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    churn_ratios: Vec<ChurnRatio>,
    machine: &'a Machine,
}

/// Rates with churn as fractions of those without.
#[derive(Serialize)]
struct ChurnRatio {
    engine: &'static str,
    injected_per_s: f64,
    injected_per_cpu_s: f64,
    delivered_per_s: f64,
}

#[derive(Serialize)]
struct SweepReport<'a> {
    sweep: Vec<Point>,
    seconds_each: Option<f64>,
    vcpus: u16,
    threads: u32,
    /// Most events that are injected, chosen from all mapped events.
    hot: Option<u32>,
    /// (devices, events) of the first cell with at least `hot` events.
    reference: Option<(u32, u32)>,
    lrs: u8,
    seed: u64,
    machine: &'a Machine,
}

/// One storm of a sweep.
#[derive(Serialize)]
struct Point {
    engine: &'static str,
    devices: u32,
    events: u32,
    /// `route`, or `lookup` of (DeviceID, EventID).
    by: &'static str,
    churn: bool,
    injected: u64,
    delivered: u64,
    lost: u64,
    /// Whether nothing is lost and all accounts balance.
    balanced: bool,
    churn_operations: u64,
    injected_per_s: f64,
    /// Per second of the injector's CPU time.
    injected_per_cpu_s: f64,
    delivered_per_s: f64,
    /// `injected_per_cpu_s` as a fraction of that of the reference in the same mode.
    of_reference: f64,
    /// With churn: `injected_per_cpu_s` as a fraction of that without.
    of_calm: Option<f64>,
}

#[derive(Serialize)]
struct Run {
    engine: &'static str,
    vcpus: u16,
    devices: u32,
    events: u32,
    /// Null for a timed storm.
    iterations: Option<u64>,
    /// The requested time. Null for a storm of iterations.
    duration_s: Option<f64>,
    lrs: u8,
    priorities: u8,
    its: bool,
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
    /// Per second of the injectors' CPU time.
    injected_per_cpu_s: f64,
    delivered_per_s: f64,
    kicks: u64,
    entries: u64,
    churn_operations: u64,
    /// Injections of events right after they were unmapped, and the number of them that had an
    /// effect.
    churn_probes: u64,
    churn_probes_effective: u64,
    latency_ns: Latency,
    bytes_per_lpi: f64,
    /// From the first injection to the last delivery. `injected_per_s` is the rate over
    /// `injecting_s`.
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

/// Returns the JSON of one or several storms.
pub(super) fn report(runs: &[Accounts], machine: &Machine) -> String {
    // A storm without churn, followed by the same storm with churn.
    let pairs = runs.windows(2).filter_map(|pair| match pair {
        [calm, churned] if churned.plan.its && churned.plan.churn && !calm.plan.churn => {
            Some((calm, churned))
        }
        _ => None,
    });
    let churn_ratios = pairs.map(|(calm, churned)| ChurnRatio {
        engine: calm.engine,
        injected_per_s: ratio(churned.injected_per_s(), calm.injected_per_s()),
        injected_per_cpu_s: ratio(churned.injected_per_cpu_s(), calm.injected_per_cpu_s()),
        delivered_per_s: ratio(churned.delivered_per_s(), calm.delivered_per_s()),
    });
    let churn_ratios = churn_ratios.collect();
    print(&Report { runs: runs.iter().map(run).collect(), churn_ratios, machine })
}

/// Returns the JSON of a sweep.
pub(super) fn sweep_report(swept: &[Swept], machine: &Machine) -> String {
    let plan = swept.first().map_or_else(Plan::default, |swept| swept.plan.clone());
    let points = swept.iter().flat_map(|swept| {
        swept.cells.iter().flat_map(move |cell| {
            cell.results.iter().map(move |measured| point(swept, cell, measured))
        })
    });
    let sweep = points.collect();
    let seconds_each = match plan.length {
        Length::Time(time) => Some(time.as_secs_f64()),
        Length::Iterations(_) => None,
    };
    let (vcpus, lrs, seed) = (plan.vcpus, plan.lrs, plan.seed);
    let threads = plan.threads.unwrap_or(1);
    let hot = plan.hot;
    let reference = swept.first().and_then(Swept::reference);
    let reference = reference.map(|cell| (cell.devices, cell.events));
    print(&SweepReport { sweep, seconds_each, vcpus, threads, hot, reference, lrs, seed, machine })
}

fn point(swept: &Swept, cell: &Cell, measured: &Measured) -> Point {
    let mode = measured.mode;
    Point {
        engine: swept.engine,
        devices: cell.devices,
        events: cell.events,
        by: if mode.lookup { "lookup" } else { "route" },
        churn: mode.churn,
        injected: measured.injected,
        delivered: measured.delivered,
        lost: measured.lost,
        balanced: measured.balances(),
        churn_operations: measured.churn_operations,
        injected_per_s: measured.injected_per_s,
        injected_per_cpu_s: measured.injected_per_cpu_s,
        delivered_per_s: measured.delivered_per_s,
        of_reference: swept.relative(cell, mode),
        of_calm: mode.churn.then(|| Swept::with_churn(cell, mode.lookup)),
    }
}

fn print(report: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("all keys are strings");
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
        its: a.plan.its,
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
        injected_per_cpu_s: a.injected_per_cpu_s(),
        delivered_per_s: a.delivered_per_s(),
        kicks: a.kicks,
        entries: a.entries,
        churn_operations: a.churned.operations,
        churn_probes: a.churned.probes,
        churn_probes_effective: a.churned.effective,
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
