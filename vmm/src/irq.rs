//! The interrupt controller as the machine's devices see it: the engine's or the kernel's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use kvm_ioctls::VmFd;
use vgic_core::engine::{Config, Injector, Wired};
use vgic_core::gic::MsiFrame;
use vgic_core::ids::Intid;
use vgic_core::its::ItsConfig;
use vgic_kvm::fdt::Phandles;
use vgic_kvm::memory::VmMemory;
use vgic_kvm::msi::{Msi, MsiInjector};
use vgic_kvm::timer::Ppis;
use vgic_kvm::{GicV2Map, GicV3Map, KvmGic, Machine};
use vm_fdt::FdtWriter;

use crate::args::GicKind;
use crate::kernel_gic::KernelGic;
use crate::map;
use crate::memory::Memory;

/// A thread's handle for interrupts.
pub(crate) trait IrqSender: Send {
    /// Sends an MSI. Returns whether the interrupt controller takes it.
    fn msi(&self, msi: &Msi) -> bool;

    /// Sets the line of an SPI. Returns whether there is such an SPI.
    fn line(&self, intid: u32, level: bool) -> bool;
}

/// The number of MSIs that all threads have sent.
static MSIS: AtomicU64 = AtomicU64::new(0);

/// Returns the number of MSIs sent so far.
pub(crate) fn msis() -> u64 {
    // Relaxed: a statistic.
    MSIS.load(Ordering::Relaxed)
}

pub(crate) fn count_msi() {
    // Relaxed: a statistic.
    MSIS.fetch_add(1, Ordering::Relaxed);
}

/// The number of SPI levels that were passed to the kernel's interrupt controller.
static KERNEL_LINES: AtomicU64 = AtomicU64::new(0);

/// Returns the number of these levels so far. Each is one KVM_IRQ_LINE.
pub(crate) fn kernel_lines() -> u64 {
    // Relaxed: a statistic.
    KERNEL_LINES.load(Ordering::Relaxed)
}

pub(crate) fn count_kernel_line() {
    // Relaxed: a statistic.
    KERNEL_LINES.fetch_add(1, Ordering::Relaxed);
}

impl IrqSender for MsiInjector {
    fn msi(&self, msi: &Msi) -> bool {
        count_msi();
        self.send(msi).is_ok()
    }

    fn line(&self, intid: u32, level: bool) -> bool {
        self.injector().set_level(Wired::Spi(Intid(intid)), level).is_ok()
    }
}

/// The machine's interrupt controller.
pub(crate) enum Irqs {
    /// vgic-core's.
    User(KvmGic),
    /// The kernel's.
    Kernel(Arc<KernelGic>),
}

impl Irqs {
    /// Creates the interrupt controller, with room for `senders` handles. The kernel's requires
    /// that the vCPUs exist.
    pub(crate) fn new(
        kind: GicKind,
        vm: &Arc<VmFd>,
        vcpus: u16,
        memory: &Memory,
        senders: u16,
    ) -> Result<Self> {
        let (first, count) = map::V2M_SPIS;
        let bounds = Config { participants: senders, ..Config::default() };
        Ok(match kind {
            GicKind::V2 => {
                let msi = Some(MsiFrame { base: map::V2M, first, count });
                let map = GicV2Map { distributor: map::GICD, cpu_interface: map::GICC, msi };
                let mut machine = Machine::gicv2(map, vcpus, map::SPIS)?;
                machine.setup().set_bounds(bounds);
                Self::User(machine.build(vm)?)
            }
            GicKind::V3 => {
                let map = GicV3Map {
                    distributor: map::GICD,
                    redistributors: map::GICR,
                    its: Some(ItsConfig::at(map::ITS)),
                };
                let memory = Arc::new(VmMemory(Arc::clone(memory)));
                let mut machine = Machine::gicv3(map, vcpus, map::SPIS, memory)?;
                machine.setup().set_bounds(bounds);
                Self::User(machine.build(vm)?)
            }
            GicKind::KernelV3 => {
                let gic = KernelGic::new(vm, vcpus).context("the kernel's GICv3 with ITS")?;
                Self::Kernel(Arc::new(gic))
            }
        })
    }

    /// Returns a handle for one thread.
    pub(crate) fn sender(&self) -> Result<Box<dyn IrqSender>> {
        Ok(match self {
            Self::User(gic) => Box::new(gic.msi_injector()?),
            Self::Kernel(gic) => Box::new(gic.sender()),
        })
    }

    /// Writes the device tree nodes of the interrupt controller and the timer.
    pub(crate) fn write_fdt(
        &self,
        fdt: &mut FdtWriter,
        vcpus: u16,
        phandles: Phandles,
    ) -> Result<()> {
        match self {
            Self::User(gic) => gic.write_fdt(fdt, phandles)?,
            Self::Kernel(_) => {
                let redistributors = (map::GICR, u64::from(vcpus) * 0x2_0000);
                vgic_kvm::fdt::gicv3(fdt, map::GICD, redistributors, Some(map::ITS), phandles)?;
                vgic_kvm::fdt::timer(fdt, Ppis::default(), vcpus, phandles.gic)?;
            }
        }
        Ok(())
    }

    /// Returns whether MSIs carry DeviceIDs. Then PCI functions have to be mapped to them.
    pub(crate) fn has_its(&self) -> bool {
        match self {
            Self::User(gic) => gic.gic().its(0).is_some(),
            Self::Kernel(_) => true,
        }
    }
}
