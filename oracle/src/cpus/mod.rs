//! The comparison of CPU actions: acknowledging and ending interrupts of both groups, on two CPUs,
//! with level inputs, and with LPIs through an ITS.
//!
//! In QEMU a bare-metal payload performs the accesses ([`guest`];
//! `lab/guests/src/bin/accesses.rs`). On this project's side they are performed on a machine with a
//! software CPU interface ([`ours`]). [`generate`] makes operations. [`world`] turns each into
//! accesses, and decides which answers have to be equal. It follows this project's answers, since
//! QEMU performs a sequence as a whole, afterwards. Up to the first difference both sides have
//! given the same answers.

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

/// The result of a comparison.
#[derive(Debug)]
pub struct Outcome {
    /// The number of operations performed until an answer differed, and all steps in order. The
    /// last step differs.
    pub difference: Option<(usize, Vec<Row>)>,
    /// Counts of the compared events.
    pub coverage: Coverage,
}

/// Performs a sequence on two machines. Both are in the state after a reset.
///
/// # Errors
/// If the reference fails.
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
