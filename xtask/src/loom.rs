//! The models: the core's own code, with loom's atomics, in every interleaving that loom explores.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{process, unit};

/// The time limit for the whole run of the models on 2 cores.
const BUDGET: Duration = Duration::from_secs(8 * 60);

pub(crate) const MODELS: &str = "vgic-loom-tests";

/// Returns `cargo test` on the models.
pub(crate) fn cargo_test() -> Command {
    cargo("test", MODELS)
}

/// Returns `cargo SUBCOMMAND` on a package and its dependencies, all of them under loom.
pub(crate) fn cargo(subcommand: &str, package: &str) -> Command {
    let mut command = process::cargo([subcommand, "--package", package]);
    command.args(["--profile", "loom", "--target-dir"]).arg(target_dir());
    // Without `crossbeam_loom`, crossbeam's part of the protocols would not be explored.
    process::rustflags(&mut command, "--cfg loom --cfg crossbeam_loom");
    // Only this program sets it, for one build at a time.
    command.env_remove(crate::mutants::VARIABLE);
    command
}

/// The target directory of builds under loom. Their flags differ from those of all other builds, so
/// in a shared directory each build would discard the other's results.
pub(crate) fn target_dir() -> PathBuf {
    process::root().join("target-loom")
}

/// Runs the models. `args` go to `cargo test`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let start = Instant::now();
    process::run(cargo_test().arg("--no-run").args(args))?;
    println!("built in {:.0} s", start.elapsed().as_secs_f64());

    let start = Instant::now();
    let output = process::tee(cargo_test().arg("--no-fail-fast").args(args))?;
    let models = unit::passed(&output).context("no model was explored")?;
    let (took, budget) = (start.elapsed().as_secs_f64(), BUDGET.as_secs());
    println!("{models} tests in {took:.0} s; the budget of a whole run is {budget} s on 2 cores");
    if start.elapsed() > BUDGET {
        println!("warning: OVER BUDGET: bound the models more tightly, or split them");
    }
    Ok(())
}
