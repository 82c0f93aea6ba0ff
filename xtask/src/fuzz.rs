//! The register frames under libFuzzer, each target for a while. What the targets do is in `fuzz/src/lib.rs`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, answers, cargo, root};

/// Seconds that each target runs for.
pub(crate) const SECONDS: u64 = 120;
/// Longest input. A step takes about ten bytes.
const MAX_LEN: usize = 1024;

#[derive(clap::Args)]
pub(crate) struct FuzzArgs {
    /// Seconds that each target runs for
    #[arg(long, value_name = "SECONDS", default_value_t = SECONDS)]
    seconds: u64,
    /// The targets to run; all if none is given
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    // libFuzzer takes 0 for ever.
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

/// From the files, so that one that is added is run.
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

/// A nightly toolchain, which is asked for, and cargo-fuzz, which is installed.
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

/// `cargo fuzz SUBCOMMAND` with the sanitizer and the debug assertions that are its defaults.
fn fuzz(subcommand: &str) -> Command {
    let mut command = cargo(["+nightly", "fuzz", subcommand, "--target-dir"]);
    command.arg(root().join("target-fuzz"));
    // The instrumented code is built in a minute instead of five, and runs as fast.
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
    // New inputs go to the first directory; the seeds are only read.
    command.arg(target).arg(corpus);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command.arg("--").args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={MAX_LEN}"),
        // An input takes a millisecond: one that takes this long waits for ever.
        "-timeout=20".into(),
        "-print_final_stats=1".into(),
    ]);
    process::run(&mut command)
}
