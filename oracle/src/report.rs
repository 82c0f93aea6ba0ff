//! Formats a difference as a table.

use std::fmt::Write as _;

use crate::compare::{Difference, Row};
use crate::regs::{self, FIRST_OF_CPU_1};
use crate::target::{Action, Answer, Model};

/// Formats the operations of a difference with both answers.
pub fn table(model: Model, difference: &Difference, names: [&str; 2]) -> String {
    let mut text = String::new();
    let [reference, candidate] = names;
    let _ = writeln!(text, "  {:<44}{reference:<26}{candidate}", "operation");
    for row in &difference.rows {
        let failed = match &row.candidate {
            Ok(answer) => said(row, *answer),
            Err(error) => error.clone(),
        };
        let mark = if row.agrees() { ' ' } else { '>' };
        let what = if row.check {
            format!("{} (check)", action(model, row.action))
        } else {
            action(model, row.action)
        };
        let _ = writeln!(text, "{mark} {what:<44}{:<26}{failed}", said(row, row.reference));
        if !row.agrees() && row.mask != 0 {
            let _ = writeln!(text, "  {:<44}compared bits: {:#x}", "", row.mask);
        }
    }
    text
}

fn said(row: &Row, answer: Answer) -> String {
    let mut text = match row.action {
        Action::Read { bytes, .. } => {
            format!("{:#0w$x}", answer.value, w = 2 + 2 * usize::from(bytes))
        }
        _ => String::new(),
    };
    for (high, name) in [(answer.lines.irq, " IRQ"), (answer.lines.fiq, " FIQ")] {
        text += if high { name } else { "" };
    }
    if text.is_empty() { "-".into() } else { text }
}

fn action(model: Model, action: Action) -> String {
    match action {
        Action::Read { address, bytes } => format!("read  {}", place(model, address, bytes)),
        Action::Write { address, bytes, value } => {
            format!("write {} = {value:#x}", place(model, address, bytes))
        }
        Action::Zero { address, len } => format!("clear {address:#x}, {len:#x} bytes"),
        Action::Line { intid, high } => {
            let level = if high { "high" } else { "low" };
            match intid.checked_sub(FIRST_OF_CPU_1) {
                None => format!("input {intid} {level}"),
                Some(ppi) => format!("input {ppi} of CPU 1 {level}"),
            }
        }
    }
}

fn place(model: Model, address: u64, bytes: u8) -> String {
    let Some(reg) = regs::find(model, address) else { return format!("{address:#x}") };
    let offset = address - reg.address;
    let name = match reg.cpu {
        0 => reg.name.to_owned(),
        n => format!("{} of CPU {n}", reg.name),
    };
    let whole =
        if offset == 0 && reg.len == bytes.into() { name } else { format!("{name}+{offset:#x}") };
    if bytes == 4 { whole } else { format!("{whole}.{bytes}") }
}
