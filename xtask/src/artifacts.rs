//! Builds programs first and runs them later. So a failed build never counts as a failed test, and
//! a time limit stops the program itself, not the cargo that waits for it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;

/// A program that cargo built.
pub(crate) struct Executable {
    /// The name of the test, example or binary target.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Runs a cargo command that builds (`build`, `test --no-run`), and returns the programs it built.
///
/// If the command fails, prints cargo's messages, unless the caller has given it a stderr of its
/// own.
pub(crate) fn build(command: &mut Command) -> Result<Vec<Executable>> {
    process::show(command);
    let output = command
        .arg("--message-format=json-render-diagnostics")
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        bail!("it does not build");
    }
    let text = String::from_utf8(output.stdout).context("cargo's messages")?;
    let mut executables = Vec::new();
    for line in text.lines() {
        let message: Value = serde_json::from_str(line).context("one of cargo's messages")?;
        if let (Some(path), Some(name)) =
            (message["executable"].as_str(), message["target"]["name"].as_str())
        {
            executables.push(Executable { name: name.to_owned(), path: path.into() });
        }
    }
    Ok(executables)
}
