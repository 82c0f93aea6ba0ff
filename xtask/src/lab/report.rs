//! The display of a run of the lab: each guest while it runs, and a table at the end.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// A guest's line of the table.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) time: Duration,
    /// The number of checks that passed, or the reason why it failed.
    pub(super) verdict: Result<usize, String>,
    pub(super) counters: Vec<String>,
    pub(super) log: PathBuf,
}

impl Row {
    /// Returns the line of a guest that cannot start.
    pub(super) fn not_started(name: &'static str, why: &str) -> Self {
        let verdict = Err(format!("not started: {why}"));
        Self { name, time: Duration::ZERO, verdict, counters: Vec::new(), log: PathBuf::new() }
    }
}

/// The display of a running guest: a spinner with its last line, or all its lines.
pub(super) struct Progress {
    spinner: ProgressBar,
    verbose: bool,
}

impl Progress {
    pub(super) fn begin(name: &'static str, verbose: bool) -> Self {
        let spinner = if verbose || !std::io::stdout().is_terminal() {
            println!("{name} ...");
            ProgressBar::hidden()
        } else {
            ProgressBar::new_spinner()
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}") {
            spinner.set_style(style);
        }
        spinner.set_prefix(name);
        spinner.enable_steady_tick(Duration::from_millis(200));
        Self { spinner, verbose }
    }

    pub(super) fn line(&self, line: &str) {
        if self.verbose {
            println!("  {line}");
        }
        self.spinner.set_message(line.to_owned());
    }

    pub(super) fn end(&self, row: &Row) {
        self.spinner.finish_and_clear();
        println!("{}", line(row));
    }
}

fn line(row: &Row) -> String {
    let time = format!("{:.1} s", row.time.as_secs_f64());
    match &row.verdict {
        Ok(checks) => format!("PASS  {:<18}{time:>9}  {checks} checks", row.name),
        Err(why) => format!("FAIL  {:<18}{time:>9}  {why}", row.name),
    }
}

/// Prints the table. Returns an error if a guest failed.
pub(super) fn summary(rows: &[Row]) -> Result<()> {
    println!("\nguests:");
    for row in rows {
        println!("  {}", line(row));
        for counter in &row.counters {
            println!("        {counter}");
        }
    }
    let failed: Vec<&Row> = rows.iter().filter(|row| row.verdict.is_err()).collect();
    for row in &failed {
        if row.log.exists() {
            println!("the console of {}: {}", row.name, row.log.display());
        }
    }
    if !failed.is_empty() {
        let names: Vec<&str> = failed.iter().map(|row| row.name).collect();
        bail!("{} of {} guests failed: {}", failed.len(), rows.len(), names.join(", "));
    }
    println!("all {} guests passed", rows.len());
    Ok(())
}
