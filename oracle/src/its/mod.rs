//! The comparison of ITSs: commands in a queue in memory, tables in memory, and the interrupts that
//! become pending in the redistributors' tables.
//!
//! Both sides have the same memory at the same addresses, and get the same commands by
//! GITS_CWRITER. After each operation the control frame and the pending tables are compared. QEMU
//! keeps pending LPIs in these tables, and this project writes them there on request. No CPU runs,
//! so nothing is acknowledged.

pub mod generate;
pub mod world;

use anyhow::Result;

use crate::compare::{Difference, Pair};
use crate::regs;
use crate::target::{Action, GITS, Model, Target, VCPUS};
use world::{Coverage, LPI_WORDS, Op, World, pending_table};

/// The result of a comparison.
#[derive(Debug)]
pub struct Outcome {
    /// The first difference.
    pub difference: Option<Difference>,
    /// Counts of the compared events.
    pub coverage: Coverage,
}

/// Performs a sequence on two machines. Both are in the state after a reset.
///
/// # Errors
/// If the reference fails.
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

/// Reads the registers and pending tables that are compared after each operation.
fn state() -> impl Iterator<Item = Action> {
    let frame = [(0, 4), (0x80, 8), (0x88, 8), (0x90, 8), (0x100, 8), (0x108, 8)];
    let frame = frame.map(|(offset, bytes)| Action::Read { address: GITS + offset, bytes });
    let tables = (0..VCPUS).flat_map(|rd| {
        LPI_WORDS.map(|word| Action::Read { address: pending_table(rd) + word, bytes: 8 })
    });
    frame.into_iter().chain(tables)
}

/// Returns all registers of the ITS, for the generator.
pub(crate) fn registers() -> &'static [regs::Reg] {
    regs::of_model(Model::Its)
}
