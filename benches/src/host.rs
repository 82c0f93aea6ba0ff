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
/// A "guest" of these programs leaves by itself as soon as it has taken what its list registers
/// hold, so that a kick has nothing to interrupt: it only keeps the thread from sleeping, or wakes it.
#[derive(Debug)]
pub struct HostKick {
    vcpus: Box<[Cell]>,
}

/// One vCPU's kick state, alone on its cache lines (two, as prefetchers fetch pairs): kickers of
/// different vCPUs must not meet here.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Cell {
    token: WaitCell,
    thread: OnceLock<Thread>,
    /// On the line that the kick writes anyway.
    kicks: AtomicU64,
}

impl Cell {
    #[inline]
    fn wake(&self) {
        if self.token.kick() {
            // It sleeps, so that it attached itself before: the token's Acquire shows it to us.
            if let Some(thread) = self.thread.get() {
                thread.unpark();
            }
        }
    }
}

impl HostKick {
    /// For vCPUs 0 to `vcpus` - 1.
    pub fn new(vcpus: u16) -> Self {
        Self { vcpus: (0..vcpus).map(|_| Cell::default()).collect() }
    }

    /// States that the calling thread runs `vcpu`. Must come before its first [`HostKick::sleep`].
    ///
    /// # Panics
    /// If a thread does run it.
    pub fn attach(&self, vcpu: VcpuId) {
        let attached = self.vcpus[vcpu.index()].thread.set(thread::current());
        assert!(attached.is_ok(), "vCPU {} has a thread", vcpu.0);
    }

    /// Sleeps until `vcpu` is kicked; a kick from before the call counts. Only for the thread that
    /// has attached itself.
    pub fn sleep(&self, vcpu: VcpuId) {
        self.vcpus[vcpu.index()].token.sleep(thread::park);
    }

    /// Takes a kick without sleeping, and returns whether there was one.
    pub fn take(&self, vcpu: VcpuId) -> bool {
        self.vcpus[vcpu.index()].token.take()
    }

    /// A kick of the host's own, which does not count as the engine's.
    pub fn nudge(&self, vcpu: VcpuId) {
        self.vcpus[vcpu.index()].wake();
    }

    /// Number of kicks that all vCPUs got from the engine. Exact when nobody kicks.
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

/// A guest's CPU: the software CPU interface, set up to take every interrupt of Group 1 that has a
/// priority which can be signaled.
#[derive(Clone, Debug)]
pub struct Guest {
    cpu: CpuInterface,
}

impl Guest {
    /// With `lrs` list registers, 1 to [`vgic_core::lr::MAX_LRS`].
    ///
    /// # Panics
    /// If there cannot be that many.
    pub fn new(lrs: usize) -> Self {
        let mut cpu = CpuInterface::new(lrs).expect("1 to 16 list registers");
        cpu.set_pmr(0xff);
        cpu.set_igrpen1(1);
        Self { cpu }
    }

    /// What the engine flushes into and folds from.
    #[inline]
    pub fn lrs(&mut self) -> &mut CpuInterface {
        &mut self.cpu
    }

    /// IAR1: the interrupt that the guest takes, if there is one.
    #[inline]
    pub fn acknowledge(&mut self) -> Option<Intid> {
        let intid = self.cpu.iar1();
        // 1020 to 1023 stand for no interrupt.
        (intid.0 < SPI_END || intid.is_lpi()).then_some(intid)
    }

    /// EOIR1, with EOImode 0: the interrupt is over.
    #[inline]
    pub fn end(&mut self, intid: Intid) {
        // Nothing here is tied to a physical interrupt, so that there is nothing to deactivate with it.
        let _ = self.cpu.eoir1(intid);
    }
}
