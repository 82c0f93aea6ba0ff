//! What a VM's interrupts have cost: exits, calls into the kernel, kicks.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that any thread may count with.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self) {
        // Relaxed: a statistic; nothing is published through it.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        // Relaxed: as above.
        self.0.load(Ordering::Relaxed)
    }
}

/// How often a vCPU was called, and its lines were driven.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LineStats {
    /// Interrupts that were offered to it.
    pub offers: u64,
    /// Times that it was to come to its mailbox, whatever its line says.
    pub kicks: u64,
    /// KVM_IRQ_LINE calls.
    pub driven: u64,
    /// Signals that called its thread out of the guest, for an offer or a kick.
    pub signals: u64,
}

/// What a vCPU's thread has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RunStats {
    /// Times that KVM_RUN returned.
    pub exits: u64,
    /// For accesses to the interrupt controller.
    pub gic_exits: u64,
    /// For accesses to anything else.
    pub device_exits: u64,
    /// For a change of a timer's or the PMU's output, a signal, or nothing.
    pub interrupted_exits: u64,
    /// Accesses to system registers of the CPU interface: debug exits. They are among `gic_exits`.
    pub sysreg_exits: u64,
    /// Debug exits for exceptions that are the guest's own, or for the traps themselves.
    pub other_debug_exits: u64,
    /// Debug exits that mean nothing here.
    pub unknown_debug_exits: u64,
    /// Calls into the kernel that the traps have made for registers and breakpoints.
    pub trap_calls: u64,
    /// Reads of IAR.
    pub acknowledges: u64,
    /// Those that found nothing (1023). Linux's driver of GICv2 reads IAR until it does, so that each exception has one.
    pub empty: u64,
    /// Those of them that found nothing although the IRQ line was up: the guest was interrupted for nothing.
    pub spurious: u64,
    /// Changes of the timers' and the PMU's outputs.
    pub timer_changes: u64,
    /// Times that KVM was asked whether the vCPU is powered on.
    pub power_queries: u64,
    /// Accesses that became external aborts.
    pub aborts: u64,
}

impl RunStats {
    /// Interrupts that the guest has taken: acknowledges that found something.
    pub fn taken(&self) -> u64 {
        self.acknowledges - self.empty
    }

    /// Calls into KVM for this vCPU: KVM_RUN, KVM_IRQ_LINE, registers and
    /// breakpoints. Signals to its thread are not among them.
    pub fn calls(&self, lines: &LineStats) -> u64 {
        self.exits + self.trap_calls + lines.driven + self.power_queries + self.aborts
    }
}
