//! The instructions of an operation, counted by valgrind. The machine's load does not change them.
//!
//! `perf-reports/instructions.md` is the table, and the bound: more than 5 % above it is a failure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, root};

/// The tolerance above the table, as a fraction.
const SLACK: f64 = 0.05;
/// Differences up to this number are noise that comes from memory addresses.
const SLACK_INSTRUCTIONS: f64 = 8.0;

/// The cost of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    instructions: f64,
    /// Misses of the first level's data cache.
    misses: f64,
    /// Misses of the last level's cache.
    last: f64,
}

impl Cost {
    /// Returns cycles as cachegrind's authors estimate them: one for each instruction, ten more for
    /// a miss of the first level, and a hundred more for a miss of the last level.
    fn cycles(self) -> f64 {
        self.instructions + 10.0 * self.misses + 100.0 * self.last
    }
}

/// The costs by path. Each path ends with its vCPU or peer.
type Table = BTreeMap<String, Cost>;

fn file() -> PathBuf {
    root().join("perf-reports/instructions.md")
}

/// The paths to count, and the purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Counts all, to write the table.
    Update,
    /// Counts all, to compare.
    Check,
    /// Counts the fast ones, to compare.
    Gate,
}

/// Paths with this in their names have a slow setup. The gate leaves them out.
const SLOW: &str = "65,536";

/// Counts, and compares with the table, or writes the table.
pub(crate) fn run(mode: Mode) -> Result<()> {
    crate::setup::need("valgrind")?;
    let program = &super::program()?;
    let list = process::answer(Command::new(program).arg("steps")).context("it says nothing")?;
    let mut counted = Vec::new();
    for line in list.lines() {
        let (calls, path) = line.split_once(' ').context("not a number and a path")?;
        if mode == Mode::Gate && path.contains(SLOW) {
            continue;
        }
        let calls: u32 = calls.parse()?;
        let cost = difference(program, path, calls)?;
        println!("{:>10.0} instructions  {path}", cost.instructions);
        counted.push((path.to_owned(), cost));
    }
    let about = about();
    if mode == Mode::Update {
        fs::write(file(), print(&counted, &about))?;
        println!("written: {}", file().display());
    } else {
        let text = fs::read_to_string(file()).context("reading the table")?;
        compare(&counted, &text, &about)?;
    }
    super::accesses::run(mode)
}

/// Returns the compiler and the architecture, on which the counts depend.
pub(super) fn about() -> String {
    let compiler = process::answer(Command::new("rustc").arg("--version")).unwrap_or_default();
    format!("{compiler}, {}", std::env::consts::ARCH)
}

/// Returns the cost of one call: the cost of 2 N calls minus that of N, divided by N.
fn difference(program: &Path, path: &str, calls: u32) -> Result<Cost> {
    let (few, many) = (count(program, path, calls)?, count(program, path, 2 * calls)?);
    let per_call = |few: f64, many: f64| (many - few).max(0.0) / f64::from(calls);
    Ok(Cost {
        instructions: per_call(few.instructions, many.instructions),
        misses: per_call(few.misses, many.misses),
        last: per_call(few.last, many.last),
    })
}

fn count(program: &Path, path: &str, calls: u32) -> Result<Cost> {
    let mut command = Command::new("valgrind");
    // The options fix the sizes of the caches, so that they do not depend on the machine.
    command
        .args(["--tool=cachegrind", "--cache-sim=yes", "--cachegrind-out-file=/dev/null"])
        .args(["--I1=32768,8,64", "--D1=32768,8,64", "--LL=8388608,16,64"])
        .arg(program)
        .args(["steps", path, &calls.to_string()])
        // An environment of another size would move the stack.
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin");
    let output = command.output().context("starting valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind fails at {path}:\n{text}");
    summary(&text).with_context(|| format!("valgrind's answer:\n{text}"))
}

/// Reads lines such as `==1== I   refs:      1,234`.
fn summary(text: &str) -> Option<Cost> {
    let value = |name: &str| {
        let line = text.lines().find(|line| {
            let words = line.split_ascii_whitespace().skip(1).collect::<Vec<_>>().join(" ");
            words.starts_with(name)
        })?;
        let number = line.split_once(':')?.1.split_ascii_whitespace().next()?;
        number.replace(',', "").parse().ok()
    };
    Some(Cost {
        instructions: value("I refs")?,
        misses: value("D1 misses")?,
        last: value("LLd misses")?,
    })
}

