//! Criterion benchmarks of every path that `cargo xtask perf` measures:
//! `cargo bench --bench paths -- "full cycle"`.
//!
//! A report interleaves the implementations of one path. Criterion measures one after the other,
//! and compares each with its own previous run.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use vgic_benches::perf::paths;

/// Most calls of one slice, so that criterion's counts fit into 32 bits.
const MOST: u64 = 1 << 20;

fn main() {
    let mut criterion = Criterion::default()
        .measurement_time(Duration::from_secs(1))
        .warm_up_time(Duration::from_millis(200))
        .sample_size(20)
        .configure_from_args();
    let mut all = paths::all(None);
    while let Some(first) = all.first() {
        let name = first.key.group.clone();
        let (now, later) = all.into_iter().partition::<Vec<_>, _>(|path| path.key.group == name);
        let mut group = criterion.benchmark_group(&name);
        for path in now {
            let id = BenchmarkId::new(path.key.to_string(), path.who);
            // Made at the first call: a filter may exclude the path.
            let mut kernel = None;
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|calls| {
                    let kernel = kernel
                        .get_or_insert_with(|| (path.make)().expect("what the path needs is made"));
                    let (mut left, mut time) = (calls, Duration::ZERO);
                    while left > 0 {
                        let now = left.min(MOST);
                        time += kernel(now as u32).expect("it can be done");
                        left -= now;
                    }
                    time
                });
            });
        }
        group.finish();
        all = later;
    }
    criterion.final_summary();
}
