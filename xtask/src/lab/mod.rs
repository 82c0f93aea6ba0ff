//! The arm64 lab: guests that test the interrupt controller, on any machine.
//!
//! Some guests run on QEMU's own GIC, which validates the guests. The others run on `vgic-vmm`
//! under KVM: directly on an arm64 machine with /dev/kvm, elsewhere in an arm64 host with EL2 that
//! QEMU emulates.

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

/// The options of the lab. Without names, every guest runs.
#[derive(Args, Default)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// The guests to run; `cargo xtask lab list` names them
    names: Vec<String>,
    /// Show all output of the guests, not only their verdicts
    #[arg(long, short)]
    verbose: bool,
    /// Run on an emulated host with one CPU that counts instructions, and report them per interrupt
    #[arg(long)]
    count_instructions: bool,
    /// A static arm64 program to use instead of building it; may be given several times
    #[arg(long, value_name = "PATH")]
    built: Vec<PathBuf>,
}

#[derive(Subcommand)]
enum Action {
    /// List the guests
    List,
    /// Fetch and build the guests' needs, and run none
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

/// Runs the guests of `cargo xtask test`.
pub(crate) fn gate() -> Result<()> {
    let names: Vec<String> = table::GATE.iter().map(|name| (*name).to_owned()).collect();
    guests::run(&names, guests::How::default())
}

/// Builds a payload, and installs the tools for it if they are missing.
pub(crate) fn payload(name: &str) -> Result<PathBuf> {
    let found = cross::payloads()?.into_iter().find(|(there, _)| there == name);
    found.map(|(_, path)| path).with_context(|| format!("no payload {name}"))
}

/// The directory for fetched files, built files and logs.
fn dir() -> PathBuf {
    target_dir().join("lab")
}
