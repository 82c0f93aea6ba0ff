//! A difference as a table.

use std::fmt::Write as _;

use crate::compare::{Difference, Row};
use crate::regs;
use crate::target::{Action, Answer, Model};

/// The operations of a difference with both answers.
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
            format!("input {intid} {}", if high { "high" } else { "low" })
        }
    }
}

fn place(model: Model, address: u64, bytes: u8) -> String {
    let Some(reg) = regs::find(model, address) else { return format!("{address:#x}") };
    let offset = address - reg.address;
    let whole = if offset == 0 && reg.len == bytes.into() {
        reg.name.to_owned()
    } else {
        format!("{}+{offset:#x}", reg.name)
    };
    if bytes == 4 { whole } else { format!("{whole}.{bytes}") }
}
