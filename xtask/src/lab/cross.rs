//! Builds static arm64 programs of this workspace, and the payloads, which run without a system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{dir, packages};
use crate::artifacts;
use crate::process::{self, cargo, root};

pub(super) const TARGET: &str = "aarch64-unknown-linux-gnu";
pub(super) const LINKER: &str = "aarch64-linux-gnu-gcc";
const OBJCOPY: &str = "aarch64-linux-gnu-objcopy";

/// Returns rustup's compiler if it has the target, else Debian's, which is at a fixed place.
pub(super) fn rustc() -> Option<PathBuf> {
    ["rustc", "/usr/bin/rustc"].into_iter().map(PathBuf::from).find(|rustc| has_std(rustc))
}

fn has_std(rustc: &Path) -> bool {
    let mut ask = Command::new(rustc);
    // Ask from the workspace, so that its rust-toolchain file would count.
    ask.current_dir(root()).args(["--print", "target-libdir", "--target", TARGET]);
    let Some(dir) = process::answer(&mut ask) else { return false };
    fs::read_dir(dir).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
    })
}

/// Returns a `cargo` command that builds for arm64 in a separate target directory.
///
/// The directory is separate because another compiler would invalidate the usual one.
fn command<const N: usize>(args: [&str; N], target_dir: &str, flags: &str) -> Result<Command> {
    packages::cross_tools()?;
    let rustc = rustc().context("no Rust compiler for arm64")?;
    let mut command = cargo(args);
    command.args(["--target", TARGET, "--profile", "lab"]);
    command.env("RUSTC", rustc).env("CARGO_TARGET_DIR", dir().join(target_dir));
    command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
    process::rustflags(&mut command, flags);
    Ok(command)
}

/// Builds a program of the workspace. Returns an error if none has this name.
pub(super) fn program(name: &str) -> Result<PathBuf> {
    let Some(package) = package_of(name)? else {
        bail!("no package of this workspace has a program `{name}`");
    };
    let mut build = command(
        ["build", "--package", &package, "--bin", name],
        "cross",
        "-C target-feature=+crt-static",
    )?;
    let built = artifacts::build(build.stderr(Stdio::inherit()))?;
    let found = built.into_iter().find(|built| built.name == name);
    found.map(|built| built.path).with_context(|| format!("cargo built no {name}"))
}

/// Returns the package of the workspace that has this program.
pub(super) fn package_of(program: &str) -> Result<Option<String>> {
    let mut ask = cargo(["metadata", "--no-deps", "--format-version", "1"]);
    let text = process::answer(&mut ask).context("cargo metadata does not answer")?;
    let metadata: Value = serde_json::from_str(&text).context("cargo's metadata")?;
    let packages = metadata["packages"].as_array().context("cargo's metadata")?;
    let has = |package: &&Value| {
        package["targets"].as_array().is_some_and(|targets| {
            targets.iter().any(|target| {
                target["name"] == program
                    && target["kind"]
                        .as_array()
                        .is_some_and(|kinds| kinds.iter().any(|k| k == "bin"))
            })
        })
    };
    let package = packages.iter().find(has);
    Ok(package.and_then(|package| package["name"].as_str()).map(str::to_owned))
}

/// Builds the payloads of `lab/guests`, and returns each one's name and image.
pub(super) fn payloads() -> Result<Vec<(String, PathBuf)>> {
    let source = root().join("lab/guests");
    // There is no system, so no start files and no libc. Alignment is strict, as payloads also run
    // with the MMU off, where unaligned accesses fault. Atomics are not outlined, as the outlined
    // ones depend on a libc that detects the processor's features.
    let flags = format!(
        "-C relocation-model=static -C target-feature=+strict-align,-outline-atomics,+crt-static \
         -C link-arg=-nostdlib -C link-arg=-nostartfiles -C link-arg=-static \
         -C link-arg=-Wl,--build-id=none -C link-arg=-Wl,-T{}",
        source.join("payload.ld").display()
    );
    let mut build = command(["build", "--bins"], "payloads", &flags)?;
    build.arg("--manifest-path").arg(source.join("Cargo.toml"));
    // The warnings about unstable features are not shown.
    let built = artifacts::build(&mut build)?;
    let images = dir().join("images");
    fs::create_dir_all(&images)?;
    let mut payloads = Vec::new();
    for program in built {
        let image = images.join(format!("{}.bin", program.name));
        let mut convert = Command::new(OBJCOPY);
        process::run(convert.args(["-O", "binary"]).arg(&program.path).arg(&image))?;
        payloads.push((program.name, image));
    }
    Ok(payloads)
}
