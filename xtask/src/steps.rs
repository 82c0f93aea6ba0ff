//! The steps of `cargo xtask test`: their order, and the report of a run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ValueEnum;

use crate::{lab, lint, loom, no_std, oracle, perf, sanitizers, setup, shuttle, storm, unit};

/// One step. The steps run in the order of the variants.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    Setup,
    Fmt,
    Clippy,
    Doc,
    Unit,
    Backends,
    NoStd,
    Loom,
    Shuttle,
    Storm,
    Perf,
    Count,
    Oracle,
    Lab,
    Asan,
    Tsan,
}

enum Outcome {
    Passed(Duration),
    Failed(Duration),
    Skipped,
    NotReached,
}

impl Step {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Setup => setup::run(),
            Self::Fmt => lint::fmt(),
            Self::Clippy => lint::clippy(),
            Self::Doc => lint::doc(),
            Self::Unit => unit::unit(),
            Self::Backends => unit::backends(),
            Self::NoStd => no_std::run(),
            Self::Loom => loom::run(&[]),
            Self::Shuttle => shuttle::run(),
            Self::Storm => storm::run(),
            Self::Perf => perf::smoke(),
            Self::Count => perf::count(perf::Mode::Gate),
            Self::Oracle => oracle::run(&oracle::OracleArgs::default()),
            Self::Lab => lab::gate(),
            Self::Asan => sanitizers::asan(),
            Self::Tsan => sanitizers::tsan(),
        }
    }

    /// Returns the name on the command line, so that a name from a report can be typed.
    fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
    }
}

/// Runs every step except those in `skip`. Stops at the first failure unless told to continue.
///
/// All output is printed here, and goes to stdout. The last line of a report is the count of steps,
/// which machines read, so nothing may follow it.
pub(crate) fn run_all(skip: &[Step], keep_going: bool) -> ExitCode {
    let mut report = Vec::new();
    let mut stopped = false;
    for &step in Step::value_variants() {
        let outcome = if skip.contains(&step) {
            Outcome::Skipped
        } else if stopped {
            Outcome::NotReached
        } else {
            println!("\n==== {}", step.name());
            let start = Instant::now();
            match step.run() {
                Ok(()) => Outcome::Passed(start.elapsed()),
                Err(error) => {
                    println!("error: step {}: {error:#}", step.name());
                    stopped = !keep_going;
                    Outcome::Failed(start.elapsed())
                }
            }
        };
        report.push((step, outcome));
    }
    summarise(&report)
}

fn summarise(report: &[(Step, Outcome)]) -> ExitCode {
    println!("\n==== summary");
    let (mut passed, mut failed) = (0, Vec::new());
    for (step, outcome) in report {
        let (time, verdict) = match outcome {
            Outcome::Passed(time) => (seconds(*time), "passed"),
            Outcome::Failed(time) => (seconds(*time), "FAILED"),
            Outcome::Skipped => ("-".into(), "skipped by request"),
            Outcome::NotReached => ("-".into(), "not reached"),
        };
        match outcome {
            Outcome::Passed(_) => passed += 1,
            Outcome::Failed(_) => failed.push(step.name()),
            Outcome::Skipped | Outcome::NotReached => {}
        }
        println!("  {:<10}{time:>10}  {verdict}", step.name());
    }
    if let Some(first) = failed.first() {
        let steps = failed.join(", ");
        println!("\nfailed: {steps}; `cargo xtask {first}` runs that step alone");
    }
    println!("\n{passed} passed, {} failed", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
