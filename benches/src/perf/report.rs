//! The report as Markdown: `report.md`.

use std::fmt::Write;

use super::data::{About, Churn, Memory, Report, Set, Storm};
use super::operations::{INSTRUCTIONS, OPERATIONS};
use super::path::thousands;
use super::paths::{ARM_VGIC, LINES, LOCKED, SHIPPED};
use super::stats::Spread;
use super::targets;

/// Formats the meaningful digits of a number.
fn short(value: f64) -> String {
    if value >= 100_000.0 {
        thousands(value.round() as u64)
    } else if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn spread(s: Spread) -> String {
    format!("{} / {} / {}", short(s.min), short(s.median), short(s.max))
}

fn of(values: impl IntoIterator<Item = f64>) -> String {
    Spread::of(values).map_or_else(|| "-".into(), spread)
}

/// Returns the whole report. `pictures`: file names and captions.
pub fn markdown(report: &Report, pictures: &[(&str, &str)]) -> String {
    let mut out = String::new();
    let text = &mut out;
    head(text, &report.about);
    verdict(text, report);
    for (file, caption) in pictures {
        let _ = writeln!(text, "![{caption}]({file})\n");
    }
    losses(text, report);
    all_sets(text, report);
    storms(text, &report.storms);
    churn(text, &report.churn);
    memory(text, &report.memory);
    counts(text);
    if !report.missing.is_empty() {
        let _ = writeln!(text, "## What is missing\n");
        for what in &report.missing {
            let _ = writeln!(text, "- {what}");
        }
        text.push('\n');
    }
    let trimmed = out.trim_end().len();
    out.truncate(trimmed);
    out.push('\n');
    out
}

fn head(text: &mut String, about: &About) {
    let _ = writeln!(text, "# Performance of commit {}, {}\n", about.commit, &about.date[..10]);
    if about.quick {
        let _ = writeln!(text, "**A smoke test: the figures mean nothing.**\n");
    }
    let _ = writeln!(
        text,
        "{}, Linux {}, {}; {}. {} rounds of each figure, in {:.0} minutes. Load of the last minute: {:.1} before, {:.1} after, of which \
         one is the run itself: on a machine that others use too, the minimum is what the code costs, and the maximum what they cost. A round is the \
         quickest of five slices of a millisecond, or of one call, or of as many calls as LPIs are mapped; storms and churn are as they are.\n",
        about.machine,
        about.kernel,
        about.compiler,
        about.date,
        about.rounds,
        about.seconds / 60.0,
        about.load.0,
        about.load.1,
    );
    if about.cpus <= 2 {
        let _ = writeln!(
            text,
            "This machine has {} CPUs. What is said of more threads than that is said of threads that wait for a CPU; how an operation scales \
             beyond, the [counts](#counts) tell better: which cache lines it writes, and how often.\n",
            about.cpus
        );
    }
    let _ = writeln!(
        text,
        "**R** is one uncontended atomic read-modify-write (`fetch_add`), measured in the same rounds. `{LOCKED}` is the structure of the \
         kernel's own vGIC (spin locks, a list sorted at every entry) behind the same interface; `{ARM_VGIC}` is version 0.6.2 of the crate, in \
         a process of its own, asked in turns. Three numbers are minimum / median / maximum of the rounds; a ratio is of the same round.\n"
    );
}

fn verdict(text: &mut String, report: &Report) {
    let targets = targets::all(report);
    let met = targets.iter().filter(|target| target.met).count();
    let _ = writeln!(text, "## Targets: {met} of {} met\n", targets.len());
    let _ = writeln!(text, "| target | measured | |\n|---|---|---|");
    for target in targets {
        let verdict = match (&target.measured, target.met) {
            (None, _) => "not measured",
            (_, true) => "met",
            (_, false) => "**not met**",
        };
        let measured = target.measured.as_deref().unwrap_or("-");
        let _ = writeln!(text, "| {} | {measured} | {verdict} |", target.text);
    }
    text.push('\n');
}

/// Writes every figure in which a peer is quicker.
fn losses(text: &mut String, report: &Report) {
    let _ = writeln!(text, "## Where we lose\n");
    let mut rows = Vec::new();
    for set in &report.sets {
        for (who, _) in set.ns.iter().filter(|(who, _)| !who.starts_with(SHIPPED) && who != LINES) {
            if let (Some(ratio), Some(ours), Some(theirs)) =
                (set.ratio(SHIPPED, who), set.ns_of(SHIPPED), set.ns_of(who))
                && ratio.median < 1.0
            {
                rows.push((ratio.median, set, who, ours, theirs));
            }
        }
    }
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    if rows.is_empty() {
        let _ = writeln!(text, "In no figure of this run is a peer quicker.\n");
        return;
    }
    let _ = writeln!(text, "Every figure of this run in which a peer is quicker (medians):\n");
    let _ = writeln!(text, "| | {SHIPPED} | peer | we take |\n|---|---|---|---|");
    for (ratio, set, who, ours, theirs) in rows {
        let _ = writeln!(
            text,
            "| {}: {} | {} ns | {who}: {} ns | {:.2}x as long |",
            set.key.group,
            set.key,
            short(ours.median),
            short(theirs.median),
            1.0 / ratio
        );
    }
    text.push('\n');
}

fn all_sets(text: &mut String, report: &Report) {
    let _ = writeln!(text, "## All figures of one thread and of several\n");
    let mut groups: Vec<&str> = Vec::new();
    for set in &report.sets {
        if !groups.contains(&set.key.group.as_str()) {
            groups.push(&set.key.group);
        }
    }
    for group in groups {
        let _ = writeln!(text, "### {group}\n");
        let _ = writeln!(
            text,
            "| what | who | ns | R | times as long as {SHIPPED} |\n|---|---|---|---|---|"
        );
        for set in report.sets.iter().filter(|set| set.key.group == group) {
            one_set(text, set);
        }
        text.push('\n');
    }
}

fn one_set(text: &mut String, set: &Set) {
    // The base of all ratios is the shipped engine, or the first implementation of a set without
    // it.
    let base = set.ns.iter().map(|(who, _)| &who[..]).find(|who| *who == SHIPPED);
    let base = base.or(set.ns.first().map(|(who, _)| &who[..])).unwrap_or_default();
    for (n, (who, _)) in set.ns.iter().enumerate() {
        let (Some(ns), Some(rmws)) = (set.ns_of(who), set.rmws_of(who)) else { continue };
        let ratio = match set.ratio(base, who) {
            Some(ratio) if who != base => spread(ratio),
            _ => String::new(),
        };
        let what = if n == 0 { set.key.to_string() } else { String::new() };
        let _ = writeln!(text, "| {what} | {who} | {} | {} | {ratio} |", spread(ns), spread(rmws));
    }
}

fn storms(text: &mut String, storms: &[Storm]) {
    if storms.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "## Storms\n\nMillions per second. Without `--paced` most injections find their LPI pending: then the slower a guest is served the higher the rate \
         of injection, so compare deliveries. Nothing is lost in any of them, or this report would not exist.\n"
    );
    let _ = writeln!(
        text,
        "| lpi-storm | engine | injected | injected per second of CPU time | delivered | latency p50 / p99 / p99.9, ns |\n|---|---|---|---|---|---|"
    );
    for storm in storms {
        let at = |p: f64| {
            let found = storm.latency.iter().find(|(q, _)| *q == p);
            found.map_or_else(|| "-".into(), |(_, ns)| thousands(*ns))
        };
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {} / {} / {} |",
            storm.flags,
            storm.who,
            of(storm.injected.iter().copied()),
            of(storm.injected_cpu.iter().copied()),
            of(storm.delivered.iter().copied()),
            at(50.0),
            at(99.0),
            at(99.9),
        );
    }
    text.push('\n');
}

