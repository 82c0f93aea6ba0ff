//! What the two sides have in common: what can be done to them, and what they answer.

use anyhow::Result;

/// Which architecture version.
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
    /// Its number, as in PIDR2.
    pub fn revision(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 | Self::Its => 3,
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::V2 => "GICv2",
            Self::V3 => "GICv3",
            Self::Its => "ITS",
        }
    }

    /// CPUs of its machine: GICv2's banks are told apart by the CPU that runs, and none does.
    pub fn cpus(self) -> u32 {
        match self {
            Self::V2 => 1,
            Self::V3 => crate::regs::CPUS,
            Self::Its => VCPUS.into(),
        }
    }
}

/// CPUs of the machine that the ITS is compared on.
pub const VCPUS: u16 = 3;

/// The addresses of the frames: those of QEMU's machine `virt`.
pub const GICD: u64 = 0x0800_0000;
/// GICv2's CPU interface.
pub const GICC: u64 = 0x0801_0000;
/// RD_base; SGI_base is 64 KiB after it.
pub const GICR: u64 = 0x080a_0000;
/// The ITS's control frame; its translation frame is 64 KiB after it.
pub const GITS: u64 = 0x0808_0000;
/// Where memory begins.
pub const RAM: u64 = 0x4000_0000;
/// As much of it as is used.
pub const RAM_SIZE: u64 = 0x200_0000;

/// Something done to a GIC from outside, or to the machine's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A read.
    Read {
        /// Where.
        address: u64,
        /// 1, 4 or 8.
        bytes: u8,
    },
    /// A write.
    Write {
        /// Where.
        address: u64,
        /// 1, 4 or 8.
        bytes: u8,
        /// What.
        value: u64,
    },
    /// Memory is cleared.
    Zero {
        /// From here up.
        address: u64,
        /// So many bytes.
        len: u64,
    },
    /// An input line takes a level.
    Line {
        /// An SPI or a PPI of CPU 0; of another CPU, what [`crate::regs::private`] makes of it.
        intid: u32,
        /// The level.
        high: bool,
    },
}

/// The interrupt lines of CPU 0.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lines {
    /// IRQ.
    pub irq: bool,
    /// FIQ.
    pub fiq: bool,
}

/// What follows from an action.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Answer {
    /// What was read, 0 if nothing was.
    pub value: u64,
    /// CPU 0's lines afterwards.
    pub lines: Lines,
}

/// A GIC with its machine, of which CPU 0 makes all accesses.
pub trait Target {
    /// Performs actions in order, and returns an answer for each.
    ///
    /// # Errors
    /// If it cannot go on. What a GIC answers to nonsense is no error.
    fn perform(&mut self, actions: &[Action]) -> Result<Vec<Answer>>;
}
