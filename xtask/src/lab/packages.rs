//! The software from Debian: the cross compiler and its libraries, an arm64 kernel, an arm64
//! busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{cross, dir};
use crate::process;

/// The arm64 kernel of host and guests: the newest release of this series in apt.
///
/// Debian bookworm's default kernel is 6.1. This one is in its security archive, which drops old
/// patch levels.
const KERNEL_SERIES: &str = "linux-image-6.12.";
const KERNEL_FLAVOUR: &str = "-cloud-arm64";

/// Debian's arm64 software, unpacked.
pub(super) struct Debian {
    /// The kernel, as an uncompressed Image.
    pub(super) kernel: PathBuf,
    /// The kernel's modules: `kernel/drivers/...`.
    pub(super) modules: PathBuf,
    pub(super) busybox: PathBuf,
}

/// Fetches the kernel and busybox, unless an earlier run did.
pub(super) fn debian() -> Result<Debian> {
    let kernel = unpacked("kernel", newest_kernel)?;
    let busybox = unpacked("busybox", || Ok("busybox-static".into()))?;
    Ok(Debian {
        kernel: only_entry(&kernel.join("boot"), "vmlinuz-")?,
        modules: only_entry(&kernel.join("lib/modules"), "")?,
        busybox: busybox.join("bin/busybox"),
    })
}

/// Installs QEMU if it is missing.
pub(super) fn qemu() -> Result<()> {
    if process::answers(Command::new("qemu-system-aarch64").arg("--version")) {
        return Ok(());
    }
    install("QEMU for arm64", &["qemu-system-arm"])
}

/// Installs the tools for cross builds if they are missing.
pub(super) fn cross_tools() -> Result<()> {
    if !process::answers(Command::new(cross::LINKER).arg("--version")) {
        install("a C compiler for arm64", &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"])?;
    }
    if cross::rustc().is_none() {
        add_arm64()?;
        install(
            "a Rust compiler with arm64's standard library (rustup target add aarch64-unknown-linux-gnu, or)",
            &["rustc-web", "libstd-rust-web-dev:arm64"],
        )?;
    }
    Ok(())
}

/// Returns the directory of an unpacked package. Calls `name` for the package's name only if it
/// must be fetched.
fn unpacked(what: &str, name: impl Fn() -> Result<String>) -> Result<PathBuf> {
    let to = dir().join(what);
    if to.exists() {
        return Ok(to);
    }
    let name = prepare_apt(what).and_then(|()| name())?;
    // Unpack into a second directory, and rename it when it is complete, so that an interrupted run
    // leaves no partial one.
    let fresh = dir().join(format!("{what}.new"));
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh)?;
    let deb = fresh.join("package.deb");
    process::run(
        Command::new("apt-get")
            .current_dir(&fresh)
            .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
            .arg(format!("{name}:arm64")),
    )
    .with_context(|| format!("fetching Debian's {name} for arm64"))?;
    fs::rename(only_entry(&fresh, "")?, &deb)?;
    process::run(Command::new("dpkg").arg("-x").arg(&deb).arg(&fresh))?;
    fs::remove_file(&deb)?;
    fs::rename(&fresh, &to)?;
    Ok(to)
}

fn newest_kernel() -> Result<String> {
    let names = process::answer(Command::new("apt-cache").args(["pkgnames", KERNEL_SERIES]))
        .context("apt-cache does not answer")?;
    names
        .lines()
        .filter_map(|name| Some((release(name)?, name)))
        .max()
        .map(|(_, name)| name.to_owned())
        .with_context(|| format!("apt offers no {KERNEL_SERIES}*{KERNEL_FLAVOUR}"))
}

/// Returns 117 for `linux-image-6.12.117+deb12-cloud-arm64`.
fn release(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(KERNEL_SERIES)?.strip_suffix(KERNEL_FLAVOUR)?;
    rest.split('+').next()?.parse().ok()
}

/// Makes apt know arm64's packages.
fn prepare_apt(what: &str) -> Result<()> {
    may_install(what)?;
    add_arm64()?;
    // If apt has the lists already, no update is needed. busybox stands for all packages but the
    // kernel.
    let known = Command::new("apt-cache").args(["show", "busybox-static:arm64"]).output()?;
    if known.status.success() && !known.stdout.is_empty() && newest_kernel().is_ok() {
        return Ok(());
    }
    process::run(Command::new("apt-get").args(["-q", "update"]))
}

fn add_arm64() -> Result<()> {
    let native = process::answer(Command::new("dpkg").arg("--print-architecture"));
    let foreign = process::answer(Command::new("dpkg").arg("--print-foreign-architectures"));
    let all = [native.unwrap_or_default(), foreign.unwrap_or_default()].join("\n");
    if all.lines().any(|line| line == "arm64") {
        return Ok(());
    }
    may_install("packages of another architecture")?;
    process::run(Command::new("dpkg").args(["--add-architecture", "arm64"]))?;
    process::run(Command::new("apt-get").args(["-q", "update"]))
}

fn install(what: &str, packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    may_install(what)
        .with_context(|| format!("missing: {what}; on Debian: apt-get install {list}"))?;
    process::run(Command::new("apt-get").args(["-q", "update"]))?;
    process::run(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(packages),
    )
    .with_context(|| format!("missing: {what}; on Debian: apt-get install {list}"))
}

fn may_install(what: &str) -> Result<()> {
    if !Path::new("/etc/debian_version").exists() {
        bail!("{what}: not a Debian system, where the lab would fetch it from");
    }
    if process::answer(Command::new("id").arg("-u")).as_deref() != Some("0") {
        bail!("{what}: not root, which apt needs");
    }
    Ok(())
}

fn only_entry(of: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(of).with_context(|| format!("reading {}", of.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!(
            "{}: {} entries {prefix}*, 1 expected (remove {} to fetch again)",
            of.display(),
            found.len(),
            dir().display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn kernels_are_ordered_by_number() {
        assert_eq!(release("linux-image-6.12.117+deb12-cloud-arm64"), Some(117));
        assert_eq!(release("linux-image-6.12.117+deb12-cloud-arm64-unsigned"), None);
        assert_eq!(release("linux-image-6.12-cloud-arm64"), None);
    }
}
