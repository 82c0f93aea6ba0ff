//! Runs the comparison of CPU actions ([`vgic_oracle::cpus`]).

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use indicatif::ProgressBar;
use vgic_oracle::cpus::generate::{Generator, Op};
use vgic_oracle::cpus::guest::Guest;
use vgic_oracle::cpus::ours::Ours;
use vgic_oracle::cpus::steps::{Machine, Row};
use vgic_oracle::cpus::style::Style;
use vgic_oracle::cpus::world::Coverage;
use vgic_oracle::cpus::{self, Outcome, report};
use vgic_oracle::shrink::shrink;
use vgic_oracle::target::Model;

use crate::{Against, Args, progress};

/// The number of operations of a sequence, which starts from a reset.
const SEQUENCE: u64 = 200;
/// The largest number of replays when a sequence is cut down. Each takes some milliseconds.
const TRIALS: usize = 5000;

/// QEMU and, if it is not this project, the candidate.
struct Pair {
    reference: Guest,
    /// Another QEMU as the candidate, to test the comparison.
    other: Option<Guest>,
}

impl Pair {
    fn start(model: Model, payload: &Path, against: Against) -> Result<Self> {
        let start = || Guest::start(model, payload);
        let other = (against == Against::Qemu).then(start).transpose()?;
        Ok(Self { reference: start()?, other })
    }

    fn run(&mut self, style: Style, ops: &[Op]) -> Result<Outcome> {
        self.reference.reset()?;
        let mut ours;
        let candidate: &mut dyn Machine = match &mut self.other {
            Some(other) => {
                other.reset()?;
                other
            }
            None => {
                ours = Ours::new(style)?;
                &mut ours
            }
        };
        cpus::run(style, ops, &mut self.reference, candidate)
    }

    fn reproduce(
        &mut self,
        style: Style,
        ops: &[Op],
        found: Vec<Row>,
    ) -> Result<(usize, Vec<Row>)> {
        // Checks after each operation show a difference sooner, unless they make it disappear.
        let often = Style { look_every: 1, sweep_every: 1, ..style };
        let style = if self.run(often, ops)?.difference.is_some() { often } else { style };
        let fewest =
            shrink(ops.to_vec(), TRIALS, |ops| Ok(self.run(style, ops)?.difference.is_some()))?;
        let again = self.run(style, &fewest)?.difference;
        Ok((fewest.len(), again.map_or(found, |(_, rows)| rows)))
    }
}

/// Runs the comparison for a model. Returns whether nothing differs.
pub(crate) fn run(args: &Args, model: Model, payload: &Path) -> Result<bool> {
    let start = Instant::now();
    let name = format!("{}, CPUs", model.name());
    let bar: ProgressBar = progress(&name, args.ops);
    let mut pair = Pair::start(model, payload, args.against)?;
    let mut coverage = Coverage::default();
    let mut done = 0;
    while done < args.ops {
        let seed = args.seed.wrapping_add(done / SEQUENCE);
        let count = SEQUENCE.min(args.ops - done);
        let style = Style::new(model, seed);
        let ops = Generator::new(style, seed).sequence(count as usize);
        let outcome = pair.run(style, &ops)?;
        coverage.add(outcome.coverage);
        bar.inc(count);
        if let Some((after, rows)) = outcome.difference {
            bar.set_message("a difference: cutting it down");
            let (fewest, rows) = pair.reproduce(style, &ops[..after.min(ops.len())], rows)?;
            bar.finish_and_clear();
            println!("{name}: a difference, seed {seed}, {fewest} operations, {style:?}:");
            println!("{}", report::table(model, &rows, args.against.names()));
            let model = if model == Model::V2 { "cpus-v2" } else { "cpus-v3" };
            println!("again: cargo xtask oracle --model {model} --seed {seed} --ops {SEQUENCE}");
            return Ok(false);
        }
        done += count;
    }
    bar.finish_and_clear();
    println!("{name}: {done} operations in {:.1} s, no difference", start.elapsed().as_secs_f64());
    let Coverage { performed, accesses, acknowledged, lpis, deepest, deactivated } = coverage;
    let [zero, one] = acknowledged;
    println!(
        "  {performed} performed, {accesses} accesses; {zero} interrupts of Group 0 acknowledged, {one} of Group 1, \
         {lpis} LPIs among them, up to {deepest} nested; {deactivated} deactivated by DIR"
    );
    // Rules that pass over everything would agree with anything.
    ensure!(
        args.ops < 64 * SEQUENCE
            || performed * 2 > done
                && zero.min(one).min(deactivated) > 0
                && (model == Model::V2 || lpis > 0),
        "too little was compared"
    );
    Ok(true)
}
