//! A sweep as text for a terminal.

use std::fmt::{self, Display, Formatter};

use super::plan::{Length, Plan};
use super::sweep::{Mode, Swept};
use super::text::{Count, Grouped};

/// Returns one line that describes the plan of all storms of a sweep.
pub(super) fn headline(plan: &Plan) -> String {
    let seconds = match plan.length {
        Length::Time(time) => time.as_secs_f64(),
        Length::Iterations(_) => 0.0,
    };
    format!(
        "{}, {} of {}, ITS, {seconds} s each, {}, seed {}",
        Count(plan.vcpus.into(), "vCPU"),
        Count(plan.threads.unwrap_or(1).into(), "injector"),
        Count(plan.hot.unwrap_or(0).into(), "hot event"),
        Count(plan.lrs.into(), "list register"),
        plan.seed,
    )
}

/// One engine's sweep.
pub(super) struct Table<'a>(pub(super) &'a Swept);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(swept) = *self;
        writeln!(f, "{}: million injections per second of CPU time", swept.engine)?;
        let reference = swept.reference().map_or((0, 0), |cell| (cell.devices, cell.events));
        let reference = format!("of {}x{}", reference.0, reference.1);
        writeln!(f, "{:17} | {:^31} | {:^31} |", "", "by route", "by (DeviceID, EventID)")?;
        let half = format!("{:>7} {reference:>8} {:>7} {:>6}", "rate", "churn", "ratio");
        writeln!(f, "{:>8} {:>8} | {half} | {half} | {:>5}", "devices", "events", "lost")?;
        for cell in &swept.cells {
            write!(f, "{:>8} {:>8}", Grouped(cell.devices.into()), Grouped(cell.events.into()))?;
            for lookup in [false, true] {
                let calm = Mode { lookup, churn: false };
                let rate = |churn| cell.of(Mode { lookup, churn }).injected_per_cpu_s / 1e6;
                write!(
                    f,
                    " | {:>7.2} {:>8.2} {:>7.2} {:>6.2}",
                    rate(false),
                    swept.relative(cell, calm),
                    rate(true),
                    Swept::with_churn(cell, lookup)
                )?;
            }
            let lost = cell.results.iter().map(|measured| measured.lost).sum();
            writeln!(f, " | {:>5}", Grouped(lost))?;
        }
        let all = || swept.cells.iter().flat_map(|cell| &cell.results);
        let sum = |of: fn(&super::sweep::Measured) -> u64| Grouped(all().map(of).sum());
        writeln!(
            f,
            "{} injected, {} delivered, {} lost; {} remaps while injecting",
            sum(|measured| measured.injected),
            sum(|measured| measured.delivered),
            sum(|measured| measured.lost),
            sum(|measured| measured.churn_operations),
        )?;
        for cell in &swept.cells {
            for rule in cell.results.iter().flat_map(|measured| &measured.violated) {
                writeln!(f, "  VIOLATED at {} x {}: {rule}", cell.devices, cell.events)?;
            }
        }
        Ok(())
    }
}
