//! Statistics of a VM's interrupts: exits, calls into the kernel, and kicks.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that any thread can increment.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        // Relaxed: a statistic; nothing is published through it.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        // Relaxed: a statistic, as in `add`.
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts of one vCPU's kicks, hints and line changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LineStats {
    /// Hints of new interrupts ([`Kick::offer`](vgic_core::engine::Kick::offer)).
    pub offers: u64,
    /// Kicks: requests to drain the mailbox regardless of the vCPU's line levels.
    pub kicks: u64,
    /// `KVM_IRQ_LINE` calls.
    pub driven: u64,
    /// Signals sent to the vCPU's thread to take it out of the guest, for a hint or a kick.
    pub signals: u64,
}

/// Counts of one vCPU thread's work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RunStats {
    /// Returns from `KVM_RUN`.
    pub exits: u64,
    /// Exits for accesses to the interrupt controller.
    pub gic_exits: u64,
    /// Exits for accesses to any other address.
    pub device_exits: u64,
    /// Exits for a change of a timer or PMU output, for a signal, or for no reason.
    pub interrupted_exits: u64,
    /// Debug exits for accesses to the CPU interface's system registers. `gic_exits` includes them.
    pub sysreg_exits: u64,
    /// Debug exits for the guest's own exceptions, or for the traps themselves.
    pub other_debug_exits: u64,
    /// Debug exits that have no meaning to this crate.
    pub unknown_debug_exits: u64,
    /// Calls into the kernel that the traps made for registers and breakpoints.
    pub trap_calls: u64,
    /// Reads of IAR.
    pub acknowledges: u64,
    /// Reads of IAR that found nothing (1023). Linux's GICv2 driver reads IAR until it finds
    /// nothing, so each of its exceptions has one such read.
    pub empty: u64,
    /// Reads of IAR that found nothing although the IRQ line was high: the guest was interrupted
    /// for no interrupt. `empty` includes them.
    pub spurious: u64,
    /// Changes of the timer and PMU outputs.
    pub timer_changes: u64,
    /// Queries to KVM for the vCPU's power state.
    pub power_queries: u64,
    /// Accesses that became external aborts.
    pub aborts: u64,
}

impl RunStats {
    /// Returns the number of interrupts that the guest has taken: acknowledges that found an
    /// interrupt.
    pub fn taken(&self) -> u64 {
        self.acknowledges - self.empty
    }

    /// Returns the number of calls into KVM for this vCPU: `KVM_RUN`, `KVM_IRQ_LINE`, registers and
    /// breakpoints, power-state queries, and aborts. Signals to the vCPU's thread are not counted.
    pub fn calls(&self, lines: &LineStats) -> u64 {
        self.exits + self.trap_calls + lines.driven + self.power_queries + self.aborts
    }
}
