//! `perf`: measures all paths, and writes a report. `cargo xtask perf` builds the parts it needs
//! and runs it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use vgic_benches::perf::accesses::{self, Size};
use vgic_benches::perf::data::{About, Report};
use vgic_benches::perf::measure::{self, Pace};
use vgic_benches::perf::operations::{OPERATIONS, operations};
use vgic_benches::perf::peer::Peer;
use vgic_benches::perf::{churn, compare, heap, paths, plot, report, storms};
use vgic_benches::storm::machine::Machine;

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

/// Measures every path of the engine beside its peers, and writes a report.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures all paths, and writes report.json, report.md and pictures
    Run(RunArgs),
    /// Compares two reports
    Compare {
        /// The directory of the first report
        before: PathBuf,
        /// The directory of the second report
        after: PathBuf,
    },
    /// Repeats one path only, for a program that counts instructions; without a path, lists the
    /// counted ones
    Steps {
        /// GROUP: PATH: WHO
        path: Option<String>,
        /// Number of calls
        #[arg(default_value_t = 1)]
        calls: u32,
    },
    /// Runs single accesses of a guest with much set up, for a program that counts instructions;
    /// without a scene, lists all scenes
    Accesses {
        /// The scene
        scene: Option<String>,
        /// `small`, `large` or `huge`
        #[arg(default_value = "small")]
        size: String,
    },
    /// Writes report.md and the pictures of an existing report.json
    Render {
        /// The report's directory
        report: PathBuf,
    },
}

#[derive(clap::Args)]
struct RunArgs {
    /// The report's directory
    #[arg(long)]
    out: PathBuf,
    /// The measured commit, as named in the report
    #[arg(long, default_value = "unknown")]
    commit: String,
    /// The program that drives arm_vgic
    #[arg(long)]
    peer: Option<PathBuf>,
    /// The reason for a missing peer
    #[arg(long)]
    no_peer: Option<String>,
    /// Run a smoke test: all code runs, but the figures are meaningless
    #[arg(long)]
    quick: bool,
    /// Measure only groups and paths with this in their name, and no storms
    #[arg(long)]
    only: Option<String>,
    /// Rounds of each figure
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Compare { before, after } => {
            print!("{}", compare::compare(&read(&before)?, &read(&after)?));
            Ok(())
        }
        Command::Steps { path: None, .. } => {
            paths::COUNTED.iter().for_each(|(name, calls)| println!("{calls} {name}"));
            Ok(())
        }
        Command::Steps { path: Some(path), calls } => steps(&path, calls),
        Command::Accesses { scene: None, .. } => {
            accesses::SCENES.iter().for_each(|(name, _)| println!("{name}"));
            Ok(())
        }
        Command::Accesses { scene: Some(scene), size } => {
            accesses::play(&scene, Size::named(&size)?)
        }
        Command::Render { report } => write(&read(&report)?, &report),
    }
}

fn steps(name: &str, calls: u32) -> Result<()> {
    let all = paths::all(None);
    let path = all
        .iter()
        .find(|path| format!("{}: {}: {}", path.key.group, path.key, path.who) == name)
        .with_context(|| format!("there is no path {name:?}"))?;
    (path.make)()?(calls)?;
    Ok(())
}

