//! Formats a difference as a table.

use std::fmt::Write as _;

use vgic_core::its::Command;

use super::lpis::{QUEUE, QUEUE_SIZE};
use super::steps::{Kind, Operation, Outcome, Row};
use super::wire;
use crate::regs;
use crate::target::Model;

/// Formats the steps with both answers. Checks that agreed are left out.
pub fn table(model: Model, rows: &[Row], names: [&str; 2]) -> String {
    let mut text = String::new();
    let [reference, candidate] = names;
    let _ = writeln!(text, "  {:<4}{:<56}{reference:<30}{candidate}", "CPU", "operation");
    for (n, row) in rows.iter().enumerate() {
        let operation = row.step.operation;
        if row.agrees() && (row.step.check || is_part_of_command(operation)) {
            continue;
        }
        let said = match &row.candidate {
            Ok(answer) => said(operation, *answer),
            Err(error) => error.clone(),
        };
        let mark = if row.agrees() { ' ' } else { '>' };
        let mut what = action(model, operation);
        if let Some(command) = command(&rows[..n]) {
            what = format!("{what}: {command:x?}");
        }
        if row.step.check {
            what += " (check)";
        }
        let reference = self::said(operation, row.reference);
        let _ = writeln!(text, "{mark} {:<4}{what:<56}{reference:<30}{said}", operation.cpu);
    }
    text
}

fn is_part_of_command(operation: Operation) -> bool {
    operation.kind == Kind::Write && (QUEUE..QUEUE + QUEUE_SIZE).contains(&operation.address)
}

/// Returns the ITS command that was queued last, if the rows end with its four writes.
fn command(before: &[Row]) -> Option<Command> {
    let words = before.last_chunk::<4>()?.clone().map(|row| row.step.operation);
    if !words.into_iter().all(is_part_of_command) {
        return None;
    }
    let mut raw = [0; 32];
    for (bytes, word) in raw.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.value.to_le_bytes());
    }
    Command::decode(&raw)
}

fn said(operation: Operation, answer: Outcome) -> String {
    let mut text = match operation.kind {
        Kind::Read | Kind::ReadRegister => format!("{:#x}", answer.value),
        _ => String::new(),
    };
    if answer.faulted {
        text += " UNDEFINED";
    }
    for (n, asserted) in answer.asserted.into_iter().enumerate() {
        for (bit, name) in [(Outcome::IRQ, "IRQ"), (Outcome::FIQ, "FIQ")] {
            if asserted & bit != 0 {
                let _ = write!(text, " {name}{n}");
            }
        }
    }
    if text.is_empty() { "-".into() } else { text }
}

fn action(model: Model, operation: Operation) -> String {
    let Operation { kind, width, register, address, value, .. } = operation;
    match kind {
        Kind::Read => format!("read  {}", place(model, width, address)),
        Kind::Write => format!("write {} = {value:#x}", place(model, width, address)),
        Kind::ReadRegister => format!("read  {}", name(register)),
        Kind::WriteRegister => format!("write {} = {value:#x}", name(register)),
        Kind::Line => format!("input {address} {}", if value != 0 { "high" } else { "low" }),
        Kind::Clear => format!("clear {address:#x}, {value:#x} bytes"),
    }
}

fn place(model: Model, width: u8, address: u64) -> String {
    let found = [model, Model::Its].into_iter().find_map(|model| regs::find(model, address));
    let Some(reg) = found else { return format!("{address:#x}.{width}") };
    let offset = address - reg.address;
    let cpu = if reg.cpu > 0 { " of CPU 1" } else { "" };
    format!("{}+{offset:#x}{cpu}", reg.name)
}

fn name(register: u8) -> String {
    let names = [
        (wire::register(8, 0), "ICC_IAR0_EL1"),
        (wire::register(8, 1), "ICC_EOIR0_EL1"),
        (wire::register(8, 2), "ICC_HPPIR0_EL1"),
        (wire::register(8, 3), "ICC_BPR0_EL1"),
        (wire::register(8, 4), "ICC_AP0R0_EL1"),
        (wire::register(9, 0), "ICC_AP1R0_EL1"),
        (wire::register(11, 1), "ICC_DIR_EL1"),
        (wire::register(11, 3), "ICC_RPR_EL1"),
        (wire::register(11, 5), "ICC_SGI1R_EL1"),
        (wire::register(11, 6), "ICC_ASGI1R_EL1"),
        (wire::register(11, 7), "ICC_SGI0R_EL1"),
        (wire::register(12, 0), "ICC_IAR1_EL1"),
        (wire::register(12, 1), "ICC_EOIR1_EL1"),
        (wire::register(12, 2), "ICC_HPPIR1_EL1"),
        (wire::register(12, 3), "ICC_BPR1_EL1"),
        (wire::register(12, 4), "ICC_CTLR_EL1"),
        (wire::register(12, 5), "ICC_SRE_EL1"),
        (wire::register(12, 6), "ICC_IGRPEN0_EL1"),
        (wire::register(12, 7), "ICC_IGRPEN1_EL1"),
        (wire::PMR, "ICC_PMR_EL1"),
    ];
    match names.iter().find(|(number, _)| *number == register) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("S3_0_C12_C{}_{}", register >> 3, register & 7),
    }
}
