//! Tests the comparison without QEMU: this project's machine against itself, and against a broken
//! one.

use anyhow::Result;

use super::generate::Generator;
use super::ours::Ours;
use super::run;
use super::steps::{Kind, Machine, Operation, Outcome, Row, Step};
use super::style::Style;
use super::wire::register;
use crate::target::{GICC, Model};

const SEQUENCES: u64 = 24;

/// Returns the difference between a machine with 16 list registers and another machine.
fn difference(
    model: Model,
    seed: u64,
    candidate: impl Fn(Style) -> Result<Box<dyn Machine>>,
) -> Option<Vec<Row>> {
    let style = Style::new(model, seed);
    let ops = Generator::new(style, seed).sequence(200);
    let mut reference = Ours::new(Style { lrs: 16, stays: false, ..style }).unwrap();
    let mut candidate = candidate(style).unwrap();
    run(style, &ops, &mut reference, &mut *candidate).unwrap().difference.map(|(_, rows)| rows)
}

#[test]
fn list_registers_are_not_seen() {
    for model in [Model::V2, Model::V3] {
        for seed in 0..SEQUENCES {
            let found = difference(model, seed, |style| Ok(Box::new(Ours::new(style)?)));
            assert!(
                found.is_none(),
                "{model:?}, seed {seed}: {:?}",
                found.and_then(|mut r| r.pop())
            );
        }
    }
}

/// A machine that performs other steps than it is given, or changes answers.
struct Broken {
    machine: Ours,
    access: fn(&mut Operation),
    answer: fn(&Operation, &mut Outcome),
}

impl Machine for Broken {
    fn perform(&mut self, steps: &[Step]) -> Result<Vec<Outcome>> {
        let mut steps = steps.to_vec();
        steps.iter_mut().for_each(|step| (self.access)(&mut step.operation));
        let mut outcomes = self.machine.perform(&steps)?;
        for (step, outcome) in steps.iter().zip(&mut outcomes) {
            (self.answer)(&step.operation, outcome);
        }
        Ok(outcomes)
    }
}

fn is_found(model: Model, access: fn(&mut Operation), answer: fn(&Operation, &mut Outcome)) {
    let broken = |style| -> Result<Box<dyn Machine>> {
        Ok(Box::new(Broken { machine: Ours::new(style)?, access, answer }))
    };
    assert!((0..SEQUENCES).any(|seed| difference(model, seed, broken).is_some()));
}

#[test]
fn faults_are_found() {
    let as_told = |_: &mut Operation| {};
    let as_it_is = |_: &Operation, _: &mut Outcome| {};
    // An end has no effect.
    is_found(
        Model::V3,
        |op| {
            if op.kind == Kind::WriteRegister && op.register == register(12, 1) {
                op.value = 1023;
            }
        },
        as_it_is,
    );
    // DIR deactivates another interrupt.
    is_found(
        Model::V3,
        |op| {
            if op.kind == Kind::WriteRegister && op.register == register(11, 1) {
                op.value ^= 1;
            }
        },
        as_it_is,
    );
    // MSIs of one event are lost.
    is_found(
        Model::V3,
        |op| {
            if op.kind == Kind::Write && op.width == 4 && op.address == 0x0809_0040 && op.value == 2
            {
                op.value = 9;
            }
        },
        as_it_is,
    );
    // A running priority without one of its bits, an IRQ instead of an FIQ, an access that should
    // be UNDEFINED.
    is_found(Model::V3, as_told, |op, outcome| {
        if op.kind == Kind::ReadRegister && op.register == register(11, 3) {
            outcome.value &= !8;
        }
    });
    is_found(Model::V3, as_told, |_, outcome| {
        if outcome.asserted[1] & Outcome::FIQ != 0 {
            outcome.asserted[1] = Outcome::IRQ;
        }
    });
    is_found(Model::V3, as_told, |_, outcome| outcome.faulted = false);
    // The sender of an SGI is wrong.
    is_found(Model::V2, as_told, |op, outcome| {
        if op.kind == Kind::Read && op.address == GICC + 0xc {
            outcome.value &= 0x3ff;
        }
    });
}

#[test]
fn what_is_sent_is_what_arrives() {
    let step = Step::write(1, 2, 0x1234_5678_9abc, 0xfedc_ba98_7654_3210);
    assert_eq!(Operation::decode(&step.operation.encode()), Some(step.operation));
    let mut bytes = step.operation.encode();
    bytes[0] = 6;
    assert_eq!(Operation::decode(&bytes), None);
    let outcome = Outcome { value: 0x1_0000_0002, asserted: [0x80, 0x40], faulted: true };
    assert_eq!(Outcome::decode(&outcome.encode()), outcome);
}
