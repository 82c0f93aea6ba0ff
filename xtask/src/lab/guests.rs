//! Runs guests of the table, and judges them.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::judge::Judge;
use super::kit::Kit;
use super::report::{self, Progress, Row};
use super::table::{Boots, GUESTS, Guest, On, Qemu};
use super::venue::{self, Event, Job};
use super::{boot, cross, dir, packages};

/// Prints the table of guests.
pub(super) fn list() -> Result<()> {
    for guest in GUESTS {
        println!("{:<18} {}", guest.name, guest.what);
    }
    Ok(())
}

/// Fetches and builds everything that guests need.
pub(super) fn setup() -> Result<()> {
    packages::qemu()?;
    Kit::new()?;
    for program in programs(&GUESTS.iter().collect::<Vec<_>>()) {
        cross::program(program)?;
    }
    println!("the lab is set up in {}", dir().display());
    Ok(())
}

/// The options of a run.
#[derive(Clone, Copy, Default)]
pub(super) struct How<'a> {
    /// Show all output of the guests.
    pub(super) verbose: bool,
    /// Run where an instruction takes a nanosecond.
    pub(super) counting: bool,
    /// Static programs that replace those of the same names in the workspace.
    pub(super) built: &'a [PathBuf],
}

/// Runs the guests with these names, or all of them. Returns an error if one fails.
pub(super) fn run(names: &[String], how: How<'_>) -> Result<()> {
    for name in names {
        if !GUESTS.iter().any(|guest| guest.name == name) {
            bail!("no guest `{name}`; `cargo xtask lab list` names them");
        }
    }
    let wanted = |guest: &&Guest| names.is_empty() || names.iter().any(|name| name == guest.name);
    let guests: Vec<&Guest> = GUESTS.iter().filter(wanted).collect();
    if let (true, Some(guest)) =
        (how.counting, guests.iter().find(|guest| matches!(guest.on, On::Qemu(_))))
    {
        bail!(
            "no instructions are counted of `{}`, which runs without a VMM: name guests of vgic-vmm",
            guest.name
        );
    }
    let kit = Kit::new()?;
    let mut rows = Vec::new();
    for guest in &guests {
        if let On::Qemu(qemu) = &guest.on {
            rows.push(on_qemu(guest, qemu, &kit, how.verbose)?);
        }
    }
    rows.extend(on_host(&guests, &kit, how)?);
    report::summary(&rows)
}

