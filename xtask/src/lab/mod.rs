//! The arm64 lab: guests that try the interrupt controller, on any machine.
//!
//! Some guests run on QEMU's own GIC, which proves the guests; the others on `vgic-vmm`, under KVM: on an
//! arm64 machine with /dev/kvm directly, elsewhere in an arm64 host with EL2 that QEMU emulates.

mod boot;
mod costs;
mod cpio;
mod cross;
mod guests;
mod image;
mod judge;
mod kit;
mod packages;
mod report;
mod run;
mod table;
mod venue;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use crate::process::target_dir;

/// Without names: every guest.
#[derive(Args, Default)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// The guests to run; `cargo xtask lab list` names them
    names: Vec<String>,
    /// Show everything that guests print, not only their verdicts
    #[arg(long, short)]
    verbose: bool,
    /// On an emulated host with one CPU, whose clock counts instructions: what each interrupt of a storm takes, of guest, VMM and
    /// kernel together
    #[arg(long)]
    count_instructions: bool,
    /// A static arm64 program to take instead of building the one of that name; may be given several times
    #[arg(long, value_name = "PATH")]
    built: Vec<PathBuf>,
}

#[derive(Subcommand)]
enum Action {
    /// The guests, and what each is
    List,
    /// Fetch and build what the guests need, and run none
    Setup,
    /// Run one program of the workspace, or a static arm64 one, on an arm64 KVM host
    Run(run::RunArgs),
}

pub(crate) fn run(args: &LabArgs) -> Result<()> {
    match &args.action {
        None => {
            let &LabArgs { verbose, count_instructions: counting, ref built, .. } = args;
            guests::run(&args.names, guests::How { verbose, counting, built })
        }
        Some(Action::List) => guests::list(),
        Some(Action::Setup) => guests::setup(),
        Some(Action::Run(args)) => run::run(args),
    }
}

/// The guests that `cargo xtask test` runs.
pub(crate) fn gate() -> Result<()> {
    let names: Vec<String> = table::GATE.iter().map(|name| (*name).to_owned()).collect();
    guests::run(&names, guests::How::default())
}

/// Builds a payload, and what builds need is installed.
pub(crate) fn payload(name: &str) -> Result<PathBuf> {
    let found = cross::payloads()?.into_iter().find(|(there, _)| there == name);
    found.map(|(_, path)| path).with_context(|| format!("no payload {name}"))
}

/// Where the lab keeps what it fetched, what it built, and its logs.
fn dir() -> PathBuf {
    target_dir().join("lab")
}