fn churn(text: &mut String, churn: &[Churn]) {
    if churn.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "## While mappings change\n\nOne thread injects 256 events through an ITS; another, the guest's driver and vCPU, remaps them one after the other by \
         DISCARD and MAPTI, and takes what is pending. Rates in millions per second of the injector's CPU time. In the second \
         table every injection is timed by itself, which includes reading the clock.\n"
    );
    let _ = writeln!(
        text,
        "| | remaps/s | calm | churned | churned over calm |\n|---|---|---|---|---|"
    );
    for c in churn {
        let _ = writeln!(
            text,
            "| {} | {:.0} | {} | {} | {} |",
            c.who,
            c.remaps,
            of(c.rate.iter().map(|r| r.0)),
            of(c.rate.iter().map(|r| r.1)),
            of(c.rate.iter().filter(|r| r.0 > 0.0).map(|r| r.1 / r.0)),
        );
    }
    text.push('\n');
    let _ = writeln!(
        text,
        "| one injection, ns (calm, churned) | p50 | p99 | p99.9 | p99.99 |\n|---|---|---|---|---|"
    );
    for c in churn {
        let at = |p: f64| {
            let found = c.injection.iter().find(|(q, ..)| *q == p);
            found.map_or_else(|| "-".into(), |(_, calm, churned)| format!("{calm}, {churned}"))
        };
        let (who, a, b, c, d) = (&c.who, at(50.0), at(99.0), at(99.9), at(99.99));
        let _ = writeln!(text, "| {who} | {a} | {b} | {c} | {d} |");
    }
    text.push('\n');
}

fn memory(text: &mut String, memory: &[Memory]) {
    if memory.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "## Memory\n\nHeap bytes for each mapped LPI with its event, as the allocator was asked for them, beyond an engine in which nothing is mapped. \
         `{ARM_VGIC}` has a record for an LPI only once it has been delivered: they have.\n"
    );
    let sizes: std::collections::BTreeSet<u32> =
        memory.iter().flat_map(|m| m.bytes.keys().copied()).collect();
    let _ = write!(text, "| who | events a device |");
    for lpis in &sizes {
        let _ = write!(text, " {} LPIs |", thousands((*lpis).into()));
    }
    let _ = writeln!(text, "\n|---|---|{}", "---|".repeat(sizes.len()));
    for m in memory {
        let _ = write!(text, "| {} | {} |", m.who, thousands(m.events_per_device.into()));
        for lpis in &sizes {
            match m.bytes.get(lpis) {
                Some(&bytes) => {
                    let _ = write!(text, " {:.1} |", bytes as f64 / f64::from(*lpis));
                }
                None => text.push_str(" - |"),
            }
        }
        text.push('\n');
    }
    text.push('\n');
}

/// Returns the text after the first heading of a file.
fn body(text: &str) -> &str {
    text.split_once("\n\n").map_or(text, |(_, body)| body).trim()
}

fn counts(text: &mut String) {
    let _ = writeln!(
        text,
        "## Counts\n\n### Atomic operations and allocations\n\n{}\n",
        body(OPERATIONS)
    );
    let _ = writeln!(text, "### Instructions\n\n{}\n", body(INSTRUCTIONS));
}
