//! The most expensive single accesses of a guest with a large setup, in instructions, counted by
//! callgrind.
//!
//! `perf-reports/accesses.md` is the table. The limits of an access do not come from it: there is
//! an absolute bound, and the cost may not grow with the guest's setup. The table bounds the cost
//! with one compiler, to make changes visible.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::count::{Mode, about, judge};
use crate::process::{self, root, target_dir};

/// The absolute bound: a millisecond on the machine on which the bounds were chosen.
const LIMIT: u64 = 2_000_000;
/// The maximum ratio of the costs with eight times the setup, as trees are higher then.
const RATIO: u64 = 2;
/// The additional instructions that are allowed beyond [`RATIO`], for very cheap accesses.
const MORE: u64 = 50_000;
/// The tolerance above the table, in percent and in instructions.
const SLACK: (u64, u64) = (10, 2_000);

/// glibc defers joining small chunks that are freed, and joins all of them in an arbitrary later
/// call of `free`: 6 million instructions after 65,536 LPIs. The accesses are not the cause, and
/// hosts can turn this off.
const NO_FASTBINS: &str = "glibc.malloc.mxfast=0";

/// The benchmark function that is counted.
const COUNTED: &str = "vgic_benches::perf::accesses::counted";
const SIZES: [&str; 2] = ["small", "large"];

/// The known reason why an access exceeds a bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    /// It grows with the number of vCPUs or of SPIs, which the host chooses. The larger machine has
    /// the maximum of them.
    Shape,
    /// It exceeds the bounds for this reason. At present there are none.
    #[cfg_attr(not(test), allow(dead_code))]
    Exceeds(&'static str),
}

/// Accesses that are known to grow, by prefixes of their names. The first match counts.
const KNOWN: &[(&str, Why)] = &[
    ("pending LPIs: GICD_CTLR", Why::Shape),
    ("SPIs, GICv3: ", Why::Shape),
    ("SPIs, GICv2: ", Why::Shape),
];

/// The highest cost of the accesses with one name, at the two sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Worst([u64; 2]);

/// The costs by scene and access.
type Table = BTreeMap<String, Worst>;

fn file() -> PathBuf {
    root().join("perf-reports/accesses.md")
}

/// Counts, and compares with the bounds and the table, or writes the table.
pub(crate) fn run(mode: Mode) -> Result<()> {
    crate::setup::need("valgrind")?;
    let (program, about) = (&super::program()?, &about());
    let scenes = process::answer(Command::new(program).arg("accesses")).context("no scenes")?;
    let (mut order, mut counted) = (Vec::new(), Table::new());
    for scene in scenes.lines() {
        for (n, size) in SIZES.into_iter().enumerate() {
            for (access, instructions) in play(program, scene, size)? {
                let name = format!("{scene}: {access}");
                let worst = counted.entry(name.clone()).or_insert_with(|| {
                    order.push(name);
                    Worst::default()
                });
                worst.0[n] = worst.0[n].max(instructions);
            }
        }
    }
    for name in &order {
        println!("{:>10} {:>10} instructions  {name}", counted[name].0[0], counted[name].0[1]);
    }
    if mode == Mode::Update {
        fs::write(file(), print(&order, &counted, about))?;
        println!("written: {}", file().display());
    }
    check(&counted, KNOWN)?;
    let text = fs::read_to_string(file()).context("reading the table")?;
    compare(&counted, &text, about)
}

/// Plays a scene. Returns each access and its instructions, in order.
fn play(program: &Path, scene: &str, size: &str) -> Result<Vec<(String, u64)>> {
    let dir = target_dir().join("accesses");
    // Results of an earlier run must not be read as this one's.
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let out = dir.join("out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--dump-after={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["accesses", scene, size])
        // An environment of another size would move the stack.
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("GLIBC_TUNABLES", NO_FASTBINS)
        .output()
        .context("starting valgrind")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind fails at {scene}, {size}:\n{errors}");
    let names = String::from_utf8(output.stdout)?;
    let mut all = Vec::new();
    for (n, name) in names.lines().enumerate() {
        let dump = out.with_extension((n + 1).to_string());
        let text = fs::read_to_string(&dump).with_context(|| format!("{scene}: {name}"))?;
        all.push((name.to_owned(), total(&text).context("a dump without a total")?));
    }
    ensure!(!all.is_empty(), "{scene}, {size}: no access was counted");
    fs::remove_dir_all(&dir)?;
    Ok(all)
}

/// Returns the number of instructions in a dump.
fn total(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

/// Returns the known reason for an access.
fn known(name: &str, known: &[(&str, Why)]) -> Option<Why> {
    known.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, why)| *why)
}

fn is_too_long(Worst(costs): Worst) -> bool {
    costs.iter().any(|cost| *cost > LIMIT)
}

fn grows(Worst([small, large]): Worst) -> bool {
    large > RATIO * small + MORE
}

/// Returns the bound that an access exceeds, if any.
fn exceeds(worst: Worst, why: Option<Why>) -> Option<&'static str> {
    match why {
        Some(Why::Exceeds(_)) => None,
        _ if is_too_long(worst) => Some("too many"),
        None if grows(worst) => Some("it grows with what the guest has set up"),
        _ => None,
    }
}

