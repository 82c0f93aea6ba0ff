//! The storms: whole machines on the core's own code, in random schedules (shuttle). Where the models go through every
//! interleaving of a few steps, these take their chances with many.

use std::process::Command;

use anyhow::{Context, Result};

use crate::loom::MODELS;
use crate::{process, unit};

/// The tests that are storms, among those of the models.
pub(crate) const TESTS: &[&str] = &["its_storm"];

/// `cargo test` on the storms.
pub(crate) fn cargo_test() -> Command {
    let mut command = cargo("test", MODELS);
    for test in TESTS {
        command.args(["--test", test]);
    }
    command
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

/// Runs the storms.
pub(crate) fn run() -> Result<()> {
    let output = process::tee(cargo_test().arg("--no-fail-fast"))?;
    let storms = unit::passed(&output).context("there was no storm")?;
    println!("{storms} storms");
    Ok(())
}
