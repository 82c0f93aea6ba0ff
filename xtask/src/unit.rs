//! The tests that a plain toolchain runs.

use anyhow::{Result, bail};

use crate::process::{cargo, run};

pub(crate) fn unit() -> Result<()> {
    // --no-fail-fast here and below: one run reports all failures.
    run(&mut cargo(["test", "--workspace", "--no-fail-fast"]))?;
    run(&mut cargo(["test", "--package", "vgic-core", "--all-features", "--no-fail-fast"]))?;
    // Test without the engine's counters too, as all features include them.
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

/// Runs the core's tests optimized: such code interleaves differently, and property tests run more
/// cases in the same time.
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

/// Returns the number of tests that passed according to `output`. Zero is an error: otherwise a
/// filter without a match would always pass.
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
