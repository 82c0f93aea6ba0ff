//! The core's own code in random schedules (shuttle): whole machines (the storms), and the models, which loom explores up to a
//! bound of preemptions. Shuttle has no such bound, and knows nothing of weak memory.

use std::process::Command;

use anyhow::{Context, Result};

use crate::loom::MODELS;
use crate::{process, unit};

/// The tests that run under shuttle only: the storms.
pub(crate) const STORMS: &[&str] = &["its_storm"];

/// `cargo test` on the models and the storms.
pub(crate) fn cargo_test() -> Command {
    cargo("test", MODELS)
}

/// `cargo SUBCOMMAND` on a package and what it depends on, everything under shuttle.
pub(crate) fn cargo(subcommand: &str, package: &str) -> Command {
    let mut command = process::cargo([subcommand, "--package", package]);
    command.args(["--profile", "loom", "--target-dir"]).arg(process::root().join("target-shuttle"));
    process::rustflags(&mut command, "--cfg shuttle");
    // As for the models.
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
