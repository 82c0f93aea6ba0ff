//! The core's tests under tools that only nightly has. On a machine without them, the step fails
//! with advice. A step is skipped only when the caller asks for it.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{self, answer, answers, cargo, root};
use crate::unit;

/// ThreadSanitizer runs the tests with this in their names. It does not understand fences, and std
/// is not instrumented. Such a test must order its checks by its own atomics or by
/// `JoinHandle::join`, not by a `Mutex`, a `Barrier`, a channel or the end of a `thread::scope`.
const TSAN_FILTER: &str = "stress";

/// The length of the stress tests, in percent of the length without a sanitizer.
const STRESS_SCALE: &str = "VGIC_STRESS_SCALE";

/// Set under AddressSanitizer. Its allocator keeps freed memory, so a process's size says nothing.
const KEEPS_FREED_MEMORY: &str = "VGIC_KEEPS_FREED_MEMORY";

pub(crate) fn asan() -> Result<()> {
    sanitized(
        "asan",
        "-Zsanitizer=address",
        &[],
        &[(STRESS_SCALE, "20"), (KEEPS_FREED_MEMORY, "1")],
    )
}

pub(crate) fn tsan() -> Result<()> {
    // std is not instrumented. The second flag accepts that.
    let flags = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer";
    let suppressions = root().join("xtask/tsan-suppressions.txt");
    let options = format!("suppressions={}", suppressions.display());
    let env = [("TSAN_OPTIONS", options.as_str()), (STRESS_SCALE, "10")];
    sanitized("tsan", flags, &[TSAN_FILTER], &env)
}

fn sanitized(name: &str, flags: &str, args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let host = nightly_host(name)?;
    // With an explicit target, the flags do not apply to build scripts and procedural macros.
    let mut command = cargo(["+nightly", "test", "--package", "vgic-core", "--target", &host]);
    command.args(["--features", "locked", "--tests", "--no-fail-fast", "--target-dir"]);
    command.arg(root().join(format!("target-{name}"))).args(args);
    command.envs(env.iter().copied());
    process::rustflags(&mut command, flags);
    let output = process::tee(&mut command)?;
    println!("{} tests passed", unit::passed(&output)?);
    Ok(())
}

/// Returns the host's triple, if there is a nightly with the sanitizer's runtime for it.
fn nightly_host(sanitizer: &str) -> Result<String> {
    let advice = format!(
        "install it with `rustup toolchain install nightly --profile minimal`, \
         or leave this step out with `cargo xtask test --skip {sanitizer}`"
    );
    let version = answer(Command::new("rustc").args(["+nightly", "--version", "--verbose"]));
    let Some(version) = version else {
        bail!("the Rust toolchain `nightly` is missing: {advice}");
    };
    let Some(host) = version.lines().find_map(|line| line.strip_prefix("host: ")) else {
        bail!("`rustc +nightly --version --verbose` names no host");
    };
    let libraries = answer(Command::new("rustc").args(["+nightly", "--print", "target-libdir"]));
    let runtime = format!("_rt.{sanitizer}.");
    let found = libraries
        .and_then(|dir| fs::read_dir(dir).ok())
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().contains(&runtime));
    if !found {
        bail!("the Rust toolchain `nightly` for {host} has no {sanitizer} runtime: {advice}");
    }
    Ok(host.to_owned())
}

pub(crate) fn miri(args: &[String]) -> Result<()> {
    if !answers(&mut cargo(["+nightly", "miri", "--version"])) {
        bail!(
            "Miri is missing: `rustup toolchain install nightly --profile minimal \
             --component miri --component rust-src`"
        );
    }
    let mut command = cargo(["+nightly", "miri", "test", "--package", "vgic-core"]);
    command.args(["--features", "locked", "--target-dir"]).arg(root().join("target-miri"));
    // Isolation would keep proptest from its seed files. Permissive provenance is needed as
    // crossbeam-epoch tags its pointers.
    command.env("MIRIFLAGS", "-Zmiri-disable-isolation -Zmiri-permissive-provenance");
    command.env(STRESS_SCALE, "1");
    process::run(command.args(args))
}