fn run(args: &RunArgs) -> Result<()> {
    let (start, before) = (Instant::now(), load());
    let rounds = if args.quick { 2 } else { args.rounds };
    let ms = Duration::from_millis;
    let slice = if args.quick { Duration::from_micros(50) } else { ms(1) };
    let pace = Pace { rounds, slice };
    let mut missing = Vec::new();
    let peer = args.peer.as_deref().map(Peer::start).transpose()?;
    if peer.is_none() {
        let why = args.no_peer.as_deref().unwrap_or("not asked for");
        missing.push(format!("{}: {why}", paths::ARM_VGIC));
    }
    let mut all = paths::all(peer.as_ref());
    if let Some(only) = &args.only {
        all.retain(|path| format!("{}: {}", path.key.group, path.key).contains(only.as_str()));
    }
    if args.quick {
        // Leaves out the paths with a long setup.
        all.retain(|path| path.key.at.is_none_or(|at| at <= 1024));
    }
    let whole = args.only.is_none();
    let (storm_rounds, storm_time) =
        if args.quick { (1, ms(20)) } else { (rounds.min(10), ms(250)) };
    let (churn_rounds, churn_time) =
        if args.quick { (1, ms(20)) } else { (rounds.min(10), ms(300)) };
    let mut steps = all.len() as u64 * u64::from(rounds + 1);
    if whole {
        steps += storms::count(storm_rounds) + churn::count(churn_rounds) + 1;
    }
    let bar = ProgressBar::new(steps);
    let style = "{bar:40.cyan/blue} {percent} %, {elapsed}, {eta} left  {wide_msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
    bar.enable_steady_tick(ms(500));
    let mut sets = Vec::new();
    while let Some(first) = all.first() {
        let group = first.key.group.clone();
        let (now, later) = all.into_iter().partition::<Vec<_>, _>(|path| path.key.group == group);
        sets.extend(measure::group(&now, pace, &bar)?);
        all = later;
    }
    let (mut storm, mut churned, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    if whole {
        storm = storms::all(storm_rounds, storm_time, &bar)?;
        churned = churn::all(churn_rounds, churn_time, &bar)?;
        bar.set_message("memory");
        bar.disable_steady_tick();
        memory = heap::all(peer.as_ref(), args.quick)?;
        if let Some(peer) = &peer {
            let (mut rates, ms) = (Vec::new(), if args.quick { 20 } else { 500 });
            for _ in 0..storm_rounds {
                rates.push(peer.ask(&format!("deliver 1024 {ms}"))? as f64 / 1e6);
            }
            storm.push(peer_storm(rates));
        }
    }
    bar.finish_and_clear();
    let machine = Machine::here();
    let about = About {
        commit: args.commit.clone(),
        compiler: machine.compiler.to_owned(),
        machine: machine.words(),
        cpus: machine.cpus,
        kernel: machine.kernel.clone(),
        date: machine.date,
        load: (before, load()),
        rounds,
        quick: args.quick,
        seconds: start.elapsed().as_secs_f64(),
    };
    let report = Report { about, sets, storms: storm, churn: churned, memory, missing };
    fs::create_dir_all(&args.out).with_context(|| format!("making {}", args.out.display()))?;
    let json = args.out.join("report.json");
    let text = serde_json::to_string(&report)? + "\n";
    fs::write(&json, text).with_context(|| format!("writing {}", json.display()))?;
    write(&report, &args.out)?;
    println!("{}", args.out.join("report.md").display());
    Ok(())
}

/// Returns arm_vgic's storm: one thread injects and one is the vCPU, which is close to a paced
/// storm.
fn peer_storm(delivered: Vec<f64>) -> vgic_benches::perf::data::Storm {
    vgic_benches::perf::data::Storm {
        flags: "-v 1 -d 1 -e 1024 --paced".into(),
        shape: (1, 1, 1024),
        paced: true,
        who: paths::ARM_VGIC.into(),
        injected: delivered.clone(),
        injected_cpu: Vec::new(),
        delivered,
        lost: 0,
        latency: Vec::new(),
    }
}

fn read(directory: &std::path::Path) -> Result<Report> {
    let file = directory.join("report.json");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("in {}", file.display()))
}

fn write(report: &Report, directory: &std::path::Path) -> Result<()> {
    let pictures = plot::all(report, &operations(OPERATIONS))?;
    let put = |name: &str, text: &str| {
        let file = directory.join(name);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    };
    for (name, _, svg) in &pictures {
        put(name, svg)?;
    }
    let captions: Vec<_> = pictures.iter().map(|(name, caption, _)| (*name, *caption)).collect();
    put("report.md", &report::markdown(report, &captions))
}
