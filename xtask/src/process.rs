//! Runs other programs. Each is printed before it runs, and is named when it fails.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The workspace's root. It does not depend on the current directory.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The target directory of builds that have no separate one.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        // A relative path is relative to the directory in which cargo runs: the root.
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Returns `cargo ARGS` in the workspace's root.
///
/// Uses the name and not `$CARGO`: that is the stable binary behind rustup, which does not know
/// `+nightly`.
pub(crate) fn cargo<I, S>(args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new("cargo");
    command.args(args).current_dir(root());
    command
}

/// Sets the flags of every rustc that `command` starts, and removes flags from outside.
pub(crate) fn rustflags(command: &mut Command, flags: &str) {
    // Cargo prefers the encoded form, so one from outside would silently win.
    command.env("RUSTFLAGS", flags).env_remove("CARGO_ENCODED_RUSTFLAGS");
}

/// Runs a command to its end. Returns an error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    show(command);
    let status = command.status().with_context(|| cannot_start(command))?;
    check(command, status)
}

/// Runs a command to its end, passes stdout on line by line, and returns it as well.
pub(crate) fn tee(command: &mut Command) -> Result<String> {
    show(command);
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| cannot_start(command))?;
    let mut text = String::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("reading a program's output")?;
            let line = String::from_utf8_lossy(&line);
            writeln!(io::stdout(), "{line}")?;
            text.push_str(&line);
            text.push('\n');
        }
    }
    let status = child.wait()?;
    check(command, status)?;
    Ok(text)
}

/// Runs a command with all output in `log`, for at most `limit`. Returns `None` if it had to be
/// stopped.
pub(crate) fn run_logged(
    command: &mut Command,
    log: &Path,
    limit: Duration,
) -> Result<Option<ExitStatus>> {
    let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    // A file, not a pipe: it needs no reader while we wait, and keeps the output of a program that
    // hangs.
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let child = command.spawn().with_context(|| cannot_start(command))?;
    wait(child, limit)
}

/// Runs a command for at most `limit`. Returns an error if it fails or has to be stopped.
pub(crate) fn run_limited(command: &mut Command, limit: Duration) -> Result<()> {
    show(command);
    let child = command.spawn().with_context(|| cannot_start(command))?;
    match wait(child, limit)? {
        Some(status) => check(command, status),
        None => bail!("still running after {} s: {}", limit.as_secs(), line(command)),
    }
}

/// Returns whether a program exists and succeeds. Its output is not shown.
pub(crate) fn answers(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Returns a program's output on stdout, if it exists and succeeds.
pub(crate) fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Prints a command in a form that can be typed, including the relevant environment.
pub(crate) fn show(command: &Command) {
    println!("$ {}", line(command));
}

fn wait(mut child: Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("{status}: {}", line(command))
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start {}", command.get_program().to_string_lossy())
}

fn line(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!("{}={}", name.to_string_lossy(), quoted(value)));
        }
    }
    words.push(quoted(command.get_program()));
    words.extend(command.get_args().map(quoted));
    words.join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+/.,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{word}'")
    }
}
