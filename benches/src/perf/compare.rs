//! Compares two reports, and finds the differences that are significant.

use std::fmt::Write;

use super::data::Report;
use super::stats::{Spread, holm, mann_whitney};

/// The chance that any difference at all is called significant by accident.
const ALPHA: f64 = 0.05;
/// The least difference that is worth attention, however certain it is.
const WORTH: f64 = 0.03;

/// One figure in both reports.
struct Row {
    what: String,
    before: f64,
    after: f64,
    p: f64,
}

impl Row {
    fn change(&self) -> f64 {
        self.after / self.before - 1.0
    }
}

/// Compares two reports in read-modify-writes of each run's own rounds, so a slower machine does
/// not show.
pub fn compare(before: &Report, after: &Report) -> String {
    let mut rows = Vec::new();
    for set in &before.sets {
        let Some(other) = after.sets.iter().find(|other| other.key == set.key) else { continue };
        for (who, ns) in &set.ns {
            let Some(now) = other.of(who) else { continue };
            let scaled = |ns: &[f64], rmw: &[f64]| {
                ns.iter().zip(rmw).map(|(ns, rmw)| ns / rmw).collect::<Vec<_>>()
            };
            let (a, b) = (scaled(ns, &set.rmw), scaled(now, &other.rmw));
            let median = |v: &[f64]| Spread::of(v.iter().copied()).map_or(f64::NAN, |s| s.median);
            rows.push(Row {
                what: format!("{}: {}: {who}", set.key.group, set.key),
                before: median(&a),
                after: median(&b),
                p: mann_whitney(&a, &b),
            });
        }
    }
    let significant = holm(&rows.iter().map(|row| row.p).collect::<Vec<_>>(), ALPHA);
    let counted = rows.len();
    let mut rows: Vec<(Row, bool)> = rows.into_iter().zip(significant).collect();
    rows.retain(|(row, significant)| *significant && row.change().abs() >= WORTH);
    rows.sort_by(|a, b| b.0.change().total_cmp(&a.0.change()));
    let mut text = String::new();
    let name =
        |r: &Report| format!("{} ({}, {} rounds)", r.about.commit, r.about.date, r.about.rounds);
    let _ = writeln!(text, "before: {}\nafter:  {}", name(before), name(after));
    for (what, a, b) in [
        ("machine", &before.about.machine, &after.about.machine),
        ("compiler", &before.about.compiler, &after.about.compiler),
    ] {
        if a != b {
            let _ = writeln!(text, "another {what}: {a}; {b}");
        }
    }
    let _ = writeln!(
        text,
        "\n{counted} figures in both, in read-modify-writes of the same rounds. {} differ by {:.0} % or more and significantly \
         (Mann-Whitney U over the rounds, Holm's correction, 5 % for all together):\n",
        rows.len(),
        WORTH * 100.0
    );
    for (row, _) in rows {
        let verdict = if row.change() > 0.0 { "slower" } else { "faster" };
        let _ = writeln!(
            text,
            "{:>+7.1} %  {verdict}  {:>10.2} R -> {:>10.2} R  p = {:.1e}  {}",
            100.0 * row.change(),
            row.before,
            row.after,
            row.p,
            row.what
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::data::{About, Set};
    use super::super::path::Key;
    use super::*;

    fn report(ns: impl Fn(u32) -> f64) -> Report {
        let key = Key { group: "g".into(), what: "w".into(), at: None, of: String::new() };
        let ns = (0..12).map(ns).collect();
        let set = Set { key, rmw: vec![5.0; 12], ns: vec![("who".into(), ns)] };
        let about = About {
            date: "2026-01-01T00:00:00Z".into(),
            commit: "abc".into(),
            compiler: String::new(),
            machine: String::new(),
            cpus: 1,
            kernel: String::new(),
            load: (0.0, 0.0),
            rounds: 12,
            quick: false,
            seconds: 1.0,
        };
        let (storms, churn, memory, missing) = Default::default();
        Report { about, sets: vec![set], storms, churn, memory, missing }
    }

    #[test]
    fn only_what_is_certain_is_named() {
        let base = report(|n| 100.0 + f64::from(n));
        let slower = report(|n| 120.0 + f64::from(n));
        let text = compare(&base, &slower);
        assert!(text.contains("slower") && text.contains("g: w: who"), "{text}");
        assert!(compare(&slower, &base).contains("faster"));
        let noise = report(|n| 100.5 + f64::from(11 - n));
        assert!(compare(&base, &noise).contains("0 differ"), "{}", compare(&base, &noise));
    }
}
