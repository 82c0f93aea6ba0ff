//! The register model of this project, with a software CPU interface.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use vgic_core::Vgic;
use vgic_core::engine::{Injector, Kick, Wired};
use vgic_core::gic::{self, Affinity, Gic, GicCpu, Setup};
use vgic_core::ids::{DeviceId, Intid, VcpuId};
use vgic_core::its::ItsConfig;
use vgic_core::memory::{GuestMemory, MemoryError};

use crate::memory::Memory;
use crate::regs::FIRST_OF_CPU_1;
use crate::target::{
    Action, Answer, GICC, GICD, GICR, GITS, Lines, Model, RAM, RAM_SIZE, Target, VCPUS,
};

/// A host with one thread, which is the one that the engine would wait for. Waiting is therefore a
/// bug, which must be reported and must not hang.
struct Alone;

impl Kick for Alone {
    fn kick(&self, _vcpu: VcpuId) {}

    fn wait_for_exit(&self, vcpu: VcpuId, done: &dyn Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(1);
        while !done() {
            assert!(Instant::now() < end, "waits for vCPU {} while nobody is in the guest", vcpu.0);
            thread::yield_now();
        }
    }
}

/// LPIs exist, but they are never enabled, so their tables are never read.
struct NoMemory;

impl GuestMemory for NoMemory {
    fn read(&self, address: u64, _: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError { address })
    }

    fn write(&self, address: u64, _: &[u8]) -> Result<(), MemoryError> {
        Err(MemoryError { address })
    }
}

/// A GIC of this project without an ITS.
pub struct Ours {
    cpu: GicCpu<Vgic>,
    others: Vec<GicCpu<Vgic>>,
}

/// A GICv3 of this project with an ITS and several vCPUs, which are off.
pub struct OursWithIts {
    gic: Gic<Vgic>,
    cpus: Vec<GicCpu<Vgic>>,
    memory: Arc<Memory>,
    /// Whether vCPUs are on for a moment before the pending tables are written, to load pending
    /// LPIs into list registers.
    looks: bool,
    /// Whether a register was written after the pending tables were written.
    stale: bool,
}

impl OursWithIts {
    /// Creates a GIC in the state after a reset. With `looks`, the vCPUs are on for a moment before
    /// the pending tables are written. This must make no difference.
    ///
    /// # Errors
    /// If the machine cannot be set up.
    pub fn new(lrs: usize, looks: bool) -> Result<Self> {
        let mut setup = Setup::new(40);
        setup.create(gic::Model::V3)?;
        setup.set_spis(224)?;
        let memory = Arc::new(Memory::new(RAM, RAM_SIZE));
        setup.set_memory(memory.clone())?;
        // QEMU resets its redistributors and groups to the values for firmware.
        setup.set_firmware(true)?;
        setup.set_lrs(lrs)?;
        for n in 0..VCPUS {
            setup.add_vcpu(Affinity(n.into()))?;
        }
        setup.set_distributor(GICD)?;
        setup.add_redistributors(GICR, VCPUS.into())?;
        // As in QEMU, a CPU's writes to the translation frame have DeviceID 0.
        setup.add_its(ItsConfig { cpu_device: Some(DeviceId(0)), ..ItsConfig::at(GITS) })?;
        let gic: Gic<Vgic> = setup.init(Arc::new(Alone))?;
        let cpus = (0..VCPUS).map(|n| gic.cpu(VcpuId(n))).collect::<Result<_, _>>()?;
        Ok(Self { gic, cpus, memory, looks, stale: true })
    }

    fn one(&mut self, action: Action) -> Result<Answer> {
        let mut value = [0; 8];
        match action {
            Action::Read { address, bytes } => {
                let data = &mut value[..usize::from(bytes)];
                if address < RAM {
                    self.cpus[0].read(address, data)?;
                } else {
                    if std::mem::take(&mut self.stale) {
                        self.look();
                        self.gic.save_pending_tables()?;
                    }
                    self.memory.read(address, data)?;
                }
            }
            Action::Write { address, bytes, value } => {
                let data = &value.to_le_bytes()[..usize::from(bytes)];
                if address < RAM {
                    self.cpus[0].write(address, data)?;
                    self.stale = true;
                } else {
                    self.memory.write(address, data)?;
                }
            }
            Action::Zero { address, len } => {
                self.memory.clear(address, len)?;
            }
            Action::Line { .. } => bail!("no lines here"),
        }
        Ok(Answer { value: u64::from_le_bytes(value), lines: Lines::default() })
    }

