//! Runs the comparison. If there is a difference, it prints a reproducer, and the exit status is 1.

mod on_cpus;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use vgic_oracle::compare::{self, Difference, Outcome, Sweep};
use vgic_oracle::generate::Generator;
use vgic_oracle::its;
use vgic_oracle::ours::{Ours, OursWithIts};
use vgic_oracle::qtest::Qemu;
use vgic_oracle::report;
use vgic_oracle::rules::{Coverage, Op};
use vgic_oracle::shrink::shrink;
use vgic_oracle::target::{Model, Target};

/// The number of operations of a sequence, which starts from a reset.
const SEQUENCE: u64 = 1000;
/// The largest number of replays when a sequence is cut down.
const TRIALS: usize = 600;

#[derive(Parser)]
#[command(about = "The register model against QEMU's")]
struct Args {
    /// Operations for each model
    #[arg(long, default_value_t = 100_000)]
    ops: u64,
    /// Where the random numbers begin
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this model
    #[arg(long)]
    model: Option<ModelArg>,
    /// The payload that performs accesses on QEMU's CPUs; without it, these are left out
    #[arg(long)]
    payload: Option<PathBuf>,
    /// The candidate that is compared with QEMU: QEMU itself tests the comparison
    #[arg(long, default_value = "ours")]
    against: Against,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModelArg {
    V2,
    V3,
    Its,
    CpusV2,
    CpusV3,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Against {
    Ours,
    Qemu,
}

impl Against {
    fn names(self) -> [&'static str; 2] {
        match self {
            Self::Ours => ["QEMU", "this project"],
            Self::Qemu => ["QEMU", "another QEMU"],
        }
    }
}

/// The configuration in which sequences are run.
struct Case {
    model: Model,
    against: Against,
    lrs: usize,
}

impl Case {
    fn run(&self, ops: &[Op], sweep: Sweep, progress: &dyn Fn()) -> Result<Outcome> {
        let mut candidate: Box<dyn Target> = match self.against {
            Against::Ours => Box::new(Ours::new(self.model, self.lrs)?),
            Against::Qemu => Box::new(Qemu::start(self.model)?),
        };
        let mut reference = Qemu::start(self.model)?;
        compare::run(self.model, self.lrs, ops, sweep, &mut reference, &mut *candidate, progress)
    }

    /// Returns the difference found by the shortest sequence that still differs.
    fn reproduce(&self, ops: &[Op], found: Difference) -> Result<Difference> {
        let ops = ops[..found.after].to_vec();
        let replay = |ops: &[Op]| self.run(ops, Sweep::AtTheEnd, &|| {});
        let fewest = shrink(ops, TRIALS, |ops| Ok(replay(ops)?.difference.is_some()))?;
        Ok(replay(&fewest)?.difference.unwrap_or(found))
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs the chosen comparisons. Returns whether nothing differs.
fn run(args: &Args) -> Result<bool> {
    if args.against == Against::Ours {
        // A panic of the candidate is a difference, and is reported as one.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let all = [ModelArg::V2, ModelArg::V3, ModelArg::Its, ModelArg::CpusV2, ModelArg::CpusV3];
    let chosen = all.into_iter().filter(|&model| args.model.is_none_or(|only| only == model));
    let mut equal = true;
    for model in chosen {
        equal &= match (model, &args.payload) {
            (ModelArg::V2, _) => one(args, Model::V2)?,
            (ModelArg::V3, _) => one(args, Model::V3)?,
            (ModelArg::Its, _) => its(args)?,
            (ModelArg::CpusV2, Some(payload)) => on_cpus::run(args, Model::V2, payload)?,
            (ModelArg::CpusV3, Some(payload)) => on_cpus::run(args, Model::V3, payload)?,
            (_, None) if args.model.is_none() => true,
            (_, None) => bail!("--payload is wanted: `cargo xtask oracle` builds it"),
        };
    }
    Ok(equal)
}

fn one(args: &Args, model: Model) -> Result<bool> {
    let start = Instant::now();
    let bar = progress(model.name(), args.ops);
    let mut done = 0;
    let mut coverage = Coverage::default();
    while done < args.ops {
        let sequence = done / SEQUENCE;
        let seed = args.seed.wrapping_add(sequence);
        let count = SEQUENCE.min(args.ops - done);
        // With few list registers the engine has to spill, which must not be visible.
        let lrs = [16, 4, 16, 2][(seed % 4) as usize];
        let case = Case { model, against: args.against, lrs };
        let ops = Generator::new(model, seed).sequence(count as usize);
        let outcome = case.run(&ops, Sweep::Sometimes, &|| bar.inc(1))?;
        coverage.add(outcome.coverage);
        if let Some(found) = outcome.difference {
            bar.set_message("a difference: cutting it down");
            let difference = case.reproduce(&ops, found)?;
            bar.finish_and_clear();
            let version = model.revision();
            println!("GICv{version}: a difference, seed {seed}, {lrs} list registers:");
            println!("{}", report::table(model, &difference, args.against.names()));
            println!("again: cargo xtask oracle --model v{version} --seed {seed} --ops {SEQUENCE}");
            return Ok(false);
        }
        done += count;
    }
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    println!("GICv{}: {done} operations in {seconds:.1} s, no difference", model.revision());
    let Coverage { performed, acknowledged, deepest, fiq } = coverage;
    match model {
        Model::V2 => println!(
            "  {performed} performed; {acknowledged} interrupts acknowledged, up to {deepest} nested; FIQ high after {fiq}"
        ),
        Model::V3 | Model::Its => println!("  {performed} performed"),
    }
    // Rules that pass over everything would agree with anything.
    ensure!(
        args.ops < SEQUENCE || performed * 2 > done && (model == Model::V3 || acknowledged > 0),
        "too little was compared"
    );
    Ok(true)
}

/// The configuration in which sequences for the ITS are run.
struct ItsCase {
    against: Against,
    lrs: usize,
    looks: bool,
}

impl ItsCase {
    fn run(&self, ops: &[its::world::Op], progress: &dyn Fn()) -> Result<its::Outcome> {
        let mut candidate: Box<dyn Target> = match self.against {
            Against::Ours => Box::new(OursWithIts::new(self.lrs, self.looks)?),
            Against::Qemu => Box::new(Qemu::start(Model::Its)?),
        };
        its::run(ops, &mut Qemu::start(Model::Its)?, &mut *candidate, progress)
    }
}

fn its(args: &Args) -> Result<bool> {
    let start = Instant::now();
    let bar = progress(Model::Its.name(), args.ops);
    let mut done = 0;
    let mut coverage = its::world::Coverage::default();
    while done < args.ops {
        let seed = args.seed.wrapping_add(done / SEQUENCE);
        let count = SEQUENCE.min(args.ops - done);
        let (lrs, looks) = ([16, 4, 2][(seed % 3) as usize], seed & 1 != 0);
        let case = ItsCase { against: args.against, lrs, looks };
        let ops = its::generate::Generator::new(seed).sequence(count as usize);
        let outcome = case.run(&ops, &|| bar.inc(1))?;
        coverage.add(outcome.coverage);
        if let Some(found) = outcome.difference {
            bar.set_message("a difference: cutting it down");
            let fails = |ops: &[_]| Ok(case.run(ops, &|| {})?.difference.is_some());
            let fewest = shrink(ops[..found.after].to_vec(), TRIALS, fails)?;
            let difference = case.run(&fewest, &|| {})?.difference.unwrap_or(found);
            bar.finish_and_clear();
            println!("ITS: a difference, seed {seed}, {lrs} list registers:");
            for op in &fewest {
                println!("  {op:x?}");
            }
            println!("{}", report::table(Model::Its, &difference, args.against.names()));
            println!("again: cargo xtask oracle --model its --seed {seed} --ops {SEQUENCE}");
            return Ok(false);
        }
        done += count;
    }
    bar.finish_and_clear();
    println!("ITS: {done} operations in {:.1} s, no difference", start.elapsed().as_secs_f64());
    let its::world::Coverage { performed, commands, wrong, pending, moved } = coverage;
    println!(
        "  {performed} performed; {commands} commands, {wrong} of them wrong; {pending} LPIs became pending, {moved} moved while they were"
    );
    // Rules that pass over everything would agree with anything.
    ensure!(
        args.ops < SEQUENCE || performed * 2 > done && wrong < commands && pending > 0 && moved > 0,
        "too little was compared"
    );
    Ok(true)
}

fn progress(name: &str, ops: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(ops).with_prefix(name.to_owned());
    match ProgressStyle::with_template("{prefix} {bar:40} {pos}/{len} {per_sec} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
