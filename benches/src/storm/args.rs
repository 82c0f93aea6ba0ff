//! The command line: the flags of Linux's `vgic_lpi_stress`, and some more.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use vgic_core::ids::MAX_VCPUS;

use super::plan::{Length, MAX_LPIS, MAX_PRIORITIES, Plan};
use super::sweep::{self, Sweep};

/// Injections of a storm without a given length.
const DEFAULT_INJECTIONS: u64 = 10_000_000;

/// Microseconds: about the cost of waking a thread.
const DEFAULT_HALT_POLL: u32 = 20;

/// Most injector threads.
const MAX_DEVICES: u64 = 4096;

/// The engines to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Choice {
    /// The lock-free engine.
    Lockfree,
    /// The locked baseline.
    Locked,
    /// The lock-free engine, then the locked baseline, and their ratio.
    Both,
}

/// Sends a storm of LPIs through the virtual interrupt controller, accounts for every one, and
/// measures.
///
/// Each device is a thread that injects its events in random order; each vCPU is a thread with a
/// guest that takes its interrupts from a software CPU interface. Injectors do not wait for
/// deliveries, so injections of an LPI that is already pending are coalesced.
///
/// Exit status: 0 if nothing is lost, 1 if something is or the accounts do not balance, 2 if the
/// arguments are wrong.
#[derive(Clone, Debug, Parser)]
#[command(name = "lpi-storm", version, max_term_width = 100)]
pub struct Cli {
    /// Number of vCPUs, each a thread
    #[arg(short, long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: u16,

    /// Number of devices, each an injector thread
    #[arg(short, long, value_name = "N", default_value_t = 2,
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=MAX_DEVICES))]
    devices: u32,

    /// Number of events (LPIs) of each device
    #[arg(short, long, value_name = "N", default_value_t = 250,
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=u64::from(MAX_LPIS)))]
    events: u32,

    /// Number of injections of each event [default: as many as make 10 million in all]
    #[arg(short, long, value_name = "N", conflicts_with = "duration",
          value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    iterations: Option<u64>,

    /// Inject for this many seconds instead of a number of iterations
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    duration: Option<Duration>,

    /// Engine to run
    #[arg(long, value_enum, default_value = "lockfree")]
    engine: Choice,

    /// Number of list registers of each vCPU
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u8).range(1..=vgic_core::lr::MAX_LRS as i64))]
    lrs: u8,

    /// Number of priorities that the LPIs are spread over: of the 32, the priority mask never lets
    /// the lowest through
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_PRIORITIES)))]
    priorities: u8,

    /// Unmap and map some events (DISCARD, MAPTI), and move others (MOVI), during the storm
    #[arg(long)]
    churn: bool,

    /// Map events by commands in the queue of an ITS, and inject through it; with --churn, compare
    /// runs without and with churn
    #[arg(long)]
    its: bool,

    /// With --its: measure 1 to 4096 devices with 1 to 65536 events, up to this many LPIs [default:
    /// 1048576], by routes and by look-up, without and with churn, for --duration each
    #[arg(long, value_name = "LPIS", requires = "its", num_args = 0..=1, require_equals = true,
          default_missing_value = "1048576",
          conflicts_with_all = ["vcpus", "devices", "events", "iterations", "churn", "paced"],
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=u64::from(sweep::MAX_LPIS)))]
    sweep: Option<u32>,

    /// Inject an event only when the guest has seen its last injection: nothing is coalesced, and
    /// rates are those of whole deliveries
    #[arg(long, conflicts_with = "churn")]
    paced: bool,

    /// Microseconds that an idle vCPU polls before it sleeps, as KVM's halt_poll_ns [default: 20 if
    /// every thread can have its own CPU, otherwise 0]
    #[arg(long, value_name = "MICROSECONDS")]
    halt_poll: Option<u32>,

    /// Write the results here as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draw latencies and rates here as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Seed of all random choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// A checked command line.
