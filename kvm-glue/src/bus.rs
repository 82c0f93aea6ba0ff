//! The interrupt controller as a device on rust-vmm's buses.
//!
//! Banked registers depend on the vCPU that accesses them, and `DeviceMmio` does not pass the vCPU
//! on. So each vCPU has its own adapter, on a bus that only this vCPU's thread uses. A VMM with one
//! bus for all vCPUs leaves the frames to [`crate::Runner`], which checks them before the bus.
//!
//! One adapter serves all frames, including GICv2's CPU interface. An access to one of the other
//! frames may have to wait for interrupts in vCPUs' list registers, so the adapter first takes back
//! the interrupts in its own vCPU's list registers.
//!
//! ```
//! use std::sync::Arc;
//! use vgic_core::Vgic;
//! use vgic_core::gic::Gic;
//! use vgic_core::ids::VcpuId;
//! use vgic_kvm::bus::CpuDevice;
//! use vm_device::bus::{MmioAddress, MmioRange};
//! use vm_device::device_manager::{IoManager, MmioManager};
//!
//! /// Returns the bus of one vCPU's thread, and the vCPU's side of the interrupt controller.
//! fn bus_of(
//!     gic: &Gic<Vgic>,
//!     id: VcpuId,
//! ) -> Result<(IoManager, Arc<CpuDevice>), Box<dyn std::error::Error>> {
//!     let mut bus = IoManager::new();
//!     let cpu = Arc::new(CpuDevice::new(gic.cpu(id)?));
//!     for (base, size) in [(0x0800_0000, 0x1000), (0x0801_0000, 0x2000), (0x0802_0000, 0x1000)] {
//!         bus.register_mmio(MmioRange::new(MmioAddress(base), size)?, cpu.clone())?;
//!     }
//!     // `cpu.with(|cpu| cpu.enter())` before KVM_RUN, `bus.mmio_read(..)` for its exits
//!     Ok((bus, cpu))
//! }
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};

use vgic_core::MmioError;
use vgic_core::Vgic;
use vgic_core::gic::GicCpu;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All frames of one vCPU, including its CPU interface, for a VMM with its own run loop. The VMM
/// calls [`GicCpu::enter`] and the other methods through [`CpuDevice::with`].
///
/// A refused access reads as zero, since the trait cannot report errors; [`CpuDevice::refused`]
/// returns the error.
pub struct CpuDevice {
    // Never contended if each thread has its own adapter; `DeviceMmio` takes `&self`.
    cpu: Mutex<GicCpu<Vgic>>,
    refused: Mutex<Option<MmioError>>,
}

impl CpuDevice {
    /// Creates the adapter of a vCPU.
    pub fn new(cpu: GicCpu<Vgic>) -> Self {
        Self { cpu: Mutex::new(cpu), refused: Mutex::new(None) }
    }

    /// Calls `f` with the vCPU's side of the interrupt controller. To be called by the vCPU's
    /// thread.
    pub fn with<T>(&self, f: impl FnOnce(&mut GicCpu<Vgic>) -> T) -> T {
        f(&mut lock(&self.cpu))
    }

    /// Takes the error of the last refused access. The guest should get an external abort for it.
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
    use std::sync::atomic::{AtomicU64, Ordering};

    use vgic_core::engine::{Engine, Injector, Kick, Wired};
    use vgic_core::gic::{Affinity, Gic, Model, Setup};
    use vgic_core::ids::{Intid, VcpuId};
    use vm_device::bus::MmioRange;
    use vm_device::device_manager::{IoManager, MmioManager};

    use super::*;

    const GICD: u64 = 0x0800_0000;
    const GICC: u64 = 0x0801_0000;

    /// Counts waits without waiting: no other thread could end a wait here.
    #[derive(Default)]
    struct Waits(AtomicU64);

    impl Kick for Waits {
        fn kick(&self, _: VcpuId) {}

        fn wait_for_exit(&self, _: VcpuId, _: &dyn Fn() -> bool) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn gic() -> (Gic<Vgic>, [VcpuId; 2], Arc<Waits>) {
        let mut setup = Setup::new(40);
        setup.create(Model::V2).unwrap();
        let ids = [0, 1].map(|n| setup.add_vcpu(Affinity(n)).unwrap());
        setup.set_distributor(GICD).unwrap();
        setup.set_cpu_interface(GICC).unwrap();
        let waits = Arc::new(Waits::default());
        (setup.init(waits.clone()).unwrap(), ids, waits)
    }

    fn bus(gic: &Gic<Vgic>, id: VcpuId) -> (IoManager, Arc<CpuDevice>) {
        let mut bus = IoManager::new();
        let cpu = Arc::new(CpuDevice::new(gic.cpu(id).unwrap()));
        for (base, size) in [(GICD, 0x1000), (GICC, 0x2000)] {
            let range = MmioRange::new(MmioAddress(base), size).unwrap();
            bus.register_mmio(range, cpu.clone()).unwrap();
        }
        (bus, cpu)
    }

    fn read(bus: &IoManager, address: u64) -> u32 {
        let mut data = [0; 4];
        bus.mmio_read(MmioAddress(address), &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_bus_for_each_vcpu() {
        let (gic, ids, _) = gic();
        for (id, own) in ids.into_iter().zip([0x0101_0101, 0x0202_0202]) {
            let (bus, cpu) = bus(&gic, id);
            // GICD_ITARGETSR0 reads as the mask of the reading vCPU.
            assert_eq!(read(&bus, GICD + 0x800), own);
            assert_eq!(read(&bus, GICC + 0xc), 1023);
            assert!(cpu.refused().is_none());
            assert_eq!(read(&bus, GICD + 1), 0);
            assert!(cpu.refused().is_some() && cpu.refused().is_none());
        }
    }

    /// A guest reads the state of interrupts in its own list registers, as Linux does to wait for
    /// handlers. The read waits for no vCPU.
    #[test]
    fn the_vcpus_own_active_interrupts() {
        let (gic, [id, _], waits) = gic();
        let (bus, cpu) = bus(&gic, id);
        let write = |address, value: u32| {
            bus.mmio_write(MmioAddress(address), &value.to_le_bytes()).unwrap();
        };
        cpu.with(|cpu| cpu.power_on());
        write(GICC, 1);
        write(GICC + 4, 0xf8);
        write(GICD, 1);
        write(GICD + 0x820, 0x0101_0101);
        write(GICD + 0x104, 1);
        let injector = gic.engine().injector().unwrap();
        let _ = injector.pulse(Wired::Spi(Intid(32))).unwrap();
        cpu.with(|cpu| cpu.enter());
        assert_eq!(read(&bus, GICC + 0xc), 32);
        cpu.with(|cpu| cpu.enter());
        assert_eq!(read(&bus, GICD + 0x304), 1, "it is active");
        assert_eq!(waits.0.load(Ordering::Relaxed), 0);
    }
}
