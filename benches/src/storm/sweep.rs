//! The same storm through an ITS for few and for many mapped devices and events: the rate has no cliff.
//!
//! What is injected is a bounded number of events, chosen at random from all that are mapped, so that the storms differ in what is mapped, and not
//! in how much memory the injections touch or in how many of them coalesce. Rates are per second of the injector's CPU time, so that others on
//! the machine do not show. All events are there to be remapped by the churn, and each that was is injected at the end.

use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use vgic_core::engine::Engine;

use super::accounts::Accounts;
use super::plan::{Length, Plan};
use super::run::run;
use crate::its::ViaIts;

/// Numbers of devices.
pub const DEVICES: [u32; 4] = [1, 16, 256, 4096];
/// Numbers of events of each device.
pub const EVENTS: [u32; 5] = [1, 16, 256, 4096, 65_536];
/// Most LPIs of a cell, if nothing else is said.
pub const MAX_LPIS: u32 = 1 << 20;
/// How often a storm is tried on a busy machine.
const ATTEMPTS: u32 = 2;
/// Most events that are injected.
pub const HOT: u32 = 256;
/// How long each cell is measured in each way, if nothing else is said.
pub const TIME: Duration = Duration::from_millis(250);

/// How injectors reach their events, and whether mappings change meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    /// By (DeviceID, EventID), rather than by a route.
    pub lookup: bool,
    /// Whether events are remapped meanwhile, by commands.
    pub churn: bool,
}

/// All of them, in the order in which they are measured.
pub const MODES: [Mode; 4] = [
    Mode { lookup: false, churn: false },
    Mode { lookup: false, churn: true },
    Mode { lookup: true, churn: false },
    Mode { lookup: true, churn: true },
];

/// What is to be measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Sweep {
    /// What all cells have in common.
    pub plan: Plan,
    /// Most LPIs of a cell: larger ones are left out.
    pub max_lpis: u32,
}

/// One number of devices with one number of events.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Number of devices.
    pub devices: u32,
    /// Number of events of each.
    pub events: u32,
    /// In the order of [`MODES`].
    pub results: Vec<Measured>,
}

/// What one storm came to.
#[derive(Clone, Debug)]
pub struct Measured {
    /// How it was done.
    pub mode: Mode,
    /// LPIs injected per second.
    pub injected_per_s: f64,
    /// LPIs injected per second of the injector's CPU time.
    pub injected_per_cpu_s: f64,
    /// LPIs delivered per second.
    pub delivered_per_s: f64,
    /// LPIs injected, the last round included.
    pub injected: u64,
    /// LPIs delivered.
    pub delivered: u64,
    /// Events whose last number was not seen.
    pub lost: u64,
    /// Operations of the churn.
    pub churn_operations: u64,
    /// Rules that do not hold.
    pub violated: Vec<String>,
}

/// A sweep of one engine.
#[derive(Clone, Debug)]
pub struct Swept {
    /// The engine's name.
    pub engine: &'static str,
    /// What all cells have in common.
    pub plan: Plan,
    /// From few devices to many, and of these from few events to many.
    pub cells: Vec<Cell>,
}

impl Sweep {
    /// Numbers of devices and of events, those of the smallest cell first.
    pub fn cells(&self) -> impl Iterator<Item = (u32, u32)> {
        let all = DEVICES.into_iter().flat_map(|d| EVENTS.into_iter().map(move |e| (d, e)));
        let most = self.max_lpis;
        all.filter(move |(devices, events)| devices * events <= most)
    }

    /// Measures all cells on one engine.
    ///
    /// # Errors
    /// As [`run`](super::run).
    pub fn run<E: Engine>(&self) -> Result<Swept> {
        let cells: Vec<_> = self.cells().collect();
        let bar = ProgressBar::new((cells.len() * MODES.len()) as u64);
        let style = ProgressStyle::with_template("{bar:40.cyan/blue} {pos} of {len} storms  {msg}");
        bar.set_style(style.expect("the template is valid"));
        let cells = cells.into_iter().map(|cell| self.cell::<E>(cell, &bar)).collect::<Result<_>>();
        bar.finish_and_clear();
        Ok(Swept { engine: E::NAME, plan: self.plan.clone(), cells: cells? })
    }