#[derive(Debug)]
pub struct Job {
    /// The storm.
    pub plan: Plan,
    /// The sweep, if one replaces the storm.
    pub sweep: Option<Sweep>,
    /// The engines to run it on.
    pub engine: Choice,
    /// The file for the JSON.
    pub json: Option<Output>,
    /// The file for the picture.
    pub svg: Option<Output>,
}

impl Job {
    /// Returns the storms to run on each engine. Through an ITS, a storm with churn follows one
    /// without.
    pub fn plans(&self) -> Vec<Plan> {
        let calm =
            (self.plan.its && self.plan.churn).then(|| Plan { churn: false, ..self.plan.clone() });
        calm.into_iter().chain([self.plan.clone()]).collect()
    }
}

impl Cli {
    /// Checks the combination of the arguments, and opens the output files, so that errors show
    /// before the run.
    ///
    /// # Errors
    /// An error that `exit` prints, with exit status 2.
    pub fn check(self) -> Result<Job, clap::Error> {
        let lpis = u64::from(self.devices) * u64::from(self.events);
        if lpis > u64::from(MAX_LPIS) {
            let (devices, events) = (self.devices, self.events);
            return Err(refusal(format!(
                "{devices} devices with {events} events need {lpis} LPIs, but there are only \
                 {MAX_LPIS} INTIDs for them (2^24 - 8192)"
            )));
        }
        let iterations = self.iterations.unwrap_or(DEFAULT_INJECTIONS.div_ceil(lpis));
        if lpis.checked_mul(iterations).is_none() {
            return Err(refusal(format!(
                "{lpis} LPIs with {iterations} iterations each are more than 64 bits can count"
            )));
        }
        let threads = match self.sweep {
            Some(_) => 2,
            None => u64::from(self.vcpus) + u64::from(self.devices),
        };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let halt_poll =
            self.halt_poll.unwrap_or(if threads <= cpus as u64 { DEFAULT_HALT_POLL } else { 0 });
        let open = |path: Option<PathBuf>| path.map(Output::open).transpose();
        let (json, svg) = (open(self.json)?, open(self.svg)?);
        if let (Some(json), Some(svg)) = (&json, &svg)
            && json.is_same_file(svg)
        {
            return Err(refusal(format!("--json and --svg both name `{}`", json.path.display())));
        }
        let plan = Plan {
            vcpus: self.vcpus,
            devices: self.devices,
            events: self.events,
            length: self.duration.map_or(Length::Iterations(iterations), Length::Time),
            lrs: self.lrs,
            priorities: self.priorities,
            its: self.its,
            churn: self.churn,
            paced: self.paced,
            halt_poll: Duration::from_micros(halt_poll.into()),
            seed: self.seed,
            ..Plan::default()
        };
        let sweep = self
            .sweep
            .map(|most| sweep::sweep(Plan { vcpus: 1, ..plan.clone() }, self.duration, most));
        Ok(Job { plan, sweep, engine: self.engine, json, svg })
    }
}

fn refusal(message: String) -> clap::Error {
    Cli::command().error(ErrorKind::ValueValidation, message)
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than 0, and not absurd".to_owned()),
    }
}

/// A file that is known to be writable. Its old content stays until [`Output::write`].
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    file: File,
}

