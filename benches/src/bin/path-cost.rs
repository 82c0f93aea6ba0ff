//! `path-cost`: what injection, entry and exit cost on one thread, engine beside engine, in nanoseconds and in
//! uncontended atomic read-modify-writes of the same rounds.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use vgic_benches::cost::{Bench, Figure, ns_per_call, rmw_ns};
use vgic_benches::frames::FrameBench;
use vgic_core::Vgic;
use vgic_core::engine::Engine;
use vgic_core::gic::Model;
use vgic_core::locked::LockedVgic;
use vgic_core::reclaim::{Epoch, Slots};

/// What the engine's paths cost on one thread, in nanoseconds and in uncontended read-modify-writes.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Rounds; engines take turns within each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Calls of each path in each round.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..))]
    calls: u32,
    /// Writes the figures here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only paths whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

/// A measured path of one engine: a round of it, in nanoseconds per call.
struct Path {
    engine: &'static str,
    name: String,
    round: Box<dyn FnMut(u32) -> f64>,
    ns: Vec<f64>,
}

fn paths<E: Engine>(engine: &'static str) -> Result<Vec<Path>> {
    let mut paths = Vec::new();
    let mut add = |name: String, round: Box<dyn FnMut(u32) -> f64>| {
        paths.push(Path { engine, name, round, ns: Vec::new() });
    };
    for lpis in [1, 1024, 65_536] {
        let mut b = Bench::<E>::new(lpis)?;
        b.pend(lpis as usize);
        let domain = b.domain();
        let mut by_event = Bench::<E>::new(lpis)?;
        by_event.pend(lpis as usize);
        let event_domain = by_event.domain();
        drop(domain);
        let mut c = Bench::<E>::new(lpis)?;
        add(
            format!("coalesced, by route, {lpis} mapped"),
            Box::new(move |n| ns_per_call(n, || b.coalesced_by_route())),
        );
        add(
            format!("coalesced, by device and event, {lpis} mapped"),
            Box::new(move |n| ns_per_call(n, || by_event.coalesced_by_event(&event_domain))),
        );
        add(format!("full cycle, {lpis} mapped"), Box::new(move |n| ns_per_call(n, || c.cycle())));
    }
    let mut idle = Bench::<E>::new(1)?;
    add(
        "entry and exit, nothing to do".into(),
        Box::new(move |n| ns_per_call(n, || idle.idle_entry())),
    );
    for pending in [16, 1024, 65_536] {
        let mut b = Bench::<E>::new(pending)?;
        b.pend(pending as usize);
        // The locked engine's entry grows with what is pending: fewer calls say as much.
        add(
            format!("entry that delivers one of {pending} pending"),
            Box::new(move |n| {
                let n = if engine == LockedVgic::NAME { (n / pending).clamp(2, n) } else { n };
                ns_per_call(n, || b.entry_with_pending())
            }),
        );
    }
    for (model, version) in [(Model::V2, 2), (Model::V3, 3)] {
        type Access<E> = fn(&mut FrameBench<E>);
        let accesses: [(&str, Access<E>); 5] = [
            ("write ISENABLER, one interrupt", FrameBench::enable),
            ("write IPRIORITYR, one byte", FrameBench::prioritise),
            ("read IAR, nothing pending", FrameBench::spurious),
            ("SPI: pulse, entry, IAR, EOIR, exit", FrameBench::cycle),
            ("write SGIR, to oneself", FrameBench::send_sgi),
        ];
        for (name, access) in accesses {
            let mut b = FrameBench::<E>::new(model)?;
            add(
                format!("GICv{version}: {name}"),
                Box::new(move |n| ns_per_call(n, || access(&mut b))),
            );
        }
    }
    Ok(paths)
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut paths: Vec<Path> = [
        paths::<Vgic<Epoch>>("lockfree (crossbeam-epoch)")?,
        paths::<Vgic<Slots>>("lockfree (fixed slots)")?,
        paths::<LockedVgic>(LockedVgic::NAME)?,
    ]
    .into_iter()
    .flatten()
    .filter(|p| p.name.contains(&args.only))
    .collect();
    let mut rmw = Vec::new();
    for _ in 0..args.rounds {
        rmw.push(rmw_ns(args.calls));
        for path in &mut paths {
            let ns = (path.round)(args.calls);
            path.ns.push(ns);
        }
    }
    let figures: Vec<Figure> =
        paths.into_iter().map(|p| Figure::new(p.engine, p.name, &p.ns, &rmw)).collect();
    let unit = Figure::new("", "one uncontended read-modify-write".into(), &rmw, &rmw);
    println!(
        "one uncontended atomic read-modify-write: {:.2} ns (median of {} rounds)",
        unit.median_ns, args.rounds
    );
    println!();
    println!(
        "| path | engine | ns (min / median / max) | read-modify-writes (median / undisturbed) |"
    );
    println!("|---|---|---|---|");
    let mut sorted: Vec<&Figure> = figures.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    for f in sorted {
        println!(
            "| {} | {} | {:.1} / {:.1} / {:.1} | {:.1} / {:.1} |",
            f.path, f.engine, f.min_ns, f.median_ns, f.max_ns, f.rmws, f.rmws_undisturbed
        );
    }
    if let Some(file) = args.json {
        let text = serde_json::to_string_pretty(&(&unit, &figures))?;
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
