//! This project's machine: two vCPUs with software CPU interfaces, on one thread.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use vgic_core::Vgic;
use vgic_core::engine::{Injector, Kick, Wired};
use vgic_core::gic::{self, Affinity, Gic, GicCpu, Setup};
use vgic_core::ids::{DeviceId, Intid, VcpuId};
use vgic_core::its::ItsConfig;
use vgic_core::memory::GuestMemory;

use super::lpis::{MEMORY, MEMORY_SIZE};
use super::steps::{CPUS, Kind, Machine, Operation, Outcome, Step, system_register};
use super::style::Style;
use crate::memory::Memory;
use crate::target::{GICC, GICD, GICR, GITS, Model};

/// The number of rounds in which each vCPU may exit. After these, no interrupt may remain to be
/// handed over.
const ROUNDS: usize = 100;

type Cpu = GicCpu<Vgic>;

/// The host. All vCPUs are on this thread, so a vCPU that is waited for leaves its guest at once.
#[derive(Default)]
struct Host {
    /// The vCPUs keep the machine alive, and the machine keeps its host alive. Dropping `Ours`
    /// takes the vCPUs out to break this cycle.
    cpus: [Mutex<Option<Cpu>>; CPUS],
    kicked: [AtomicBool; CPUS],
}

impl Host {
    fn with<T>(&self, cpu: usize, f: impl FnOnce(&mut Cpu) -> T) -> Result<T> {
        // A panic during an access poisons the lock. The panic is reported, and the machine is not
        // used any more.
        let mut cpu = self.cpus[cpu].try_lock().map_err(|_| anyhow!("a vCPU waits for itself"))?;
        cpu.as_mut().map(f).context("a vCPU that is there")
    }
}

impl Kick for Host {
    fn kick(&self, vcpu: VcpuId) {
        self.kicked[vcpu.index()].store(true, Ordering::Relaxed);
    }

    fn wait_for_exit(&self, vcpu: VcpuId, done: &dyn Fn() -> bool) {
        if !done() {
            self.with(vcpu.index(), Cpu::exit).expect("another vCPU than the one that waits");
        }
        assert!(done(), "waits for vCPU {}, which has left its guest", vcpu.0);
    }
}

/// This project's machine.
pub struct Ours {
    host: Arc<Host>,
    memory: Arc<Memory>,
    /// Whether a vCPU leaves its guest only for the exits of a real guest: frames, kicks,
    /// maintenance. Otherwise it leaves after each access.
    stays: bool,
}

impl Ours {
    /// Creates a machine in the state after a reset.
    ///
    /// # Errors
    /// If the machine cannot be set up.
    pub fn new(style: Style) -> Result<Self> {
        let mut setup = Setup::new(40);
        let memory = Arc::new(Memory::new(MEMORY, MEMORY_SIZE));
        match style.model {
            Model::V2 => {
                setup.create(gic::Model::V2)?;
                setup.set_spis(256)?;
            }
            Model::V3 | Model::Its => {
                setup.create(gic::Model::V3)?;
                setup.set_spis(224)?;
                setup.set_memory(memory.clone())?;
            }
        }
        setup.set_lrs(style.lrs)?;
        for n in 0..CPUS as u32 {
            setup.add_vcpu(Affinity(n))?;
        }
        setup.set_distributor(GICD)?;
        if style.model == Model::V2 {
            setup.set_cpu_interface(GICC)?;
        } else {
            setup.add_redistributors(GICR, CPUS as u32)?;
            // As in QEMU, a CPU's writes to the translation frame have DeviceID 0.
            setup.add_its(ItsConfig { cpu_device: Some(DeviceId(0)), ..ItsConfig::at(GITS) })?;
        }
        let host = Arc::new(Host::default());
        let gic: Gic<Vgic> = setup.init(host.clone())?;
        for (n, place) in (0..).zip(&host.cpus) {
            let mut cpu = gic.cpu(VcpuId(n))?;
            cpu.power_on();
            cpu.enter();
            *place.lock().map_err(|_| anyhow!("a new lock"))? = Some(cpu);
        }
        Ok(Self { host, memory, stays: style.stays })
    }

