//! The control word of an interrupt: its configuration, its line, its target, and the senders of an
//! SGI.
//!
//! It is one 64-bit word, so that a reader gets one consistent configuration with one load:
//!
//! | bits | field |
//! |---|---|
//! | 7:0 | priority (implemented bits only) |
//! | 8 | enabled |
//! | 9 | group (1: Group 1) |
//! | 10 | trigger (1: level-sensitive) |
//! | 11 | line: the level of the input, kept for both triggers |
//! | 14:12 | sender of the SGI last taken for a list register, if bit 15 is set |
//! | 15 | an SGI was taken from a sender |
//! | 31:16 | target vCPU |
//! | 44:32 | physical interrupt |
//! | 45 | hardware-mapped to that physical interrupt |
//! | 46 | the group in which it is active, while it is active without a list register |
//! | 55:48 | senders: the vCPUs that have an SGI of GICv2 pending here |
//! | 63:56 | recalled: the senders that have taken their SGI back |
//!
//! The owner vCPU alone writes bits 15:12 and 46. The recalled bits are for the owner, which may
//! have that sender's SGI in a list register.
//!
//! # Writers
//!
//! Any thread writes the word, by compare-exchange; any thread reads it. After its write, a writer
//! other than the owner schedules the interrupt (see `notify`), which makes the change take effect.
//!
//! Models: delivery_config, delivery_level, delivery_retarget, delivery_active, delivery_read.

use crate::arch::ids::{Group, Priority, VcpuId};
use crate::engine::{Trigger, WiredConfig};
use crate::sync::{AtomicU64, Ordering, update};

const ENABLED: u64 = 1 << 8;
const GROUP1: u64 = 1 << 9;
const LEVEL: u64 = 1 << 10;
const LINE: u64 = 1 << 11;
const SENDER_SHIFT: u32 = 12;
const SENT: u64 = 1 << 15;
const TARGET_SHIFT: u32 = 16;
const PHYS_SHIFT: u32 = 32;
const PHYS_MASK: u64 = 0x1fff << PHYS_SHIFT;
const PHYS: u64 = 1 << 45;
const ACTIVE_GROUP1: u64 = 1 << 46;
const SENDERS_SHIFT: u32 = 48;
const RECALLED_SHIFT: u32 = 56;

/// One value of a control word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Control(u64);

macro_rules! flag {
    ($get:ident, $with:ident, $mask:expr) => {
        pub(crate) const fn $get(self) -> bool {
            self.0 & $mask != 0
        }
        #[must_use]
        pub(crate) const fn $with(self, on: bool) -> Self {
            Self(if on { self.0 | $mask } else { self.0 & !$mask })
        }
    };
}

impl Control {
    /// Disabled, highest priority, Group 0, edge-triggered, for vCPU 0.
    pub(crate) const RESET: Self = Self(0);

    flag!(enabled, with_enabled, ENABLED);
    flag!(line, with_line, LINE);
    flag!(is_sent, with_sent, SENT);

    pub(crate) const fn priority(self) -> Priority {
        Priority::new(self.0 as u8)
    }

    #[must_use]
    pub(crate) const fn with_priority(self, priority: Priority) -> Self {
        Self(self.0 & !0xff | priority.byte() as u64)
    }

    pub(crate) const fn group(self) -> Group {
        if self.0 & GROUP1 != 0 { Group::Group1 } else { Group::Group0 }
    }

    #[must_use]
    pub(crate) const fn with_group(self, group: Group) -> Self {
        match group {
            Group::Group0 => Self(self.0 & !GROUP1),
            Group::Group1 => Self(self.0 | GROUP1),
        }
    }

    /// The group of an interrupt that is active without a list register. The guest acknowledged it
    /// in this group and ends it in this group, even if it has changed the interrupt's group since.
    pub(crate) const fn active_group(self) -> Group {
        if self.0 & ACTIVE_GROUP1 != 0 { Group::Group1 } else { Group::Group0 }
    }

    #[must_use]
    pub(crate) const fn with_active_group(self, group: Group) -> Self {
        match group {
            Group::Group0 => Self(self.0 & !ACTIVE_GROUP1),
            Group::Group1 => Self(self.0 | ACTIVE_GROUP1),
        }
    }

    pub(crate) const fn trigger(self) -> Trigger {
        if self.0 & LEVEL != 0 { Trigger::Level } else { Trigger::Edge }
    }

    #[must_use]
    pub(crate) const fn with_trigger(self, trigger: Trigger) -> Self {
        match trigger {
            Trigger::Edge => Self(self.0 & !LEVEL),
            Trigger::Level => Self(self.0 | LEVEL),
        }
    }

    /// Whether the input of a level-sensitive interrupt is high, or an SGI has senders. The line of
    /// an edge-triggered interrupt does not count: its rise was latched in the pending bit when it
    /// came.
    #[inline(always)]
    pub(crate) const fn asserted(self) -> bool {
        self.0 & (LEVEL | LINE) == LEVEL | LINE || self.senders() != 0
    }

    /// The physical interrupt to which this interrupt is hardware-mapped.
    pub(crate) const fn phys(self) -> Option<u16> {
        if self.0 & PHYS != 0 { Some(((self.0 & PHYS_MASK) >> PHYS_SHIFT) as u16) } else { None }
    }

    #[must_use]
    pub(crate) const fn with_phys(self, phys: Option<u16>) -> Self {
        let without = self.0 & !(PHYS_MASK | PHYS);
        match phys {
            Some(pintid) => Self(without | PHYS | ((pintid as u64) << PHYS_SHIFT) & PHYS_MASK),
            None => Self(without),
        }
    }

