//! A machine with a GICv3, and guests on one thread.

use std::sync::Arc;

use vgic_core::MmioError;
use vgic_core::engine::{Config, Injector, Kick, Wired};
use vgic_core::gic::{Affinity, Gic, GicCpu, Model, Setup, SysReg};
use vgic_core::ids::{Intid, VcpuId};
use vgic_core::memory::{GuestMemory, MemoryError};

use super::Engine;

pub(crate) const GICD: u64 = 0x0800_0000;
pub(crate) const GICR: u64 = 0x080a_0000;
const REDIST: u64 = 0x2_0000;
/// SGI_base of a redistributor.
pub(crate) const SGI: u64 = 0x1_0000;

pub(crate) const SPIS: u16 = 64;
pub(crate) const ESPIS: u16 = 64;
pub(crate) const EPPIS: u16 = 32;

/// The address of the guest's memory.
pub(crate) const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x40_0000;

#[allow(clippy::disallowed_types)] // the guest's memory, not the engine
pub(crate) struct Ram(std::sync::Mutex<Vec<u8>>);

impl Ram {
    fn with<T>(
        &self,
        address: u64,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, MemoryError> {
        let error = MemoryError { address };
        let start = address.checked_sub(RAM).ok_or(error)? as usize;
        let mut ram = self.0.lock().unwrap();
        let end = start.checked_add(len).ok_or(error)?;
        ram.get_mut(start..end).map(f).ok_or(error)
    }
}

impl GuestMemory for Ram {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.with(address, data.len(), |ram| data.copy_from_slice(ram))
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.with(address, data.len(), |ram| ram.copy_from_slice(data))
    }
}

struct NoKick; // one thread

impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

pub(crate) fn no_kick() -> Arc<dyn Kick> {
    Arc::new(NoKick)
}

/// The RD_base of a vCPU.
pub(crate) fn rd(vcpu: usize) -> u64 {
    GICR + REDIST * vcpu as u64
}

/// The SGI_base of a vCPU.
pub(crate) fn sgi(vcpu: usize) -> u64 {
    rd(vcpu) + SGI
}

/// A machine with vCPUs of these affinities, but without addresses.
pub(crate) fn setup(affinities: &[u32]) -> Setup {
    let mut setup = Setup::new(40);
    setup.create(Model::V3).unwrap();
    setup.set_spis(SPIS).unwrap();
    setup.set_extended(EPPIS, ESPIS).unwrap();
    for &affinity in affinities {
        setup.add_vcpu(Affinity(affinity)).unwrap();
    }
    setup
}

pub(crate) struct World {
    pub(crate) cpus: Vec<GicCpu<Engine>>,
    pub(crate) gic: Gic<Engine>,
    pub(crate) ram: Arc<Ram>,
}

impl World {
    /// A machine after a reset: vCPUs with these affinities are off.
    pub(crate) fn reset(affinities: &[u32]) -> Self {
        Self::of(setup(affinities), affinities.len())
    }

    /// A machine after a reset, with a guest that starts with firmware.
    pub(crate) fn with_firmware(affinities: &[u32]) -> Self {
        let mut setup = setup(affinities);
        setup.set_firmware(true).unwrap();
        Self::of(setup, affinities.len())
    }

    /// A machine after a reset without LPIs.
    pub(crate) fn without_lpis(affinities: &[u32]) -> Self {
        let mut setup = setup(affinities);
        setup.set_bounds(Config { lpis: 0, ..Config::default() });
        Self::of(setup, affinities.len())
    }

    pub(crate) fn of(mut setup: Setup, vcpus: usize) -> Self {
        setup.set_distributor(GICD).unwrap();
        setup.add_redistributors(GICR, vcpus as u32).unwrap();
        Self::init(&setup, vcpus)
    }

    pub(crate) fn init(setup: &Setup, vcpus: usize) -> Self {
        let ram = Arc::new(Ram(vec![0; RAM_SIZE].into()));
        let mut setup = setup.clone();
        setup.set_memory(ram.clone()).unwrap();
        let gic: Gic<Engine> = setup.init(no_kick()).unwrap();
        let cpus = (0..vcpus).map(|n| gic.cpu(VcpuId(n as u16)).unwrap()).collect();
        Self { cpus, gic, ram }
    }

    /// A machine in which the vCPUs take every interrupt: all on and awake, all groups enabled,
    /// everything in Group 1.
    pub(crate) fn running(vcpus: u32) -> Self {
        let affinities: Vec<u32> = (0..vcpus).collect();
        let mut world = Self::reset(&affinities);
        world.start();
        world
    }

