//! The project's own commands. `cargo xtask test` is the gate: it runs every step below in order.

mod artifacts;
mod fuzz;
mod lab;
mod lint;
mod loom;
mod mutants;
mod no_std;
mod oracle;
mod perf;
mod process;
mod prose;
mod quick;
mod sanitizers;
mod setup;
mod shuttle;
mod steps;
mod storm;
mod unit;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::steps::Step;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every step in order, then print a summary: the gate
    Test(TestArgs),
    /// Check formatting, lints and tests of the core, and the models of changed files
    Quick(QuickArgs),
    /// Check for the tools that the other steps need, and install missing ones
    Setup,
    /// Check the formatting, and the English of the comments
    Fmt,
    /// Run clippy on every set of features, with warnings denied
    Clippy,
    /// Build the documentation, with rustdoc's warnings denied
    Doc,
    /// Run the unit, property and documentation tests
    Unit,
    /// Run the core's tests optimized, with the locked engine beside the lock-free one
    Backends,
    /// Link the core into a program that cannot have std
    NoStd,
    /// Run the loom models or, with --mutants, prove that they find seeded bugs
    Loom(LoomArgs),
    /// Run the models and storms of whole machines in random schedules without a bound
    Shuttle,
    /// Run short lpi-storms on both engines, also through an ITS, and check for lost interrupts
    Storm,
    /// Compare the register model with QEMU's GICv2 and GICv3
    Oracle(oracle::OracleArgs),
    /// Run guests on an arm64 KVM host, which is emulated if there is none
    Lab(lab::LabArgs),
    /// Measure everything beside its peers, and write a report to perf-reports (20 minutes)
    Perf(perf::PerfArgs),
    /// Count instructions of operations and of worst accesses, and check the tables in perf-reports
    /// (installs valgrind)
    Count(CountArgs),
    /// Run the core's tests under AddressSanitizer (nightly)
    Asan,
    /// Run the core's stress tests under ThreadSanitizer (nightly)
    Tsan,
    /// Run the core's tests under Miri (nightly; not part of `test`)
    Miri(MiriArgs),
    /// Run the register frames under libFuzzer (nightly; installs cargo-fuzz; not part of `test`)
    Fuzz(fuzz::FuzzArgs),
    /// Check licences, sources and duplicates of dependencies (cargo-deny; not part of `test`)
    Deny(DenyArgs),
}

#[derive(Args)]
struct TestArgs {
    /// Continue after a failed step
    #[arg(long)]
    keep_going: bool,
    /// Leave a step out; may be given several times
    #[arg(long, value_name = "STEP")]
    skip: Vec<Step>,
}

#[derive(Args)]
struct QuickArgs {
    /// The commit to compare with for changed files
    #[arg(default_value = "HEAD")]
    base: String,
}

#[derive(Args)]
struct LoomArgs {
    /// Run the seeded bugs of loom-tests/mutants.txt instead; ARGS then select mutants
    #[arg(long)]
    mutants: bool,
    /// With --mutants: the time limit for one model, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = mutants::TIME_LIMIT_SECONDS)]
    time_limit: u64,
    /// Arguments for `cargo test`: a filter, `--test NAME`, ...
    #[arg(allow_hyphen_values = true)]
    args: Vec<String>,
    /// Arguments for the test programs: `--nocapture`, ...
    #[arg(last = true, value_name = "TEST_ARGS")]
    test_args: Vec<String>,
}

#[derive(Args)]
struct CountArgs {
    /// Write the tables instead of checking against them
    #[arg(long)]
    update: bool,
    /// Count only the accesses of a guest
    #[arg(long)]
    accesses: bool,
}

#[derive(Args)]
struct MiriArgs {
    /// Arguments for `cargo miri test`
    #[arg(allow_hyphen_values = true)]
    args: Vec<String>,
    /// Arguments for the test programs
    #[arg(last = true, value_name = "TEST_ARGS")]
    test_args: Vec<String>,
}

#[derive(Args)]
struct DenyArgs {
    /// Check for security advisories too, which fetches their database
    #[arg(long)]
    advisories: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(args) => return steps::run_all(&args.skip, args.keep_going),
        Command::Quick(args) => quick::run(&args.base),
        Command::Setup => Step::Setup.run(),
        Command::Fmt => Step::Fmt.run(),
        Command::Clippy => Step::Clippy.run(),
        Command::Doc => Step::Doc.run(),
        Command::Unit => Step::Unit.run(),
        Command::Backends => Step::Backends.run(),
        Command::NoStd => Step::NoStd.run(),
        Command::Loom(args) if args.mutants => mutants::run(&args.args, args.time_limit),
        Command::Loom(args) => loom::run(&passed_on(args.args, args.test_args)),
        Command::Shuttle => Step::Shuttle.run(),
        Command::Storm => Step::Storm.run(),
        Command::Oracle(args) => oracle::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::Perf(args) => perf::run(&args),
        Command::Count(args) => {
            let mode = if args.update { perf::Mode::Update } else { perf::Mode::Check };
            if args.accesses { perf::count_accesses(mode) } else { perf::count(mode) }
        }
        Command::Asan => Step::Asan.run(),
        Command::Tsan => Step::Tsan.run(),
        Command::Miri(args) => sanitizers::miri(&passed_on(args.args, args.test_args)),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Deny(args) => lint::deny(args.advisories),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the tail of a `cargo test` command: `args -- test_args`.
fn passed_on(mut args: Vec<String>, test_args: Vec<String>) -> Vec<String> {
    if !test_args.is_empty() {
        args.push("--".into());
        args.extend(test_args);
    }
    args
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command, passed_on};

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn loom_hands_its_arguments_on() {
        for given in
            [&["--test", "irq", "put", "--", "--nocapture"][..], &["--", "--list"], &["put"], &[]]
        {
            let line = ["xtask", "loom"].iter().chain(given);
            let Ok(Cli { command: Command::Loom(args) }) = Cli::try_parse_from(line) else {
                panic!("not understood: {given:?}");
            };
            assert!(!args.mutants);
            assert_eq!(passed_on(args.args, args.test_args), given);
        }
    }
}
