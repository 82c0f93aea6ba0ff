//! `lpi-storm`: injectors, an engine, guests, and the proof that nothing is lost between them.
//!
//! Each device is a thread that injects its events; each vCPU is a thread whose guest takes its
//! interrupts from a software CPU interface. Before each injection the device writes a number for its
//! event, and the guest reads it after its acknowledge ([`ledger`]): at the end it must have seen the
//! last number of every event. Everything is generic over [`vgic_core::engine::Engine`].

pub mod accounts;
pub mod args;
mod bar;
mod churn;
pub mod injector;
mod json;
pub mod ledger;
pub mod machine;
mod phase;
pub mod plan;
mod plot;
mod run;
mod text;
mod vcpu;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use accounts::Accounts;
use args::{Choice, Cli, Job};
use machine::Machine;
use plan::Plan;
pub use run::run;

/// The program: exit status 0 if all is well, 1 if LPIs are lost, accounts do not balance, or the run failed,
/// 2 if the arguments are wrong.
pub fn main() -> ExitCode {
    let job = match Cli::parse().check() {
        Ok(job) => job,
        Err(error) => error.exit(),
    };
    match storm(job) {
        Ok(runs) => verdict(&runs),
        Err(error) => {
            eprintln!("lpi-storm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what the command line asks for, and reports it.
fn storm(job: Job) -> Result<Vec<Accounts>> {
    // Not println, which panics when nobody listens.
    let mut out = io::stdout();
    writeln!(out, "{}", text::headline(&job.plan))?;
    let engines: &[fn(&Plan) -> Result<Accounts>] = match job.engine {
        Choice::Lockfree => &[run::<vgic_core::Vgic>],
        Choice::Locked => &[run::<vgic_core::locked::LockedVgic>],
        Choice::Both => &[run::<vgic_core::Vgic>, run::<vgic_core::locked::LockedVgic>],
    };
    let mut runs = Vec::with_capacity(engines.len());
    for engine in engines {
        let accounts = engine(&job.plan)?;
        write!(out, "\n{}", text::Results(&accounts))?;
        runs.push(accounts);
    }
    if let [first, second] = runs.as_slice() {
        write!(out, "\n{}", text::Comparison(first, second))?;
    }
    let machine = Machine::here();
    if let Some(output) = job.json {
        let name = output.path().display().to_string();
        output.write(&json::report(&runs, &machine)).with_context(|| format!("writing {name}"))?;
    }
    if let Some(output) = job.svg {
        let name = output.path().display().to_string();
        output.write(&plot::draw(&runs, &machine)?).with_context(|| format!("writing {name}"))?;
    }
    Ok(runs)
}

/// The exit status for what the storms came to.
pub fn verdict(runs: &[Accounts]) -> ExitCode {
    if runs.iter().all(Accounts::balance) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
