//! The address map and the interrupts of QEMU's `virt` machine.

/// The distributor's address.
pub(crate) const GICD: u64 = 0x0800_0000;
/// The CPU interface's address (GICv2).
pub(crate) const GICC: u64 = 0x0801_0000;
/// The GICv2m frame's address.
pub(crate) const V2M: u64 = 0x0802_0000;
/// The ITS's address: 128 KiB.
pub(crate) const ITS: u64 = 0x0808_0000;
/// The redistributors' address: 128 KiB each.
pub(crate) const GICR: u64 = 0x080a_0000;
/// The number of redistributors that fit before the console.
pub(crate) const MAX_VCPUS: i64 = ((PL011 - GICR) / 0x2_0000) as i64;
/// The console's address.
pub(crate) const PL011: u64 = 0x0900_0000;
/// The lab's doorbell's address, in machines for raw payloads.
pub(crate) const DOORBELL: u64 = 0x0a10_0000;
/// The window for the BARs of PCI devices.
pub(crate) const PCI_MMIO: u64 = 0x1000_0000;
/// The size of this window, in bytes.
pub(crate) const PCI_MMIO_SIZE: u64 = 0x2eff_0000;
/// PCI configuration space: 16 buses.
pub(crate) const ECAM: u64 = 0x3f00_0000;
/// The size of configuration space, in bytes.
pub(crate) const ECAM_SIZE: u64 = 0x0100_0000;
/// The address of the guest's memory.
pub(crate) const RAM: u64 = 0x4000_0000;

/// The maximum memory of `virt`, in MiB.
pub(crate) const MAX_MIB: u64 = 255 << 10;

/// The console's interrupt: SPI 1.
pub(crate) const PL011_INTID: u32 = 33;
/// The first SPI that is an MSI of GICv2m, and the number of them, as in QEMU.
pub(crate) const V2M_SPIS: (u16, u16) = (80, 64);
/// The number of SPIs of the interrupt controller.
pub(crate) const SPIS: u16 = 256;
