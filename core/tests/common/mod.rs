//! A guest that acknowledges and ends interrupts, and a machine of such guests on any engine.

#![allow(dead_code)] // Each test file uses its own part.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::*;
use vgic_core::ids::*;

/// Counts kicks, one number for each vCPU.
pub(crate) struct Kicks(pub(crate) Vec<AtomicU64>);

impl Kick for Kicks {
    fn kick(&self, vcpu: VcpuId) {
        self.0[vcpu.index()].fetch_add(1, Ordering::Relaxed);
    }
}

/// One VM on one thread.
pub(crate) struct Machine<E: Engine> {
    // The vCPUs and controls are dropped before `vgic`, the engine's handle, as in a VMM.
    pub(crate) vcpus: Vec<E::Vcpu>,
    pub(crate) msi: E::Msi,
    pub(crate) injector: E::Injector,
    pub(crate) cpus: Vec<CpuInterface>,
    pub(crate) kicks: Arc<Kicks>,
    pub(crate) vgic: E,
}

pub(crate) const DEV: DeviceId = DeviceId(7);

/// The n-th LPI.
pub(crate) fn lpi(n: u32) -> Intid {
    Intid(LPI_BASE + n)
}

pub(crate) fn cpu(lrs: usize) -> CpuInterface {
    let mut cpu = CpuInterface::new(lrs).expect("1 to 16");
    cpu.set_pmr(0xff);
    cpu.set_igrpen0(1);
    cpu.set_igrpen1(1);
    cpu
}

impl<E: Engine> Machine<E> {
    pub(crate) fn new(vcpus: u16, lrs: usize) -> Self {
        Self::with(Config::with_vcpus(vcpus), lrs)
    }

    pub(crate) fn with(config: Config, lrs: usize) -> Self {
        let kicks = Arc::new(Kicks((0..config.vcpus).map(|_| AtomicU64::new(0)).collect()));
        let vgic = E::new(&config, kicks.clone()).expect("a good configuration");
        let mut vcpus: Vec<_> =
            (0..config.vcpus).map(|v| vgic.vcpu(VcpuId(v)).expect("a free vCPU")).collect();
        vcpus.iter_mut().for_each(Vcpu::open);
        Self {
            vcpus,
            msi: vgic.msi().expect("room"),
            injector: vgic.injector().expect("room"),
            cpus: (0..config.vcpus).map(|_| cpu(lrs)).collect(),
            kicks,
            vgic,
        }
    }

    /// Maps event `n` of [`DEV`] to the n-th LPI.
    pub(crate) fn map(&mut self, n: u32, target: u16, priority: u8) {
        self.msi
            .map(DEV, EventId(n), lpi(n), VcpuId(target), LpiConfig::enabled(priority))
            .expect("a good mapping");
    }

    pub(crate) fn inject(&self, n: u32) -> Injected {
        self.injector.inject(&self.msi.domain(), DEV, EventId(n))
    }

    pub(crate) fn enter(&mut self, vcpu: usize) -> Flushed {
        self.vcpus[vcpu].flush(&mut self.cpus[vcpu])
    }

    pub(crate) fn exit(&mut self, vcpu: usize) {
        self.vcpus[vcpu].fold(&mut self.cpus[vcpu]);
    }

    /// Acknowledges and ends, as the guest, every interrupt that it can. Returns their INTIDs.
    pub(crate) fn serve(&mut self, vcpu: usize) -> Vec<u32> {
        let mut seen = Vec::new();
        let cpu = &mut self.cpus[vcpu];
        loop {
            let intid = cpu.iar1();
            if intid.0 == SPURIOUS {
                return seen;
            }
            seen.push(intid.0);
            let _ = cpu.eoir1(intid);
        }
    }

    /// Enters, serves the guest's interrupts, and exits. Returns the INTIDs that the guest took.
    pub(crate) fn run(&mut self, vcpu: usize) -> Vec<u32> {
        self.enter(vcpu);
        let seen = self.serve(vcpu);
        self.exit(vcpu);
        seen
    }

    /// Runs until no interrupt comes any more. Returns the INTIDs that the guest took.
    pub(crate) fn drain(&mut self, vcpu: usize) -> Vec<u32> {
        let mut all = Vec::new();
        loop {
            let seen = self.run(vcpu);
            if seen.is_empty() && !self.vcpus[vcpu].has_mail() {
                return all;
            }
            all.extend(seen);
        }
    }

    pub(crate) fn kicks(&self, vcpu: usize) -> u64 {
        self.kicks.0[vcpu].load(Ordering::Relaxed)
    }
}
