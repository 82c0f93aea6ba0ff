//! The IRQ and FIQ lines of a VM's vCPUs, and the signals that take vCPUs out of their guests.
//!
//! [`Lines`] implements the engine's [`Kick`]. A hint of an interrupt takes the vCPU out of its
//! guest with one signal if all of these hold: the vCPU is in the guest, its line is low, and its
//! CPU interface would signal the interrupt. Otherwise the hint costs no system call. [`LineCell`]
//! has the rules: several hints cost one signal if the first signal is sent before the next thread
//! checks. A kick, for which another thread waits, takes the vCPU out of its guest in any case.
//!
//! # Why a line is driven by its vCPU's own thread only
//!
//! `KVM_IRQ_LINE` may be called from any thread. A thread that has an interrupt could raise the
//! line directly, and save the signal and an exit. But KVM keeps a vCPU's lines (`HCR_EL2.VI` and
//! `VF`) in a word that the vCPU's thread also changes, without atomic operations, whenever the
//! host schedules that thread in: `kvm_arch_vcpu_load` sets or clears `HCR_EL2.TWI` and `TWE`
//! there, in Linux 6.12 and in much older versions. If another thread raises the line at that
//! moment, the line stays low for good, and no error is reported. This is not even rare on a host
//! with CPUs that are preempted themselves: `lab-probe lines` counts it. A vCPU's own thread cannot
//! be in `kvm_arch_vcpu_load` while it calls `KVM_IRQ_LINE`.
//!
//! # Ends of interrupts
//!
//! `deactivate_phys` and `input_level` are passed on to the [`Resampler`].

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use kvm_ioctls::VmFd;
use vgic_core::engine::{Kick, Wired};
use vgic_core::ids::{Group, Priority, VcpuId};
use vgic_core::line::{Call, LineCell, Thresholds};

use crate::exits::Exits;
use crate::resample::Resampler;
use crate::signal;
use crate::stats::{Count, LineStats};

/// An interrupt input of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuLine {
    /// The IRQ input.
    Irq = 0,
    /// The FIQ input.
    Fiq = 1,
}

/// The receiver of the lines' levels: KVM, or a recorder in tests.
pub trait LineDriver: Send + Sync + 'static {
    /// Sets a line of a vCPU.
    ///
    /// # Errors
    /// The kernel's error. The kernel refuses only vCPUs that it does not know.
    fn set(&self, vcpu: VcpuId, line: CpuLine, level: bool) -> Result<(), kvm_ioctls::Error>;
}

/// Returns the `irq` argument of `KVM_IRQ_LINE` for a line of a vCPU (`KVM_ARM_IRQ_TYPE_CPU` is 0).
pub const fn irq_line_number(vcpu: VcpuId, line: CpuLine) -> u32 {
    let vcpu = vcpu.0 as u32;
    (vcpu >> 8 & 0xf) << 28 | (vcpu & 0xff) << 16 | line as u32
}

impl LineDriver for std::sync::Arc<VmFd> {
    fn set(&self, vcpu: VcpuId, line: CpuLine, level: bool) -> Result<(), kvm_ioctls::Error> {
        self.set_irq_line(irq_line_number(vcpu, line), level)
    }
}

/// The state of one vCPU.
struct Line {
    cell: LineCell,
    /// The ID of the thread that runs the vCPU; 0 if no thread does.
    thread: AtomicI32,
    /// The vCPU's redistributor has work left. The next vCPU that exits continues it, whichever it
    /// is.
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
    /// Some redistributor has work left: see `Line::lpis_left`.
    any_lpis_left: AtomicBool,
}

impl Lines {
    /// Creates the lines, all low, with all vCPUs out of the guest. The kick signal is `SIGRTMIN`.
    pub fn new(vcpus: u16, driver: impl LineDriver) -> Self {
        Self::with_signal(vcpus, driver, signal::default())
    }

    /// Creates the lines as [`Lines::new`] does, with `signal` as the kick signal.
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

