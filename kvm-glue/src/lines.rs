//! The IRQ and FIQ lines of a VM's vCPUs, and how a vCPU is called out of its guest for what would raise them.
//!
//! [`Lines`] is the engine's [`Kick`]. An interrupt that is offered to a vCPU calls it out of the guest, by one signal, if the vCPU
//! is in the guest, its line is low, and its CPU interface would signal the interrupt; and costs no system call otherwise. The rules are
//! [`LineCell`]'s: it is one signal if the first one is sent before the next thread looks. What others wait for calls it out in any case.
//!
//! # Why a line is driven by its vCPU's own thread only
//!
//! KVM_IRQ_LINE may be called from any thread, and raising the line from the thread that has the interrupt would save the signal and an exit. But
//! KVM keeps a vCPU's lines (`HCR_EL2.VI` and `VF`) in a word that the vCPU's thread changes itself without atomic operations, whenever the host's scheduler
//! lets it run: `kvm_arch_vcpu_load` sets or clears `HCR_EL2.TWI` and `TWE` there, in Linux 6.12, and long before. A line that
//! another thread raises at that moment stays low for good, and nobody is told. On hosts whose CPUs are themselves preempted that is not even
//! rare: `lab-probe lines` counts it. A vCPU's own thread is not there when it calls KVM_IRQ_LINE.
//!
//! The way back: `deactivate_phys` and `input_level` go to the [`Resampler`].

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use kvm_ioctls::VmFd;
use vgic_core::engine::{Kick, Wired};
use vgic_core::ids::{Group, Priority, VcpuId};
use vgic_core::line::{Call, LineCell, Thresholds};

use crate::exits::Exits;
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
    cell: LineCell,
    /// The thread that runs it; 0 if there is none.
    thread: AtomicI32,
    /// Its redistributor has work left, which whichever vCPU exits next goes on with.
    lpis_left: AtomicBool,
    offers: Count,
    kicks: Count,
    driven: Count,
    signals: Count,
}

/// The lines of a VM's vCPUs.
pub struct Lines {
    lines: Box<[Line]>,
    signal: i32,
    driver: Box<dyn LineDriver>,
    resampler: Resampler,
    exits: Exits,
    /// Something is left for a redistributor: see `Line::lpis_left`.
    any_lpis_left: AtomicBool,
}

impl Lines {
    /// All are low, and all vCPUs are out of the guest. They are called by SIGRTMIN.
    pub fn new(vcpus: u16, driver: impl LineDriver) -> Self {
        Self::with_signal(vcpus, driver, signal::default())
    }

    /// The same with this signal.
    pub(crate) fn with_signal(vcpus: u16, driver: impl LineDriver, signal: i32) -> Self {
        let line = |_| Line {
            cell: LineCell::new(),
            thread: AtomicI32::new(0),
            lpis_left: AtomicBool::new(false),
            offers: Count::default(),
            kicks: Count::default(),
            driven: Count::default(),
            signals: Count::default(),
        };
        let lines = (0..vcpus).map(line).collect();
        let (resampler, exits) = (Resampler::new(), Exits::default());
        let any_lpis_left = AtomicBool::new(false);
        Self { lines, signal, driver: Box::new(driver), resampler, exits, any_lpis_left }
    }

    /// The number of the signal.
    pub(crate) fn signal(&self) -> i32 {
        self.signal
    }

    /// Who is told when the guest has ended an interrupt.
    pub fn resampler(&self) -> &Resampler {
        &self.resampler
    }

    /// A vCPU is to stop: if its thread waits for another one's exit, it goes on without.
    pub(crate) fn end_waits(&self) {
        self.exits.tell();
    }

