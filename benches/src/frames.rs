//! Register accesses of a guest, on one thread: what a VMM pays for each beside the exit itself.

use std::sync::Arc;

use vgic_core::engine::{Engine, Injector, Kick, Wired};
use vgic_core::gic::{Affinity, Gic, GicCpu, Model, Setup, SetupError, SysReg};
use vgic_core::ids::{Intid, VcpuId};

const GICD: u64 = 0x0800_0000;
const GICC: u64 = 0x0801_0000;
const GICR: u64 = 0x080a_0000;

/// The SPI that is enabled, made pending, taken and ended.
const SPI: u32 = 40;

/// A host with one thread: nobody needs to be woken.
struct NoKick;

impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

/// A controller with one vCPU, which runs.
pub struct FrameBench<E: Engine> {
    cpu: GicCpu<E>,
    device: E::Injector,
    model: Model,
}

impl<E: Engine> FrameBench<E> {
    /// A machine of a model, with everything enabled.
    ///
    /// # Errors
    /// Whatever the engine says.
    pub fn new(model: Model) -> Result<Self, SetupError> {
        let mut setup = Setup::new(40);
        setup.create(model)?;
        setup.set_lrs(4)?;
        let id = setup.add_vcpu(Affinity(0))?;
        setup.set_distributor(GICD)?;
        match model {
            Model::V2 => setup.set_cpu_interface(GICC)?,
            Model::V3 => setup.add_redistributors(GICR, 1)?,
        }
        let gic: Gic<E> = setup.init(Arc::new(NoKick))?;
        let (cpu, device) = (gic.cpu(id)?, gic.engine().injector()?);
        let mut bench = Self { cpu, device, model };
        bench.cpu.power_on();
        bench.write(GICD, 3);
        bench.write(GICD + 0x84, u32::MAX);
        // Edge-triggered.
        bench.write(GICD + 0xc00 + u64::from(SPI) / 16 * 4, 0xaaaa_aaaa);
        match model {
            Model::V2 => {
                bench.write(GICC + 4, 0xff);
                // Both groups, and AckCtl.
                bench.write(GICC, 7);
            }
            Model::V3 => {
                bench.write(GICR + 0x14, 0);
                // ICC_SGI1R_EL1 sends SGIs of Group 1 only.
                bench.write(GICR + 0x1_0080, u32::MAX);
                for (reg, value) in [(SysReg::ICC_PMR_EL1, 0xff), (SysReg::ICC_IGRPEN1_EL1, 1)] {
                    bench.cpu.icc_write(reg, value).expect("it can be written");
                }
            }
        }
        bench.enable();
        bench.cpu.enter();
        Ok(bench)
    }

    fn write(&mut self, address: u64, value: u32) {
        self.cpu.write(address, &value.to_le_bytes()).expect("a word");
    }

    fn read(&mut self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.cpu.read(address, &mut data).expect("a word");
        u32::from_le_bytes(data)
    }

    /// GICD_ISENABLER: one interrupt, which is enabled already after the first time.
    pub fn enable(&mut self) {
        self.write(GICD + 0x100 + u64::from(SPI) / 32 * 4, 1 << (SPI % 32));
    }

    /// GICD_IPRIORITYR: one byte.
    pub fn prioritise(&mut self) {
        self.cpu.write(GICD + 0x400 + u64::from(SPI), &[0x80]).expect("a byte");
    }

    /// GICC_IAR or ICC_IAR1_EL1, with nothing pending.
    pub fn spurious(&mut self) {
        assert_eq!(self.iar(), 1023);
    }

    fn iar(&mut self) -> u32 {
        match self.model {
            Model::V2 => self.read(GICC + 0xc),
            Model::V3 => self.cpu.icc_read(SysReg::ICC_IAR1_EL1).expect("it can be read") as u32,
        }
    }

    fn eoir(&mut self, intid: u32) {
        match self.model {
            Model::V2 => self.write(GICC + 0x10, intid),
            Model::V3 => {
                let ended = self.cpu.icc_write(SysReg::ICC_EOIR1_EL1, intid.into());
                ended.expect("it can be written");
            }
        }
    }

    /// An SPI from its device to its end: pulse, entry, IAR, EOIR, exit.
    pub fn cycle(&mut self) {
        let _ = self.device.pulse(Wired::Spi(Intid(SPI))).expect("it exists");
        self.cpu.enter();
        let intid = self.iar();
        assert_eq!(intid, SPI);
        self.eoir(intid);
        self.cpu.exit();
    }

    /// An SGI to oneself: GICD_SGIR or ICC_SGI1R_EL1.
    pub fn send_sgi(&mut self) {
        match self.model {
            Model::V2 => self.write(GICD + 0xf00, 2 << 24),
            Model::V3 => {
                self.cpu.icc_write(SysReg::ICC_SGI1R_EL1, 1).expect("it can be written");
            }
        }
    }
}
