//! The register frames as devices of rust-vmm's buses.
//!
//! `DeviceMmio` does not say which vCPU accesses a device, and banked registers need to know. So there is an adapter for each
//! vCPU, for the bus that this vCPU's thread uses; a VMM with one bus for all leaves the frames to [`crate::Runner`], which looks at them first.
//!
//! ```
//! use std::sync::Arc;
//! use vgic_core::Vgic;
//! use vgic_core::gic::Gic;
//! use vgic_core::ids::VcpuId;
//! use vgic_kvm::bus::{CpuDevice, FrameDevice};
//! use vm_device::bus::{MmioAddress, MmioRange};
//! use vm_device::device_manager::{IoManager, MmioManager};
//!
//! /// The bus of one vCPU's thread, and its side of the interrupt controller.
//! fn bus_of(gic: &Gic<Vgic>, id: VcpuId) -> Result<(IoManager, Arc<CpuDevice>), Box<dyn std::error::Error>> {
//!     let mut bus = IoManager::new();
//!     let frames = Arc::new(FrameDevice::new(id, gic.bus()?));
//!     let cpu = Arc::new(CpuDevice::new(gic.cpu(id)?));
//!     for (base, size) in [(0x0800_0000, 0x1000), (0x0802_0000, 0x1000)] {
//!         bus.register_mmio(MmioRange::new(MmioAddress(base), size)?, frames.clone())?;
//!     }
//!     bus.register_mmio(MmioRange::new(MmioAddress(0x0801_0000), 0x2000)?, cpu.clone())?;
//!     Ok((bus, cpu)) // `cpu.with(|cpu| cpu.enter())` before KVM_RUN, `bus.mmio_read(..)` for its exits
//! }
//! ```

use std::sync::{Mutex, PoisonError};

use vgic_core::MmioError;
use vgic_core::Vgic;
use vgic_core::gic::{GicBus, GicCpu};
use vgic_core::ids::VcpuId;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

/// The frames as one vCPU sees them, without GICv2's CPU interface.
///
/// Its vCPU is out of the guest, and has told what its list registers hold (`GicCpu::exit`), while a frame is accessed: that may wait for other vCPUs, and they for this one.
///
/// An access that is refused reads as zero, since the trait has no way to say so; [`FrameDevice::refused`] tells.
pub struct FrameDevice {
    vcpu: VcpuId,
    // Never contended when each thread has its own: `DeviceMmio` takes `&self`.
    bus: Mutex<GicBus<Vgic>>,
    refused: Mutex<Option<MmioError>>,
}

impl FrameDevice {
    /// The frames as vCPU `vcpu` sees them.
    pub fn new(vcpu: VcpuId, bus: GicBus<Vgic>) -> Self {
        Self { vcpu, bus: Mutex::new(bus), refused: Mutex::new(None) }
    }

    /// Takes the last access that was refused: the guest is to get an external abort.
    pub fn refused(&self) -> Option<MmioError> {
        lock(&self.refused).take()
    }

    fn note(&self, result: Result<(), MmioError>) -> bool {
        let failed = result.is_err();
        if failed {
            *lock(&self.refused) = result.err();
        }
        failed
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceMmio for FrameDevice {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        let result = lock(&self.bus).read(self.vcpu, base.0 + offset, data);
        if self.note(result) {
            data.fill(0);
        }
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let result = lock(&self.bus).write(self.vcpu, base.0 + offset, data);
        self.note(result);
    }
}

/// All frames of one vCPU, its CPU interface included, for a VMM that has its own run loop: it calls
/// [`GicCpu::enter`] and so on through [`CpuDevice::with`].
pub struct CpuDevice {
    cpu: Mutex<GicCpu<Vgic>>,
    refused: Mutex<Option<MmioError>>,
}

impl CpuDevice {
    /// Wraps a vCPU's side of the interrupt controller.
    pub fn new(cpu: GicCpu<Vgic>) -> Self {
        Self { cpu: Mutex::new(cpu), refused: Mutex::new(None) }
    }

    /// For the vCPU's thread.
    pub fn with<T>(&self, f: impl FnOnce(&mut GicCpu<Vgic>) -> T) -> T {
        f(&mut lock(&self.cpu))
    }

    /// Takes the last access that was refused: the guest is to get an external abort.
    pub fn refused(&self) -> Option<MmioError> {
        lock(&self.refused).take()
    }
}

impl DeviceMmio for CpuDevice {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        if let Err(e) = self.with(|cpu| cpu.read(base.0 + offset, data)) {
            *lock(&self.refused) = Some(e);
            data.fill(0);
        }
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Err(e) = self.with(|cpu| cpu.write(base.0 + offset, data)) {
            *lock(&self.refused) = Some(e);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vgic_core::engine::Kick;
    use vgic_core::gic::{Affinity, Gic, Model, Setup};
    use vm_device::bus::MmioRange;
    use vm_device::device_manager::{IoManager, MmioManager};

    use super::*;

    struct NoKick;
    impl Kick for NoKick {
        fn kick(&self, _: VcpuId) {}
    }

    #[test]
    fn a_bus_for_each_vcpu() {
        let mut setup = Setup::new(40);
        setup.create(Model::V2).unwrap();
        let ids = [0, 1].map(|n| setup.add_vcpu(Affinity(n)).unwrap());
        setup.set_distributor(0x0800_0000).unwrap();
        setup.set_cpu_interface(0x0801_0000).unwrap();
        let gic: Gic<Vgic> = setup.init(Arc::new(NoKick)).unwrap();
        for (id, own) in ids.into_iter().zip([0x0101_0101, 0x0202_0202]) {
            let mut bus = IoManager::new();
            let dist = MmioRange::new(MmioAddress(0x0800_0000), 0x1000).unwrap();
            let frames = Arc::new(FrameDevice::new(id, gic.bus().unwrap()));
            bus.register_mmio(dist, frames.clone()).unwrap();
            let cpu = MmioRange::new(MmioAddress(0x0801_0000), 0x2000).unwrap();
            let cpu_device = Arc::new(CpuDevice::new(gic.cpu(id).unwrap()));
            bus.register_mmio(cpu, cpu_device.clone()).unwrap();
            // GICD_ITARGETSR0 reads as the mask of the vCPU that looks.
            let mut data = [0; 4];
            bus.mmio_read(MmioAddress(0x0800_0800), &mut data).unwrap();
            assert_eq!(u32::from_le_bytes(data), own);
            bus.mmio_read(MmioAddress(0x0801_000c), &mut data).unwrap();
            assert_eq!(u32::from_le_bytes(data), 1023);
            bus.mmio_read(MmioAddress(0x0800_0001), &mut data).unwrap();
            assert_eq!(data, [0; 4]);
            assert!(frames.refused().is_some() && frames.refused().is_none());
            assert!(cpu_device.refused().is_none());
        }
    }
}
