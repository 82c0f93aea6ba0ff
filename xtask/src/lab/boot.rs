//! A console: runs a program under a time limit, and reads its output line by line.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The limit for an emulated host to boot and to power off, with a large margin.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// Runs `command` until it ends. Kills it when `limit` is over, and returns `None`.
///
/// Each line goes to `log` unchanged, and to `on_line` without the control codes of consoles.
pub(super) fn console(
    command: &mut Command,
    log: &Path,
    limit: Duration,
    on_line: &mut dyn FnMut(&str),
) -> Result<Option<ExitStatus>> {
    let mut file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // The emulator's own messages belong to the console's record.
    let errors = file.try_clone()?;
    command.stderr(errors);
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let stdout = child.stdout.take().context("a console without an end")?;
    let end = Instant::now() + limit;
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || read_lines(stdout, &sender));
    let timed_out = loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(file, "{line}")?;
                on_line(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if timed_out {
        child.kill()?;
    }
    let status = child.wait()?;
    // The pipe is closed now. A panic of the reader would only mean that lines are missing.
    _ = reader.join();
    Ok((!timed_out).then_some(status))
}

fn read_lines(stdout: ChildStdout, sender: &mpsc::Sender<String>) {
    for line in BufReader::new(stdout).split(b'\n') {
        let Ok(line) = line else { return };
        let line = plain(&String::from_utf8_lossy(&line));
        if sender.send(line).is_err() {
            return;
        }
    }
}

/// Returns a console's line without carriage returns and escape sequences.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                // A sequence is ESC [ ... letter, or ESC and one more character.
                if chars.next() == Some('[') {
                    _ = chars.by_ref().find(char::is_ascii_alphabetic);
                }
            }
            c if c.is_control() && c != '\t' => {}
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn consoles_add_nothing() {
        assert_eq!(plain("\u{1b}[2J\u{1b}[1;1Hhello\tyou\r"), "hello\tyou");
    }
}