fn print(counted: &[(String, Cost)], about: &str) -> String {
    let mut text = format!(
        "# Instructions of an operation\n\nCounted by cachegrind: 2 N calls less N calls, over N, with {about}. `cargo xtask count` counts again, as `cargo xtask \
         test` does for those that are set up quickly, and fails if an operation takes over {:.0} % more instructions than this table says; `cargo xtask count --update` writes the table anew, to be committed with the reason. \
         Misses are those of a first level of 32 KiB and a last level of 8 MiB; estimated cycles are an instruction each, 10 for a miss of the first level and 100 for one of the last. \
         What an operation's path does to choose an LPI, and the guest's CPU interface, is in the count.\n\n\
         | operation | instructions | D1 misses | LL misses | estimated cycles |\n|---|---|---|---|---|\n",
        SLACK * 100.0
    );
    for (path, cost) in counted {
        let _ = writeln!(
            text,
            "| {path} | {:.1} | {:.1} | {:.1} | {:.0} |",
            cost.instructions,
            cost.misses,
            cost.last,
            cost.cycles()
        );
    }
    text
}

fn parse(text: &str) -> Table {
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let number = |n: usize| cells.get(n)?.parse::<f64>().ok();
        let cost = Cost { instructions: number(1)?, misses: number(2)?, last: number(3)? };
        Some((cells[0].to_owned(), cost))
    };
    text.lines().filter(|line| line.starts_with('|')).filter_map(row).collect()
}

fn compare(counted: &[(String, Cost)], text: &str, about: &str) -> Result<()> {
    let table = parse(text);
    let mut worse = Vec::new();
    for (path, cost) in counted {
        let Some(bound) = table.get(path) else {
            worse.push(format!("not in the table: {path}"));
            continue;
        };
        let most = bound.instructions * (1.0 + SLACK) + SLACK_INSTRUCTIONS;
        if cost.instructions > most {
            worse.push(format!(
                "{:.0} instructions instead of {:.0}: {path}",
                cost.instructions, bound.instructions
            ));
        }
    }
    judge(&worse, &format!("{} operations", counted.len()), "instructions.md", text, about)
}

/// Fails if an item is worse than in the table `name`, which has the content `text`.
pub(super) fn judge(
    worse: &[String],
    counted: &str,
    name: &str,
    text: &str,
    about: &str,
) -> Result<()> {
    if worse.is_empty() {
        println!("{counted}, none over its bound");
        return Ok(());
    }
    let worse = worse.join("\n  ");
    if !text.contains(about) {
        // Another compiler generates other code, which may be better or worse.
        println!("with another compiler or processor ({about}) than the table's:\n  {worse}");
        return Ok(());
    }
    bail!(
        "over the bounds of perf-reports/{name}:\n  {worse}\nIf that is meant, write them anew with `cargo xtask count --update`."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "==7== \n==7== I   refs:      1,234\n==7== D   refs:      9\n\
        ==7== D1  misses:       56  (     3 rd   +   2 wr)\n==7== LLd misses:        7  ( 1 rd + 6 wr)\n";

    fn cost(instructions: f64) -> Cost {
        Cost { instructions, misses: 1.0, last: 0.0 }
    }

    #[test]
    fn valgrind_is_understood() {
        let cost = summary(SAID).unwrap();
        assert_eq!(cost, Cost { instructions: 1234.0, misses: 56.0, last: 7.0 });
        assert!(summary("==7== nothing").is_none());
    }

    #[test]
    fn the_table_is_the_bound() {
        let text = print(&[("a: b, 1,024: vgic".into(), cost(100.0))], "rustc 1, x86");
        let check = |n, about| compare(&[("a: b, 1,024: vgic".into(), cost(n))], &text, about);
        assert!(check(112.0, "rustc 1, x86").is_ok());
        assert!(check(114.0, "rustc 1, x86").is_err());
        assert!(check(114.0, "rustc 2, x86").is_ok());
        assert!(compare(&[("new".into(), cost(1.0))], &text, "rustc 1, x86").is_err());
    }
}