    pub(crate) fn start(&mut self) {
        for n in 0..self.cpus.len() {
            self.cpus[n].power_on();
            self.w32(rd(n) + 0x14, 0);
            self.w32(sgi(n) + 0x80, u32::MAX);
            self.w32(sgi(n) + 0x84, u32::MAX);
            self.icc(n, SysReg::ICC_PMR_EL1, 0xff);
            self.icc(n, SysReg::ICC_IGRPEN0_EL1, 1);
            self.icc(n, SysReg::ICC_IGRPEN1_EL1, 1);
        }
        for n in 0..32 {
            self.w32(GICD + 0x80 + 4 * n, u32::MAX);
            self.w32(GICD + 0x1000 + 4 * n, u32::MAX);
        }
        self.w32(GICD, 3);
    }

    pub(crate) fn read_from(
        &mut self,
        vcpu: usize,
        address: u64,
        len: usize,
    ) -> Result<u64, MmioError> {
        let mut data = [0; 8];
        self.cpus[vcpu].read(address, &mut data[..len])?;
        Ok(u64::from_le_bytes(data))
    }

    pub(crate) fn write_from(
        &mut self,
        vcpu: usize,
        address: u64,
        len: usize,
        value: u64,
    ) -> Result<(), MmioError> {
        self.cpus[vcpu].write(address, &value.to_le_bytes()[..len])
    }

    pub(crate) fn r8(&mut self, address: u64) -> u8 {
        self.read_from(0, address, 1).unwrap() as u8
    }

    pub(crate) fn w8(&mut self, address: u64, value: u8) {
        self.write_from(0, address, 1, value.into()).unwrap();
    }

    pub(crate) fn r32(&mut self, address: u64) -> u32 {
        self.read_from(0, address, 4).unwrap() as u32
    }

    pub(crate) fn w32(&mut self, address: u64, value: u32) {
        self.write_from(0, address, 4, value.into()).unwrap();
    }

    pub(crate) fn r64(&mut self, address: u64) -> u64 {
        self.read_from(0, address, 8).unwrap()
    }

    pub(crate) fn w64(&mut self, address: u64, value: u64) {
        self.write_from(0, address, 8, value).unwrap();
    }

    pub(crate) fn icc(&mut self, vcpu: usize, reg: SysReg, value: u64) {
        assert_eq!(self.cpus[vcpu].icc_write(reg, value), Some(()), "{reg:?}");
    }

    pub(crate) fn icc_of(&mut self, vcpu: usize, reg: SysReg) -> u64 {
        self.cpus[vcpu].icc_read(reg).unwrap_or_else(|| panic!("{reg:?}"))
    }

    /// Enables an SPI that is not extended, edge-triggered, with priority 0x80.
    pub(crate) fn enable_spi(&mut self, spi: u32) {
        let (word, bit) = (u64::from(spi / 32), 1 << (spi % 32));
        let trigger = GICD + 0xc00 + u64::from(spi / 16 * 4);
        let old = self.r32(trigger);
        self.w32(trigger, old | 2 << (spi % 16 * 2));
        self.w8(GICD + 0x400 + u64::from(spi), 0x80);
        self.w32(GICD + 0x100 + 4 * word, bit);
    }

    /// Sets the level of an SPI's line.
    pub(crate) fn line(&self, spi: u32, high: bool) {
        let injector = self.cpus[0].bus().injector();
        injector.set_level(Wired::Spi(Intid(spi)), high).unwrap();
    }

    /// Raises and lowers the line.
    pub(crate) fn edge(&self, spi: u32) {
        self.line(spi, true);
        self.line(spi, false);
    }

    /// Enters and exits every vCPU, as after a kick. Each passes on interrupts that are now for
    /// another one.
    pub(crate) fn look(&mut self) {
        for cpu in &mut self.cpus {
            cpu.enter();
            cpu.exit();
        }
    }

    /// Enters, and acknowledges and ends Group 1 interrupts until there is none. Returns their
    /// INTIDs.
    pub(crate) fn take(&mut self, vcpu: usize) -> Vec<u64> {
        self.take_from(vcpu, SysReg::ICC_IAR1_EL1, SysReg::ICC_EOIR1_EL1)
    }

    /// Enters, and acknowledges and ends Group 0 interrupts until there is none. Returns their
    /// INTIDs.
    pub(crate) fn take0(&mut self, vcpu: usize) -> Vec<u64> {
        self.take_from(vcpu, SysReg::ICC_IAR0_EL1, SysReg::ICC_EOIR0_EL1)
    }

    fn take_from(&mut self, vcpu: usize, iar: SysReg, eoir: SysReg) -> Vec<u64> {
        let mut all = Vec::new();
        loop {
            self.cpus[vcpu].enter();
            let intid = self.icc_of(vcpu, iar);
            if intid == 1023 {
                self.cpus[vcpu].exit();
                return all;
            }
            self.icc(vcpu, eoir, intid);
            self.cpus[vcpu].exit();
            all.push(intid);
            assert!(all.len() < 10_000, "it does not end");
        }
    }
}
