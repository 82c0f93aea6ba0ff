//! Mutants: seeded bugs that the models must find. A model that passes proves nothing until it has
//! failed for the right reason.
//!
//! A mutant reaches the core through an environment variable that `core/build.rs` reads, and not
//! through `RUSTFLAGS`. So each mutant rebuilds only the core and the models, and loom is built
//! once.

mod table;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::artifacts::{self, Executable};
use crate::{loom, process, shuttle};
use table::Row;

/// The variable that names the mutant for `core/build.rs`.
pub(crate) const VARIABLE: &str = "VGIC_MUTANT";
/// The time limit for one model, in seconds. A mutant usually fails in the first few interleavings.
pub(crate) const TIME_LIMIT_SECONDS: u64 = 120;

/// The result of a model.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    Passed,
    /// A test failed, or a second panic while unwinding aborted the process.
    Failed,
    NothingRun,
    TimedOut,
    /// An end that says nothing about the mutant.
    Other(String),
}

/// Runs the mutants called `names`, or all of them. Returns an error if the models miss one.
pub(crate) fn run(names: &[String], time_limit: u64) -> Result<()> {
    let rows = table::select(table::read()?, names)?;
    let limit = Duration::from_secs(time_limit);
    let logs = loom::target_dir().join("mutants");
    fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;

    let mut faults = unmutated(&rows, &logs, limit)?;
    let mut killed = 0;
    let mutants: BTreeSet<&str> = rows.iter().map(|row| row.mutant.as_str()).collect();
    for mutant in &mutants {
        let models: Vec<&Row> = rows.iter().filter(|row| row.mutant == *mutant).collect();
        let start = Instant::now();
        let built = match build(Some(mutant), &models) {
            Ok(built) => built,
            Err(error) => {
                faults.push(format!("{mutant}: {error:#}"));
                continue;
            }
        };
        println!("built in {:.0} s", start.elapsed().as_secs_f64());
        for row in models {
            match explore(&built, row, &logs, limit)? {
                Ending::Failed => killed += 1,
                Ending::Passed => faults.push(format!("{row}: SURVIVED")),
                ending => faults.push(format!("{row}: {ending}, which says nothing")),
            }
        }
    }

    println!("\n{killed} of {} found, by models of {} mutants", rows.len(), mutants.len());
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{}\nwhat the models printed is in {}", faults.join("\n"), logs.display())
}

/// Runs the models without a mutant. A model that fails anyway would "find" every bug.
fn unmutated(rows: &[Row], logs: &Path, limit: Duration) -> Result<Vec<String>> {
    let all: Vec<&Row> = rows.iter().collect();
    let built = build(None, &all)?;
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for row in rows {
        if !seen.insert((&row.binary, &row.filter)) {
            continue;
        }
        let original = Row { mutant: "none".into(), ..row.clone() };
        match explore(&built, &original, logs, limit)? {
            Ending::Passed => {}
            ending => faults.push(format!("{original}: {ending}, without a mutant")),
        }
    }
    Ok(faults)
}

fn build(mutant: Option<&str>, models: &[&Row]) -> Result<Vec<Executable>> {
    println!("\n-- mutant {}", mutant.unwrap_or("none: the models must pass"));
    let binaries: BTreeSet<&str> = models.iter().map(|row| row.binary.as_str()).collect();
    let (storms, models): (Vec<&str>, Vec<&str>) =
        binaries.into_iter().partition(|binary| shuttle::STORMS.contains(binary));
    let mut built = Vec::new();
    if !models.is_empty() {
        let mut command = loom::cargo_test();
        for binary in models {
            command.args(["--test", binary]);
        }
        built.extend(build_one(command, mutant)?);
    }
    if !storms.is_empty() {
        let mut command = shuttle::cargo_test();
        for binary in storms {
            command.args(["--test", binary]);
        }
        built.extend(build_one(command, mutant)?);
    }
    Ok(built)
}

fn build_one(mut command: Command, mutant: Option<&str>) -> Result<Vec<Executable>> {
    command.arg("--no-run");
    if let Some(mutant) = mutant {
        command.env(VARIABLE, mutant);
    }
    artifacts::build(&mut command)
}

fn explore(built: &[Executable], row: &Row, logs: &Path, limit: Duration) -> Result<Ending> {
    let Row { mutant, binary, filter } = row;
    let executable = built.iter().find(|executable| executable.name == *binary);
    let executable = executable.with_context(|| format!("cargo built no test {binary}"))?;
    let log = logs.join(format!("{mutant}.{binary}.{}.log", filter.replace(':', "-")));
    let mut command = Command::new(&executable.path);
    // No backtraces: a panic in a model is the expected end, and a backtrace takes longer than the
    // model.
    command.arg(filter).env("RUST_BACKTRACE", "0").current_dir(process::root().join("loom-tests"));
    let start = Instant::now();
    let status = process::run_logged(&mut command, &log, limit)?;
    let output = fs::read(&log).with_context(|| format!("reading {}", log.display()))?;
    let ending = match status {
        Some(status) => classify(status, &String::from_utf8_lossy(&output)),
        None => Ending::TimedOut,
    };
    println!("  {row}: {ending} ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(ending)
}

fn classify(status: ExitStatus, output: &str) -> Ending {
    if status.success() {
        let ran = output
            .lines()
            .any(|line| line.strip_prefix("running ").is_some_and(|rest| !rest.starts_with("0 ")));
        return if ran { Ending::Passed } else { Ending::NothingRun };
    }
    // The status is not enough: the harness also fails when it does not understand its arguments.
    if output.contains("test result: FAILED") || (aborted(status) && output.contains("panicked at"))
    {
        return Ending::Failed;
    }
    Ending::Other(status.to_string())
}

/// Returns whether the process aborted. A kill from outside, for example for its memory, is not an
/// abort.
fn aborted(status: ExitStatus) -> bool {
    const SIGABRT: i32 = 6;
    #[cfg(unix)]
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    let signal = status.code();
    signal == Some(SIGABRT)
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed => f.write_str("failed"),
            Self::NothingRun => f.write_str("no test has such a name"),
            Self::TimedOut => f.write_str("TIME LIMIT exceeded"),
            Self::Other(status) => write!(f, "ended with {status}"),
        }
    }
}
