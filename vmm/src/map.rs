//! The address map and the interrupts of QEMU's `virt` machine.

/// GICD.
pub(crate) const GICD: u64 = 0x0800_0000;
/// GICC of GICv2.
pub(crate) const GICC: u64 = 0x0801_0000;
/// The GICv2m frame.
pub(crate) const V2M: u64 = 0x0802_0000;
/// The ITS: 128 KiB.
pub(crate) const ITS: u64 = 0x0808_0000;
/// The redistributors: 128 KiB each.
pub(crate) const GICR: u64 = 0x080a_0000;
/// As many redistributors as there is room for, before the console.
pub(crate) const MAX_VCPUS: i64 = ((PL011 - GICR) / 0x2_0000) as i64;
/// The console.
pub(crate) const PL011: u64 = 0x0900_0000;
/// The lab's doorbell, in machines for raw payloads.
pub(crate) const DOORBELL: u64 = 0x0a10_0000;
/// What PCI devices' BARs can be given.
pub(crate) const PCI_MMIO: u64 = 0x1000_0000;
/// Its size.
pub(crate) const PCI_MMIO_SIZE: u64 = 0x2eff_0000;
/// PCI configuration space: 16 buses.
pub(crate) const ECAM: u64 = 0x3f00_0000;
/// Its size.
pub(crate) const ECAM_SIZE: u64 = 0x0100_0000;
/// The guest's memory.
pub(crate) const RAM: u64 = 0x4000_0000;

/// MiB of it that `virt` has room for.
pub(crate) const MAX_MIB: u64 = 255 << 10;

/// The console's interrupt: SPI 1.
pub(crate) const PL011_INTID: u32 = 33;
/// The first SPI that is an MSI of GICv2m, and how many there are: as QEMU has them.
pub(crate) const V2M_SPIS: (u16, u16) = (80, 64);
/// SPIs of the interrupt controller.
pub(crate) const SPIS: u16 = 256;
