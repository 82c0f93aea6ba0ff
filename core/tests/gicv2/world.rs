//! A GICv2 machine on one thread: every vCPU is in the guest only while it performs an access.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vgic_core::MmioError;
use vgic_core::engine::*;
use vgic_core::gic::*;
use vgic_core::ids::*;

use crate::Vgic;

pub(crate) const GICD: u64 = 0x0800_0000;
pub(crate) const GICC: u64 = 0x0801_0000;
pub(crate) const V2M: u64 = 0x0802_0000;

pub(crate) const CTLR: u64 = GICD;
pub(crate) const TYPER: u64 = GICD + 0x4;
pub(crate) const IIDR: u64 = GICD + 0x8;
pub(crate) const IGROUPR: u64 = GICD + 0x80;
pub(crate) const ISENABLER: u64 = GICD + 0x100;
pub(crate) const ICENABLER: u64 = GICD + 0x180;
pub(crate) const ISPENDR: u64 = GICD + 0x200;
pub(crate) const ICPENDR: u64 = GICD + 0x280;
pub(crate) const ISACTIVER: u64 = GICD + 0x300;
pub(crate) const ICACTIVER: u64 = GICD + 0x380;
pub(crate) const IPRIORITYR: u64 = GICD + 0x400;
pub(crate) const ITARGETSR: u64 = GICD + 0x800;
pub(crate) const ICFGR: u64 = GICD + 0xc00;
pub(crate) const NSACR: u64 = GICD + 0xe00;
pub(crate) const SGIR: u64 = GICD + 0xf00;
pub(crate) const CPENDSGIR: u64 = GICD + 0xf10;
pub(crate) const SPENDSGIR: u64 = GICD + 0xf20;
pub(crate) const PIDR2: u64 = GICD + 0xfe8;

pub(crate) const C_CTLR: u64 = GICC;
pub(crate) const PMR: u64 = GICC + 0x4;
pub(crate) const BPR: u64 = GICC + 0x8;
pub(crate) const IAR: u64 = GICC + 0xc;
pub(crate) const EOIR: u64 = GICC + 0x10;
pub(crate) const RPR: u64 = GICC + 0x14;
pub(crate) const HPPIR: u64 = GICC + 0x18;
pub(crate) const ABPR: u64 = GICC + 0x1c;
pub(crate) const AIAR: u64 = GICC + 0x20;
pub(crate) const AEOIR: u64 = GICC + 0x24;
pub(crate) const AHPPIR: u64 = GICC + 0x28;
pub(crate) const APR: u64 = GICC + 0xd0;
pub(crate) const NSAPR: u64 = GICC + 0xe0;
pub(crate) const C_IIDR: u64 = GICC + 0xfc;
pub(crate) const DIR: u64 = GICC + 0x1000;

/// The bits of GICC_CTLR.
pub(crate) const EN0: u32 = 1 << 0;
pub(crate) const EN1: u32 = 1 << 1;
pub(crate) const ACK_CTL: u32 = 1 << 2;
pub(crate) const FIQ_EN: u32 = 1 << 3;
pub(crate) const CBPR: u32 = 1 << 4;
pub(crate) const EOI_MODE: u32 = 1 << 9;

/// An acknowledge returns this INTID when no interrupt is pending.
pub(crate) const NONE: u32 = 1023;

/// A bit for each vCPU that was kicked.
#[derive(Default)]
struct Kicks(AtomicU64);

impl Kick for Kicks {
    fn kick(&self, vcpu: VcpuId) {
        self.0.fetch_or(1 << vcpu.0, Ordering::SeqCst);
    }

    fn wait_for_exit(&self, vcpu: VcpuId, done: &dyn Fn() -> bool) {
        assert!(done(), "{vcpu:?} is in the guest, on this thread");
    }
}

/// The machine. It has a frame for MSIs (the 16 SPIs from 80 up) if it has enough SPIs.
pub(crate) fn machine(vcpus: u16, spis: u16) -> Gic<Vgic> {
    machine_with(vcpus, spis, 16, Arc::default())
}

fn machine_with(vcpus: u16, spis: u16, lrs: usize, kicks: Arc<Kicks>) -> Gic<Vgic> {
    let mut setup = Setup::new(40);
    setup.create(Model::V2).unwrap();
    for vcpu in 0..vcpus {
        setup.add_vcpu(Affinity(vcpu.into())).unwrap();
    }
    setup.set_spis(spis).unwrap();
    setup.set_lrs(lrs).unwrap();
    setup.set_distributor(GICD).unwrap();
    setup.set_cpu_interface(GICC).unwrap();
    if spis >= 64 {
        setup.add_msi_frame(MsiFrame { base: V2M, first: 80, count: 16 }).unwrap();
    }
    setup.init(kicks).unwrap()
}

pub(crate) struct World {
    // The vCPUs are dropped before `gic`, as in a VMM.
    pub(crate) cpus: Vec<GicCpu<Vgic>>,
    pub(crate) injector: <Vgic as Engine>::Injector,
    pub(crate) gic: Gic<Vgic>,
    kicks: Arc<Kicks>,
}

impl World {
    /// A machine after a reset, with all vCPUs on.
    pub(crate) fn new(vcpus: u16, spis: u16) -> Self {
        Self::with_lrs(vcpus, spis, 16)
    }

