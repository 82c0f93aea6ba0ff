//! Proves that the core needs no std, by linking it where there cannot be one.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{self, cargo, root};

/// The probe's manifest, from the workspace's root.
pub(crate) const PROBE: &str = "xtask/no-std-probe/Cargo.toml";

pub(crate) fn run() -> Result<()> {
    process::run(&mut probe("build")?)?;

    // The proof is that std's panic handler would clash with the probe's. See it clash, so
    // that a change to the probe or the toolchain cannot make the build above pass for nothing.
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

/// `cargo SUBCOMMAND` on the probe.
///
/// The probe is a workspace of its own. With a copy of the workspace's lock file it is built from
/// the same versions, instead of from a second lock file that nobody would keep in step.
pub(crate) fn probe(subcommand: &str) -> Result<Command> {
    let lock = root().join(PROBE).with_file_name("Cargo.lock");
    fs::copy(root().join("Cargo.lock"), lock).context("copying Cargo.lock for the probe")?;
    let mut command = cargo([subcommand, "--manifest-path", PROBE, "--target-dir"]);
    command.arg(process::target_dir().join("no-std"));
    Ok(command)
}
