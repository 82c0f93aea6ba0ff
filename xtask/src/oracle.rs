//! The register model against QEMU's GICs.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::artifacts;
use crate::process::{self, cargo, root};

/// 100,000 operations of each model take a minute and a half; a long run may take as much longer as it is longer.
const LIMIT: Duration = Duration::from_secs(600);
const DEFAULT_OPS: u64 = 100_000;

#[derive(Args)]
pub(crate) struct OracleArgs {
    /// Operations for each model
    #[arg(long, default_value_t = DEFAULT_OPS)]
    ops: u64,
    /// Where the random numbers begin
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this model
    #[arg(long)]
    model: Option<Model>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Model {
    V2,
    V3,
    Its,
}

impl Default for OracleArgs {
    fn default() -> Self {
        Self { ops: DEFAULT_OPS, seed: 1, model: None }
    }
}

pub(crate) fn run(args: &OracleArgs) -> Result<()> {
    let mut build = cargo(["build", "--release", "--package", "vgic-oracle"]);
    let built = artifacts::build(build.stderr(Stdio::inherit()))?;
    let oracle = built.first().context("cargo built no vgic-oracle")?;
    let mut command = Command::new(&oracle.path);
    command.current_dir(root());
    command.args(["--ops", &args.ops.to_string(), "--seed", &args.seed.to_string()]);
    match args.model {
        None => {}
        Some(Model::V2) => _ = command.args(["--model", "v2"]),
        Some(Model::V3) => _ = command.args(["--model", "v3"]),
        Some(Model::Its) => _ = command.args(["--model", "its"]),
    }
    let longer = u32::try_from(args.ops.div_ceil(DEFAULT_OPS)).unwrap_or(u32::MAX).max(1);
    process::run_limited(&mut command, LIMIT.saturating_mul(longer))
}
