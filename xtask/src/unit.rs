//! The tests that a plain toolchain runs.

use anyhow::{Result, bail};

use crate::process::{cargo, run};

pub(crate) fn unit() -> Result<()> {
    // --no-fail-fast here and below: one run tells everything that is wrong.
    run(&mut cargo(["test", "--workspace", "--no-fail-fast"]))?;
    run(&mut cargo(["test", "--package", "vgic-core", "--all-features", "--no-fail-fast"]))?;
    // Without the engine's counters, which all features have.
    run(&mut cargo([
        "test",
        "--package",
        "vgic-core",
        "--features",
        "count-ops",
        "--test",
        "operations",
    ]))
}

/// Optimised code interleaves differently, and the property tests get through more cases in it.
pub(crate) fn backends() -> Result<()> {
    run(&mut cargo([
        "test",
        "--package",
        "vgic-core",
        "--release",
        "--features",
        "locked",
        "--tests",
        "--no-fail-fast",
    ]))
}

/// The number of tests that passed according to `output`; an error if it is zero, as a filter that
/// matches nothing would otherwise pass for ever.
pub(crate) fn passed(output: &str) -> Result<u64> {
    let count = output
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ok. "))
        .filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok())
        .sum();
    if count == 0 {
        bail!("no test was run");
    }
    Ok(count)
}
