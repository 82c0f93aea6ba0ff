//! What CPUs do: they acknowledge and end interrupts, of both groups, on two CPUs, with level inputs, and with LPIs through an ITS.
//!
//! In QEMU a payload without a system performs the accesses ([`guest`]; `lab/guests/src/bin/accesses.rs`), here they are performed on a machine
//! with a software CPU interface ([`ours`]). [`generate`] makes operations, [`world`] decides what each comes to, and which answers have to be
//! equal. It follows this project's answers, since QEMU performs a sequence as a whole, afterwards: up to
//! the first difference both have given the same answers.

pub mod generate;
pub mod guest;
mod lpis;
pub mod ours;
pub mod report;
pub mod steps;
pub mod style;
mod v2;
mod v3;
#[path = "../../../lab/guests/src/wire.rs"]
#[allow(dead_code)] // the other side's half
pub mod wire;
pub mod world;

use anyhow::Result;

use generate::Op;
use steps::{Machine, Row};
use style::Style;
use world::{Coverage, World};

/// What became of a comparison.
#[derive(Debug)]
pub struct Outcome {
    /// How many operations were done until something differed, and everything that was done, in order; the last differs.
    pub difference: Option<(usize, Vec<Row>)>,
    /// What was compared.
    pub coverage: Coverage,
}

/// Performs a sequence on two machines, which are as after a reset.
///
/// # Errors
/// If the reference cannot go on.
pub fn run(
    style: Style,
    ops: &[Op],
    reference: &mut dyn Machine,
    candidate: &mut dyn Machine,
) -> Result<Outcome> {
    let mut world = World::new(style);
    let (mut steps, mut answers, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut failure = None;
    let mut batch = world.prologue();
    let mut left = ops.iter();
    loop {
        match candidate.perform(&batch) {
            Ok(seen) => {
                world.observe(&mut batch, &seen);
                steps.append(&mut batch);
                answers.extend(seen);
                ends.push(steps.len());
            }
            Err(error) => {
                failure = Some((batch, format!("{error:#}")));
                break;
            }
        }
        let Some(&op) = left.next() else { break };
        batch = world.admit(op);
    }
    let seen = reference.perform(&steps)?;
    let rows = steps.iter().zip(seen).zip(answers);
    let mut rows: Vec<Row> = rows
        .map(|((&step, reference), candidate)| Row { step, reference, candidate: Ok(candidate) })
        .collect();
    let coverage = world.coverage();
    if let Some(n) = rows.iter().position(|row| !row.agrees()) {
        rows.truncate(n + 1);
        let after = ends.iter().filter(|&&end| end <= n).count();
        return Ok(Outcome { difference: Some((after, rows)), coverage });
    }
    let difference = failure.map(|(batch, error)| {
        let failed =
            |step| Row { step, reference: Default::default(), candidate: Err(error.clone()) };
        rows.extend(batch.into_iter().map(failed));
        (ends.len(), rows)
    });
    Ok(Outcome { difference, coverage })
}

#[cfg(test)]
mod tests;
