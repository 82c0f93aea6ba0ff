//! The control: the kernel's GICv3 and ITS.

use std::sync::Arc;

use anyhow::{Context, Result};
use kvm_bindings::{kvm_create_device, kvm_device_attr, kvm_msi};
use kvm_ioctls::{DeviceFd, VmFd};
use vgic_kvm::msi::Msi;

use crate::irq::{IrqSender, count_kernel_line, count_msi};
use crate::map;

/// `KVM_DEV_TYPE_ARM_VGIC_V3` and `_ITS`.
const VGIC_V3: u32 = 7;
const VGIC_ITS: u32 = 8;
/// `KVM_DEV_ARM_VGIC_GRP_ADDR`, `_NR_IRQS`, `_CTRL`.
const GRP_ADDR: u32 = 0;
const GRP_NR_IRQS: u32 = 3;
const GRP_CTRL: u32 = 4;
/// `KVM_VGIC_V3_ADDR_TYPE_DIST`, `_REDIST_REGION`, `KVM_VGIC_ITS_ADDR_TYPE`.
const ADDR_DIST: u64 = 2;
const ADDR_REDIST_REGION: u64 = 5;
const ADDR_ITS: u64 = 4;
/// `KVM_DEV_ARM_VGIC_CTRL_INIT`.
const CTRL_INIT: u64 = 0;
/// `KVM_ARM_IRQ_TYPE_SPI` in KVM_IRQ_LINE's argument.
const TYPE_SPI: u32 = 1 << 24;
/// `KVM_MSI_VALID_DEVID`.
const VALID_DEVID: u32 = 1;

/// The kernel's interrupt controller.
pub(crate) struct KernelGic {
    vm: Arc<VmFd>,
    _gic: DeviceFd,
    _its: DeviceFd,
}

fn create(vm: &VmFd, type_: u32) -> Result<DeviceFd> {
    let mut device = kvm_create_device { type_, fd: 0, flags: 0 };
    vm.create_device(&mut device).with_context(|| format!("KVM_CREATE_DEVICE {type_}"))
}

fn set(device: &DeviceFd, group: u32, attr: u64, value: Option<&u64>) -> Result<()> {
    let addr = value.map_or(0, |value| std::ptr::from_ref(value) as u64);
    let attr = kvm_device_attr { flags: 0, group, attr, addr };
    device.set_device_attr(&attr).with_context(|| format!("KVM_SET_DEVICE_ATTR {attr:?}"))
}

impl KernelGic {
    /// Creates it. The vCPUs must exist.
    pub(crate) fn new(vm: &Arc<VmFd>, vcpus: u16) -> Result<Self> {
        let gic = create(vm, VGIC_V3)?;
        // The kernel reads 32 bits of it.
        let irqs = u64::from(map::SPIS) + 32;
        set(&gic, GRP_NR_IRQS, 0, Some(&irqs))?;
        set(&gic, GRP_ADDR, ADDR_DIST, Some(&map::GICD))?;
        // The count is in bits 63:52; flags and index are 0.
        let region = map::GICR | u64::from(vcpus) << 52;
        set(&gic, GRP_ADDR, ADDR_REDIST_REGION, Some(&region))?;
        set(&gic, GRP_CTRL, CTRL_INIT, None)?;
        let its = create(vm, VGIC_ITS)?;
        set(&its, GRP_ADDR, ADDR_ITS, Some(&map::ITS))?;
        set(&its, GRP_CTRL, CTRL_INIT, None)?;
        Ok(Self { vm: Arc::clone(vm), _gic: gic, _its: its })
    }

    /// Returns a handle for one thread.
    pub(crate) fn sender(&self) -> KernelSender {
        KernelSender(Arc::clone(&self.vm))
    }
}

/// A handle that uses KVM_SIGNAL_MSI and KVM_IRQ_LINE.
pub(crate) struct KernelSender(Arc<VmFd>);

impl IrqSender for KernelSender {
    fn msi(&self, msi: &Msi) -> bool {
        count_msi();
        let msi = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            flags: VALID_DEVID,
            devid: msi.device,
            ..Default::default()
        };
        self.0.signal_msi(msi).is_ok_and(|taken| taken > 0)
    }

    fn line(&self, intid: u32, level: bool) -> bool {
        count_kernel_line();
        self.0.set_irq_line(TYPE_SPI | intid, level).is_ok()
    }
}
