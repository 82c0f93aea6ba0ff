//! The common interface of the two sides: the actions on them, and their answers.

use anyhow::Result;

/// The architecture version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Model {
    /// GICv2.
    V2,
    /// GICv3.
    V3,
    /// GICv3's ITS, with [`VCPUS`] redistributors.
    Its,
}

impl Model {
    /// The revision, as in PIDR2.
    pub fn revision(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 | Self::Its => 3,
        }
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::V2 => "GICv2",
            Self::V3 => "GICv3",
            Self::Its => "ITS",
        }
    }

    /// The number of CPUs of the machine. GICv2 has one: its banks are selected by the running CPU,
    /// and no CPU runs.
    pub fn cpus(self) -> u32 {
        match self {
            Self::V2 => 1,
            Self::V3 => crate::regs::CPUS,
            Self::Its => VCPUS.into(),
        }
    }
}

/// The number of CPUs of the machine that the ITS is compared on.
pub const VCPUS: u16 = 3;

/// The address of the distributor. All addresses are those of QEMU's machine `virt`.
pub const GICD: u64 = 0x0800_0000;
/// The address of GICv2's CPU interface.
pub const GICC: u64 = 0x0801_0000;
/// The address of RD_base. SGI_base is 64 KiB after it.
pub const GICR: u64 = 0x080a_0000;
/// The address of the ITS's control frame. The translation frame is 64 KiB after it.
pub const GITS: u64 = 0x0808_0000;
/// The address of memory.
pub const RAM: u64 = 0x4000_0000;
/// The size of the memory in use, in bytes.
pub const RAM_SIZE: u64 = 0x200_0000;

/// An action on a GIC from outside, or on the machine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Reads a register or memory.
    Read {
        /// The address.
        address: u64,
        /// The width in bytes.
        bytes: u8,
    },
    /// Writes a register or memory.
    Write {
        /// The address.
        address: u64,
        /// The width in bytes.
        bytes: u8,
        /// The value.
        value: u64,
    },
    /// Clears memory.
    Zero {
        /// The first address.
        address: u64,
        /// The number of bytes.
        len: u64,
    },
    /// Sets the level of an input line.
    Line {
        /// The INTID of an SPI or of a PPI of CPU 0. For another CPU's PPI, a number of
        /// [`crate::regs::private`].
        intid: u32,
        /// The level.
        high: bool,
    },
}

/// The interrupt lines of CPU 0.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lines {
    /// The level of the IRQ line.
    pub irq: bool,
    /// The level of the FIQ line.
    pub fiq: bool,
}

/// The result of an action.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Answer {
    /// The value that was read, or 0 if nothing was read.
    pub value: u64,
    /// The levels of CPU 0's lines after the action.
    pub lines: Lines,
}

/// A GIC with its machine. CPU 0 makes all accesses.
pub trait Target {
    /// Performs actions in order, and returns an answer for each.
    ///
    /// # Errors
    /// If the machine fails. A GIC's answer to an invalid access is not an error.
    fn perform(&mut self, actions: &[Action]) -> Result<Vec<Answer>>;
}
