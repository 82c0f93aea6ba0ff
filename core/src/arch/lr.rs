//! List registers, through which a hypervisor passes interrupts to the virtual CPU interface.
//!
//! [`Lr`] is one entry in the format of `ICH_LR<n>_EL2` (IHI 0069, 12.4), with conversions to and
//! from `GICH_LR<n>` (IHI 0048B, 5.3.12). [`ListRegisters`] is the place that entries are written
//! to: real hardware, a page of memory shared with a lower layer, or the software interface of
//! [`crate::arch::cpuif`].

use core::fmt;

use crate::arch::ids::{Group, Intid, Priority};

/// Maximum number of list registers that the architecture allows.
pub const MAX_LRS: usize = 16;

/// The state field of a list register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum LrState {
    /// Inactive: the entry is free.
    Invalid = 0,
    /// Presented to the guest, not acknowledged.
    Pending = 1,
    /// Acknowledged, not deactivated.
    Active = 2,
    /// Acknowledged, and pending again.
    PendingActive = 3,
}

impl LrState {
    /// Whether the pending bit is set.
    pub const fn is_pending(self) -> bool {
        self as u8 & 1 != 0
    }

    /// Whether the active bit is set.
    pub const fn is_active(self) -> bool {
        self as u8 & 2 != 0
    }

    const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Invalid,
            1 => Self::Pending,
            2 => Self::Active,
            _ => Self::PendingActive,
        }
    }
}

/// One list register in the layout of `ICH_LR<n>_EL2`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Lr(u64);

impl Lr {
    /// An entry that holds no interrupt.
    pub const EMPTY: Self = Self(0);

    const PINTID_SHIFT: u32 = 32;
    const PINTID_MASK: u64 = 0x1fff << Self::PINTID_SHIFT;
    const EOI: u64 = 1 << 41;
    const PRIORITY_SHIFT: u32 = 48;
    const GROUP1: u64 = 1 << 60;
    const HW: u64 = 1 << 61;
    const STATE_SHIFT: u32 = 62;
    /// Bits 31:0, 44:32, 55:48, 60, 61 and 63:62; the others are RES0 here (no NMI support).
    const DEFINED: u64 = 0xf0ff_1fff_ffff_ffff;

    /// Creates the entry of a pending interrupt that is not hardware-mapped.
    pub const fn pending(intid: Intid, priority: Priority, group: Group) -> Self {
        let group = match group {
            Group::Group0 => 0,
            Group::Group1 => Self::GROUP1,
        };
        Self(intid.0 as u64 | (priority.byte() as u64) << Self::PRIORITY_SHIFT | group)
            .with_state(LrState::Pending)
    }

