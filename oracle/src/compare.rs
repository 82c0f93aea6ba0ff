//! Performs the same operations on two GICs, and finds the first answer that differs.

use anyhow::Result;

use crate::regs;
use crate::rules::{Coverage, Op, Rules};
use crate::target::{Action, Answer, GICC, Model, Target};

/// The number of operations between two comparisons of all readable registers.
const SWEEP_EVERY: usize = 64;
// These show the interrupt that the CPU would take next. They are compared after each operation of
// GICv2.
const RPR: Action = Action::Read { address: GICC + 0x14, bytes: 4 };
const HPPIR: Action = Action::Read { address: GICC + 0x18, bytes: 4 };

/// An action with both answers.
#[derive(Clone, Debug)]
pub struct Row {
    /// The action.
    pub action: Action,
    /// The reference's answer.
    pub reference: Answer,
    /// The candidate's answer, or the reason why it has none.
    pub candidate: Result<Answer, String>,
    /// The bits of the value that had to be equal.
    pub mask: u64,
    /// Whether the comparison inserted this read. If so, it is not one of the sequence's
    /// operations.
    pub check: bool,
}

impl Row {
    /// Whether both answers agree in the compared bits and in the lines.
    pub fn agrees(&self) -> bool {
        self.candidate.as_ref().is_ok_and(|candidate| {
            (candidate.value ^ self.reference.value) & self.mask == 0
                && candidate.lines == self.reference.lines
        })
    }
}

/// The result of a comparison that found a difference.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The number of operations performed, including the one that showed the difference.
    pub after: usize,
    /// The actions in order. Checks that agreed are left out. The last action differs.
    pub rows: Vec<Row>,
}

/// The result of a comparison.
#[derive(Debug)]
pub struct Outcome {
    /// The first difference.
    pub difference: Option<Difference>,
    /// Counts of the compared events.
    pub coverage: Coverage,
}

/// When all readable registers are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sweep {
    /// Every `SWEEP_EVERY` operations, and after the last one.
    Sometimes,
    /// Only after the last operation, for a sequence that is being cut down.
    AtTheEnd,
}

/// Performs a sequence on two GICs. Both are in the state after a reset. The candidate has `lrs`
/// list registers.
///
/// # Errors
/// If the reference fails.
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
    // Compares the reset values, except for those that the prologue has made equal.
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

/// Reads all registers that can be read without a side effect.
fn everything(model: Model) -> impl Iterator<Item = Action> {
    regs::of_model(model).iter().filter(|reg| reg.is_plain()).flat_map(|reg| {
        let bytes = reg.read_bytes();
        let offsets = (0..reg.len).step_by(bytes.into());
        offsets.map(move |offset| Action::Read { address: reg.address + offset, bytes })
    })
}

/// The known state of both sides. It decides which bits must be equal.
pub trait Judge {
    /// Returns the bits in which the answers to an action must be equal, given the reference's
    /// answer.
    fn compared(&self, action: Action, reference: Answer) -> u64;

    /// Updates the state with an action and the reference's answer.
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

/// Both sides, with their answers.
pub struct Pair<'t, J> {
    /// The known state of both sides.
    pub rules: J,
    /// The side that is right by definition.
    pub reference: &'t mut dyn Target,
    /// The side under test.
    pub candidate: &'t mut dyn Target,
    /// The actions performed, without checks that agreed.
    pub rows: Vec<Row>,
}

impl Pair<'_, Rules> {
    fn differs(self, after: usize) -> Outcome {
        let coverage = self.rules.coverage();
        Outcome { difference: Some(Difference { after, rows: self.rows }), coverage }
    }
}

impl<J: Judge> Pair<'_, J> {
    /// Performs actions. The first `mine` of them are the sequence's own. Returns whether all
    /// answers agree.
    ///
    /// # Errors
    /// If the reference fails.
    pub fn perform(&mut self, actions: &[Action], mine: usize) -> Result<bool> {
        let reference = self.reference.perform(actions)?;
        // The error message names the action that failed.
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

    /// A target that stores written values. A broken one loses one bit of one register.
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
