//! The checks that do not run the code: formatting, lints, documentation, dependencies.

use anyhow::{Result, bail};

use crate::process::{answers, cargo, root, run};
use crate::{loom, no_std, perf, prose, shuttle};

pub(crate) fn fmt() -> Result<()> {
    run(&mut cargo(["fmt", "--all", "--check"]))?;
    // These are not in the workspace, so `--all` does not reach them.
    run(&mut cargo(["fmt", "--manifest-path", "lab/guests/Cargo.toml", "--check"]))?;
    run(&mut cargo(["fmt", "--manifest-path", perf::PEER, "--check"]))?;
    run(&mut cargo(["fmt", "--manifest-path", no_std::PROBE, "--check"]))?;
    prose::check()
}

/// The supported sets of features. Code behind a feature is linted only in a set that has it.
const CLIPPY_SETS: &[&[&str]] = &[
    // The workspace's other crates enable features of the core, so the core is also linted alone.
    &["--workspace"],
    &["--package", "vgic-core"],
    &["--package", "vgic-core", "--all-features"],
    &["--package", "vgic-core", "--no-default-features"],
];

pub(crate) fn clippy() -> Result<()> {
    const DENY: [&str; 4] = ["--all-targets", "--", "--deny", "warnings"];
    for set in CLIPPY_SETS {
        run(cargo(["clippy"]).args(*set).args(DENY))?;
    }
    run(no_std::probe("clippy")?.args(&DENY[1..]))?;
    run(loom::cargo("clippy", loom::MODELS).args(DENY))?;
    run(shuttle::cargo("clippy", loom::MODELS).args(DENY))?;
    // Lint the core again, with the rule that applies under loom only. The feature `locked` is left
    // out: that engine is not part of the models, and may use real atomics.
    let rules = root().join("xtask/clippy-under-loom");
    run(loom::cargo("clippy", "vgic-core")
        .args(["--lib", "--features", "counters,trace"])
        .args(&DENY[1..])
        .env("CLIPPY_CONF_DIR", rules))
}

pub(crate) fn doc() -> Result<()> {
    run(cargo(["doc", "--workspace", "--no-deps", "--all-features"])
        .env("RUSTDOCFLAGS", "--deny warnings"))
}

pub(crate) fn deny(advisories: bool) -> Result<()> {
    if !answers(&mut cargo(["deny", "--version"])) {
        bail!("cargo-deny is missing: cargo install --locked cargo-deny");
    }
    let mut command = cargo(["deny", "check", "bans", "licenses", "sources"]);
    if advisories {
        command.arg("advisories");
    }
    run(&mut command)
}
