//! An arm64 KVM host: this machine if it is one, else a machine with EL2 that QEMU emulates.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::image::Files;
use super::packages::{self, Debian};
use super::{boot, dir, image};

/// A command to run on the host.
pub(super) struct Job {
    pub(super) name: String,
    /// A shell line that runs before the command, outside its time limit.
    pub(super) prepare: String,
    /// A shell line with one command. `$LAB` is the directory of the lab's files.
    pub(super) command: String,
    pub(super) limit: Duration,
}

/// A host's report of its jobs. Each `&str` is a name or a line that the job printed.
pub(super) enum Event<'a> {
    Begin(&'a str),
    Line(&'a str),
    Exit(i32),
}

const BEGIN: &str = "LAB-BEGIN ";
const EXIT: &str = "LAB-EXIT ";

/// The place where jobs run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Venue {
    Native,
    Emulated,
    /// Emulated on one CPU. Its clock advances by a nanosecond with each instruction.
    Counting,
}

/// Returns this machine, if it can run guests and no instructions are to be counted.
pub(super) fn venue(counting: bool) -> Venue {
    if counting {
        return Venue::Counting;
    }
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if cfg!(target_arch = "aarch64") && kvm.is_ok() { Venue::Native } else { Venue::Emulated }
}

impl Venue {
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Native => "this machine's KVM",
            Self::Emulated => "KVM in an arm64 host with EL2, emulated by QEMU: times mean nothing",
            Self::Counting => {
                "KVM in an arm64 host with EL2 and one CPU, emulated by QEMU: a nanosecond is an instruction"
            }
        }
    }

    /// Runs `jobs` one after another, in one boot. An early end of the host is not an error here:
    /// jobs then lack events.
    pub(super) fn run(
        self,
        jobs: &[Job],
        files: &Files,
        debian: &Debian,
        on_event: &mut dyn FnMut(&Event<'_>),
    ) -> Result<()> {
        let script: String = jobs.iter().map(script).collect();
        let limit = boot::BOOT_LIMIT + jobs.iter().map(|job| job.limit).sum::<Duration>();
        let mut command = match self {
            Self::Native => native(files, &script)?,
            Self::Emulated => {
                let mut command = emulated(files, debian, &script, "tcg,thread=multi", "")?;
                command.args(["-smp", "2"]);
                command
            }
            Self::Counting => {
                // By default, KVM polls for interrupts before a vCPU sleeps. Polls would be
                // counted.
                let more = " kvm.halt_poll_ns=0";
                let mut command = emulated(files, debian, &script, "tcg,thread=single", more)?;
                // Without `sleep`, the clock does not follow real time while the host is idle.
                command.args(["-smp", "1", "-icount", "shift=0,sleep=off"]);
                command
            }
        };
        let log = dir().join("host.log");
        let mut booted = false;
        let mut running = false;
        let status = boot::console(&mut command, &log, limit, &mut |line| {
            if let Some(name) = line.strip_prefix(BEGIN) {
                (booted, running) = (true, true);
                on_event(&Event::Begin(name));
            } else if let Some(status) = line.strip_prefix(EXIT) {
                running = false;
                // A status that cannot be parsed is not success.
                on_event(&Event::Exit(status.trim().parse().unwrap_or(-1)));
            } else if running {
                on_event(&Event::Line(line));
            }
        })
        .context("the arm64 host")?;
        if !booted {
            let how = if status.is_none() {
                "did not boot in time"
            } else {
                "ended before its first job"
            };
            bail!("the arm64 host {how}; its console: {}", log.display());
        }
        Ok(())
    }
}

fn script(job: &Job) -> String {
    let Job { name, prepare, command, limit } = job;
    let seconds = limit.as_secs();
    // The `echo` before the status ends the job's last line, which may lack a newline.
    format!(
        "echo '{BEGIN}{name}'\n{prepare}\ntimeout -s KILL {seconds} {command} </dev/null 2>&1\n\
         status=$?; echo; echo \"{EXIT}$status\"\n"
    )
}

fn native(files: &Files, script: &str) -> Result<Command> {
    let dir = image::native(files, script)?;
    let mut command = Command::new("sh");
    command.arg("jobs").env("LAB", &dir).current_dir(&dir);
    Ok(command)
}

fn emulated(
    files: &Files,
    debian: &Debian,
    script: &str,
    accel: &str,
    more: &str,
) -> Result<Command> {
    packages::qemu()?;
    let initramfs = image::host(debian, files, script)?;
    let mut command = start("virt,virtualization=on,gic-version=3", &debian.kernel, accel);
    command.arg("-initrd").arg(initramfs);
    command.args(["-m", "2048", "-append", &format!("console=ttyAMA0 quiet loglevel=1{more}")]);
    Ok(command)
}

/// Returns QEMU with a kernel, and with no devices except those of its board.
pub(super) fn qemu(machine: &str, kernel: &Path, initramfs: &Path) -> Command {
    let mut command = bare_qemu(machine, kernel);
    command.arg("-initrd").arg(initramfs);
    command
}

/// Returns QEMU with only a program to start.
pub(super) fn bare_qemu(machine: &str, kernel: &Path) -> Command {
    start(machine, kernel, "tcg,thread=multi")
}

fn start(machine: &str, kernel: &Path, accel: &str) -> Command {
    let mut command = Command::new("qemu-system-aarch64");
    command.args(["-M", machine, "-accel", accel]);
    // Pointer authentication with the architecture's cipher would take most of an emulated kernel's
    // time.
    command.args(["-cpu", "max,pauth-impdef=on"]);
    // No network: its option ROM may not be installed.
    command.args(["-nographic", "-no-reboot", "-net", "none", "-kernel"]).arg(kernel);
    command
}
