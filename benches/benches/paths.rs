//! The paths of injection, entry and exit, one group each, engine beside engine. `path-cost` gives the same in
//! read-modify-writes, interleaved.

#![allow(missing_docs)] // criterion's macros

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use vgic_benches::cost::Bench;
use vgic_benches::frames::FrameBench;
use vgic_core::Vgic;
use vgic_core::engine::Engine;
use vgic_core::gic::Model;
use vgic_core::locked::LockedVgic;
use vgic_core::reclaim::{Epoch, Slots};

/// Runs `f` for each engine.
macro_rules! each_engine {
    ($f:ident($($arg:expr),*)) => {
        $f::<Vgic<Slots>>("lockfree", $($arg),*);
        $f::<Vgic<Epoch>>("lockfree-crossbeam", $($arg),*);
        $f::<LockedVgic>("locked", $($arg),*);
    };
}

fn bench<E: Engine>(lpis: u32) -> Bench<E> {
    Bench::new(lpis).expect("room for the LPIs")
}

fn coalesced<E: Engine>(name: &str, group: &mut BenchmarkGroup<'_, WallTime>, lpis: u32) {
    let mut b = bench::<E>(lpis);
    b.pend(lpis as usize);
    let domain = b.domain();
    group.bench_function(BenchmarkId::new(format!("{name}/route"), lpis), |run| {
        run.iter(|| b.coalesced_by_route());
    });
    group.bench_function(BenchmarkId::new(format!("{name}/event"), lpis), |run| {
        run.iter(|| b.coalesced_by_event(&domain));
    });
}

fn cycle<E: Engine>(name: &str, group: &mut BenchmarkGroup<'_, WallTime>, lpis: u32) {
    let mut b = bench::<E>(lpis);
    group.bench_function(BenchmarkId::new(name, lpis), |run| run.iter(|| b.cycle()));
}

fn entry<E: Engine>(name: &str, group: &mut BenchmarkGroup<'_, WallTime>, pending: u32) {
    let mut b = bench::<E>(pending.max(1));
    b.pend(pending as usize);
    group.bench_function(BenchmarkId::new(name, pending), |run| {
        if pending == 0 {
            run.iter(|| b.idle_entry());
        } else {
            run.iter(|| b.entry_with_pending());
        }
    });
}

fn registers<E: Engine>(name: &str, group: &mut BenchmarkGroup<'_, WallTime>, model: Model) {
    let mut b = FrameBench::<E>::new(model).expect("a machine");
    group
        .bench_function(format!("{name}/{model:?}/ISENABLER write"), |run| run.iter(|| b.enable()));
    group.bench_function(format!("{name}/{model:?}/IAR read"), |run| run.iter(|| b.spurious()));
    group.bench_function(format!("{name}/{model:?}/SPI cycle"), |run| run.iter(|| b.cycle()));
}

fn all(c: &mut Criterion) {
    let mut group = c.benchmark_group("coalesced injection");
    for lpis in [1, 1024] {
        each_engine!(coalesced(&mut group, lpis));
    }
    group.finish();
    let mut group = c.benchmark_group("registers");
    for model in [Model::V2, Model::V3] {
        each_engine!(registers(&mut group, model));
    }
    group.finish();
    let mut group = c.benchmark_group("full cycle");
    for lpis in [1, 1024] {
        each_engine!(cycle(&mut group, lpis));
    }
    group.finish();
    let mut group = c.benchmark_group("entry with pending");
    for pending in [0, 16, 1024] {
        each_engine!(entry(&mut group, pending));
    }
    group.finish();
}

criterion_group!(benches, all);
criterion_main!(benches);
