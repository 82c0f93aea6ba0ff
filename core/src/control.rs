//! The control word of an interrupt: everything that says whether, where and how it is delivered.
//!
//! One 64-bit word, so that a reader gets one consistent configuration with one load:
//!
//! | bits | field |
//! |---|---|
//! | 7:0 | priority (implemented bits only) |
//! | 8 | enabled |
//! | 9 | group (1: Group 1) |
//! | 10 | trigger (1: level-sensitive) |
//! | 11 | line: the level of the input, kept for level-sensitive and edge-triggered inputs alike |
//! | 31:16 | target vCPU |
//!
//! Written by any thread through compare-exchange, read by any thread. A writer attends to the
//! interrupt afterwards (see `hub`), which is what makes the change take effect.

use crate::engine::{Trigger, WiredConfig};
use crate::ids::{Group, Priority, VcpuId};
use crate::sync::{AtomicU64, Ordering, update};

const ENABLED: u64 = 1 << 8;
const GROUP1: u64 = 1 << 9;
const LEVEL: u64 = 1 << 10;
const LINE: u64 = 1 << 11;
const TARGET_SHIFT: u32 = 16;

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

    /// Whether the input of a level-sensitive interrupt asserts it. Always false for edges,
    /// whose rise was latched when it came.
    pub(crate) const fn asserted(self) -> bool {
        self.0 & (LEVEL | LINE) == LEVEL | LINE
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
    /// What users see of it.
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
        // Acquire: pairs with `update`. What makes a *missed* update harmless is not this load
        // but the attend that follows every update.
        Control(self.0.load(Ordering::Acquire))
    }

    /// Replaces the value by `f` of it, and returns the old and the new one. Lock-free.
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
        /// Every field comes back as it went in, and no field disturbs another.
        #[test]
        fn fields_round_trip(start: u64, prio: u8, target: u16, on: [bool; 4]) {
            let start = Control(start);
            let group = if on[1] { Group::Group1 } else { Group::Group0 };
            let trigger = if on[2] { Trigger::Level } else { Trigger::Edge };
            let c = start
                .with_target(VcpuId(target))
                .with_enabled(on[0])
                .with_group(group)
                .with_trigger(trigger)
                .with_line(on[3])
                .with_priority(Priority::new(prio));
            prop_assert_eq!(c.priority(), Priority::new(prio));
            prop_assert_eq!(c.enabled(), on[0]);
            prop_assert_eq!(c.group(), group);
            prop_assert_eq!(c.trigger(), trigger);
            prop_assert_eq!(c.line(), on[3]);
            prop_assert_eq!(c.asserted(), on[2] && on[3]);
            prop_assert_eq!(c.target(), VcpuId(target));
        }
    }
}
