//! `lpi-storm`: injectors, an engine, guests, and the proof that nothing is lost between them.
//!
//! Each device is a thread that injects its events; each vCPU is a thread with a guest that takes
//! its interrupts from a software CPU interface. Before each injection the device writes a number
//! for its event, and the guest reads it after its acknowledge ([`ledger`]). At the end the guest
//! must have seen the last number of every event. All code is generic over
//! [`vgic_core::engine::Engine`].

pub mod accounts;
pub mod args;
mod bar;
pub mod churn;
mod curves;
pub mod injector;
mod json;
pub mod ledger;
pub mod machine;
mod phase;
pub mod plan;
mod plot;
mod run;
pub mod sweep;
mod table;
mod text;
mod vcpu;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use accounts::Accounts;
use args::{Choice, Cli, Job, Output};
use machine::Machine;
use plan::Plan;
pub use run::run;
use sweep::{Sweep, Swept};
use vgic_core::Vgic;
use vgic_core::engine::Engine;
use vgic_core::locked::LockedVgic;

use crate::its::ViaIts;

/// Runs the program. The exit status is 0 on success, 1 if LPIs are lost, the accounts do not
/// balance, or the run fails, and 2 if the arguments are wrong.
pub fn main() -> ExitCode {
    let job = match Cli::parse().check() {
        Ok(job) => job,
        Err(error) => error.exit(),
    };
    match storm(job) {
        Ok(balanced) => status(balanced),
        Err(error) => {
            eprintln!("lpi-storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs and reports the requested storms. Returns whether nothing is lost and all accounts balance.
fn storm(mut job: Job) -> Result<bool> {
    if let Some(plan) = job.sweep.take() {
        return sweep(&plan, job);
    }
    // Not `println`, which panics when the reader has closed the pipe.
    let mut out = io::stdout();
    let engines: &[fn(&Plan) -> Result<Accounts>] = match job.engine {
        Choice::Lockfree => &[perform::<Vgic>],
        Choice::Locked => &[perform::<LockedVgic>],
        Choice::Both => &[perform::<Vgic>, perform::<LockedVgic>],
    };
    let plans = job.plans();
    writeln!(out, "{}", text::headline(&plans[0], job.plan.churn))?;
    let mut runs = Vec::with_capacity(engines.len() * plans.len());
    for engine in engines {
        for plan in &plans {
            let accounts = engine(plan)?;
            write!(out, "\n{}", text::Results(&accounts))?;
            runs.push(accounts);
        }
        if let [.., calm, churned] = runs.as_slice()
            && plans.len() == 2
        {
            write!(out, "\n{}", text::Comparison::of_churn(churned, calm))?;
        }
    }
    // The runs of each plan, grouped by engine.
    if engines.len() == 2 {
        let (first, second) = runs.split_at(plans.len());
        for (a, b) in first.iter().zip(second) {
            write!(out, "\n{}", text::Comparison::of_engines(a, b))?;
        }
    }
    let machine = Machine::here();
    write(job.json, || Ok(json::report(&runs, &machine)))?;
    write(job.svg, || plot::draw(&runs, &machine))?;
    Ok(runs.iter().all(Accounts::balance))
}

/// Runs and reports a sweep. Returns whether nothing is lost and all accounts balance.
fn sweep(sweep: &Sweep, job: Job) -> Result<bool> {
    let mut out = io::stdout();
    let engines: &[fn(&Sweep) -> Result<Swept>] = match job.engine {
        Choice::Lockfree => &[Sweep::run::<Vgic>],
        Choice::Locked => &[Sweep::run::<LockedVgic>],
        Choice::Both => &[Sweep::run::<Vgic>, Sweep::run::<LockedVgic>],
    };
    writeln!(out, "{}", table::headline(&sweep.plan))?;
    let mut swept = Vec::with_capacity(engines.len());
    for engine in engines {
        let one = engine(sweep)?;
        write!(out, "\n{}", table::Table(&one))?;
        swept.push(one);
    }
    let machine = Machine::here();
    write(job.json, || Ok(json::sweep_report(&swept, &machine)))?;
    write(job.svg, || curves::draw(&swept, &machine))?;
    Ok(swept.iter().all(Swept::balances))
}

/// Writes the output file, if one was requested.
fn write(output: Option<Output>, content: impl FnOnce() -> Result<String>) -> Result<()> {
    let Some(output) = output else { return Ok(()) };
    let name = output.path().display().to_string();
    output.write(&content()?).with_context(|| format!("writing {name}"))
}

/// Runs a storm on the engine itself or through an ITS, as the plan says.
fn perform<E: Engine>(plan: &Plan) -> Result<Accounts> {
    if plan.its { run::<ViaIts<E>>(plan) } else { run::<E>(plan) }
}

/// Returns the exit status for the results of the storms.
pub fn verdict(runs: &[Accounts]) -> ExitCode {
    status(runs.iter().all(Accounts::balance))
}

fn status(balanced: bool) -> ExitCode {
    if balanced { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
