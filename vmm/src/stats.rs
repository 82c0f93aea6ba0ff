//! What a run has cost, as one line of JSON.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use vgic_kvm::stats::{LineStats, RunStats};

/// A counter that a thread counts with, and another one reads.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        // Relaxed: a statistic.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        // Relaxed: as above.
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of a vCPU whose interrupt controller is the kernel's.
#[derive(Default)]
pub(crate) struct KernelVcpu {
    pub(crate) exits: Count,
    pub(crate) device_exits: Count,
}

/// One vCPU.
#[derive(Serialize, Default, Debug)]
pub(crate) struct VcpuStats {
    exits: u64,
    gic_exits: u64,
    device_exits: u64,
    interrupted_exits: u64,
    sysreg_exits: u64,
    other_debug_exits: u64,
    trap_calls: u64,
    acknowledges: u64,
    empty: u64,
    spurious: u64,
    timer_changes: u64,
    power_queries: u64,
    aborts: u64,
    offers: u64,
    kicks: u64,
    signals: u64,
    raised_by_others: u64,
    driven_by_itself: u64,
}

impl VcpuStats {
    pub(crate) fn new(run: RunStats, line: LineStats) -> Self {
        Self {
            exits: run.exits,
            gic_exits: run.gic_exits,
            device_exits: run.device_exits,
            interrupted_exits: run.interrupted_exits,
            sysreg_exits: run.sysreg_exits,
            other_debug_exits: run.other_debug_exits,
            trap_calls: run.trap_calls,
            acknowledges: run.acknowledges,
            empty: run.empty,
            spurious: run.spurious,
            timer_changes: run.timer_changes,
            power_queries: run.power_queries,
            aborts: run.aborts,
            offers: line.offers,
            kicks: line.kicks,
            signals: line.signals,
            raised_by_others: line.raised_by_others,
            driven_by_itself: line.driven_by_itself,
        }
    }

    pub(crate) fn of_kernel(counts: &KernelVcpu) -> Self {
        let (exits, device_exits) = (counts.exits.get(), counts.device_exits.get());
        Self { exits, device_exits, ..Self::default() }
    }
}

/// Counters of the engine, of one vCPU.
#[derive(Serialize, Default, Debug)]
pub(crate) struct EngineStats {
    injected: u64,
    coalesced: u64,
    entries: u64,
    handed_over: u64,
}

impl From<vgic_core::counters::VcpuCounters> for EngineStats {
    fn from(counters: vgic_core::counters::VcpuCounters) -> Self {
        Self {
            injected: counters.injected,
            coalesced: counters.coalesced,
            entries: counters.entries,
            handed_over: counters.handed_over,
        }
    }
}

/// All of it.
#[derive(Serialize, Debug)]
pub(crate) struct Report {
    pub(crate) gic: &'static str,
    pub(crate) end: String,
    pub(crate) msis: u64,
    pub(crate) vcpus: Vec<VcpuStats>,
    pub(crate) engine: Vec<EngineStats>,
}
