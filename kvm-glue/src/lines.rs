//! The IRQ and FIQ lines of a VM's vCPUs, driven from whichever thread has something for them.
//!
//! [`Lines`] is the engine's [`Kick`]. An interrupt that is offered to a vCPU raises its IRQ line by one KVM_IRQ_LINE if the
//! vCPU is in the guest and would take it, and costs no system call otherwise; the rules are
//! [`LineCell`]'s. Everything else that a vCPU has to see to calls it out of the guest by a signal.
//!
//! The way back: `deactivate_phys` and `input_level` go to the [`Resampler`].

use std::sync::atomic::{AtomicI32, Ordering};

use kvm_ioctls::VmFd;
use vgic_core::engine::{Kick, Wired};
use vgic_core::ids::{Group, Priority, VcpuId};
use vgic_core::line::{Due, LineCell, Thresholds};

use crate::resample::Resampler;
use crate::signal;
use crate::stats::{Count, LineStats};

/// An input of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuLine {
    /// IRQ.
    Irq = 0,
    /// FIQ.
    Fiq = 1,
}

/// Where the levels go.
pub trait LineDriver: Send + Sync + 'static {
    /// Sets a line of a vCPU.
    ///
    /// # Errors
    /// If the kernel refuses, which it does only for vCPUs that it does not know.
    fn set(&self, vcpu: VcpuId, line: CpuLine, level: bool) -> Result<(), kvm_ioctls::Error>;
}

/// The `irq` of KVM_IRQ_LINE for a line of a vCPU (`KVM_ARM_IRQ_TYPE_CPU` is 0).
pub const fn irq_line_number(vcpu: VcpuId, line: CpuLine) -> u32 {
    let vcpu = vcpu.0 as u32;
    (vcpu >> 8 & 0xf) << 28 | (vcpu & 0xff) << 16 | line as u32
}

impl LineDriver for std::sync::Arc<VmFd> {
    fn set(&self, vcpu: VcpuId, line: CpuLine, level: bool) -> Result<(), kvm_ioctls::Error> {
        self.set_irq_line(irq_line_number(vcpu, line), level)
    }
}

/// One vCPU's.
struct Line {
    irq: LineCell,
    /// The thread that runs it; 0 if there is none.
    thread: AtomicI32,
    offers: Count,
    kicks: Count,
    raised: Count,
    driven: Count,
    signals: Count,
}

/// The lines of a VM's vCPUs.
pub struct Lines {
    lines: Box<[Line]>,
    driver: Box<dyn LineDriver>,
    resampler: Resampler,
}

impl Lines {
    /// All are low, and all vCPUs are out of the guest.
    pub fn new(vcpus: u16, driver: impl LineDriver) -> Self {
        let line = |_| Line {
            irq: LineCell::new(),
            thread: AtomicI32::new(0),
            offers: Count::default(),
            kicks: Count::default(),
            raised: Count::default(),
            driven: Count::default(),
            signals: Count::default(),
        };
        let lines = (0..vcpus).map(line).collect();
        Self { lines, driver: Box::new(driver), resampler: Resampler::new() }
    }

