//! `lpi-storm`s of several shapes, with the engines in turns.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use vgic_core::locked::LockedVgic;

use super::data::Storm;
use super::paths::{LOCKED, SHIPPED, Shipped};
use crate::storm::accounts::Accounts;
use crate::storm::plan::{Length, Plan};
use crate::storm::run;

/// (vCPUs, devices, events per device, whether the storm is paced)
pub const SHAPES: [(u16, u32, u32, bool); 10] = [
    (1, 1, 1, false),
    (1, 1, 1024, false),
    (1, 2, 256, false),
    (1, 4, 256, false),
    (2, 1, 256, false),
    (2, 2, 256, false),
    (4, 4, 256, false),
    (16, 16, 16, false),
    (1, 1, 1, true),
    (1, 1, 1024, true),
];

/// Percentiles of the latencies in a report.
const PERCENT: [f64; 14] =
    [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999, 100.0];

/// Runs all storms.
///
/// # Errors
/// If an engine rejects the configuration, or the accounts do not balance.
pub fn all(rounds: u32, time: Duration, bar: &ProgressBar) -> Result<Vec<Storm>> {
    let mut storms = Vec::new();
    type Run = fn(&Plan) -> Result<Accounts>;
    let who: [(&str, Run); 2] = [(SHIPPED, run::<Shipped>), (LOCKED, run::<LockedVgic>)];
    for (vcpus, devices, events, paced) in SHAPES {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = usize::from(vcpus) + devices as usize;
        let plan = Plan {
            vcpus,
            devices,
            events,
            paced,
            length: Length::Time(time),
            // The default of lpi-storm.
            halt_poll: Duration::from_micros(if threads <= cpus { 20 } else { 0 }),
            quiet: true,
            ..Plan::default()
        };
        let paced_flag = if paced { " --paced" } else { "" };
        let flags = format!("-v {vcpus} -d {devices} -e {events}{paced_flag}");
        let mut results: Vec<(Storm, Option<Histogram<u64>>)> = who
            .iter()
            .map(|(who, _)| {
                let (flags, who) = (flags.clone(), (*who).to_owned());
                let shape = (vcpus, devices, events);
                let (injected, injected_cpu, delivered) = Default::default();
                let (lost, latency) = Default::default();
                (
                    Storm {
                        flags,
                        shape,
                        paced,
                        who,
                        injected,
                        injected_cpu,
                        delivered,
                        lost,
                        latency,
                    },
                    None,
                )
            })
            .collect();
        for round in 0..rounds as usize {
            for turn in 0..who.len() {
                let n = (turn + round) % who.len();
                let (storm, latency) = &mut results[n];
                bar.set_message(format!("lpi-storm {flags}: {}", storm.who));
                let accounts = (who[n].1)(&plan).with_context(|| flags.clone())?;
                ensure!(
                    accounts.balance(),
                    "{flags}: the accounts of {} do not balance",
                    storm.who
                );
                storm.injected.push(accounts.injected_per_s() / 1e6);
                storm.injected_cpu.push(accounts.injected_per_cpu_s() / 1e6);
                storm.delivered.push(accounts.delivered_per_s() / 1e6);
                storm.lost += accounts.lost;
                match latency {
                    Some(all) => all.add(&accounts.latency)?,
                    None => *latency = Some(accounts.latency),
                }
                bar.inc(1);
            }
        }
        for (mut storm, latency) in results {
            if let Some(latency) = latency.filter(|latency| !latency.is_empty()) {
                storm.latency = PERCENT.map(|p| (p, latency.value_at_percentile(p))).to_vec();
            }
            storms.push(storm);
        }
    }
    Ok(storms)
}

/// Returns the number of storms that [`all`] runs.
pub fn count(rounds: u32) -> u64 {
    SHAPES.len() as u64 * 2 * u64::from(rounds)
}
