//! The interrupt controller as a device of rust-vmm's buses.
//!
//! `DeviceMmio` does not say which vCPU accesses a device, and banked registers need to know. So there is an adapter for each
//! vCPU, for the bus that this vCPU's thread uses; a VMM with one bus for all leaves the frames to [`crate::Runner`], which looks at them first.
//!
//! One adapter has all frames, GICv2's CPU interface included: an access to one of the others may wait for what vCPUs have in their list registers, and so the adapter
//! takes back what its own vCPU has before.
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
//! /// The bus of one vCPU's thread, and its side of the interrupt controller.
//! fn bus_of(gic: &Gic<Vgic>, id: VcpuId) -> Result<(IoManager, Arc<CpuDevice>), Box<dyn std::error::Error>> {
//!     let mut bus = IoManager::new();
//!     let cpu = Arc::new(CpuDevice::new(gic.cpu(id)?));
//!     for (base, size) in [(0x0800_0000, 0x1000), (0x0801_0000, 0x2000), (0x0802_0000, 0x1000)] {
//!         bus.register_mmio(MmioRange::new(MmioAddress(base), size)?, cpu.clone())?;
//!     }
//!     Ok((bus, cpu)) // `cpu.with(|cpu| cpu.enter())` before KVM_RUN, `bus.mmio_read(..)` for its exits
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

/// All frames of one vCPU, its CPU interface included, for a VMM that has its own run loop: it calls
/// [`GicCpu::enter`] and so on through [`CpuDevice::with`].
///
/// An access that is refused reads as zero, since the trait has no way to say so; [`CpuDevice::refused`] tells.
pub struct CpuDevice {
    // Never contended when each thread has its own: `DeviceMmio` takes `&self`.
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
    use std::sync::atomic::{AtomicU64, Ordering};

    use vgic_core::engine::{Engine, Injector, Kick, Wired};
    use vgic_core::gic::{Affinity, Gic, Model, Setup};
    use vgic_core::ids::{Intid, VcpuId};
    use vm_device::bus::MmioRange;
    use vm_device::device_manager::{IoManager, MmioManager};

    use super::*;

    const GICD: u64 = 0x0800_0000;
    const GICC: u64 = 0x0801_0000;

    /// Counts waits, and does not wait: nobody else is here to end one.
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
            // GICD_ITARGETSR0 reads as the mask of the vCPU that looks.
            assert_eq!(read(&bus, GICD + 0x800), own);
            assert_eq!(read(&bus, GICC + 0xc), 1023);
            assert!(cpu.refused().is_none());
            assert_eq!(read(&bus, GICD + 1), 0);
            assert!(cpu.refused().is_some() && cpu.refused().is_none());
        }
    }

    /// A guest reads the state of what it has in its own list registers: Linux does, to wait for handlers. Nobody is waited for.
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