fn programs(guests: &[&Guest]) -> Vec<&'static str> {
    let mut names: Vec<&str> = guests
        .iter()
        .filter_map(|guest| match guest.on {
            On::Host { program, .. } => Some(program),
            On::Qemu(_) => None,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// A running guest: its log, its verdict so far, and its display.
struct Running<'a> {
    guest: &'a Guest,
    log: fs::File,
    judge: Judge,
    progress: Progress,
    start: Instant,
}

impl<'a> Running<'a> {
    fn begin(guest: &'a Guest, verbose: bool, counting: bool) -> Result<Self> {
        let path = log_of(guest);
        let log = fs::File::create(&path).with_context(|| path.display().to_string())?;
        let progress = Progress::begin(guest.name, verbose);
        let mut judge = Judge::default();
        judge.counting = counting;
        Ok(Self { guest, log, judge, progress, start: Instant::now() })
    }

    fn line(&mut self, line: &str) {
        // A log that cannot be written must not stop a guest. The verdict does not need it.
        _ = writeln!(self.log, "{:7.2} {line}", self.start.elapsed().as_secs_f64());
        self.judge.line(line);
        self.progress.line(line);
    }

    fn end(mut self, exit: Option<i32>) -> Row {
        self.judge.exit = exit;
        let row = Row {
            name: self.guest.name,
            time: self.start.elapsed(),
            verdict: self.judge.verdict(),
            counters: self.judge.counters,
            log: log_of(self.guest),
        };
        self.progress.end(&row);
        row
    }
}

fn log_of(guest: &Guest) -> PathBuf {
    dir().join("logs").join(format!("{}.log", guest.name))
}

/// Runs a guest on QEMU's own GIC.
fn on_qemu(guest: &Guest, qemu: &Qemu, kit: &Kit, verbose: bool) -> Result<Row> {
    packages::qemu()?;
    let mut command = match qemu.boots {
        Boots::Payload(name) => venue::bare_qemu(qemu.machine, kit.payload(name)?),
        Boots::Linux => {
            let disk = dir().join("disk.img");
            fs::write(&disk, vec![0; 16 << 20])?;
            let mut command = venue::qemu(qemu.machine, &kit.debian.kernel, &kit.initramfs);
            let drive = format!("file={},if=none,id=disk,format=raw", disk.display());
            let device = format!("virtio-blk-pci,drive=disk,num-queues={},romfile=", qemu.cpus);
            command.args(["-drive", &drive, "-device", &device]);
            command.args(["-device", "virtio-rng-pci"]);
            command
        }
    };
    command.args(["-smp", &qemu.cpus.to_string(), "-m", "512", "-append", qemu.cmdline]);
    let limit = Duration::from_secs(guest.limit_seconds);
    let mut running = Running::begin(guest, verbose, false)?;
    let console = dir().join("qemu.log");
    let status = boot::console(&mut command, &console, limit, &mut |line| running.line(line))?;
    // A shell reports 137 for a killed command, and the host's `timeout` does too.
    Ok(running.end(Some(status.map_or(137, code))))
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or(-1)
}

/// Runs all guests that need the host, in as few boots as possible. A guest that crashes the host
/// has failed, and the guests after it run in a new boot.
fn on_host(guests: &[&Guest], kit: &Kit, how: How<'_>) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let mut files = kit.files();
    let (mut jobs, mut missing) = (Vec::new(), Vec::new());
    for name in programs(guests) {
        let given =
            how.built.iter().find(|path| path.file_name().is_some_and(|there| there == name));
        match given.map_or_else(|| cross::program(name), |path| Ok(path.clone())) {
            Ok(path) => files.push((format!("bin/{name}"), path)),
            Err(error) => missing.push((name, format!("{error:#}"))),
        }
    }
    for guest in guests {
        let On::Host { program, prepare, arguments } = guest.on else { continue };
        if let Some((_, why)) = missing.iter().find(|(name, _)| *name == program) {
            rows.push(Row::not_started(guest.name, why));
            continue;
        }
        jobs.push(Job {
            name: guest.name.into(),
            prepare: prepare.into(),
            command: format!("$LAB/bin/{program} {arguments}"),
            limit: Duration::from_secs(guest.limit_seconds),
        });
    }
    let venue = venue::venue(how.counting);
    if !jobs.is_empty() {
        println!("on {}", venue.describe());
    }
    while !jobs.is_empty() {
        let mut running: Option<Running<'_>> = None;
        let mut failed_to_begin = None;
        let before = rows.len();
        venue.run(&jobs, &files, &kit.debian, &mut |event| match event {
            Event::Begin(name) => {
                let Some(guest) = guests.iter().find(|guest| guest.name == *name) else { return };
                match Running::begin(guest, how.verbose, how.counting) {
                    Ok(begun) => running = Some(begun),
                    Err(error) => failed_to_begin = Some(error),
                }
            }
            Event::Line(line) => {
                if let Some(running) = &mut running {
                    running.line(line);
                }
            }
            Event::Exit(status) => rows.extend(running.take().map(|run| run.end(Some(*status)))),
        })?;
        if let Some(error) = failed_to_begin {
            return Err(error);
        }
        rows.extend(running.take().map(|run| run.end(None)));
        if rows.len() == before {
            bail!("the host ran none of its jobs");
        }
        jobs.drain(..rows.len() - before);
    }
    Ok(rows)
}