    /// If `looks` is set, loads pending LPIs into list registers and takes them back.
    fn look(&mut self) {
        for cpu in self.cpus.iter_mut().filter(|_| self.looks) {
            cpu.power_on();
            cpu.enter();
            cpu.exit();
            cpu.power_off();
        }
    }
}

impl Target for OursWithIts {
    fn perform(&mut self, actions: &[Action]) -> Result<Vec<Answer>> {
        actions.iter().map(|&action| caught(action, || self.one(action))).collect()
    }
}

/// Returns a panic as an error, so that it is compared like any other answer.
fn caught(action: Action, f: impl FnOnce() -> Result<Answer>) -> Result<Answer> {
    let done = panic::catch_unwind(AssertUnwindSafe(f));
    done.unwrap_or_else(|_| Err(anyhow!("it panicked"))).with_context(|| format!("{action:x?}"))
}

impl Ours {
    /// Creates a GIC in the state after a reset, with `lrs` list registers. Their number must make
    /// no difference.
    ///
    /// # Errors
    /// If the machine cannot be set up.
    pub fn new(model: Model, lrs: usize) -> Result<Self> {
        let mut setup = Setup::new(40);
        setup.create(match model {
            Model::V2 => gic::Model::V2,
            Model::V3 | Model::Its => gic::Model::V3,
        })?;
        // QEMU's GICv3 reports one register of SPIs less than it has (differences.md).
        setup.set_spis(match model {
            Model::V2 => 256,
            Model::V3 | Model::Its => 224,
        })?;
        if let Model::V3 = model {
            setup.set_memory(Arc::new(NoMemory))?;
            // QEMU resets its GIC to the values for firmware.
            setup.set_firmware(true)?;
        }
        setup.set_lrs(lrs)?;
        for n in 0..model.cpus() {
            setup.add_vcpu(Affinity(n))?;
        }
        setup.set_distributor(GICD)?;
        match model {
            Model::V2 => setup.set_cpu_interface(GICC)?,
            Model::V3 | Model::Its => setup.add_redistributors(GICR, model.cpus())?,
        }
        let gic: Gic<Vgic> = setup.init(Arc::new(Alone))?;
        let on = |n| {
            let mut cpu = gic.cpu(VcpuId(n))?;
            cpu.power_on();
            anyhow::Ok(cpu)
        };
        let mut cpu = on(0)?;
        cpu.enter();
        let others = (1..model.cpus() as u16).map(on).collect::<Result<_>>()?;
        Ok(Self { cpu, others })
    }

    fn one(&mut self, action: Action) -> Result<Answer> {
        let mut value = [0; 8];
        match action {
            Action::Read { address, bytes } => {
                // An error here is an abort to a guest. QEMU has none in these frames, so an abort
                // is a difference.
                self.cpu.read(address, &mut value[..usize::from(bytes)])?;
            }
            Action::Write { address, bytes, value } => {
                self.cpu.write(address, &value.to_le_bytes()[..usize::from(bytes)])?;
            }
            Action::Zero { .. } => bail!("no memory here"),
            Action::Line { intid, high } => {
                let wired = match intid {
                    0..32 => Wired::Private(VcpuId(0), Intid(intid)),
                    32..FIRST_OF_CPU_1 => Wired::Spi(Intid(intid)),
                    _ => Wired::Private(VcpuId(1), Intid(intid - FIRST_OF_CPU_1)),
                };
                self.cpu.exit();
                self.cpu.bus().injector().set_level(wired, high)?;
            }
        }
        // Treats each access as an exit, so that interrupts that became pending are in list
        // registers before the next access.
        for cpu in &mut self.others {
            cpu.enter();
            cpu.exit();
        }
        self.cpu.exit();
        self.cpu.enter();
        let lines = Lines { irq: self.cpu.irq_line(), fiq: self.cpu.fiq_line() };
        Ok(Answer { value: u64::from_le_bytes(value), lines })
    }
}

impl Target for Ours {
    fn perform(&mut self, actions: &[Action]) -> Result<Vec<Answer>> {
        actions.iter().map(|&action| caught(action, || self.one(action))).collect()
    }
}
