//! The comparison of the register model with QEMU's GICs.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::process::{self, cargo, root};
use crate::{artifacts, lab};

/// The time limit for 100,000 operations of each model, which take two minutes. It grows in
/// proportion with the number of operations.
const LIMIT: Duration = Duration::from_secs(600);
const DEFAULT_OPS: u64 = 100_000;

#[derive(Args)]
pub(crate) struct OracleArgs {
    /// The number of operations for each model
    #[arg(long, default_value_t = DEFAULT_OPS)]
    ops: u64,
    /// The seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run only this model
    #[arg(long)]
    model: Option<Model>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Model {
    /// The frames of GICv2
    V2,
    /// The frames of GICv3
    V3,
    /// The ITS
    Its,
    /// Two CPUs with a GICv2
    CpusV2,
    /// Two CPUs with a GICv3, including LPIs
    CpusV3,
}

impl Model {
    fn runs_cpus(self) -> bool {
        matches!(self, Self::CpusV2 | Self::CpusV3)
    }
}

/// The payload that QEMU's CPUs run.
const PAYLOAD: &str = "accesses";

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
    if args.model.is_none_or(Model::runs_cpus) {
        command.arg("--payload").arg(lab::payload(PAYLOAD)?);
    }
    if let Some(model) = args.model.and_then(|model| model.to_possible_value()) {
        command.args(["--model", model.get_name()]);
    }
    let longer = u32::try_from(args.ops.div_ceil(DEFAULT_OPS)).unwrap_or(u32::MAX).max(1);
    process::run_limited(&mut command, LIMIT.saturating_mul(longer))
}
