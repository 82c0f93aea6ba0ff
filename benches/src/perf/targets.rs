//! The targets of the engine, and whether a run meets them.

use super::data::Report;
use super::path::{Key, thousands};
use super::paths::{
    ARM_VGIC, BY_ROUTE, CYCLE, FIRST_BY_ROUTE, LINES, LOCKED, NOTHING_TAKEN, ONE_TAKEN, SHIPPED,
};
use super::stats::Spread;
use super::vm;

/// One target.
pub struct Target {
    /// The target in words.
    pub text: String,
    /// The measured value in words; `None` if it was not measured.
    pub measured: Option<String>,
    /// Whether the target is met.
    pub met: bool,
}

fn target(text: impl Into<String>, measured: Option<(String, bool)>) -> Target {
    let met = measured.as_ref().is_some_and(|(_, met)| *met);
    Target { text: text.into(), measured: measured.map(|(words, _)| words), met }
}

fn median(values: &[f64]) -> Option<f64> {
    Spread::of(values.iter().copied()).map(|spread| spread.median)
}

/// Target: at most `most` read-modify-writes.
fn rmws(report: &Report, text: &str, what: &str, at: u64, most: f64) -> Target {
    let found = report.set(what, Some(at)).and_then(|set| set.rmws_of(SHIPPED));
    let words =
        |s: Spread| (format!("{:.1} R ({:.1} to {:.1})", s.median, s.min, s.max), s.median <= most);
    target(format!("{text}: at most {most:.0} R"), found.map(words))
}

/// Target: a full cycle takes at most `most` read-modify-writes, after subtracting the additional
/// time of loading its cache lines compared with one LPI, which is in the caches.
fn beyond_misses(report: &Report, at: u64, most: f64) -> Target {
    let found =
        report.set(CYCLE, Some(at)).zip(report.set(CYCLE, Some(1))).and_then(|(set, one)| {
            let (all, lines, cached) = (set.of(SHIPPED)?, set.of(LINES)?, one.of(LINES)?);
            let misses: Vec<f64> =
                lines.iter().zip(cached).map(|(l, c)| (l - c).max(0.0)).collect();
            let rest = all.iter().zip(&misses).zip(&set.rmw).map(|((all, m), rmw)| (all - m) / rmw);
            let misses = misses.iter().zip(&set.rmw).map(|(m, rmw)| m / rmw);
            let (rest, all, misses) =
                (Spread::of(rest)?, set.rmws_of(SHIPPED)?, Spread::of(misses)?);
            let words = format!(
                "{:.1} R ({:.1} to {:.1}): {:.1} R less {:.1} R",
                rest.median, rest.min, rest.max, all.median, misses.median
            );
            Some((words, rest.median <= most))
        });
    let text = format!(
        "full cycle, {} mapped, beyond the misses of its cache lines: at most {most:.0} R",
        thousands(at)
    );
    target(text, found)
}

/// Target: at least `least` times as fast as a peer, for each key that `wanted` accepts.
fn faster(report: &Report, peer: &str, wanted: impl Fn(&Key) -> bool, least: f64) -> Target {
    let mut worst: Option<(f64, String)> = None;
    let (mut cells, mut met) = (0, 0);
    for set in report.sets.iter().filter(|set| wanted(&set.key)) {
        if let Some(ratio) = set.ratio(SHIPPED, peer) {
            cells += 1;
            met += usize::from(ratio.median >= least);
            if worst.as_ref().is_none_or(|(least, _)| ratio.median < *least) {
                worst = Some((ratio.median, set.key.to_string()));
            }
        }
    }
    let words = worst.map(|(ratio, key)| {
        (format!("{met} of {cells}; the least is {ratio:.1}x ({key})"), met == cells)
    });
    target(format!("full cycle: at least {least:.0}x {peer} in every cell"), words)
}

fn faster_at(report: &Report, text: &str, what: &str, at: u64, least: f64) -> Target {
    let ratio = report.set(what, Some(at)).and_then(|set| set.ratio(SHIPPED, ARM_VGIC));
    let words = ratio
        .map(|r| (format!("{:.1}x ({:.1} to {:.1})", r.median, r.min, r.max), r.median >= least));
    target(format!("{text}: at least {least:.0}x {ARM_VGIC}"), words)
}