/// Checks the bounds.
fn check(counted: &Table, exceptions: &[(&str, Why)]) -> Result<()> {
    let mut wrong = Vec::new();
    for (name, worst) in counted {
        if let Some(why) = exceeds(*worst, known(name, exceptions)) {
            let [small, large] = worst.0;
            wrong.push(format!("{name}: {small} and {large} instructions: {why}"));
        }
    }
    for (prefix, _) in exceptions {
        let mut named = counted.iter().filter(|(name, _)| name.starts_with(prefix));
        if !named.any(|(_, worst)| grows(*worst) || is_too_long(*worst)) {
            wrong.push(format!("{prefix}: within the bounds, and need not be excepted any more"));
        }
    }
    ensure!(wrong.is_empty(), "accesses that do too much:\n  {}", wrong.join("\n  "));
    Ok(())
}

fn print(order: &[String], counted: &Table, about: &str) -> String {
    let mut text = format!(
        "# The worst single accesses of a guest\n\nThe most instructions that one exit of a vCPU costs, with a guest that has set up as much as it can. Counted by callgrind, with {about}. A name that stands for several accesses, \
         as long work is gone on with in pieces, has the worst of them. *n*: 8,192 LPIs, 64 vCPUs and 224 SPIs; *8 n*: 65,536 LPIs, 512 vCPUs and 2,012 SPIs, which is all that there can be. (A GICv2 has 8 vCPUs, and 96 or 988 SPIs.)\n\n\
         `cargo xtask count`, which `cargo xtask test` runs, counts again. It fails if an access costs more than {LIMIT} instructions, about a millisecond; if it costs more than {RATIO} times as much at 8 n as at n, and {MORE} more; \
         or if it costs over {} % more than this table says. *Shape*: it grows with the number of vCPUs or SPIs, which the host chooses, and not with what the guest does with them; the second bound is not for these. \
         `cargo xtask count --update` writes the table anew. What the host's kernel does is not counted: page faults, wake-ups.\n\n\
         | access | n | 8 n | |\n|---|---|---|---|\n",
        SLACK.0
    );
    for name in order {
        let worst = counted[name];
        let [small, large] = worst.0;
        let note = match known(name, KNOWN).filter(|_| grows(worst) || is_too_long(worst)) {
            Some(Why::Shape) => "shape".to_owned(),
            Some(Why::Exceeds(why)) => format!("exceeds the bounds: {why}"),
            None => String::new(),
        };
        let _ = writeln!(text, "| {name} | {small} | {large} | {note} |");
    }
    text
}

fn parse(text: &str) -> Table {
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let number = |n: usize| cells.get(n)?.parse().ok();
        Some((cells[0].to_owned(), Worst([number(1)?, number(2)?])))
    };
    text.lines().filter(|line| line.starts_with('|')).filter_map(row).collect()
}

/// Compares the counts with the table.
fn compare(counted: &Table, text: &str, about: &str) -> Result<()> {
    let table = parse(text);
    let mut worse = Vec::new();
    for (name, Worst(now)) in counted {
        let Some(Worst(then)) = table.get(name) else {
            worse.push(format!("not in the table: {name}"));
            continue;
        };
        for n in 0..SIZES.len() {
            if now[n] > then[n] + then[n] * SLACK.0 / 100 + SLACK.1 {
                worse.push(format!("{} instead of {} ({}): {name}", now[n], then[n], SIZES[n]));
            }
        }
    }
    judge(&worse, &format!("{} accesses", counted.len()), "accesses.md", text, about)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(small: u64, large: u64) -> Table {
        Table::from([("s: a".into(), Worst([small, large]))])
    }

    #[test]
    fn a_dump_is_understood() {
        assert_eq!(total("events: Ir\n\ntotals: 1234\n"), Some(1234));
        assert_eq!(total("events: Ir\n"), None);
    }

    #[test]
    fn growth_and_the_limit_are_seen() {
        let exceeds = [("s: a", Why::Exceeds("a reason"))];
        let shape = [("s: a", Why::Shape)];
        assert!(check(&one(100_000, 250_000), &[]).is_ok());
        assert!(check(&one(100_000, 250_001), &[]).is_err(), "it grows");
        assert!(check(&one(LIMIT, LIMIT + 1), &[]).is_err(), "it is too long");
        assert!(check(&one(100, 5_000), &[]).is_ok(), "it is next to nothing");
        assert!(check(&one(100_000, 800_000), &shape).is_ok());
        assert!(check(&one(LIMIT, LIMIT + 1), &shape).is_err(), "it is too long");
        assert!(check(&one(LIMIT, LIMIT + 1), &exceeds).is_ok());
        assert!(check(&one(100_000, 100_000), &shape).is_err(), "it need not be on the list");
    }

    #[test]
    fn the_table_is_a_bound() {
        let text = print(&["s: a".into()], &one(1000, 100_000), "rustc 1, x86");
        let check = |large, about| compare(&one(1000, large), &text, about);
        assert!(check(112_000, "rustc 1, x86").is_ok());
        assert!(check(112_001, "rustc 1, x86").is_err());
        assert!(check(112_001, "rustc 2, x86").is_ok());
        assert!(
            compare(&Table::from([("b".into(), Worst([1, 1]))]), &text, "rustc 1, x86").is_err()
        );
    }
}