    /// Returns the number of the kick signal.
    pub(crate) fn signal(&self) -> i32 {
        self.signal
    }

    /// Returns the resampler, which is told when the guest has ended an interrupt.
    pub fn resampler(&self) -> &Resampler {
        &self.resampler
    }

    /// Wakes all threads that wait for a vCPU's exit. The thread of a vCPU that must stop returns
    /// from its wait; the others re-check.
    pub(crate) fn end_waits(&self) {
        self.exits.tell();
    }

    /// Takes one of the redistributors that have work left. A caller that leaves work behind must
    /// call `lpis_left` again.
    pub(crate) fn take_lpis_left(&self) -> Option<VcpuId> {
        // The load spares most exits the write. AcqRel: pairs with `lpis_left`. The flag is cleared
        // before the bits are read, so a bit that is set later is found the next time.
        if !self.any_lpis_left.load(Ordering::Relaxed)
            || !self.any_lpis_left.swap(false, Ordering::AcqRel)
        {
            return None;
        }
        let of = self.lines.iter().position(|line| line.lpis_left.swap(false, Ordering::AcqRel))?;
        // Other bits may be set.
        self.any_lpis_left.swap(true, Ordering::AcqRel);
        Some(VcpuId(of as u16))
    }

    /// Returns the number of vCPUs.
    pub fn vcpus(&self) -> u16 {
        self.lines.len() as u16
    }

    /// Returns the counts of one vCPU.
    pub fn stats(&self, vcpu: VcpuId) -> LineStats {
        let line = &self.lines[vcpu.index()];
        LineStats {
            offers: line.offers.get(),
            kicks: line.kicks.get(),
            driven: line.driven.get(),
            signals: line.signals.get(),
        }
    }

    /// Takes a vCPU out of its guest if `call` is given.
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

    /// Records that thread `tid` runs the vCPU from now on; 0: no thread runs it.
    pub(crate) fn attach(&self, vcpu: VcpuId, tid: i32) {
        // Release: pairs with `call`.
        self.lines[vcpu.index()].thread.store(tid, Ordering::Release);
    }

    /// Begins a turn of the vCPU's thread, before it drains the mailbox. Everything that is posted
    /// from now on makes [`Lines::enter`] fail if it would take the vCPU out of the guest. To be
    /// called by the vCPU's thread.
    ///
    /// Returns whether the vCPU was kicked since it left the guest.
    pub fn look(&self, vcpu: VcpuId) -> bool {
        self.lines[vcpu.index()].cell.look()
    }

    /// Sets a line. To be called by the vCPU's thread, out of the guest (see the [module](self)),
    /// and only if the level has changed, since each call is a system call.
    pub fn set(&self, vcpu: VcpuId, line: CpuLine, level: bool) {
        self.lines[vcpu.index()].driven.add();
        let done = self.driver.set(vcpu, line, level);
        // KVM knows this vCPU. A failure means that the VM is gone, and no one is left to report it
        // to.
        debug_assert!(done.is_ok() || level, "{done:?}");
    }

    /// Sets both lines low, regardless of their levels. No thread may be running the vCPU. Fails if
    /// KVM has no such lines.
    pub(crate) fn lower(&self, vcpu: VcpuId) -> Result<(), kvm_ioctls::Error> {
        self.driver.set(vcpu, CpuLine::Irq, false)?;
        self.driver.set(vcpu, CpuLine::Fiq, false)
    }

    /// Announces that the vCPU is about to enter the guest: see [`LineCell::enter`]. To be called
    /// by the vCPU's thread.
    #[must_use]
    pub fn enter(&self, vcpu: VcpuId, thresholds: Thresholds) -> bool {
        self.lines[vcpu.index()].cell.enter(thresholds)
    }

    /// Records that the vCPU has left the guest: see [`LineCell::leave`]. To be called by the
    /// vCPU's thread.
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
        // AcqRel: pairs with `take_lpis_left`. The vCPU's bit is set before the flag that announces
        // it.
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
