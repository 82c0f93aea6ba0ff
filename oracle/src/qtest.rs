//! A client of QEMU's qtest protocol: lines of text over a pipe, to a QEMU with CPUs that never
//! run.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::regs::FIRST_OF_CPU_1;
use crate::target::{Action, Answer, Lines, Model, Target};

/// The emulator.
pub const PROGRAM: &str = "qemu-system-aarch64";
/// The time limit for an answer, which takes microseconds. A missing answer means that QEMU has
/// ended, and is reported as such.
const LIMIT: Duration = Duration::from_secs(20);
/// The number of commands sent before their answers are read. It is bounded by the capacity of the
/// two pipes (64 KiB each). Beyond that, both ends would wait for each other.
const WINDOW: usize = 256;
/// The paths of the devices that the machine creates first. [`Qemu::start`] checks the CPU's path.
const CPU: &str = "/machine/unattached/device[0]";
const GIC: [&str; 2] = ["/machine/unattached/device[1]", "/machine/unattached/device[2]"];
/// The number of SPIs of the machine `virt`. The inputs of the PPIs come after those of the SPIs.
const SPIS: u32 = 256;

/// A line that QEMU sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line<'l> {
    /// The answer to the oldest command without one, with the value read, if any.
    Ok(Option<u64>),
    /// An intercepted line has changed. This comes between answers, before the answer to the
    /// command that changed the line.
    Irq {
        /// The line's number.
        line: u32,
        /// The line's new level.
        high: bool,
    },
    /// Any other line, which is a refusal.
    Other(&'l str),
}

/// Parses a line.
pub fn parse(line: &str) -> Line<'_> {
    let mut words = line.split_whitespace();
    let known = match (words.next(), words.next(), words.next(), words.next()) {
        (Some("OK"), None, _, _) => Some(Line::Ok(None)),
        (Some("OK"), Some(value), None, _) => hex(value).map(|v| Line::Ok(Some(v))),
        (Some("IRQ"), Some(edge), Some(n), None) => match (edge, n.parse()) {
            ("raise", Ok(line)) => Some(Line::Irq { line, high: true }),
            ("lower", Ok(line)) => Some(Line::Irq { line, high: false }),
            _ => None,
        },
        _ => None,
    };
    known.unwrap_or(Line::Other(line))
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

/// Returns the qtest command of an action on a machine of `cpus` CPUs.
pub fn command(cpus: u32, action: Action) -> String {
    let suffix = |bytes| match bytes {
        1 => 'b',
        2 => 'w',
        4 => 'l',
        _ => 'q',
    };
    match action {
        Action::Read { address, bytes } => format!("read{} {address:#x}", suffix(bytes)),
        Action::Write { address, bytes, value } => {
            format!("write{} {address:#x} {value:#x}", suffix(bytes))
        }
        Action::Zero { address, len } => format!("memset {address:#x} {len:#x} 0x0"),
        Action::Line { intid, high } => {
            // PPIs are numbered by INTID, after the SPIs, 32 for each CPU.
            let n = match intid {
                0..32 => SPIS + intid,
                32..FIRST_OF_CPU_1 => intid - 32,
                _ => SPIS + 32 + intid - FIRST_OF_CPU_1,
            };
            // The machine creates its CPUs before the GIC.
            let gic = GIC[cpus as usize - 1];
            format!("set_irq_in {gic} unnamed-gpio-in {n} {}", u8::from(high))
        }
    }
}

/// A QEMU. It ends when this handle is dropped.
pub struct Qemu {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    now: Lines,
    cpus: u32,
}