    /// A machine after a reset, with all vCPUs on and `lrs` list registers.
    pub(crate) fn with_lrs(vcpus: u16, spis: u16, lrs: usize) -> Self {
        let kicks = Arc::<Kicks>::default();
        let gic = machine_with(vcpus, spis, lrs, Arc::clone(&kicks));
        let mut cpus: Vec<_> = (0..vcpus).map(|v| gic.cpu(VcpuId(v)).unwrap()).collect();
        cpus.iter_mut().for_each(GicCpu::power_on);
        Self { cpus, injector: gic.engine().injector().unwrap(), gic, kicks }
    }

    /// A machine after the guest has initialized all CPUs: Group 0 enabled everywhere, no priority
    /// masked.
    pub(crate) fn ready(vcpus: u16, spis: u16) -> Self {
        Self::new(vcpus, spis).set_up()
    }

    pub(crate) fn set_up(mut self) -> Self {
        self.set(0, CTLR, 3);
        for cpu in 0..self.cpus.len() {
            self.set(cpu, C_CTLR, EN0);
            self.set(cpu, PMR, 0xff);
        }
        self
    }

    /// Enters every vCPU that was kicked, and this one.
    fn enter(&mut self, cpu: usize) {
        loop {
            let kicked = self.kicks.0.swap(0, Ordering::SeqCst);
            if kicked == 0 {
                break;
            }
            for other in (0..self.cpus.len()).filter(|n| kicked >> n & 1 != 0) {
                self.cpus[other].enter();
                self.cpus[other].exit();
            }
        }
        self.cpus[cpu].enter();
    }

    pub(crate) fn try_get<const N: usize>(
        &mut self,
        cpu: usize,
        address: u64,
    ) -> Result<[u8; N], MmioError> {
        let mut data = [0xee; N];
        self.enter(cpu);
        let result = self.cpus[cpu].read(address, &mut data);
        self.cpus[cpu].exit();
        result.map(|()| data)
    }

    pub(crate) fn try_set(
        &mut self,
        cpu: usize,
        address: u64,
        data: &[u8],
    ) -> Result<(), MmioError> {
        self.enter(cpu);
        let result = self.cpus[cpu].write(address, data);
        self.cpus[cpu].exit();
        result
    }

    /// Reads a word as the guest on `cpu`.
    pub(crate) fn get(&mut self, cpu: usize, address: u64) -> u32 {
        u32::from_le_bytes(self.try_get(cpu, address).unwrap())
    }

    pub(crate) fn get8(&mut self, cpu: usize, address: u64) -> u8 {
        self.try_get::<1>(cpu, address).unwrap()[0]
    }

    pub(crate) fn get16(&mut self, cpu: usize, address: u64) -> u16 {
        u16::from_le_bytes(self.try_get(cpu, address).unwrap())
    }

    /// Writes a word as the guest on `cpu`.
    pub(crate) fn set(&mut self, cpu: usize, address: u64, value: u32) {
        self.try_set(cpu, address, &value.to_le_bytes()).unwrap();
    }

    pub(crate) fn set8(&mut self, cpu: usize, address: u64, value: u8) {
        self.try_set(cpu, address, &[value]).unwrap();
    }

    pub(crate) fn set16(&mut self, cpu: usize, address: u64, value: u16) {
        self.try_set(cpu, address, &value.to_le_bytes()).unwrap();
    }

    /// Returns the bit of an INTID in an array of registers with one bit for each interrupt.
    pub(crate) fn bit(&mut self, cpu: usize, array: u64, intid: u32) -> bool {
        self.get(cpu, array + u64::from(intid / 32) * 4) >> (intid % 32) & 1 != 0
    }

    /// Writes a word in which only this INTID's bit is 1.
    pub(crate) fn set_bit(&mut self, cpu: usize, array: u64, intid: u32) {
        self.set(cpu, array + u64::from(intid / 32) * 4, 1 << (intid % 32));
    }

    /// Enables an SPI for CPU `target`.
    pub(crate) fn enable(&mut self, intid: u32, target: usize) {
        self.set8(0, ITARGETSR + u64::from(intid), 1 << target);
        self.set_bit(0, ISENABLER, intid);
    }

    pub(crate) fn edge(&mut self, intid: u32) {
        let register = ICFGR + u64::from(intid / 16) * 4;
        let old = self.get(0, register);
        self.set(0, register, old | 0b10 << (intid % 16 * 2));
    }

    pub(crate) fn line(&self, intid: u32, high: bool) {
        self.injector.set_level(Wired::Spi(Intid(intid)), high).unwrap();
    }

    pub(crate) fn irq(&mut self, cpu: usize) -> bool {
        self.enter(cpu);
        self.cpus[cpu].exit();
        self.cpus[cpu].irq_line()
    }

    pub(crate) fn fiq(&mut self, cpu: usize) -> bool {
        self.enter(cpu);
        self.cpus[cpu].exit();
        self.cpus[cpu].fiq_line()
    }

    /// Reads GICC_IAR as an interrupt handler does until no interrupt is left, and ends each at
    /// once. Returns the values.
    pub(crate) fn serve(&mut self, cpu: usize) -> Vec<u32> {
        let mut seen = Vec::new();
        loop {
            let iar = self.get(cpu, IAR);
            if iar & 0x3ff >= 1020 {
                return seen;
            }
            seen.push(iar);
            assert!(seen.len() <= 1000, "no end of {iar:#x}");
            self.set(cpu, EOIR, iar);
        }
    }
}
