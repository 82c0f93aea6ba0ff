//! The initramfs of the arm64 host, and that of Linux guests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::packages::Debian;
use super::{cross, dir};
use crate::process::root;

/// The modules of a Linux guest, each after the modules that it needs.
const GUEST_MODULES: &[&str] =
    &["kernel/drivers/block/virtio_blk.ko.xz", "kernel/drivers/char/hw_random/virtio-rng.ko.xz"];

/// The host's init: a shell script that mounts, runs the jobs and powers off.
const HOST_INIT: &str = "#!/bin/sh
export PATH=/bin LAB=/lab HOME=/ TERM=dumb
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs tmp /tmp
busybox mount -t debugfs debug /sys/kernel/debug
busybox --install -s /bin
exec </dev/null >/dev/console 2>&1
cd /lab
sh /lab/jobs
poweroff -f
";

/// Files under `$LAB`: their names there, and their present paths.
pub(super) type Files = [(String, PathBuf)];

/// Writes the host's initramfs: busybox, `files` and the script `jobs`.
pub(super) fn host(debian: &Debian, files: &Files, jobs: &str) -> Result<PathBuf> {
    let mut archive = with_busybox(debian)?;
    archive.file("init", true, HOST_INIT.as_bytes());
    let mut made = vec![PathBuf::new()];
    for (name, from) in files {
        let name = format!("lab/{name}");
        directories_of(&mut archive, Path::new(&name), &mut made);
        archive.copy(&name, from)?;
    }
    directories_of(&mut archive, Path::new("lab/jobs"), &mut made);
    archive.file("lab/jobs", false, jobs.as_bytes());
    let to = dir().join("host.cpio");
    archive.write(&to)?;
    Ok(to)
}

/// Copies the same files to a directory of this machine, and returns it.
pub(super) fn native(files: &Files, jobs: &str) -> Result<PathBuf> {
    let to = dir().join("native");
    for (name, from) in files {
        let path = to.join(name);
        fs::create_dir_all(path.parent().context("a file's directory")?)?;
        fs::copy(from, &path).with_context(|| format!("copying {}", from.display()))?;
    }
    fs::create_dir_all(&to)?;
    fs::write(to.join("jobs"), jobs)?;
    Ok(to)
}

/// Writes the initramfs of Linux guests.
pub(super) fn guest(debian: &Debian) -> Result<PathBuf> {
    let mut archive = with_busybox(debian)?;
    archive.copy("init", &root().join("lab/linux/init"))?;
    archive.copy("checks", &root().join("lab/linux/checks"))?;
    archive.copy("bin/lab-signals", &cross::program("lab-signals")?)?;
    archive.directory("modules");
    for (position, module) in GUEST_MODULES.iter().enumerate() {
        let name = Path::new(module).file_name().context("a module's name")?.to_string_lossy();
        // The numbers make the order of the names the order of loading.
        archive.copy(&format!("modules/{position}-{name}"), &debian.modules.join(module))?;
    }
    let to = dir().join("guest.cpio");
    archive.write(&to)?;
    Ok(to)
}

fn with_busybox(debian: &Debian) -> Result<Archive> {
    let mut archive = Archive::new();
    for name in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.directory(name);
    }
    // Without this device, the kernel has no target for the output of init.
    archive.character_device("dev/console", 5, 1);
    archive.copy("bin/busybox", &debian.busybox)?;
    archive.symlink("bin/sh", "busybox");
    Ok(archive)
}

fn directories_of(archive: &mut Archive, name: &Path, made: &mut Vec<PathBuf>) {
    let mut above: Vec<&Path> = name.ancestors().skip(1).collect();
    above.reverse();
    for directory in above {
        if !made.iter().any(|there| there == directory) {
            archive.directory(&directory.to_string_lossy());
            made.push(directory.to_owned());
        }
    }
}
