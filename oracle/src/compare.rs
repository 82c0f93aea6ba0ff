//! Two GICs side by side: the same operations, and the first answer that differs.

use anyhow::Result;

use crate::regs;
use crate::rules::{Coverage, Op, Rules};
use crate::target::{Action, Answer, GICC, Model, Target};

/// So many operations pass between two comparisons of everything that can be read.
const SWEEP_EVERY: usize = 64;
// What the CPU would take next, compared after each operation of GICv2.
const RPR: Action = Action::Read { address: GICC + 0x14, bytes: 4 };
const HPPIR: Action = Action::Read { address: GICC + 0x18, bytes: 4 };

/// What was done, and what both said.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was done.
    pub action: Action,
    /// The reference's answer.
    pub reference: Answer,
    /// The candidate's, or why it has none.
    pub candidate: Result<Answer, String>,
    /// The bits of the value that had to be equal.
    pub mask: u64,
    /// Whether a read was put in by the comparison, and is none of the sequence's operations.
    pub check: bool,
}

impl Row {
    /// Whether both said the same, as far as they must.
    pub fn agrees(&self) -> bool {
        self.candidate.as_ref().is_ok_and(|candidate| {
            (candidate.value ^ self.reference.value) & self.mask == 0
                && candidate.lines == self.reference.lines
        })
    }
}

/// The end of a comparison that found something.
#[derive(Clone, Debug)]
pub struct Difference {
    /// How many operations were done, the one that showed it included.
    pub after: usize,
    /// Everything that was done, in order; the last differs.
    pub rows: Vec<Row>,
}

/// What became of a comparison.
#[derive(Debug)]
pub struct Outcome {
    /// The first difference.
    pub difference: Option<Difference>,
    /// What was compared.
    pub coverage: Coverage,
}

/// When everything that can be read is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sweep {
    /// Now and then.
    Sometimes,
    /// After the last operation, for a sequence that is being cut down.
    AtTheEnd,
}

/// Performs a sequence on two GICs that are as after a reset. The candidate has `lrs` list registers.
///
/// # Errors
/// If the reference cannot go on.
pub fn run(
    model: Model,
    lrs: usize,
    ops: &[Op],
    sweep: Sweep,
    reference: &mut dyn Target,
    candidate: &mut dyn Target,
    progress: &dyn Fn(),
) -> Result<Outcome> {
    let mut pair = Pair { rules: Rules::new(model, lrs), reference, candidate, rows: Vec::new() };
    for action in Rules::prologue(model) {
        if !pair.perform(&[action], 1)? {
            return Ok(pair.differs(0));
        }
    }
    // The reset values, but for those that the prologue has made equal.
    let reset: Vec<Action> = everything(model).collect();
    if !pair.perform(&reset, 0)? {
        return Ok(pair.differs(0));
    }
    for (n, &op) in ops.iter().enumerate() {
        progress();
        let after = n + 1;
        let mut actions: Vec<Action> = Vec::new();
        if let Some(action) = pair.rules.admit(op) {
            actions.push(action);
            if let Action::Write { address, bytes, .. } = action
                && regs::find(model, address).is_some_and(regs::Reg::is_plain)
            {
                actions.push(Action::Read { address, bytes });
            }
            if model == Model::V2 {
                actions.extend([RPR, HPPIR]);
            }
        }
        let mine = actions.len().min(1);
        let due = match sweep {
            Sweep::Sometimes => after.is_multiple_of(SWEEP_EVERY) || after == ops.len(),
            Sweep::AtTheEnd => after == ops.len(),
        };
        if due {
            actions.extend(everything(model));
        }
        if !pair.perform(&actions, mine)? {
            return Ok(pair.differs(after));
        }
    }
    Ok(Outcome { difference: None, coverage: pair.rules.coverage() })
}

/// Reads of everything that can be read without effect.
fn everything(model: Model) -> impl Iterator<Item = Action> {
    regs::of_model(model).iter().filter(|reg| reg.is_plain()).flat_map(|reg| {
        let bytes = reg.read_bytes();
        let offsets = (0..reg.len).step_by(bytes.into());
        offsets.map(move |offset| Action::Read { address: reg.address + offset, bytes })
    })
}

