//! Register accesses of a guest, on one thread: the cost of each to a VMM, without the exit itself.

use std::sync::Arc;

use vgic_core::engine::{Engine, Injector, Wired};
use vgic_core::gic::{Affinity, Gic, GicCpu, Model, Setup, SetupError, SysReg};
use vgic_core::ids::Intid;

use crate::cost::NoKick;

const GICD: u64 = 0x0800_0000;
const GICC: u64 = 0x0801_0000;
const GICR: u64 = 0x080a_0000;

/// The SPI that the benchmark enables, makes pending, takes and ends.
const SPI: u32 = 40;

/// A controller with one running vCPU.
pub struct FrameBench<E: Engine> {
    cpu: GicCpu<E>,
    device: E::Injector,
    model: Model,
}

impl<E: Engine> FrameBench<E> {
    /// Creates a machine of a model, with everything enabled.
    ///
    /// # Errors
    /// The engine's error, if the setup fails.
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

    /// Writes GICD_ISENABLER for one interrupt, which is already enabled except at the first call.
    pub fn enable(&mut self) {
        self.write(GICD + 0x100 + u64::from(SPI) / 32 * 4, 1 << (SPI % 32));
    }

    /// Writes one byte of GICD_IPRIORITYR.
    pub fn prioritise(&mut self) {
        self.cpu.write(GICD + 0x400 + u64::from(SPI), &[0x80]).expect("a byte");
    }

    /// Reads GICC_IAR or ICC_IAR1_EL1 with nothing pending.
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

    /// Handles an SPI from its device to its end: pulse, entry, IAR, EOIR, exit.
    pub fn cycle(&mut self) {
        let _ = self.device.pulse(Wired::Spi(Intid(SPI))).expect("it exists");
        self.cpu.enter();
        let intid = self.iar();
        assert_eq!(intid, SPI);
        self.eoir(intid);
        self.cpu.exit();
    }

    /// Sends an SGI to the sender itself, by GICD_SGIR or ICC_SGI1R_EL1.
    pub fn send_sgi(&mut self) {
        match self.model {
            Model::V2 => self.write(GICD + 0xf00, 2 << 24),
            Model::V3 => {
                self.cpu.icc_write(SysReg::ICC_SGI1R_EL1, 1).expect("it can be written");
            }
        }
    }
}

/// A GICv3 in which one vCPU sends SGIs to all others.
pub struct FanOut<E: Engine> {
    cpus: Vec<GicCpu<E>>,
    /// The value that is written to ICC_SGI1R_EL1.
    sgi: u64,
}

impl<E: Engine> FanOut<E> {
    /// Creates a machine with `targets` other vCPUs, 1 to 15.
    ///
    /// # Errors
    /// The engine's error, if the setup fails.
    pub fn new(targets: u32) -> Result<Self, SetupError> {
        let mut setup = Setup::new(40);
        setup.create(Model::V3)?;
        setup.set_lrs(4)?;
        let ids: Vec<_> =
            (0..=targets).map(|n| setup.add_vcpu(Affinity(n))).collect::<Result<_, _>>()?;
        setup.set_distributor(GICD)?;
        setup.add_redistributors(GICR, targets + 1)?;
        let gic: Gic<E> = setup.init(Arc::new(NoKick))?;
        let mut cpus: Vec<_> = ids.into_iter().map(|id| gic.cpu(id)).collect::<Result<_, _>>()?;
        for (n, cpu) in cpus.iter_mut().enumerate() {
            cpu.power_on();
            let redist = GICR + 0x2_0000 * n as u64;
            for (address, value) in [
                (GICD, 3),
                (redist + 0x14, 0),
                (redist + 0x1_0080, u32::MAX),
                (redist + 0x1_0100, 0xffff),
            ] {
                cpu.write(address, &value.to_le_bytes()).expect("a word");
            }
            for (reg, value) in [(SysReg::ICC_PMR_EL1, 0xff), (SysReg::ICC_IGRPEN1_EL1, 1)] {
                cpu.icc_write(reg, value).expect("it can be written");
            }
            cpu.enter();
        }
        // INTID 3. The target list starts at Aff0 = 1.
        Ok(Self { cpus, sgi: 3 << 24 | ((1 << targets) - 1) << 1 })
    }

    /// Writes ICC_SGI1R_EL1 once; then each target performs an entry, IAR, EOIR and exit.
    pub fn send_and_take(&mut self) {
        let Some((sender, targets)) = self.cpus.split_first_mut() else { return };
        sender.icc_write(SysReg::ICC_SGI1R_EL1, self.sgi).expect("it can be written");
        for cpu in targets {
            cpu.enter();
            assert_eq!(cpu.icc_read(SysReg::ICC_IAR1_EL1).expect("it can be read"), 3);
            cpu.icc_write(SysReg::ICC_EOIR1_EL1, 3).expect("it can be written");
            cpu.exit();
        }
    }
}