    /// Takes one of the redistributors that have work left. Whoever finds that it has more says so again.
    pub(crate) fn take_lpis_left(&self) -> Option<VcpuId> {
        // The load spares most exits the write. AcqRel: pairs with `lpis_left`; cleared before the look at the bits, so that one that is set later is found the next time.
        if !self.any_lpis_left.load(Ordering::Relaxed)
            || !self.any_lpis_left.swap(false, Ordering::AcqRel)
        {
            return None;
        }
        let of = self.lines.iter().position(|line| line.lpis_left.swap(false, Ordering::AcqRel))?;
        // There may be others.
        self.any_lpis_left.swap(true, Ordering::AcqRel);
        Some(VcpuId(of as u16))
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
            driven: line.driven.get(),
            signals: line.signals.get(),
        }
    }

    /// Calls a vCPU out of its guest, if it has to be.
    fn call(&self, vcpu: VcpuId, call: Option<Call>) {
        if let Some(call) = call {
            let line = &self.lines[vcpu.index()];
            // Acquire: pairs with `attach`.
            let thread = line.thread.load(Ordering::Acquire);
            if thread != 0 {
                line.signals.add();
                signal::send(thread, self.signal);
                line.cell.called(call);
            }
        }
    }

    /// The thread `tid` runs a vCPU from now on; 0: none does.
    pub(crate) fn attach(&self, vcpu: VcpuId, tid: i32) {
        // Release: pairs with `call`.
        self.lines[vcpu.index()].thread.store(tid, Ordering::Release);
    }

    /// The vCPU's thread is about to look at what has come: what comes from now on, [`Lines::enter`] notices. For that thread.
    ///
    /// Returns whether it was kicked since it left the guest.
    pub fn look(&self, vcpu: VcpuId) -> bool {
        self.lines[vcpu.index()].cell.look()
    }

    /// Sets a line. For the vCPU's thread, out of the guest (see the [module](self)); only when it changes, as it is one call each time.
    pub fn set(&self, vcpu: VcpuId, line: CpuLine, level: bool) {
        self.lines[vcpu.index()].driven.add();
        let done = self.driver.set(vcpu, line, level);
        // It knows this vCPU; there is nobody to tell if it has gone meanwhile.
        debug_assert!(done.is_ok() || level, "{done:?}");
    }

    /// Both lines are low from here on, whatever they were before: nobody runs the vCPU yet, or any more. Fails if KVM has no such lines.
    pub(crate) fn lower(&self, vcpu: VcpuId) -> Result<(), kvm_ioctls::Error> {
        self.driver.set(vcpu, CpuLine::Irq, false)?;
        self.driver.set(vcpu, CpuLine::Fiq, false)
    }

    /// The vCPU is about to enter the guest: see [`LineCell::enter`]. For the vCPU's thread.
    #[must_use]
    pub fn enter(&self, vcpu: VcpuId, thresholds: Thresholds) -> bool {
        self.lines[vcpu.index()].cell.enter(thresholds)
    }

    /// It has left it: see [`LineCell::leave`]. For the vCPU's thread.
    pub fn leave(&self, vcpu: VcpuId) -> bool {
        self.lines[vcpu.index()].cell.leave()
    }
}

impl Kick for Lines {
    fn kick(&self, vcpu: VcpuId) {
        let line = &self.lines[vcpu.index()];
        line.kicks.add();
        self.call(vcpu, line.cell.kick());
    }

    fn wants_offers(&self) -> bool {
        true
    }

    fn offer(&self, vcpu: VcpuId, group: Group, priority: Priority) {
        let line = &self.lines[vcpu.index()];
        line.offers.add();
        self.call(vcpu, line.cell.offer(group, priority));
    }

    fn wait_for_exit(&self, _: VcpuId, done: &dyn Fn() -> bool) {
        self.exits.wait(done);
    }

    fn exited(&self, _: VcpuId) {
        self.exits.tell();
    }

    fn lpis_left(&self, vcpu: VcpuId) {
        // AcqRel: pairs with `take_lpis_left`. The bit before the sign that there is one.
        self.lines[vcpu.index()].lpis_left.swap(true, Ordering::AcqRel);
        self.any_lpis_left.swap(true, Ordering::AcqRel);
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