impl Qemu {
    /// Starts QEMU in the state after a reset.
    ///
    /// # Errors
    /// If QEMU is missing or too old, or if its machine has not the expected GIC.
    pub fn start(model: Model) -> Result<Self> {
        let machine = match model {
            Model::V2 => "virt,gic-version=2",
            Model::V3 | Model::Its => "virt,gic-version=3",
        };
        let cpus = model.cpus();
        let mut child = Command::new(PROGRAM)
            .args(["-M", machine, "-cpu", "cortex-a57", "-smp", &cpus.to_string(), "-accel", "tcg"])
            .args(["-qtest", "stdio", "-qtest-log", "none", "-S"])
            .args(["-display", "none", "-serial", "none", "-net", "none"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // QEMU logs each command to stderr. A pipe that is not read would fill up and stop it.
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| {
                format!("cannot start {PROGRAM}: `cargo xtask setup` installs it (Debian: apt-get install qemu-system-arm)")
            })?;
        let stdin = child.stdin.take().context("QEMU's stdin")?;
        let stdout = child.stdout.take().context("QEMU's stdout")?;
        let (sender, lines) = mpsc::channel();
        // Reads on a separate thread, so that waiting for a line can have a time limit. The thread
        // ends when QEMU does.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut qemu = Self { child, stdin, lines, now: Lines::default(), cpus };
        qemu.check(model).context(
            "this QEMU does not speak qtest as 7.2 does (7.0 or newer is needed; `set_irq_in` must be there)",
        )?;
        Ok(qemu)
    }

    fn check(&mut self, model: Model) -> Result<()> {
        self.ask(&format!("irq_intercept_in {CPU}"))?;
        let identity = match model {
            Model::V2 => 0x0800_0fe8,
            Model::V3 => 0x0800_ffe8,
            Model::Its => 0x0808_ffe8,
        };
        let pidr2 = self.ask(&format!("readl {identity:#x}"))?.context("a read without a value")?;
        let revision = pidr2 >> 4 & 0xf;
        if revision != u64::from(model.revision()) {
            bail!("no {} at its address: PIDR2 says {revision}", model.name());
        }
        Ok(())
    }

    fn ask(&mut self, command: &str) -> Result<Option<u64>> {
        self.send(&format!("{command}\n"))?;
        self.answer().with_context(|| format!("after `{command}`"))
    }

    fn send(&mut self, text: &str) -> Result<()> {
        self.stdin.write_all(text.as_bytes()).context("QEMU has ended")
    }

    /// Waits for the answer to the oldest command, and records the line changes that come before
    /// it.
    fn answer(&mut self) -> Result<Option<u64>> {
        loop {
            let line = match self.lines.recv_timeout(LIMIT) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no answer from QEMU in {} s", LIMIT.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => bail!("QEMU has ended"),
            };
            match parse(&line) {
                Line::Ok(value) => return Ok(value),
                Line::Irq { line: 0, high } => self.now.irq = high,
                Line::Irq { line: 1, high } => self.now.fiq = high,
                // These are the CPU's virtual interrupts, which are unused: the CPU has no EL2
                // here.
                Line::Irq { .. } => {}
                Line::Other(text) => bail!("QEMU says: {text}"),
            }
        }
    }
}

impl Target for Qemu {
    fn perform(&mut self, actions: &[Action]) -> Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(actions.len());
        for window in actions.chunks(WINDOW) {
            let commands: Vec<String> = window.iter().map(|&a| command(self.cpus, a)).collect();
            self.send(&(commands.join("\n") + "\n"))?;
            for command in &commands {
                let value = self.answer().with_context(|| format!("after `{command}`"))?;
                answers.push(Answer { value: value.unwrap_or(0), lines: self.now });
            }
        }
        Ok(answers)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // QEMU may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regs::private;

    #[test]
    fn lines_are_understood() {
        for (line, meaning) in [
            ("OK", Line::Ok(None)),
            ("OK 0x0000000000000021", Line::Ok(Some(0x21))),
            ("OK 0xffffffffffffffff\r", Line::Ok(Some(u64::MAX))),
            ("IRQ raise 0", Line::Irq { line: 0, high: true }),
            ("IRQ lower 1", Line::Irq { line: 1, high: false }),
        ] {
            assert_eq!(parse(line), meaning, "{line}");
        }
    }

    #[test]
    fn anything_else_is_a_refusal() {
        for line in [
            "",
            "FAIL Unknown device",
            "OK 21",
            "OK 0x1 0x2",
            "OK 0x10000000000000000",
            "IRQ raise",
            "IRQ raise x",
            "IRQ toggle 0",
        ] {
            assert_eq!(parse(line), Line::Other(line));
        }
    }

    #[test]
    fn commands_are_as_qemu_wants_them() {
        let read = Action::Read { address: 0x800_0004, bytes: 4 };
        let write = Action::Write { address: 0x800_0400, bytes: 1, value: 0xa8 };
        assert_eq!(command(1, read), "readl 0x8000004");
        assert_eq!(command(1, write), "writeb 0x8000400 0xa8");
        for (cpus, intid, high, tail) in [
            (1, 33, true, "[1] unnamed-gpio-in 1 1"),
            (1, 27, false, "[1] unnamed-gpio-in 283 0"),
            (2, 32, true, "[2] unnamed-gpio-in 0 1"),
            (2, private(1, 27), true, "[2] unnamed-gpio-in 315 1"),
        ] {
            let command = command(cpus, Action::Line { intid, high });
            assert!(command.ends_with(tail), "{command}");
        }
    }
}
