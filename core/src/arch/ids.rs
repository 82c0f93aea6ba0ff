//! Identifier types: interrupt, vCPU, device and event numbers, priorities and groups.

use core::fmt;

/// Number of software-generated interrupts of each vCPU: INTIDs 0 to 15 (IHI 0069, 2.2).
pub const SGIS: u32 = 16;
/// Number of private interrupts (SGIs and PPIs) of each vCPU: INTIDs 0 to 31 (IHI 0069, 2.2).
pub const PRIVATE_INTIDS: u32 = 32;
/// First INTID after the private interrupts that a vCPU has, extended ones aside. A vCPU in a model
/// has fewer of them, because a model does not need all of them.
pub(crate) const PRIVATE_END: u32 = if crate::sync::MODEL { 2 } else { PRIVATE_INTIDS };
/// First INTID after the shared peripheral interrupts: SPIs are 32 to 1019 (IHI 0069, 2.2).
pub const SPI_END: u32 = 1020;
/// INTID that an acknowledge returns when no interrupt can be acknowledged (IHI 0069, 2.2.1).
pub const SPURIOUS: u32 = 1023;
/// First extended PPI: 1056 to 1119 (IHI 0069, 2.2).
pub const EPPI_BASE: u32 = 1056;
/// First INTID after the extended PPIs.
pub const EPPI_END: u32 = 1120;
/// First extended SPI: 4096 to 5119 (IHI 0069, 2.2).
pub const ESPI_BASE: u32 = 4096;
/// First INTID after the extended SPIs.
pub const ESPI_END: u32 = 5120;
/// First LPI (IHI 0069, 2.2).
pub const LPI_BASE: u32 = 8192;
/// End of the INTID space that the engine supports: 24 bits, as GICD_TYPER.IDbits can state
/// (IHI 0069, 12.9.38).
pub const INTID_END: u32 = 1 << 24;
/// Maximum number of vCPUs in one VM.
pub const MAX_VCPUS: u16 = 512;

/// An interrupt number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Intid(pub u32);

impl Intid {
    /// Whether this is an SGI or a PPI, extended PPIs included. Every vCPU has its own set.
    pub const fn is_private(self) -> bool {
        self.0 < PRIVATE_INTIDS || (self.0 >= EPPI_BASE && self.0 < EPPI_END)
    }

    /// Whether this is a software-generated interrupt.
    pub const fn is_sgi(self) -> bool {
        self.0 < SGIS
    }

    /// Whether this is a shared peripheral interrupt, extended ones included.
    pub const fn is_spi(self) -> bool {
        (self.0 >= PRIVATE_INTIDS && self.0 < SPI_END) || (self.0 >= ESPI_BASE && self.0 < ESPI_END)
    }

    /// Whether this is a locality-specific peripheral interrupt: edge-triggered, Group 1,
    /// message-signaled.
    pub const fn is_lpi(self) -> bool {
        self.0 >= LPI_BASE && self.0 < INTID_END
    }
}

impl fmt::Debug for Intid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Intid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The index of a vCPU in its VM, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct VcpuId(pub u16);

impl VcpuId {
    /// Returns the vCPU's index into per-vCPU arrays.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The number by which an ITS identifies a device that sends MSIs (IHI 0069, 5.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct DeviceId(pub u32);

/// The payload of an MSI: the number of the event that the device signals (IHI 0069, 5.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct EventId(pub u32);

/// An interrupt priority: lower values are higher priorities.
///
/// Five bits are implemented, bits 7:3 of the architecture's byte, which gives 32 levels (IHI 0069,
/// 4.8). `ICH_VTR_EL2.PRIbits` of common hardware states the same number of bits, and the in-kernel
/// vGIC of Linux implements it. Unimplemented bits are dropped when the value is created.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Priority(u8);

impl Priority {
    /// Number of implemented bits.
    pub const BITS: u32 = 5;
    /// Number of distinct priorities.
    pub const LEVELS: usize = 1 << Self::BITS;
    /// The highest priority.
    pub const HIGHEST: Self = Self(0);
    /// The lowest priority. It is never signaled: only a priority mask with its unimplemented bits
    /// set would let it through.
    pub const LOWEST: Self = Self::new(0xff);

    /// Creates a priority from the architecture's 8-bit field; unimplemented low bits are ignored.
    pub const fn new(byte: u8) -> Self {
        Self(byte & (0xffu8 << (8 - Self::BITS)))
    }

    /// Returns the architecture's 8-bit field; unimplemented bits are 0.
    pub const fn byte(self) -> u8 {
        self.0
    }

    /// Returns the level, from 0 (highest) to [`Priority::LEVELS`] - 1.
    pub const fn level(self) -> usize {
        (self.0 >> (8 - Self::BITS)) as usize
    }
}

impl fmt::Debug for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

/// An interrupt group as a virtual machine without security states sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Group {
    /// Signaled as FIQ (GICv3), or as the GICv2 model chooses.
    Group0,
    /// Signaled as IRQ. LPIs are always in this group (IHI 0069, 4.6).
    Group1,
}
