//! What a run has cost, as one line of JSON.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use vgic_kvm::stats::{LineStats, RunStats};

use crate::accounts::{Ioctls, StormReport};

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

impl KernelVcpu {
    /// As far as they are known: exits that the kernel serves are not counted.
    pub(crate) fn run_stats(&self) -> RunStats {
        let (exits, device_exits) = (self.exits.get(), self.device_exits.get());
        RunStats { exits, device_exits, ..RunStats::default() }
    }
}

/// One vCPU.
#[derive(Serialize, Default, Debug)]
pub(crate) struct VcpuStats {
    exits: u64,
    gic_exits: u64,
    device_exits: u64,
    interrupted_exits: u64,
    acknowledges: u64,
    empty: u64,
    spurious: u64,
    timer_changes: u64,
    power_queries: u64,
    aborts: u64,
    offers: u64,
    kicks: u64,
    signals: u64,
    driven: u64,
}

impl VcpuStats {
    pub(crate) fn new(run: RunStats, line: LineStats) -> Self {
        Self {
            exits: run.exits,
            gic_exits: run.gic_exits,
            device_exits: run.device_exits,
            interrupted_exits: run.interrupted_exits,
            acknowledges: run.acknowledges,
            empty: run.empty,
            spurious: run.spurious,
            timer_changes: run.timer_changes,
            power_queries: run.power_queries,
            aborts: run.aborts,
            offers: line.offers,
            kicks: line.kicks,
            signals: line.signals,
            driven: line.driven,
        }
    }

    /// The calls that this vCPU has cost.
    pub(crate) fn add_ioctls(&self, to: &mut Ioctls) {
        to.kvm_run += self.exits;
        to.kvm_irq_line += self.driven;
        to.other += self.power_queries + self.aborts;
    }

    pub(crate) fn of_kernel(counts: &KernelVcpu) -> Self {
        Self::new(counts.run_stats(), LineStats::default())
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
    /// Of all vCPUs and devices.
    pub(crate) ioctls: Ioctls,
    /// The doorbell's.
    pub(crate) storms: Vec<StormReport>,
    pub(crate) vcpus: Vec<VcpuStats>,
    pub(crate) engine: Vec<EngineStats>,
}
