//! The core's own code in random schedules (shuttle): whole machines (the storms), and the models,
//! which loom explores up to a bound of preemptions. Shuttle has no such bound, but does not model
//! weak memory.

use std::process::Command;

use anyhow::{Context, Result};

use crate::loom::MODELS;
use crate::{process, unit};

/// The tests that run under shuttle only: the storms.
pub(crate) const STORMS: &[&str] = &["its_storm"];

/// Returns `cargo test` on the models and the storms.
pub(crate) fn cargo_test() -> Command {
    cargo("test", MODELS)
}

/// Returns `cargo SUBCOMMAND` on a package and its dependencies, all of them under shuttle.
pub(crate) fn cargo(subcommand: &str, package: &str) -> Command {
    let mut command = process::cargo([subcommand, "--package", package]);
    command.args(["--profile", "loom", "--target-dir"]).arg(process::root().join("target-shuttle"));
    process::rustflags(&mut command, "--cfg shuttle");
    // Only this program sets it, for one build at a time.
    command.env_remove(crate::mutants::VARIABLE);
    command
}

/// Runs the models and the storms.
pub(crate) fn run() -> Result<()> {
    let output = process::tee(cargo_test().arg("--no-fail-fast"))?;
    let tests = unit::passed(&output).context("no model was run")?;
    println!("{tests} models and storms in random schedules");
    Ok(())
}