/// Returns all targets.
pub fn all(report: &Report) -> Vec<Target> {
    let is_cycle = |key: &Key| key.what == CYCLE || key.what == ONE_TAKEN;
    let mut targets = vec![
        rmws(report, "coalesced injection through MsiRoute", BY_ROUTE, 1, 3.0),
        rmws(report, "first injection, 1,024 LPIs in turn", FIRST_BY_ROUTE, 1024, 6.0),
        rmws(report, "full cycle, 1 LPI mapped", CYCLE, 1, 12.0),
        beyond_misses(report, 65_536, 16.0),
    ];
    for (what, text) in [(NOTHING_TAKEN, "nothing taken"), (ONE_TAKEN, "one of them delivered")] {
        let at = |n| report.set(what, Some(n)).and_then(|set| set.ns_of(SHIPPED));
        let words = at(65_536).zip(at(16)).map(|(many, few)| {
            let ratio = many.median / few.median;
            (format!("{ratio:.2}x"), ratio <= 1.2)
        });
        let text = format!("entry with 65,536 pending over entry with 16, {text}: at most 1.2x");
        targets.push(target(text, words));
    }
    let storms = || report.storms.iter().filter(|storm| storm.who == SHIPPED);
    let one = storms().find(|storm| storm.shape == (1, 1, 1) && !storm.paced);
    targets.push(target(
        "lpi-storm -v 1 -d 1 -e 1: at least 20 million injections/s",
        one.and_then(|s| median(&s.injected)).map(|m| (format!("{m:.1} million/s"), m >= 20.0)),
    ));
    let slowest = storms()
        .filter(|storm| !storm.paced)
        .filter_map(|storm| Some((median(&storm.injected)?, &storm.flags)))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    targets.push(target(
        "lpi-storm, every shape: at least 5 million injections/s",
        slowest.map(|(m, flags)| (format!("the least is {m:.1} million/s ({flags})"), m >= 5.0)),
    ));
    let many = storms().find(|storm| storm.shape == (1, 1, 1024) && !storm.paced);
    targets.push(target(
        "one injector to one vCPU over 1,024 events: at least 5 million delivered/s",
        many.and_then(|s| median(&s.delivered)).map(|m| (format!("{m:.2} million/s"), m >= 5.0)),
    ));
    targets.push(faster(report, LOCKED, is_cycle, 3.0));
    targets.push(faster(report, ARM_VGIC, is_cycle, 3.0));
    targets.push(faster_at(report, "full cycle of 1,024 LPIs at random", CYCLE, 1024, 8.0));
    targets.push(faster_at(report, "full cycle, 1,024 others pending", ONE_TAKEN, 1024, 100.0));
    let dense = |who: &str| {
        let find = |m: &&super::data::Memory| m.who == who && m.events_per_device == 1024;
        report.memory.iter().find(find).and_then(super::data::Memory::per_lpi)
    };
    let memory = dense(SHIPPED).zip(dense(&format!("{SHIPPED}, mapped through its ITS")));
    targets.push(target(
        "memory: at most 72 bytes per mapped LPI with its event",
        memory.map(|(engine, its)| {
            (format!("{engine:.1}; {its:.1} with what the ITS keeps of it"), its <= 72.0)
        }),
    ));
    let built = report.set(vm::BUILT, Some(vm::LPIS.into())).and_then(|set| set.ns_of(SHIPPED));
    targets.push(target(
        format!(
            "machine of 64 vCPUs, {} LPIs through the ITS: at most 100 ms",
            thousands(vm::LPIS.into())
        ),
        built.map(|s| {
            let ms = |ns: f64| ns / 1e6;
            let text = format!("{:.0} ms ({:.0} to {:.0})", ms(s.median), ms(s.min), ms(s.max));
            (text, ms(s.median) <= 100.0)
        }),
    ));
    for churn in report.churn.iter().filter(|churn| churn.who.starts_with(SHIPPED)) {
        let kept: Vec<f64> =
            churn.rate.iter().filter(|r| r.0 > 0.0).map(|(calm, churned)| churned / calm).collect();
        targets.push(target(
            format!("1,000 remaps per second cost at most 20 % ({})", churn.who),
            median(&kept).map(|kept| {
                let lost = 100.0 * (1.0 - kept);
                (format!("{lost:.1} % at {:.0} remaps/s", churn.remaps), kept >= 0.8)
            }),
        ));
        let at = |p: f64| churn.injection.iter().find(|(q, ..)| *q == p).map(|(.., ns)| *ns as f64);
        targets.push(target(
            format!("p99.9 of an injection under churn: at most 20x its median ({})", churn.who),
            at(99.9).zip(at(50.0)).map(|(tail, median)| {
                let ratio = tail / median.max(1.0);
                (format!("{ratio:.1}x ({median:.0} ns and {tail:.0} ns)"), ratio <= 20.0)
            }),
        ));
    }
    targets
}