    /// Returns the register's bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Creates an entry from the register's bits; reserved bits are dropped.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & Self::DEFINED)
    }

    /// The virtual INTID, bits 31:0.
    pub const fn intid(self) -> Intid {
        Intid(self.0 as u32)
    }

    /// The priority, bits 55:48.
    pub const fn priority(self) -> Priority {
        Priority::new((self.0 >> Self::PRIORITY_SHIFT) as u8)
    }

    /// The group, bit 60.
    pub const fn group(self) -> Group {
        if self.0 & Self::GROUP1 != 0 { Group::Group1 } else { Group::Group0 }
    }

    /// The state, bits 63:62.
    pub const fn state(self) -> LrState {
        LrState::from_bits(self.0 >> Self::STATE_SHIFT)
    }

    /// Whether the state's pending bit is set, bit 62.
    pub const fn is_pending(self) -> bool {
        self.0 & 1 << Self::STATE_SHIFT != 0
    }

    /// Whether the state's active bit is set, bit 63.
    pub const fn is_active(self) -> bool {
        self.0 & 2 << Self::STATE_SHIFT != 0
    }

    /// Returns the entry with its state replaced.
    #[must_use]
    pub const fn with_state(self, state: LrState) -> Self {
        Self(self.0 & !(3 << Self::STATE_SHIFT) | (state as u64) << Self::STATE_SHIFT)
    }

    /// Returns the entry with its priority replaced.
    #[must_use]
    pub const fn with_priority(self, priority: Priority) -> Self {
        Self(
            self.0 & !(0xff << Self::PRIORITY_SHIFT)
                | (priority.byte() as u64) << Self::PRIORITY_SHIFT,
        )
    }

    /// The physical interrupt (bits 44:32) that is deactivated together with this virtual one.
    /// `None` if HW (bit 61) is clear.
    pub const fn hw(self) -> Option<u16> {
        if self.0 & Self::HW != 0 {
            Some(((self.0 & Self::PINTID_MASK) >> Self::PINTID_SHIFT) as u16)
        } else {
            None
        }
    }

    /// Returns the entry hardware-mapped to physical interrupt `pintid` (13 bits), with HW set.
    #[must_use]
    pub const fn with_hw(self, pintid: u16) -> Self {
        let field = ((pintid as u64) << Self::PINTID_SHIFT) & Self::PINTID_MASK;
        Self(self.0 & !Self::PINTID_MASK | Self::HW | field)
    }

    /// Whether the entry requests a maintenance interrupt when the guest deactivates its interrupt:
    /// bit 41, which has that meaning only while HW is clear.
    pub const fn eoi_maintenance(self) -> bool {
        self.0 & (Self::HW | Self::EOI) == Self::EOI
    }

    /// Returns the entry with the EOI maintenance request set. A hardware-mapped entry is returned
    /// unchanged, because its bit 41 is part of the physical interrupt's number.
    #[must_use]
    pub const fn with_eoi_maintenance(self) -> Self {
        if self.0 & Self::HW != 0 { self } else { Self(self.0 | Self::EOI) }
    }

    /// Returns the entry with the active bit cleared. The pending bit is kept.
    #[must_use]
    pub(crate) const fn without_active(self) -> Self {
        match self.state() {
            LrState::Active => self.with_state(LrState::Invalid),
            LrState::PendingActive => self.with_state(LrState::Pending),
            LrState::Invalid | LrState::Pending => self,
        }
    }

    /// Returns the entry with the vCPU that sent this SGI, for a GICv2 virtual CPU interface. It is
    /// stored in bits 12:10 of vINTID, where the INTID that GICV_IAR returns carries it (IHI 0069,
    /// 12.4).
    #[must_use]
    pub const fn with_source(self, source: u8) -> Self {
        Self(self.0 & !(7 << 10) | ((source & 7) as u64) << 10)
    }

    /// Converts the entry to `GICH_LR<n>`: 32 bits with 10-bit INTIDs and 5-bit priorities
    /// (IHI 0048B, 5.3.12). `None` if the virtual or the physical INTID does not fit: GICv2 has no
    /// LPIs.
    pub const fn to_gich(self) -> Option<u32> {
        let vintid = self.0 as u32;
        // An SGI may carry its source in bits 12:10.
        let (intid, source) = (vintid & 0x3ff, vintid >> 10);
        if source > 7 || (source != 0 && intid >= 16) {
            return None;
        }
        let mut v =
            intid | (self.priority().byte() as u32 >> 3) << 23 | (self.state() as u32) << 28;
        if let Group::Group1 = self.group() {
            v |= 1 << 30;
        }
        match self.hw() {
            Some(pintid) => {
                if pintid > 0x3ff {
                    return None;
                }
                v |= 1 << 31 | (pintid as u32) << 10;
            }
            None => {
                v |= source << 10;
                if self.eoi_maintenance() {
                    v |= 1 << 19;
                }
            }
        }
        Some(v)
    }

    /// Converts the value of a `GICH_LR<n>` to an entry (IHI 0048B, 5.3.12).
    pub const fn from_gich(v: u32) -> Self {
        let mut lr = (v & 0x3ff) as u64
            | ((v >> 23 & 0x1f) as u64) << (Self::PRIORITY_SHIFT + 3)
            | ((v >> 28 & 3) as u64) << Self::STATE_SHIFT;
        if v & 1 << 30 != 0 {
            lr |= Self::GROUP1;
        }
        if v & 1 << 31 != 0 {
            lr |= Self::HW | ((v >> 10 & 0x3ff) as u64) << Self::PINTID_SHIFT;
        } else {
            lr |= (v as u64) & 0x1c00;
            if v & 1 << 19 != 0 {
                lr |= Self::EOI;
            }
        }
        Self(lr)
    }
}

impl fmt::Debug for Lr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lr")
            .field("intid", &self.intid())
            .field("state", &self.state())
            .field("priority", &self.priority())
            .field("group", &self.group())
            .field("hw", &self.hw())
            .finish()
    }
}

/// The conditions that the engine asks the virtual CPU interface to report (`ICH_HCR_EL2`,
/// IHI 0069, 12.4).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Maintenance {
    /// UIE: a maintenance interrupt when at most one entry is valid, because more interrupts are
    /// waiting for a list register.
    pub underflow: bool,
    /// NPIE: a maintenance interrupt when no entry is pending, because more interrupts are waiting
    /// for a list register.
    pub no_pending: bool,
    /// LRENPIE: a maintenance interrupt when the guest ends an interrupt that is in no list
    /// register.
    pub not_present: bool,
    /// VGrp0EIE and VGrp1EIE: a maintenance interrupt while the guest has enabled Group 0, or Group
    /// 1, because interrupts of a group that it had disabled may be waiting.
    pub group_enabled: [bool; 2],
    /// TDIR: a write to the guest's DIR register is reported to the host instead of being
    /// performed.
    pub trap_dir: bool,
}

/// The list registers as the hardware, or its replacement in software, provides them. Only the
/// vCPU's own thread uses them, and only while the vCPU is not in the guest.
pub trait ListRegisters {
    /// Returns the number of list registers: 1 to [`MAX_LRS`]. It never changes.
    fn count(&self) -> usize;

    /// Reads entry `n`, less than [`ListRegisters::count`].
    fn read(&self, n: usize) -> Lr;

    /// Writes entry `n`, less than [`ListRegisters::count`].
    fn write(&mut self, n: usize, lr: Lr);

    /// Returns and clears the count of EOIs that found no list register (`ICH_HCR_EL2.EOIcount`).
    fn take_eoi_count(&mut self) -> u32;

    /// Whether the guest has enabled Group 0 and Group 1 at its CPU interface (`ICH_VMCR_EL2.VENG0`
    /// and `VENG1`). Interrupts of a disabled group take no list register. An implementation that
    /// does not know reports both as enabled, as this default does.
    fn groups_enabled(&self) -> [bool; 2] {
        [true; 2]
    }

    /// Sets the maintenance conditions to report from now on.
    fn set_maintenance(&mut self, wanted: Maintenance);
}
