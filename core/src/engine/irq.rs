//! What an engine says of interrupts, and is told of them.

use crate::arch::ids::{Group, Intid, Priority, VcpuId};

/// What became of an injection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Injected {
    /// The interrupt's pending bit was clear, and now is set. An earlier occurrence that waits in a list register,
    /// where the guest may take it at any moment, is merged with this one if it turns out not to have been taken.
    Pending,
    /// The interrupt was pending already: the one delivery to come stands for both.
    Coalesced,
    /// Nothing is mapped there, or LPIs of its vCPU cannot become pending ([`Gates::msis`]): the injection has no effect.
    Unmapped,
}

/// An LPI's configuration: one byte of the LPI configuration table (IHI 0069, 5.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LpiConfig {
    /// Whether it may be delivered. While it may not, it stays pending.
    pub enabled: bool,
    /// Its priority.
    pub priority: Priority,
}

impl LpiConfig {
    /// Enabled at the given 8-bit priority.
    pub const fn enabled(priority: u8) -> Self {
        Self { enabled: true, priority: Priority::new(priority) }
    }
}

/// Where the engine has an LPI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum LpiPlace {
    /// Nowhere: nothing is to be done about it.
    Idle,
    /// In a queue, waiting for the vCPU to look.
    Queued,
    /// With this vCPU: in its list registers, or waiting for one.
    Held(VcpuId),
}

/// An LPI at one moment, as far as it can be seen from outside of the vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LpiState {
    /// Which.
    pub intid: Intid,
    /// Where it is delivered.
    pub target: VcpuId,
    /// Its configuration.
    pub config: LpiConfig,
    /// Whether it is pending outside of the list registers.
    pub pending: bool,
    /// Where it is.
    pub place: LpiPlace,
}

/// How the input of a wired interrupt is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// Pending from a rising edge until acknowledged.
    Edge,
    /// Pending while the line is high.
    Level,
}

/// An interrupt that exists from the start: an SGI or PPI of one vCPU, or an SPI.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wired {
    /// INTID 0 to 31, or an extended PPI, of one vCPU.
    Private(VcpuId, Intid),
    /// INTID 32 up, or an extended SPI.
    Spi(Intid),
}

/// The configuration of a wired interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WiredConfig {
    /// Whether it may be delivered. While it may not, it stays pending.
    pub enabled: bool,
    /// Its priority.
    pub priority: Priority,
    /// Its group. An interrupt of a group that the guest's CPU interface has not enabled
    /// ([`ListRegisters::groups_enabled`](crate::lr::ListRegisters::groups_enabled)) takes no list register.
    pub group: Group,
    /// How its input is read. SGIs are always edge-triggered.
    pub trigger: Trigger,
    /// The vCPU that takes it. Ignored for private interrupts.
    pub target: VcpuId,
}

/// What is forwarded to a vCPU. Interrupts that are not forwarded stay pending, and are offered once they are.
///
/// Where GICD_CTLR's group enables, GICR_WAKER and GICR_CTLR.EnableLPIs meet. All are on in a new engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gates {
    /// Interrupts of Group 0 and of Group 1, which LPIs are in.
    pub groups: [bool; 2],
    /// LPIs. While they are not forwarded, they stay pending.
    pub lpis: bool,
    /// Whether an LPI of this vCPU can become pending. While it cannot, an injection has no effect, and an LPI that is moved here is no longer pending.
    /// One that is pending already stays so until somebody clears it. With [`Gates::lpis`] this is GICR_CTLR.EnableLPIs (IHI 0069, 12.11).
    pub msis: bool,
}

impl Gates {
    /// Everything is forwarded.
    pub const OPEN: Self = Self { groups: [true; 2], lpis: true, msis: true };
    /// Nothing is, and LPIs do not become pending.
    pub const CLOSED: Self = Self { groups: [false; 2], lpis: false, msis: false };

    /// Whether they let an interrupt pass.
    #[inline(always)]
    pub(crate) const fn pass(self, group: Group, lpi: bool) -> bool {
        self.groups[group as usize] && (self.lpis || !lpi)
    }

    /// Whether one of them is open that is closed in `other`.
    pub(crate) fn opens_more_than(self, other: Self) -> bool {
        let open = [
            (self.groups[0], other.groups[0]),
            (self.groups[1], other.groups[1]),
            (self.lpis, other.lpis),
        ];
        open.iter().any(|&(mine, others)| mine && !others)
    }
}