    fn one(&self, operation: Operation) -> Result<Outcome> {
        let Operation { kind, cpu, width, register, address, value } = operation;
        let bytes = value.to_le_bytes();
        let mut read = [0; 8];
        let width = usize::from(width);
        let faulted = self.host.with(cpu.into(), |cpu| {
            anyhow::Ok(match kind {
                Kind::Read if address >= MEMORY => {
                    self.memory.read(address, &mut read[..width])?;
                    false
                }
                Kind::Write if address >= MEMORY => {
                    self.memory.write(address, &bytes[..width])?;
                    false
                }
                Kind::Read => cpu.read(address, &mut read[..width]).is_err(),
                Kind::Write => cpu.write(address, &bytes[..width]).is_err(),
                Kind::ReadRegister => match cpu.icc_read(system_register(register)) {
                    Some(value) => {
                        read = value.to_le_bytes();
                        false
                    }
                    None => true,
                },
                Kind::WriteRegister => cpu.icc_write(system_register(register), value).is_none(),
                Kind::Line => {
                    let intid = Intid(address as u32);
                    let wired = match intid.is_spi() {
                        true => Wired::Spi(intid),
                        false => Wired::Private(cpu.id(), intid),
                    };
                    cpu.bus().injector().set_level(wired, value != 0)?;
                    false
                }
                Kind::Clear => {
                    self.memory.clear(address, value)?;
                    false
                }
            })
        })??;
        Ok(Outcome { value: u64::from_le_bytes(read), asserted: self.settle()?, faulted })
    }

    /// Lets vCPUs leave their guests and come back if they were kicked, have mail, or have a
    /// maintenance interrupt pending. A vCPU that hands over an interrupt may kick another one, so
    /// this repeats until no vCPU leaves. Returns the lines of each CPU.
    fn settle(&self) -> Result<[u8; CPUS]> {
        let mut leaves = [!self.stays; CPUS];
        let mut quiet = false;
        for _ in 0..ROUNDS {
            quiet = true;
            for (n, kicked) in self.host.kicked.iter().enumerate() {
                let leaves =
                    std::mem::take(&mut leaves[n]) || kicked.swap(false, Ordering::Relaxed);
                quiet &= !self.host.with(n, |cpu| {
                    let asked = cpu.cpu_interface().maintenance_pending();
                    let leaves = leaves || asked || cpu.has_mail();
                    if leaves {
                        cpu.exit();
                    }
                    cpu.enter();
                    leaves
                })?;
            }
            if quiet {
                break;
            }
        }
        ensure!(quiet, "vCPUs keep each other from their guests");
        let mut asserted = [0; CPUS];
        for (n, asserted) in asserted.iter_mut().enumerate() {
            *asserted = self.host.with(n, |cpu| {
                let bit = |high, bit| if high { bit } else { 0 };
                bit(cpu.irq_line(), Outcome::IRQ) | bit(cpu.fiq_line(), Outcome::FIQ)
            })?;
        }
        Ok(asserted)
    }
}

impl Machine for Ours {
    fn perform(&mut self, steps: &[Step]) -> Result<Vec<Outcome>> {
        let one = |step: &Step| {
            let done = panic::catch_unwind(AssertUnwindSafe(|| self.one(step.operation)));
            done.unwrap_or_else(|_| Err(anyhow!("it panicked")))
                .with_context(|| format!("{:x?}", step.operation))
        };
        steps.iter().map(one).collect()
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        for place in &self.host.cpus {
            let cpu = place.lock().unwrap_or_else(PoisonError::into_inner).take();
            // If an access has panicked before, dropping the vCPU may panic again.
            let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(cpu)));
        }
    }
}