impl Output {
    fn open(path: PathBuf) -> Result<Self, clap::Error> {
        match OpenOptions::new().write(true).create(true).truncate(false).open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(refusal(format!("cannot write `{}`: {error}", path.display()))),
        }
    }

    fn is_same_file(&self, other: &Self) -> bool {
        let real = |path: &Path| path.canonicalize().ok();
        // Both files exist by now. /dev/stdout and similar files may be shared.
        self.file.metadata().is_ok_and(|meta| meta.is_file())
            && real(&self.path).is_some_and(|path| Some(path) == real(&other.path))
    }

    /// Replaces the file's content.
    ///
    /// # Errors
    /// If the write fails.
    pub fn write(mut self, content: &str) -> io::Result<()> {
        // A pipe or a terminal has no length.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.write_all(content.as_bytes())
    }

    /// Returns the file's name as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Job, clap::Error> {
        Cli::try_parse_from(["lpi-storm"].iter().chain(args))?.check()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ten_million_by_default() {
        let job = parse(&[]).unwrap();
        assert_eq!(job.plan.injections(), Some(10_000_000));
        assert_eq!(job.engine, Choice::Lockfree);
        assert_eq!((job.plan.lrs, job.plan.priorities, job.plan.churn), (4, 1, false));
        let all = parse(&["-v", "1", "-d", "3", "-e", "7"]).unwrap().plan.injections().unwrap();
        assert!((10_000_000..10_000_021).contains(&all));
        assert_eq!(parse(&["-e", "16000"]).unwrap().plan.injections(), Some(10_016_000));
    }

    #[test]
    fn the_flags_of_vgic_lpi_stress() {
        let plan = parse(&["-v", "4", "-d", "3", "-e", "17", "-i", "1000"]).unwrap().plan;
        assert_eq!((plan.vcpus, plan.devices, plan.events), (4, 3, 17));
        assert_eq!(plan.length, Length::Iterations(1000));
    }

    #[test]
    fn a_duration_takes_the_place_of_iterations() {
        let plan = parse(&["--duration", "1.5"]).unwrap().plan;
        assert_eq!(plan.length, Length::Time(Duration::from_millis(1500)));
        assert_eq!(plan.injections(), None);
    }

    #[test]
    fn through_an_its_churn_is_compared_with_none() {
        let churns = |args: &[&str]| -> Vec<bool> {
            parse(args).unwrap().plans().iter().map(|plan| plan.churn).collect()
        };
        assert_eq!(churns(&["--its"]), [false]);
        assert_eq!(churns(&["--churn"]), [true]);
        assert_eq!(churns(&["--its", "--churn"]), [false, true]);
    }

    #[test]
    fn a_sweep_has_its_own_shape() {
        let sweep = |args: &[&str]| parse(args).unwrap().sweep;
        assert_eq!(sweep(&["--its"]), None);
        let default = sweep(&["--its", "--sweep"]).unwrap();
        assert_eq!((default.max_lpis, default.plan.vcpus), (sweep::MAX_LPIS, 1));
        assert_eq!(default.plan.length, Length::Time(sweep::TIME));
        let small = sweep(&["--its", "--sweep=256", "--duration=0.5"]).unwrap();
        assert_eq!(small.max_lpis, 256);
        assert_eq!(small.plan.length, Length::Time(Duration::from_millis(500)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let wrong: [&[&str]; 29] = [
            &["-v", "0"],
            &["-d", "0"],
            &["-e", "0"],
            &["-i", "0"],
            &["-v", "513"],
            &["-v", "two"],
            &["-d", "-1"],
            &["-e", "1.5"],
            &["-d", "4097"],
            &["-d", "4096", "-e", "4096"],
            &["-e", "16769025"],
            &["-d", "2", "-e", "2", "-i", "9223372036854775808"],
            &["--lrs", "0"],
            &["--lrs", "17"],
            &["--priorities", "0"],
            &["--priorities", "32"],
            &["--duration", "0"],
            &["--duration", "-3"],
            &["--duration", "1e30"],
            &["-i", "5", "--duration", "1"],
            // A paced injector would wait for discarded interrupts.
            &["--paced", "--churn"],
            &["--engine", "neither"],
            &["--sweep"],
            &["--its", "--sweep", "16"],
            &["--its", "--sweep=0"],
            &["--its", "--sweep=1048577"],
            &["--its", "--sweep", "-d", "3"],
            &["--its", "--sweep", "--churn"],
            &["--its", "--sweep", "-i", "3"],
        ];
        for args in wrong {
            let error = parse(args).expect_err(&args.join(" "));
            assert_eq!(error.exit_code(), 2, "{args:?}");
        }
        parse(&["-v", "512", "-d", "4095", "-e", "4094", "-i", "1"]).unwrap();
    }

    #[test]
    fn too_many_lpis_are_counted_out() {
        let message = parse(&["-d", "4096", "-e", "4096"]).unwrap_err().to_string();
        assert!(message.contains("16777216 LPIs") && message.contains("16769024"), "{message}");
    }
}
