//! Several threads at once: the cost of sharing a cache line.
//!
//! The time of a call is that of a whole round, from the first thread's start to the last one's
//! end, divided by the calls of *one* thread. If the threads do not disturb each other, and each
//! has a CPU, it is the same for any number of threads.

use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vgic_core::Vgic;
use vgic_core::engine::{Config, Engine, Injector, LpiConfig, MsiControl, Vcpu};
use vgic_core::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};
use vgic_core::locked::LockedVgic;
use vgic_core::probe::{Bits, Layout};

use super::{LOCKED, SHIPPED};
use crate::cost::NoKick;
use crate::perf::path::{Group, Kernel};
use anyhow::Result;

/// Runs `f` on all `tasks` at once, each on its own thread. Returns the tasks, and the time from
/// the first thread's start to the last one's end.
///
/// The longest time of a single thread would be right only for threads that run at the same time. A
/// thread that is woken late may instead have the CPU, and the lines, for itself.
fn at_once<T: Send>(tasks: Vec<T>, f: impl Fn(&T) + Sync) -> (Duration, Vec<T>) {
    let missing = AtomicUsize::new(tasks.len());
    thread::scope(|scope| {
        let (f, missing) = (&f, &missing);
        let threads: Vec<_> = tasks
            .into_iter()
            .map(|task| {
                scope.spawn(move || {
                    // Spins, as a sleeping thread may be woken on the other thread's CPU and run
                    // after it. So each thread waits on a CPU of its own, as long as there are
                    // enough.
                    missing.fetch_sub(1, Ordering::AcqRel);
                    let mut looks = 0_u32;
                    while missing.load(Ordering::Acquire) > 0 {
                        looks += 1;
                        if looks.is_multiple_of(10_000) {
                            thread::yield_now();
                        }
                        hint::spin_loop();
                    }
                    let start = Instant::now();
                    f(&task);
                    (start, Instant::now(), task)
                })
            })
            .collect();
        let (mut times, mut back) = (Vec::new(), Vec::new());
        for thread in threads {
            let (start, end, task) = thread.join().expect("no panic");
            times.push((start, end));
            back.push(task);
        }
        let first = times.iter().map(|time| time.0).min();
        let last = times.iter().map(|time| time.1).max();
        (last.zip(first).map_or(Duration::ZERO, |(last, first)| last - first), back)
    })
}

pub(super) fn threads() -> Group {
    let mut group = Group::new("threads");
    for (who, layout) in [("as shipped", Layout::Shipped), ("plain", Layout::Plain)] {
        group.add(
            who,
            "pending bits of alternate INTIDs set and taken by two threads",
            None,
            move || {
                let bits = Bits::new(layout);
                Ok(Box::new(move |calls| {
                    let each = |thread: &u32| {
                        for n in 0..calls {
                            // INTIDs of one device's queues. Every other one belongs to this vCPU.
                            let intid = n % 8 * 2 + thread;
                            let _ = bits.set(intid);
                            let _ = bits.take(intid);
                        }
                    };
                    Ok(at_once(vec![0, 1], each).0)
                }))
            },
        );
    }
    for threads in [1, 2, 4] {
        for (what, shared) in [("each its own LPI", false), ("all the same LPI", true)] {
            let at = Some((u64::from(threads), "injectors"));
            let what = format!("coalesced injections by route, {what}");
            group.add(SHIPPED, what.clone(), at, move || injectors::<Vgic>(threads, shared));
            group.add(LOCKED, what, at, move || injectors::<LockedVgic>(threads, shared));
        }
    }
    group
}

fn injectors<E: Engine>(threads: u32, shared: bool) -> Result<Kernel> {
    let config = Config {
        lpis: threads,
        max_lpis: threads,
        max_events: 2 * threads,
        device_bits: 4,
        event_bits: 4,
        ..Config::with_vcpus(1)
    };
    let engine = E::new(&config, Arc::new(NoKick))?;
    let mut vcpu = engine.vcpu(VcpuId(0))?;
    vcpu.open();
    let mut msi = engine.msi()?;
    let mut sources = Vec::new();
    for n in 0..threads {
        let intid = Intid(LPI_BASE + if shared { 0 } else { n });
        msi.map(DeviceId(1), EventId(n), intid, VcpuId(0), LpiConfig::enabled(0xa0))?;
        sources.push((engine.injector()?, msi.route(DeviceId(1), EventId(n))?));
    }
    for (injector, route) in &sources {
        let _ = injector.inject_route(route);
    }
    let mut sources = Some(sources);
    Ok(Box::new(move |calls| {
        let _keep = (&msi, &vcpu);
        // Handles can be sent to another thread, but not shared: each thread owns its handles for
        // the round, and returns them.
        let mine = sources.take().unwrap_or_default();
        let (time, back) = at_once(mine, |(injector, route)| {
            for _ in 0..calls {
                let _ = injector.inject_route(route);
            }
        });
        sources = Some(back);
        Ok(time)
    }))
}
