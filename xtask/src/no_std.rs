//! Proves that the core needs no std: links it into a program that cannot have std.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{self, cargo, root};

/// The probe's manifest, from the workspace's root.
pub(crate) const PROBE: &str = "xtask/no-std-probe/Cargo.toml";

pub(crate) fn run() -> Result<()> {
    process::run(&mut probe("build")?)?;

    // The proof is that std's panic handler would clash with the probe's. Check that it does clash,
    // so that a change to the probe or the toolchain cannot make the build above pass for no
    // reason.
    let mut with_std = probe("build")?;
    with_std.args(["--features", "std"]);
    process::show(&with_std);
    let output = with_std.output().context("cannot start cargo")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || !errors.contains("panic_impl") {
        eprint!("{errors}");
        bail!("with feature std the probe must fail on a duplicate `panic_impl`, and did not");
    }
    println!("with std it fails on a duplicate `panic_impl`, as it must");
    Ok(())
}

/// Returns `cargo SUBCOMMAND` on the probe.
///
/// The probe is a separate workspace. With a copy of the main workspace's lock file it uses the
/// same versions, and there is no second lock file to keep in step.
pub(crate) fn probe(subcommand: &str) -> Result<Command> {
    let lock = root().join(PROBE).with_file_name("Cargo.lock");
    fs::copy(root().join("Cargo.lock"), lock).context("copying Cargo.lock for the probe")?;
    let mut command = cargo([subcommand, "--manifest-path", PROBE, "--target-dir"]);
    command.arg(process::target_dir().join("no-std"));
    Ok(command)
}
