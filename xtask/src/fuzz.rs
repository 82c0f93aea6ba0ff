//! Runs the register frames under libFuzzer, each target for a limited time. `fuzz/src/lib.rs` has
//! the code of the targets.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, answers, cargo, root};

/// The run time of each target, in seconds.
pub(crate) const SECONDS: u64 = 120;
/// The maximum length of an input. A step takes about ten bytes.
const MAX_LEN: usize = 1024;

#[derive(clap::Args)]
pub(crate) struct FuzzArgs {
    /// The run time of each target, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = SECONDS)]
    seconds: u64,
    /// The targets to run; without any, all of them
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    // libFuzzer treats 0 as no limit.
    ensure!(args.seconds > 0, "--seconds must be at least 1");
    let known = targets()?;
    for target in &args.targets {
        ensure!(known.contains(target), "no fuzz target {target}; there are {}", known.join(", "));
    }
    let chosen = if args.targets.is_empty() { &known } else { &args.targets };
    tools()?;
    process::run(&mut fuzz("build"))?;
    let mut crashed = Vec::new();
    for (n, target) in chosen.iter().enumerate() {
        println!("\n-- target {target}, {} of {}: {} s", n + 1, chosen.len(), args.seconds);
        if let Err(error) = fuzz_one(target, args.seconds) {
            println!("{error:#}");
            crashed.push(target.as_str());
        }
    }
    if crashed.is_empty() {
        println!("\n{} targets, nothing found", chosen.len());
        return Ok(());
    }
    bail!("failed: {}; the inputs are in fuzz/artifacts", crashed.join(", "))
}

/// Lists the targets from the files, so that a new target is run too.
fn targets() -> Result<Vec<String>> {
    let dir = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs") {
            targets.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    targets.sort();
    ensure!(!targets.is_empty(), "no fuzz target in {}", dir.display());
    Ok(targets)
}

/// Checks for a nightly toolchain, and installs cargo-fuzz if it is missing.
fn tools() -> Result<()> {
    if !answers(Command::new("rustc").args(["+nightly", "--version"])) {
        bail!(
            "the Rust toolchain `nightly` is missing, which cargo-fuzz needs: \
             install it with `rustup toolchain install nightly --profile minimal`"
        );
    }
    if answers(&mut cargo(["fuzz", "--version"])) {
        return Ok(());
    }
    println!("missing: cargo-fuzz");
    process::run(&mut cargo(["install", "cargo-fuzz", "--locked"]))?;
    if !answers(&mut cargo(["fuzz", "--version"])) {
        bail!(
            "cargo-fuzz was installed, but `cargo fuzz` does not find it: is cargo's bin directory in PATH?"
        );
    }
    Ok(())
}

/// Returns `cargo fuzz SUBCOMMAND` with its default sanitizer and debug assertions.
fn fuzz(subcommand: &str) -> Command {
    let mut command = cargo(["+nightly", "fuzz", subcommand, "--target-dir"]);
    command.arg(root().join("target-fuzz"));
    // The instrumented code builds in a minute instead of five, and runs as fast.
    command.envs([
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ]);
    command
}

fn fuzz_one(target: &str, seconds: u64) -> Result<()> {
    let fuzz_dir = root().join("fuzz");
    let (corpus, seeds) =
        (fuzz_dir.join("corpus").join(target), fuzz_dir.join("seeds").join(target));
    fs::create_dir_all(&corpus).with_context(|| format!("creating {}", corpus.display()))?;
    let mut command = fuzz("run");
    // libFuzzer writes new inputs to the first directory, and only reads the seeds.
    command.arg(target).arg(corpus);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command.arg("--").args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={MAX_LEN}"),
        // An input takes a millisecond. One that takes this long has hung.
        "-timeout=20".into(),
        "-print_final_stats=1".into(),
    ]);
    process::run(&mut command)
}
