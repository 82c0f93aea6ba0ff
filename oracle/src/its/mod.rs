//! The ITS: commands in a queue in memory, tables in memory, and what has become pending in the redistributors' tables.
//!
//! Both sides have the same memory at the same addresses, and get the same commands by GITS_CWRITER. After each operation the
//! control frame is compared, and, if commands or MSIs were among them, the pending tables: QEMU keeps pending LPIs in them, and this
//! project writes them there when it is asked to. No CPU runs, so nothing is acknowledged.

pub mod generate;
pub mod world;

use anyhow::Result;

use crate::compare::{Difference, Pair};
use crate::regs;
use crate::target::{Action, GITS, Model, Target, VCPUS};
use world::{Coverage, LPI_WORDS, Op, World, pending_table};

/// What became of a comparison.
#[derive(Debug)]
pub struct Outcome {
    /// The first difference.
    pub difference: Option<Difference>,
    /// What was compared.
    pub coverage: Coverage,
}

/// Performs a sequence on two machines that are as after a reset.
///
/// # Errors
/// If the reference cannot go on.
pub fn run(
    ops: &[Op],
    reference: &mut dyn Target,
    candidate: &mut dyn Target,
    progress: &dyn Fn(),
) -> Result<Outcome> {
    let mut pair = Pair { rules: World::new(), reference, candidate, rows: Vec::new() };
    let mut prologue = World::prologue();
    let mine = prologue.len();
    prologue.extend(state());
    let mut after = 0;
    let mut equal = pair.perform(&prologue, mine)?;
    for &op in ops {
        if !equal {
            break;
        }
        after += 1;
        progress();
        let mut actions = pair.rules.admit(op);
        if actions.is_empty() {
            continue;
        }
        let mine = actions.len();
        actions.extend(state());
        equal = pair.perform(&actions, mine)?;
    }
    let coverage = pair.rules.coverage();
    let difference = (!equal).then_some(Difference { after, rows: pair.rows });
    Ok(Outcome { difference, coverage })
}

/// What is looked at after each operation.
fn state() -> impl Iterator<Item = Action> {
    let frame = [(0, 4), (0x80, 8), (0x88, 8), (0x90, 8), (0x100, 8), (0x108, 8)];
    let frame = frame.map(|(offset, bytes)| Action::Read { address: GITS + offset, bytes });
    let tables = (0..VCPUS).flat_map(|rd| {
        LPI_WORDS.map(|word| Action::Read { address: pending_table(rd) + word, bytes: 8 })
    });
    frame.into_iter().chain(tables)
}

/// Reads of all registers, for the generator.
pub(crate) fn registers() -> &'static [regs::Reg] {
    regs::of_model(Model::Its)
}