    /// The senders with an SGI that is pending and not in a list register, one bit each.
    #[inline(always)]
    pub(crate) const fn senders(self) -> u8 {
        (self.0 >> SENDERS_SHIFT) as u8
    }

    /// Adds senders.
    #[must_use]
    pub(crate) const fn sent_by(self, senders: u8) -> Self {
        Self(self.0 | (senders as u64) << SENDERS_SHIFT)
    }

    /// Recalls the SGI of these senders.
    #[must_use]
    pub(crate) const fn recalled_by(self, senders: u8) -> Self {
        Self(self.0 & !((senders as u64) << SENDERS_SHIFT) | (senders as u64) << RECALLED_SHIFT)
    }

    /// Whether the sender has recalled its SGI since the SGI was taken for a list register.
    pub(crate) const fn is_recalled(self, sender: u8) -> bool {
        self.0 >> RECALLED_SHIFT & 1 << sender != 0
    }

    /// Takes the SGI of the lowest sender for a list register.
    #[must_use]
    pub(crate) const fn with_sender_taken(self) -> Self {
        if self.senders() == 0 {
            return self;
        }
        let sender = self.senders().trailing_zeros();
        let left = self.0 & !(1 << (SENDERS_SHIFT + sender) | 1 << (RECALLED_SHIFT + sender));
        Self(left & !(7 << SENDER_SHIFT) | SENT | (sender as u64) << SENDER_SHIFT)
    }

    /// Removes a sender that has an SGI in a list register already.
    #[must_use]
    pub(crate) const fn without_sender(self, sender: u8) -> Self {
        Self(self.0 & !(1 << (SENDERS_SHIFT + sender as u32)))
    }

    /// Gives back the SGI that was taken for a list register, unless its sender has recalled it.
    #[must_use]
    pub(crate) const fn with_sender_back(self, sender: u8) -> Self {
        if self.is_recalled(sender) { self } else { self.sent_by(1 << sender) }
    }

    /// The sender of the SGI that was taken last.
    pub(crate) const fn sender(self) -> u8 {
        (self.0 >> SENDER_SHIFT) as u8 & 7
    }

    pub(crate) const fn target(self) -> VcpuId {
        VcpuId((self.0 >> TARGET_SHIFT) as u16)
    }

    #[must_use]
    pub(crate) const fn with_target(self, target: VcpuId) -> Self {
        Self(self.0 & !(0xffff << TARGET_SHIFT) | (target.0 as u64) << TARGET_SHIFT)
    }
}

impl Control {
    /// The part of the word that users configure.
    pub(crate) const fn config(self) -> WiredConfig {
        WiredConfig {
            enabled: self.enabled(),
            priority: self.priority(),
            group: self.group(),
            trigger: self.trigger(),
            target: self.target(),
        }
    }
}

/// A control word in memory.
pub(crate) struct ControlWord(AtomicU64);

impl ControlWord {
    pub(crate) fn new(value: Control) -> Self {
        Self(AtomicU64::new(value.0))
    }

    #[inline]
    pub(crate) fn load(&self) -> Control {
        // Acquire: pairs with `update`. A reader may miss an update. It is harmless because of the
        // schedule that follows every update, not because of this load.
        Control(self.0.load(Ordering::Acquire))
    }

    /// Replaces the value by `f` of it, and returns the old and the new value. Lock-free.
    pub(crate) fn update(&self, f: impl Fn(Control) -> Control) -> (Control, Control) {
        // Release: pairs with `load`. Acquire: the caller may depend on the old value.
        let old = Control(update(&self.0, |old| f(Control(old)).0));
        (old, f(old))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every field reads back as it was written, and no field disturbs another.
        #[test]
        fn fields_round_trip(start: u64, prio: u8, target: u16, on: [bool; 4], phys: Option<u16>, senders in 1u8..) {
            let start = Control(start);
            let group = if on[1] { Group::Group1 } else { Group::Group0 };
            let trigger = if on[2] { Trigger::Level } else { Trigger::Edge };
            let c = start
                .with_target(VcpuId(target))
                .with_enabled(on[0])
                .with_group(group)
                .with_trigger(trigger)
                .with_line(on[3])
                .with_phys(phys)
                .recalled_by(0xff)
                .sent_by(senders)
                .with_priority(Priority::new(prio));
            prop_assert_eq!(c.phys(), phys.map(|p| p & 0x1fff));
            prop_assert_eq!(c.senders(), senders);
            let lowest = senders.trailing_zeros() as u8;
            let taken = c.with_sender_taken();
            prop_assert_eq!(taken.senders(), senders & !(1 << lowest));
            prop_assert_eq!(taken.sender(), lowest);
            prop_assert!(!taken.is_recalled(lowest) && c.is_recalled(lowest));
            prop_assert_eq!(taken.with_sender_back(lowest).senders(), senders);
            let recalled = taken.recalled_by(1 << lowest).with_sender_back(lowest);
            prop_assert_eq!(recalled.senders(), senders & !(1 << lowest));
            prop_assert_eq!(c.priority(), Priority::new(prio));
            prop_assert_eq!(c.enabled(), on[0]);
            prop_assert_eq!(c.group(), group);
            prop_assert_eq!(c.trigger(), trigger);
            prop_assert_eq!(c.line(), on[3]);
            prop_assert!(c.asserted());
            prop_assert_eq!(c.recalled_by(0xff).asserted(), on[2] && on[3]);
            prop_assert_eq!(c.target(), VcpuId(target));
        }
    }
}
