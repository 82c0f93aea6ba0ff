//! The vocabulary of interrupts: configuration, state, and the results of injections.

use crate::arch::ids::{Group, Intid, Priority, VcpuId};

/// The result of an injection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Injected {
    /// The interrupt's pending bit was clear, and is set now. An earlier occurrence that waits in a
    /// list register, where the guest can take it at any moment, merges with this one if the guest
    /// turns out not to have taken it.
    Pending,
    /// The interrupt was pending already: one delivery will stand for both injections.
    Coalesced,
    /// No LPI is mapped there, or LPIs of its vCPU cannot become pending ([`Gates::msis`]). The
    /// injection has no effect.
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
    /// Nowhere: there is nothing to do about it.
    Idle,
    /// In a vCPU's mailbox.
    Queued,
    /// With this vCPU: in a list register, or waiting for one.
    Held(VcpuId),
}

/// The state of an LPI at one moment, as seen from outside the vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LpiState {
    /// The LPI's INTID.
    pub intid: Intid,
    /// Where it is delivered.
    pub target: VcpuId,
    /// Its configuration.
    pub config: LpiConfig,
    /// Whether it is pending outside of the list registers.
    pub pending: bool,
    /// Its place in the engine.
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
    /// The group. An interrupt of a group that the guest's CPU interface has not enabled
    /// ([`ListRegisters::groups_enabled`](crate::lr::ListRegisters::groups_enabled)) takes no list
    /// register.
    pub group: Group,
    /// How its input is read. SGIs are always edge-triggered.
    pub trigger: Trigger,
    /// The vCPU that takes it. Ignored for private interrupts.
    pub target: VcpuId,
}

/// The kinds of interrupts that are forwarded to a vCPU. Interrupts that are not forwarded stay
/// pending, and are offered once they are.
///
/// GICD_CTLR's group enables, GICR_WAKER and GICR_CTLR.EnableLPIs meet here. All gates of a new
/// engine are open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gates {
    /// Interrupts of Group 0 and of Group 1. LPIs are in Group 1.
    pub groups: [bool; 2],
    /// LPIs. While they are not forwarded, they stay pending.
    pub lpis: bool,
    /// Whether an LPI of this vCPU can become pending. While it cannot, an injection has no effect,
    /// and an LPI that is moved here is no longer pending. An LPI that is pending already stays so
    /// until it is cleared. With [`Gates::lpis`] this is GICR_CTLR.EnableLPIs (IHI 0069, 12.11).
    pub msis: bool,
}

impl Gates {
    /// Everything is forwarded.
    pub const OPEN: Self = Self { groups: [true; 2], lpis: true, msis: true };
    /// Nothing is forwarded, and LPIs do not become pending.
    pub const CLOSED: Self = Self { groups: [false; 2], lpis: false, msis: false };

    /// Whether an interrupt passes.
    #[inline(always)]
    pub(crate) const fn pass(self, group: Group, lpi: bool) -> bool {
        self.groups[group as usize] && (self.lpis || !lpi)
    }

    /// Whether a gate of groups or LPIs is open that is closed in `other`. `msis` does not count.
    pub(crate) fn opens_more_than(self, other: Self) -> bool {
        let open = [
            (self.groups[0], other.groups[0]),
            (self.groups[1], other.groups[1]),
            (self.lpis, other.lpis),
        ];
        open.iter().any(|&(mine, others)| mine && !others)
    }
}