/// What is known of both sides, and so what must be equal.
pub trait Judge {
    /// The bits in which the answers to an action must be equal, given the reference's.
    fn compared(&self, action: Action, reference: Answer) -> u64;

    /// Takes in what was done, and what the reference answered.
    fn observe(&mut self, action: Action, reference: Answer);
}

impl Judge for Rules {
    fn compared(&self, action: Action, reference: Answer) -> u64 {
        Rules::compared(self, action, reference)
    }

    fn observe(&mut self, action: Action, reference: Answer) {
        Rules::observe(self, action, reference);
    }
}

/// Both sides, and what they have said.
pub struct Pair<'t, J> {
    /// What is known of both.
    pub rules: J,
    /// The one that is right.
    pub reference: &'t mut dyn Target,
    /// The other one.
    pub candidate: &'t mut dyn Target,
    /// What was done, without checks that agreed.
    pub rows: Vec<Row>,
}

impl Pair<'_, Rules> {
    fn differs(self, after: usize) -> Outcome {
        let coverage = self.rules.coverage();
        Outcome { difference: Some(Difference { after, rows: self.rows }), coverage }
    }
}

impl<J: Judge> Pair<'_, J> {
    /// Performs actions, of which the first `mine` are the sequence's own. Returns whether all answers agree.
    ///
    /// # Errors
    /// If the reference cannot go on.
    pub fn perform(&mut self, actions: &[Action], mine: usize) -> Result<bool> {
        let reference = self.reference.perform(actions)?;
        // Which of them failed, its message says.
        let candidate = self.candidate.perform(actions);
        for (n, (&action, &reference)) in actions.iter().zip(&reference).enumerate() {
            let candidate = match &candidate {
                Ok(answers) => Ok(answers[n]),
                Err(error) => Err(format!("{error:#}")),
            };
            let mask = self.rules.compared(action, reference);
            let row = Row { action, reference, candidate, mask, check: n >= mine };
            let agrees = row.agrees();
            if !agrees || n < mine {
                self.rows.push(row);
            }
            if !agrees {
                return Ok(false);
            }
            if n < mine {
                self.rules.observe(action, reference);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Generator;
    use crate::target::Lines;

    /// Remembers what was written, and forgets one bit of one register.
    struct Toy {
        words: std::collections::BTreeMap<u64, u64>,
        broken: bool,
    }

    impl Target for Toy {
        fn perform(&mut self, actions: &[Action]) -> Result<Vec<Answer>> {
            let one = |&action: &Action| {
                let value = match action {
                    Action::Read { address, .. } => {
                        self.words.get(&address).copied().unwrap_or_default()
                    }
                    Action::Write { address, value, .. } => {
                        let lost = if self.broken && address == GICC + 4 { 0x80 } else { 0 };
                        self.words.insert(address, value & !lost);
                        0
                    }
                    Action::Line { .. } | Action::Zero { .. } => 0,
                };
                Ok(Answer { value, lines: Lines::default() })
            };
            actions.iter().map(one).collect()
        }
    }

    fn toys(ops: &[Op], broken: bool) -> Option<Difference> {
        let toy = |broken| Toy { words: Default::default(), broken };
        run(Model::V2, 16, ops, Sweep::Sometimes, &mut toy(false), &mut toy(broken), &|| {})
            .unwrap()
            .difference
    }

    #[test]
    fn equals_agree() {
        let ops = Generator::new(Model::V2, 5).sequence(500);
        assert!(toys(&ops, false).is_none());
    }

    #[test]
    fn a_lost_bit_is_found() {
        let difference = toys(&Generator::new(Model::V2, 5).sequence(500), true).unwrap();
        let last = difference.rows.last().unwrap();
        assert_eq!(last.action, Action::Read { address: GICC + 4, bytes: 4 });
        assert!(last.check && !last.agrees());
    }
}
