//! The results as text for a terminal.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::accounts::{Accounts, BALANCE_RULES};
use super::plan::{Length, Plan};

/// An integer with its thousands separated.
pub(super) struct Grouped(pub(super) u64);

impl Display for Grouped {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (i, digit) in digits.chars().enumerate() {
            if i != 0 && (digits.len() - i).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad_integral(true, "", &text)
    }
}

/// A time in ns, shown in a suitable unit.
pub(super) struct Nanos(pub(super) u64);

impl Display for Nanos {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            ns @ 0..1_000 => format!("{ns} ns"),
            ns @ 1_000..1_000_000 => format!("{:.1} us", ns as f64 / 1e3),
            ns @ 1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
            ns => format!("{:.2} s", ns as f64 / 1e9),
        };
        f.pad(&text)
    }
}

/// A number with its noun: `1 vCPU`, `2 vCPUs`.
pub(super) struct Count<'a>(pub(super) u64, pub(super) &'a str);

impl Display for Count<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(count, what) = *self;
        match (count, what.strip_suffix('y')) {
            (1, _) => write!(f, "1 {what}"),
            (_, Some(stem)) => write!(f, "{} {stem}ies", Grouped(count)),
            (_, None) => write!(f, "{} {what}s", Grouped(count)),
        }
    }
}

/// Returns the plan in one line. `churned`: whether the line also describes a storm with churn.
pub(super) fn headline(plan: &Plan, churned: bool) -> String {
    let length = match plan.length {
        Length::Iterations(iterations) => Count(iterations, "iteration").to_string(),
        Length::Time(time) => format!("{} s", time.as_secs_f64()),
    };
    format!(
        "{}, {} x {}, {length}, {}, {}{}{}{}, seed {}",
        Count(plan.vcpus.into(), "vCPU"),
        Count(plan.devices.into(), "device"),
        Count(plan.events.into(), "event"),
        Count(plan.lrs.into(), "list register"),
        Count(plan.priorities.into(), "priority"),
        if plan.its { ", ITS" } else { "" },
        match (plan.churn, churned) {
            (true, _) => ", churn",
            (false, true) => ", without churn and with it",
            (false, false) => "",
        },
        if plan.paced { ", paced" } else { "" },
        plan.seed,
    )
}

/// One engine's results.
pub(super) struct Results<'a>(pub(super) &'a Accounts);

impl Display for Results<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let a = self.0;
        let merged = if a.plan.churn { "merged, discarded" } else { "merged" };
        writeln!(f, "{}", a.name())?;
        for (name, value) in [
            ("injected", a.tally.injected),
            ("coalesced", a.tally.coalesced),
            ("unmapped", a.tally.unmapped),
            ("delivered", a.delivered),
            (merged, a.merged()),
            ("lost", a.lost),
        ] {
            writeln!(f, "  {name:<20} {:>15}", Grouped(value))?;
        }
        if a.plan.churn {
            writeln!(f, "  {:<20} {:>15}", "churn operations", Grouped(a.churned.operations))?;
        }
        let per_entry = a.delivered as f64 / (a.entries.max(1)) as f64;
        writeln!(f, "  {:<20} {:>15}", "kicks", Grouped(a.kicks))?;
        writeln!(
            f,
            "  {:<20} {:>15}   {per_entry:.2} deliveries per entry",
            "entries",
            Grouped(a.entries)
        )?;
        // In the format of vgic_lpi_stress.
        let seconds = |time: Duration| format!("in {:.3} s", time.as_secs_f64());
        writeln!(f, "  Rate: {:.2} LPIs/sec, {}", a.injected_per_s(), seconds(a.injecting))?;
        writeln!(
            f,
            "  Delivery rate: {:.2} LPIs/sec, {}",
            a.delivered_per_s(),
            seconds(a.delivering)
        )?;
        writeln!(
            f,
            "  Latency: p50 {}, p99 {}, p99.9 {}, max {} ({} samples)",
            Nanos(a.percentile(50.0)),
            Nanos(a.percentile(99.0)),
            Nanos(a.percentile(99.9)),
            Nanos(a.latency.max()),
            Grouped(a.latency.len())
        )?;
        writeln!(f, "  Memory: {:.1} bytes per LPI", a.bytes_per_lpi())?;
        let rules = a.rules();
        let holding = rules.iter().filter(|rule| rule.holds).count();
        writeln!(f, "  Accounts: {holding} of {} rules hold", rules.len())?;
        // The other rules are shown only if they do not hold.
        for (n, rule) in rules.iter().enumerate() {
            if !rule.holds {
                writeln!(f, "    VIOLATED: {}", rule.text)?;
            } else if n < BALANCE_RULES {
                writeln!(f, "    {}", rule.text)?;
            }
        }
        if a.lost != 0 {
            writeln!(f, "  LOST: {} of {} events", a.lost, a.plan.lpis())?;
            for event in &a.lost_events {
                writeln!(f, "    {event}")?;
            }
            if a.lost > a.lost_events.len() as u64 {
                writeln!(f, "    ...")?;
            }
        }
        Ok(())
    }
}