    /// Who is told when the guest has ended an interrupt.
    pub fn resampler(&self) -> &Resampler {
        &self.resampler
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> u16 {
        self.lines.len() as u16
    }

    /// Counts of one vCPU.
    pub fn stats(&self, vcpu: VcpuId) -> LineStats {
        let line = &self.lines[vcpu.index()];
        LineStats {
            offers: line.offers.get(),
            kicks: line.kicks.get(),
            raised_by_others: line.raised.get(),
            driven_by_itself: line.driven.get(),
            signals: line.signals.get(),
        }
    }

    fn set(&self, vcpu: VcpuId, line: CpuLine, level: bool) {
        let done = self.driver.set(vcpu, line, level);
        // It knows this vCPU; there is nobody to tell if it has gone meanwhile.
        debug_assert!(done.is_ok() || level, "{done:?}");
    }

    fn perform(&self, vcpu: VcpuId, due: Due) {
        let line = &self.lines[vcpu.index()];
        match due {
            Due::Nothing | Due::Tell => {}
            Due::Drive => line.irq.drive(|level| {
                line.raised.add();
                self.set(vcpu, CpuLine::Irq, level);
            }),
            Due::Call => {
                // Acquire: pairs with `attach`.
                let thread = line.thread.load(Ordering::Acquire);
                if thread != 0 {
                    line.signals.add();
                    signal::send(thread);
                }
            }
        }
    }

    /// The thread `tid` runs a vCPU from now on; 0: none does.
    pub(crate) fn attach(&self, vcpu: VcpuId, tid: i32) {
        // Release: pairs with `perform`.
        self.lines[vcpu.index()].thread.store(tid, Ordering::Release);
    }

    /// The vCPU's thread is about to look at what has come: what comes from now on, [`Lines::enter`] notices. For that thread.
    pub fn look(&self, vcpu: VcpuId) {
        self.lines[vcpu.index()].irq.look();
    }

    /// Sets the IRQ line. For the vCPU's thread, out of the guest.
    pub fn set_irq(&self, vcpu: VcpuId, level: bool) {
        let line = &self.lines[vcpu.index()];
        let set = |level| {
            line.driven.add();
            self.set(vcpu, CpuLine::Irq, level);
        };
        match line.irq.set_level(level) {
            Due::Nothing | Due::Call => {}
            Due::Tell => set(level),
            Due::Drive => line.irq.drive(set),
        }
    }

    /// Both lines are low from here on, whatever they were before: nobody runs the vCPU yet, or any more. Fails if KVM has no such lines.
    pub(crate) fn lower(&self, vcpu: VcpuId) -> Result<(), kvm_ioctls::Error> {
        self.driver.set(vcpu, CpuLine::Irq, false)?;
        self.driver.set(vcpu, CpuLine::Fiq, false)?;
        // What the cell says, and whoever is still at the hardware. The first call is not for that: it may tell a failure.
        self.set_irq(vcpu, false);
        Ok(())
    }

    /// Whether the IRQ line is to be up.
    pub fn level(&self, vcpu: VcpuId) -> bool {
        self.lines[vcpu.index()].irq.level()
    }

    /// Sets the FIQ line, which only the vCPU's thread does, and only when it changes.
    pub fn set_fiq(&self, vcpu: VcpuId, level: bool) {
        self.lines[vcpu.index()].driven.add();
        self.set(vcpu, CpuLine::Fiq, level);
    }

    /// The vCPU is about to enter the guest: see [`LineCell::enter`]. For the vCPU's thread.
    #[must_use]
    pub fn enter(&self, vcpu: VcpuId, thresholds: Thresholds) -> bool {
        self.lines[vcpu.index()].irq.enter(thresholds)
    }

    /// It has left it: see [`LineCell::leave`]. For the vCPU's thread.
    pub fn leave(&self, vcpu: VcpuId) -> bool {
        self.lines[vcpu.index()].irq.leave()
    }
}

impl Kick for Lines {
    fn kick(&self, vcpu: VcpuId) {
        let line = &self.lines[vcpu.index()];
        line.kicks.add();
        self.perform(vcpu, line.irq.kick());
    }

    fn wants_offers(&self) -> bool {
        true
    }

    fn offer(&self, vcpu: VcpuId, group: Group, priority: Priority) {
        let line = &self.lines[vcpu.index()];
        line.offers.add();
        self.perform(vcpu, line.irq.offer(group, priority));
    }

    fn input_level(&self, irq: Wired) -> Option<bool> {
        self.resampler.level(irq)
    }

    fn deactivate_phys(&self, pintid: u16) {
        self.resampler.ended(pintid);
    }
}

#[cfg(test)]
mod tests;
