//! The host's side of an engine: kicks that wake vCPU threads, and a guest's CPU interface.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, Thread};

use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::Kick;
use vgic_core::ids::{Intid, SPI_END, VcpuId};
use vgic_core::wait::WaitCell;

/// Kicks for vCPUs that are threads of this process.
///
/// A "guest" of these programs exits as soon as it has taken the interrupts in its list registers,
/// so a kick never interrupts it. A kick only wakes the thread, or keeps it from sleeping.
#[derive(Debug)]
pub struct HostKick {
    vcpus: Box<[Cell]>,
}

/// One vCPU's kick state, alone on two cache lines (prefetchers fetch pairs), so that kickers of
/// different vCPUs do not contend.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Cell {
    token: WaitCell,
    thread: OnceLock<Thread>,
    /// On the line that a kick writes in any case.
    kicks: AtomicU64,
}

impl Cell {
    #[inline]
    fn wake(&self) {
        if self.token.kick() {
            // The vCPU's thread sleeps, so it attached itself before: the token's Acquire makes
            // this visible.
            if let Some(thread) = self.thread.get() {
                thread.unpark();
            }
        }
    }
}

impl HostKick {
    /// Creates the kicks of vCPUs 0 to `vcpus` - 1.
    pub fn new(vcpus: u16) -> Self {
        Self { vcpus: (0..vcpus).map(|_| Cell::default()).collect() }
    }

    /// Registers the calling thread as the thread of `vcpu`. Must precede its first
    /// [`HostKick::sleep`].
    ///
    /// # Panics
    /// If `vcpu` already has a thread.
    pub fn attach(&self, vcpu: VcpuId) {
        let attached = self.vcpus[vcpu.index()].thread.set(thread::current());
        assert!(attached.is_ok(), "vCPU {} has a thread", vcpu.0);
    }

    /// Sleeps until `vcpu` is kicked. A kick before the call counts. Only for the attached thread.
    pub fn sleep(&self, vcpu: VcpuId) {
        self.vcpus[vcpu.index()].token.sleep(thread::park);
    }

    /// Takes a kick without sleeping, and returns whether there was one.
    pub fn take(&self, vcpu: VcpuId) -> bool {
        self.vcpus[vcpu.index()].token.take()
    }

    /// Kicks a vCPU on behalf of the host. Not counted in [`HostKick::kicks`].
    pub fn nudge(&self, vcpu: VcpuId) {
        self.vcpus[vcpu.index()].wake();
    }

    /// Returns the number of kicks from the engine to all vCPUs. Exact while no thread kicks.
    pub fn kicks(&self) -> u64 {
        self.vcpus.iter().map(|cell| cell.kicks.load(Ordering::Relaxed)).sum()
    }
}

impl Kick for HostKick {
    fn kick(&self, vcpu: VcpuId) {
        let cell = &self.vcpus[vcpu.index()];
        // Relaxed: a statistic, read when the kickers have been joined.
        cell.kicks.fetch_add(1, Ordering::Relaxed);
        cell.wake();
    }
}

/// A guest's CPU: the software CPU interface, set up to take every Group 1 interrupt with a
/// priority that can be signaled.
#[derive(Clone, Debug)]
pub struct Guest {
    cpu: CpuInterface,
}

impl Guest {
    /// Creates a guest with `lrs` list registers, 1 to [`vgic_core::lr::MAX_LRS`].
    ///
    /// # Panics
    /// If `lrs` is out of range.
    pub fn new(lrs: usize) -> Self {
        let mut cpu = CpuInterface::new(lrs).expect("1 to 16 list registers");
        cpu.set_pmr(0xff);
        cpu.set_igrpen1(1);
        Self { cpu }
    }

    /// Returns the list registers, for the engine's flush and fold.
    #[inline]
    pub fn lrs(&mut self) -> &mut CpuInterface {
        &mut self.cpu
    }

    /// Reads IAR1: takes the most urgent interrupt, if there is one.
    #[inline]
    pub fn acknowledge(&mut self) -> Option<Intid> {
        let intid = self.cpu.iar1();
        // INTIDs 1020 to 1023 mean that there is no interrupt.
        (intid.0 < SPI_END || intid.is_lpi()).then_some(intid)
    }

    /// Writes EOIR1, with EOImode 0: ends and deactivates the interrupt.
    #[inline]
    pub fn end(&mut self, intid: Intid) {
        // No interrupt is hardware-mapped here, so there is no physical one to deactivate.
        let _ = self.cpu.eoir1(intid);
    }
}
