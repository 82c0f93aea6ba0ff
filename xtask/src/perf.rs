//! `cargo xtask perf` measures everything beside its peers, and writes a report. `cargo xtask
//! count` is the part that does not depend on the machine's load.

mod accesses;
mod count;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

pub(crate) use accesses::run as count_accesses;
pub(crate) use count::{Mode, run as count};

use crate::artifacts;
use crate::process::{self, cargo, root, target_dir};

#[derive(Args, Default)]
pub(crate) struct PerfArgs {
    /// A smoke test in seconds, without meaningful figures; the report goes to the target directory
    #[arg(long)]
    quick: bool,
    /// Compare two reports, and print which differences are significant
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"], conflicts_with_all = ["quick", "only", "rounds"])]
    compare: Option<Vec<PathBuf>>,
    /// Measure only paths that contain this, without storms; the report goes to the target
    /// directory
    #[arg(long)]
    only: Option<String>,
    /// The number of rounds of each figure
    #[arg(long)]
    rounds: Option<u32>,
    /// Leave arm_vgic out
    #[arg(long)]
    no_peer: bool,
}

/// The manifest of the crate that drives arm_vgic, from the workspace's root.
pub(crate) const PEER: &str = "benches/peers/arm_vgic/Cargo.toml";
/// The time limit of a report that takes seconds.
const QUICK_LIMIT: Duration = Duration::from_secs(300);
/// The time limit of a whole report.
const LIMIT: Duration = Duration::from_secs(40 * 60);

pub(crate) fn run(args: &PerfArgs) -> Result<()> {
    let program = &program()?;
    if let Some(reports) = &args.compare {
        return process::run(Command::new(program).arg("compare").args(reports));
    }
    let commit = commit();
    let partial = args.quick || args.only.is_some();
    let out = if partial {
        target_dir().join("perf-report")
    } else {
        root().join("perf-reports").join(format!("{}-{commit}", today()))
    };
    let mut command = Command::new(program);
    command.arg("run").arg("--out").arg(&out).args(["--commit", &commit]);
    match peer(args.no_peer) {
        Ok(peer) => command.arg("--peer").arg(peer),
        Err(why) => {
            println!("without arm_vgic: {why:#}");
            command.arg("--no-peer").arg(format!("{why:#}"))
        }
    };
    if args.quick {
        command.arg("--quick");
    }
    if let Some(only) = &args.only {
        command.arg("--only").arg(only);
    }
    if let Some(rounds) = args.rounds {
        command.arg("--rounds").arg(rounds.to_string());
    }
    process::run_limited(&mut command, if args.quick { QUICK_LIMIT } else { LIMIT })?;
    if args.quick && args.only.is_none() {
        check(&out)?;
    }
    Ok(())
}

/// Builds the program that measures.
fn program() -> Result<PathBuf> {
    let mut build = cargo(["build", "--release", "--package", "vgic-benches", "--bin", "perf"]);
    let built = artifacts::build(build.stderr(Stdio::inherit()))?;
    Ok(built.into_iter().next().context("cargo built no `perf`")?.path)
}

/// Runs the gate's smoke test. It leaves the peer out, as its build takes longer than all the rest.
pub(crate) fn smoke() -> Result<()> {
    run(&PerfArgs { quick: true, no_peer: true, ..PerfArgs::default() })
}

/// Checks that a report has all its parts.
fn check(report: &Path) -> Result<()> {
    for file in ["report.json", "report.md", "entry.svg", "latency.svg", "memory.svg"] {
        let path = report.join(file);
        let length = fs::metadata(&path).map_or(0, |meta| meta.len());
        ensure!(length > 500, "{} is missing, or empty", path.display());
    }
    Ok(())
}

/// Builds the program that drives arm_vgic.
fn peer(left_out: bool) -> Result<PathBuf> {
    if left_out {
        bail!("left out by request");
    }
    let target = target_dir().join("peers");
    let mut command = cargo(["build", "--release", "--locked", "--manifest-path", PEER]);
    // One of its dependencies uses unstable features for its documentation.
    command.arg("--target-dir").arg(target).env("RUSTC_BOOTSTRAP", "axdevice_base");
    let built = artifacts::build(&mut command)?;
    Ok(built.into_iter().next().context("cargo built no program")?.path)
}

/// Returns the measured commit, followed by `+` if there are uncommitted changes.
fn commit() -> String {
    let git = |args: &[&str]| process::answer(Command::new("git").args(args).current_dir(root()));
    let commit = git(&["rev-parse", "--short=10", "HEAD"]).unwrap_or_else(|| "unknown".into());
    // Changes to reports do not change the measured code.
    let changes = git(&["status", "--porcelain", "--untracked-files=no", "--", ":!perf-reports"]);
    let changed = changes.is_some_and(|changes| !changes.is_empty());
    format!("{commit}{}", if changed { "+" } else { "" })
}

/// Returns today's date in UTC.
fn today() -> String {
    process::answer(Command::new("date").args(["-u", "+%Y-%m-%d"])).unwrap_or_else(|| {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
        format!("day-{}", seconds / 86_400)
    })
}
