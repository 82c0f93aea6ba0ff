//! Short storms of LPIs on both engines, while mappings change: by the host, and by a guest through
//! an ITS.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::artifacts;
use crate::process::{self, cargo, root, target_dir};

const ARGS: &[&str] = &["--engine", "both", "-v", "2", "-d", "2", "-e", "64", "--churn"];
/// The additional arguments of each storm, and the number of runs of each engine: through an ITS,
/// there is one run without churn and one with it.
const STORMS: [(&[&str], usize); 2] = [(&["-i", "20000"], 1), (&["-i", "10000", "--its"], 2)];
const ENGINES: [&str; 2] = ["lockfree", "locked"];
/// The time limit. A storm takes seconds; a lost wake-up would take forever.
const LIMIT: Duration = Duration::from_secs(300);

pub(crate) fn run() -> Result<()> {
    let mut build = cargo(["build", "--release", "--bin", "lpi-storm"]);
    let built = artifacts::build(build.stderr(Stdio::inherit()))?;
    let storm = built.first().context("cargo built no lpi-storm")?;
    for (args, runs) in STORMS {
        run_one(&storm.path, args, runs)?;
    }
    Ok(())
}

fn run_one(storm: &Path, args: &[&str], runs: usize) -> Result<()> {
    let json = target_dir().join("storm-smoke.json");
    // The result of an earlier run must not pass for this one's.
    if json.exists() {
        fs::remove_file(&json).with_context(|| format!("removing {}", json.display()))?;
    }
    let mut command = Command::new(storm);
    command.args(ARGS).args(args).arg("--json").arg(&json).current_dir(root());
    process::run_limited(&mut command, LIMIT)?;
    let text = fs::read_to_string(&json).with_context(|| format!("reading {}", json.display()))?;
    check(&text, runs).with_context(|| format!("in {}", json.display()))
}

/// Checks the counts that the storm wrote, and not only its exit status. There must be `expected`
/// runs of each engine.
fn check(text: &str, expected: usize) -> Result<()> {
    let report: Value = serde_json::from_str(text).context("not JSON")?;
    let runs = report["runs"].as_array().context("no array `runs`")?;
    for engine in ENGINES {
        let found = runs.iter().filter(|run| run["engine"] == engine).count();
        ensure!(found == expected, "{found} runs of engine {engine}, not {expected}");
    }
    for run in runs {
        let engine = run["engine"].as_str().context("a run without `engine`")?;
        let count = |name: &str| {
            run[name].as_u64().with_context(|| format!("engine {engine}: no count `{name}`"))
        };
        let (lost, delivered) = (count("lost")?, count("delivered")?);
        if lost != 0 {
            bail!("engine {engine} lost {lost} LPIs");
        }
        ensure!(delivered > 0, "engine {engine} delivered nothing");
        println!("engine {engine}: {delivered} delivered, none lost");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    fn report(lost: u32, delivered: u32) -> String {
        format!(
            r#"{{"runs":[{{"engine":"lockfree","lost":0,"delivered":9}},
                {{"engine":"locked","lost":{lost},"delivered":{delivered}}}]}}"#
        )
    }

    #[test]
    fn every_run_counts() {
        assert!(check(&report(0, 1), 1).is_ok());
        assert!(check(&report(1, 1), 1).is_err());
        assert!(check(&report(0, 0), 1).is_err());
        assert!(check(&report(0, 1), 2).is_err());
    }

    #[test]
    fn what_is_not_there_is_not_passed() {
        for text in ["", "{}", r#"{"runs":[]}"#, r#"{"runs":[{"engine":"lockfree"}]}"#] {
            assert!(check(text, 1).is_err(), "{text}");
        }
    }
}
