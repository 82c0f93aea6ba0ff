//! The register model of this project, with a software CPU interface.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use vgic_core::Vgic;
use vgic_core::engine::{Injector, Kick, Wired};
use vgic_core::gic::{self, Affinity, Gic, GicCpu, Setup};
use vgic_core::ids::{Intid, VcpuId};
use vgic_core::memory::{GuestMemory, MemoryError};

use crate::regs::FIRST_OF_CPU_1;
use crate::target::{Action, Answer, GICC, GICD, GICR, Lines, Model, Target};

/// The only thread is the one that the engine would wait for, so waiting is a bug to report, not to hang on.
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

/// LPIs exist, but their tables are never looked at: they are never enabled.
struct NoMemory;

impl GuestMemory for NoMemory {
    fn read(&self, address: u64, _: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError { address })
    }

    fn write(&self, address: u64, _: &[u8]) -> Result<(), MemoryError> {
        Err(MemoryError { address })
    }
}

/// One controller.
pub struct Ours {
    cpu: GicCpu<Vgic>,
    others: Vec<GicCpu<Vgic>>,
}

impl Ours {
    /// As after a reset, with `lrs` list registers: how many there are must make no difference.
    ///
    /// # Errors
    /// If the machine cannot be set up.
    pub fn new(model: Model, lrs: usize) -> Result<Self> {
        let mut setup = Setup::new(40);
        setup.create(match model {
            Model::V2 => gic::Model::V2,
            Model::V3 => gic::Model::V3,
        })?;
        // QEMU's GICv3 announces one register of SPIs less than it has (differences.md).
        setup.set_spis(match model {
            Model::V2 => 256,
            Model::V3 => 224,
        })?;
        if let Model::V3 = model {
            setup.set_memory(Arc::new(NoMemory))?;
        }
        setup.set_lrs(lrs)?;
        for n in 0..model.cpus() {
            setup.add_vcpu(Affinity(n))?;
        }
        setup.set_distributor(GICD)?;
        match model {
            Model::V2 => setup.set_cpu_interface(GICC)?,
            Model::V3 => setup.add_redistributors(GICR, model.cpus())?,
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
                // To a guest that is an abort. QEMU has none in these frames, so it is a difference.
                self.cpu.read(address, &mut value[..usize::from(bytes)])?;
            }
            Action::Write { address, bytes, value } => {
                self.cpu.write(address, &value.to_le_bytes()[..usize::from(bytes)])?;
            }
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
        // As if each access were an exit: what has become pending is offered before the next.
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
        let one = |&action: &Action| {
            let done = panic::catch_unwind(AssertUnwindSafe(|| self.one(action)));
            done.unwrap_or_else(|_| Err(anyhow!("it panicked")))
                .with_context(|| format!("{action:x?}"))
        };
        actions.iter().map(one).collect()
    }
}
