//! The cost of a run, as one line of JSON.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use vgic_kvm::stats::{LineStats, RunStats};

use crate::accounts::{Ioctls, StormReport};

/// A counter with one writer thread, which other threads read.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        // Relaxed: a statistic.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        // Relaxed: a statistic.
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of a vCPU with the kernel's interrupt controller.
#[derive(Default)]
pub(crate) struct KernelVcpu {
    pub(crate) exits: Count,
    pub(crate) device_exits: Count,
}

impl KernelVcpu {
    /// Returns the known part of the counts. The exits that the kernel serves are not counted.
    pub(crate) fn run_stats(&self) -> RunStats {
        let (exits, device_exits) = (self.exits.get(), self.device_exits.get());
        RunStats { exits, device_exits, ..RunStats::default() }
    }
}

/// The counts of one vCPU.
#[derive(Serialize, Default, Debug)]
pub(crate) struct VcpuStats {
    exits: u64,
    gic_exits: u64,
    device_exits: u64,
    interrupted_exits: u64,
    sysreg_exits: u64,
    other_debug_exits: u64,
    trap_calls: u64,
    #[serde(skip)]
    total: Total,
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
            sysreg_exits: run.sysreg_exits,
            other_debug_exits: run.other_debug_exits,
            trap_calls: run.trap_calls,
            total: Total {
                interrupts: run.taken(),
                exits: run.exits,
                traps: run.sysreg_exits,
                ioctls: run.calls(&line),
            },
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

    /// Adds the calls into KVM that this vCPU has cost.
    pub(crate) fn add_ioctls(&self, to: &mut Ioctls) {
        to.kvm_run += self.exits;
        to.kvm_irq_line += self.driven;
        to.other += self.trap_calls + self.power_queries + self.aborts;
    }

    pub(crate) fn of_kernel(counts: &KernelVcpu) -> Self {
        Self::new(counts.run_stats(), LineStats::default())
    }
}

/// The total cost of interrupts.
#[derive(Clone, Copy, Default, Debug)]
struct Total {
    interrupts: u64,
    exits: u64,
    traps: u64,
    ioctls: u64,
}

/// The average cost of an interrupt: the work of all vCPUs, divided by the number of interrupts
/// that they took.
#[derive(Serialize, PartialEq, Debug)]
pub(crate) struct PerInterrupt {
    interrupts: u64,
    exits: f64,
    /// Accesses to system registers of the CPU interface, which are debug exits.
    traps: f64,
    /// Calls into KVM, including `KVM_RUN`.
    ioctls: f64,
}

impl PerInterrupt {
    /// Computes the averages. `None` if no interrupt was taken, or they were not counted.
    pub(crate) fn of(vcpus: &[VcpuStats]) -> Option<Self> {
        let sum = |of: fn(&Total) -> u64| vcpus.iter().map(|vcpu| of(&vcpu.total)).sum::<u64>();
        let interrupts = sum(|total| total.interrupts);
        let each = |n: u64| (n as f64 / interrupts as f64 * 100.0).round() / 100.0;
        (interrupts > 0).then(|| Self {
            interrupts,
            exits: each(sum(|total| total.exits)),
            traps: each(sum(|total| total.traps)),
            ioctls: each(sum(|total| total.ioctls)),
        })
    }
}

/// The engine's counters of one vCPU.
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

/// The whole report.
#[derive(Serialize, Debug)]
pub(crate) struct Report {
    pub(crate) gic: &'static str,
    pub(crate) end: String,
    pub(crate) msis: u64,
    /// The calls of all vCPUs and devices.
    pub(crate) ioctls: Ioctls,
    /// The storms of the doorbell device.
    pub(crate) storms: Vec<StormReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) per_interrupt: Option<PerInterrupt>,
    pub(crate) vcpus: Vec<VcpuStats>,
    pub(crate) engine: Vec<EngineStats>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_costs_what_all_vcpus_did() {
        let run = RunStats {
            exits: 10,
            sysreg_exits: 6,
            trap_calls: 20,
            acknowledges: 4,
            empty: 1,
            ..RunStats::default()
        };
        let line = LineStats { driven: 5, ..LineStats::default() };
        let busy = VcpuStats::new(run, line);
        let idle =
            VcpuStats::new(RunStats { exits: 2, ..RunStats::default() }, LineStats::default());
        let cost = PerInterrupt { interrupts: 3, exits: 4.0, traps: 2.0, ioctls: 12.33 };
        assert_eq!(PerInterrupt::of(&[busy, idle]), Some(cost));
        assert_eq!(PerInterrupt::of(&[VcpuStats::default()]), None);
    }
}