    fn cell<E: Engine>(&self, (devices, events): (u32, u32), bar: &ProgressBar) -> Result<Cell> {
        bar.set_message(format!("{devices} x {events}"));
        let results = MODES.map(|mode| {
            let plan = Plan {
                devices,
                events,
                threads: Some(self.plan.threads.unwrap_or(1)),
                its: true,
                lookup: mode.lookup,
                churn: mode.churn,
                quiet: true,
                ..self.plan.clone()
            };
            let accounts = measurable::<E>(&plan)
                .with_context(|| format!("with {devices} devices of {events} events"))?;
            bar.inc(1);
            Ok(Measured::new(mode, &accounts))
        });
        Ok(Cell { devices, events, results: results.into_iter().collect::<Result<_>>()? })
    }
}

/// A storm that the machine has let happen: once more, if the injector had hardly any CPU. The first one that does not balance, if
/// there is one.
fn measurable<E: Engine>(plan: &Plan) -> Result<Accounts> {
    let mut best = run::<ViaIts<E>>(plan)?;
    for _ in 1..ATTEMPTS {
        let enough = |cpu| cpu >= best.injecting / 10;
        if !best.balance() || best.injecting_cpu.is_none_or(enough) {
            break;
        }
        let next = run::<ViaIts<E>>(plan)?;
        if !next.balance() || next.injecting_cpu > best.injecting_cpu {
            best = next;
        }
    }
    Ok(best)
}

impl Measured {
    fn new(mode: Mode, accounts: &Accounts) -> Self {
        let violated = accounts.rules().into_iter().filter(|rule| !rule.holds);
        Self {
            mode,
            injected_per_s: accounts.injected_per_s(),
            injected_per_cpu_s: accounts.injected_per_cpu_s(),
            delivered_per_s: accounts.delivered_per_s(),
            injected: accounts.tally.injected,
            delivered: accounts.delivered,
            lost: accounts.lost,
            churn_operations: accounts.churned.operations,
            violated: violated.map(|rule| rule.text).collect(),
        }
    }

    /// Whether nothing is lost, and every rule holds.
    pub fn balances(&self) -> bool {
        self.lost == 0 && self.violated.is_empty()
    }
}

impl Cell {
    /// What was measured in a mode.
    ///
    /// # Panics
    /// Never: all modes are measured.
    pub fn of(&self, mode: Mode) -> &Measured {
        self.results.iter().find(|result| result.mode == mode).expect("all modes are measured")
    }
}

impl Swept {
    /// The first cell in which as many events are injected as in all larger ones; if there is none, the first one.
    pub fn reference(&self) -> Option<&Cell> {
        let hot = self.plan.hot.unwrap_or(1);
        let full = self.cells.iter().find(|cell| cell.devices * cell.events >= hot);
        full.or(self.cells.first())
    }

    /// A cell's rate of injections in a mode, in parts of that of the [reference](Swept::reference).
    pub fn relative(&self, cell: &Cell, mode: Mode) -> f64 {
        let reference = self.reference().map_or(0.0, |cell| cell.of(mode).injected_per_cpu_s);
        ratio(cell.of(mode).injected_per_cpu_s, reference)
    }

    /// A cell's rate of injections with churn, in parts of that without.
    pub fn with_churn(cell: &Cell, lookup: bool) -> f64 {
        let rate = |churn| cell.of(Mode { lookup, churn }).injected_per_cpu_s;
        ratio(rate(true), rate(false))
    }

    /// Whether all is well in every cell.
    pub fn balances(&self) -> bool {
        self.cells.iter().flat_map(|cell| &cell.results).all(Measured::balances)
    }
}

pub(super) fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}

/// A sweep's plan from that of a storm.
pub fn sweep(plan: Plan, time: Option<Duration>, max_lpis: u32) -> Sweep {
    let length = Length::Time(time.unwrap_or(TIME));
    Sweep { plan: Plan { length, hot: Some(HOT), ..plan }, max_lpis }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_fit_and_the_smallest_is_first() {
        let cells =
            |max_lpis| Sweep { plan: Plan::default(), max_lpis }.cells().collect::<Vec<_>>();
        assert_eq!(cells(1), [(1, 1)]);
        assert_eq!(cells(16), [(1, 1), (1, 16), (16, 1)]);
        let all = cells(MAX_LPIS);
        assert_eq!(all.len(), 17);
        for end in [(1, 65_536), (16, 65_536), (256, 4096), (4096, 1), (4096, 256)] {
            assert!(all.contains(&end), "{end:?}");
        }
    }
}