/// Two runs side by side, with the ratio of the first to the second.
pub(super) struct Comparison<'a> {
    runs: [&'a Accounts; 2],
    names: [&'static str; 2],
    title: String,
}

impl<'a> Comparison<'a> {
    /// Compares two engines.
    pub(super) fn of_engines(a: &'a Accounts, b: &'a Accounts) -> Self {
        let churn = if a.plan.its && a.plan.churn { "with churn" } else { "" };
        Self { runs: [a, b], names: [a.engine, b.engine], title: churn.to_owned() }
    }

    /// Compares one engine with churn and without.
    pub(super) fn of_churn(with: &'a Accounts, without: &'a Accounts) -> Self {
        Self { runs: [with, without], names: ["churn", "calm"], title: with.engine.to_owned() }
    }
}

impl Display for Comparison<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { runs: [a, b], names: [of_a, of_b], title } = self;
        let both = format!("{of_a}/{of_b}");
        writeln!(f, "{title:<22} {of_a:>14} {of_b:>14} {both:>16}")?;
        let whole = |value: f64| Grouped(value.round() as u64).to_string();
        let tenths = |value: f64| format!("{value:.1}");
        let nanos = |value: f64| Nanos(value as u64).to_string();
        let percentile = |a: &Accounts, percent| a.percentile(percent) as f64;
        let entries = |a: &Accounts| a.delivered as f64 / a.entries.max(1) as f64;
        type Row<'r> = (&'static str, f64, f64, &'r dyn Fn(f64) -> String);
        let rows: [Row<'_>; 10] = [
            ("injected LPIs/sec", a.injected_per_s(), b.injected_per_s(), &whole),
            ("injected LPIs/CPU sec", a.injected_per_cpu_s(), b.injected_per_cpu_s(), &whole),
            ("delivered LPIs/sec", a.delivered_per_s(), b.delivered_per_s(), &whole),
            ("latency p50", percentile(a, 50.0), percentile(b, 50.0), &nanos),
            ("latency p99", percentile(a, 99.0), percentile(b, 99.0), &nanos),
            ("latency p99.9", percentile(a, 99.9), percentile(b, 99.9), &nanos),
            ("latency max", a.latency.max() as f64, b.latency.max() as f64, &nanos),
            ("kicks", a.kicks as f64, b.kicks as f64, &whole),
            ("deliveries per entry", entries(a), entries(b), &tenths),
            ("bytes per LPI", a.bytes_per_lpi(), b.bytes_per_lpi(), &tenths),
        ];
        for (name, of_a, of_b, show) in rows {
            let ratio = if of_b == 0.0 { "-".to_owned() } else { format!("{:.2}", of_a / of_b) };
            writeln!(f, "{name:<22} {:>14} {:>14} {ratio:>16}", show(of_a), show(of_b))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let shown = [0, 999, 1_000, 123_456, 16_769_024].map(|n| Grouped(n).to_string());
        assert_eq!(shown, ["0", "999", "1,000", "123,456", "16,769,024"]);
        assert_eq!(format!("[{:>7}]", Grouped(1_000)), "[  1,000]");
        let shown = [999, 1_000, 2_345_678, 5_000_000_000].map(|n| Nanos(n).to_string());
        assert_eq!(shown, ["999 ns", "1.0 us", "2.3 ms", "5.00 s"]);
    }

    #[test]
    fn a_plan_in_words() {
        let plan = Plan { devices: 2, events: 1000, priorities: 3, ..Plan::default() };
        let words = "1 vCPU, 2 devices x 1,000 events, 1 iteration, 4 list registers, \
                     3 priorities, seed 1";
        assert_eq!(headline(&plan, false), words);
    }
}
