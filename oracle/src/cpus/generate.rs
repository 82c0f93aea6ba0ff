//! Random operations on two CPUs, mostly those of interrupt handlers, with those of a driver
//! between them.

use super::style::{Groups, LPIS, MEMBERS, SGIS, SPIS, Style, WIRED};
use crate::generate::Random;
use crate::target::Model;

/// A property of an interrupt, and its new value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Set {
    /// Whether the interrupt is enabled.
    Enabled(bool),
    /// Whether the interrupt is in Group 1.
    Group1(bool),
    /// An index of one of the interrupt's own priorities.
    Priority(u8),
    /// Whether the interrupt is pending, set through the distributor's or the redistributor's
    /// register.
    Pending(bool),
    /// Whether the interrupt is active, set through the distributor's or the redistributor's
    /// register.
    Active(bool),
    /// Whether the interrupt is edge-triggered.
    Edge(bool),
    /// The level of the interrupt's input.
    Line(bool),
}

/// A change to an LPI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lpi {
    /// Maps the LPI's event to this collection with MAPTI.
    Map(u8),
    /// Unmaps the LPI's event with DISCARD.
    Discard,
    /// Moves the LPI to this collection with MOVI.
    Move(u8),
    /// Makes the LPI pending: with INT if `true`, otherwise with a device's write.
    Send(bool),
    /// Clears the pending bit with CLEAR.
    Clear,
    /// Configures the LPI, and invalidates its configuration.
    Configure {
        /// Whether the LPI is enabled.
        enabled: bool,
        /// An index of one of the LPI's own priorities.
        priority: u8,
        /// Whether to invalidate with INVALL instead of INV.
        all: bool,
    },
}

/// An operation by a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// The CPU's index.
    pub by: u8,
    /// The CPU's action.
    pub act: Act,
}

/// An action.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Changes a member of the pool.
    Irq {
        /// The owner CPU, if the interrupt is private.
        of: u8,
        /// The index of the interrupt in the pool.
        member: u8,
        /// The change.
        set: Set,
    },
    /// Routes an SPI to a CPU, or nowhere.
    Route(u8, u8),
    /// Sends an SGI.
    Sgi {
        /// The index of the SGI in the pool.
        member: u8,
        /// A bit mask of the target CPUs.
        targets: u8,
        /// Whether all other CPUs are the targets.
        others: bool,
        /// Selects the register to send with.
        by_group: u8,
    },
    /// Acknowledges an interrupt of this group.
    Acknowledge(u8),
    /// Ends the interrupt that was acknowledged last.
    End,
    /// Ends a special INTID.
    EndSpecial(u8, u8),
    /// Deactivates, by DIR, one of the active interrupts with a priority that was dropped or
    /// cleared.
    Deactivate(u8),
    /// Sets the priority mask.
    Mask(u8),
    /// Sets a binary point.
    BinaryPoint(u8, u8),
    /// Sets mode bits of the control register.
    Modes(u16),
    /// Sets the group enables of the CPU interface.
    Groups(bool, bool),
    /// Sets the group enables of the distributor.
    Forward(u8),
    /// Clears the active priorities of a group, as a crash kernel does.
    ClearPriorities(u8),
    /// Reads or writes any register of the CPU interface.
    Register(u8, Option<u64>),
    /// Changes an LPI.
    Lpi(u8, Lpi),
    /// Clears EnableLPIs of a redistributor.
    LpisOff(u8),
    /// Sets EnableLPIs of a redistributor, with these LPIs pending.
    LpisOn(u8, u8),
}

/// A generator of random operations.
pub struct Generator {
    style: Style,
    random: Random,
}

impl Generator {
    /// Creates a generator for a seed.
    pub fn new(style: Style, seed: u64) -> Self {
        Self { style, random: Random::new(seed ^ 0xacce_55e5) }
    }

    /// Generates `count` operations.
    pub fn sequence(&mut self, count: usize) -> Vec<Op> {
        (0..count).map(|_| self.op()).collect()
    }

    fn flag(&mut self) -> bool {
        self.random.one_in(2)
    }

    fn mostly(&mut self) -> bool {
        !self.random.one_in(4)
    }

    fn pick(&mut self, range: std::ops::Range<usize>) -> u8 {
        (range.start + self.random.below(range.len() as u64) as usize) as u8
    }

    fn cpu(&mut self) -> u8 {
        self.pick(0..self.style.cpus.into())
    }

    /// Picks 0 or 1, for one of two groups or priorities.
    fn either(&mut self) -> u8 {
        self.pick(0..2)
    }

    fn op(&mut self) -> Op {
        let by = self.cpu();
        let act = match self.random.below(128) {
            0..=25 => Act::Acknowledge(self.group()),
            26..=41 => Act::End,
            42..=45 => Act::Deactivate(self.random.number() as u8),
            46..=55 => self.sgi(),
            56..=81 => self.irq(),
            82..=84 => self.route(),
            85..=86 => Act::Mask(self.mask()),
            87..=88 => Act::BinaryPoint(self.either(), self.pick(0..8) & self.pick(0..8)),
            89..=90 => Act::Modes(self.modes()),
            91 => Act::Groups(self.mostly(), self.mostly()),
            92 => Act::Forward([3, 3, 3, 3, 3, 2, 1, 0][usize::from(self.pick(0..8))]),
            93 => match self.random.below(4) {
                0 => Act::ClearPriorities(self.either()),
                1 => Act::EndSpecial(self.either(), self.pick(0..4)),
                _ => {
                    let value = self.random.one_in(4).then(|| self.random.number());
                    Act::Register(self.random.number() as u8, value)
                }
            },
            94..=95 if self.style.lpis => {
                if self.random.one_in(4) {
                    Act::LpisOff(self.cpu())
                } else {
                    Act::LpisOn(self.cpu(), self.random.number() as u8)
                }
            }
            _ if self.style.lpis => self.lpi(),
            _ => self.irq(),
        };
        Op { by, act }
    }

    fn group(&mut self) -> u8 {
        match self.style.groups {
            Groups::Zero => u8::from(self.random.one_in(16)),
            Groups::One => u8::from(!self.random.one_in(16)),
            Groups::Both => self.either(),
        }
    }

    fn route(&mut self) -> Act {
        let to = if self.random.one_in(5) { 2 } else { self.cpu() };
        Act::Route(self.pick(SPIS), to)
    }

    fn irq(&mut self) -> Act {
        let member = if self.random.one_in(5) { self.pick(0..WIRED) } else { self.pick(3..WIRED) };
        let set = match self.random.below(32) {
            0..=10 => Set::Line(self.flag()),
            11..=19 => Set::Pending(self.mostly()),
            20..=22 => Set::Enabled(self.mostly()),
            23..=24 => Set::Group1(self.flag()),
            25..=27 => Set::Priority(self.either()),
            28..=29 => Set::Active(self.random.one_in(3)),
            _ => Set::Edge(self.flag()),
        };
        Act::Irq { of: self.cpu(), member, set }
    }

    fn sgi(&mut self) -> Act {
        let (member, targets) = (self.pick(SGIS), self.pick(0..8));
        Act::Sgi { member, targets, others: self.random.one_in(4), by_group: self.pick(0..3) }
    }

    fn mask(&mut self) -> u8 {
        match self.random.below(8) {
            0 => self.random.number() as u8,
            1 => [0, 0x80, 0x40, 0xf0][usize::from(self.pick(0..4))],
            _ => 0xf8,
        }
    }

    fn modes(&mut self) -> u16 {
        let split = self.flag();
        if self.style.model == Model::V2 {
            let modes = [4, 0xc, 0x14, 0x1c, 0xc, 4, 0, 8][usize::from(self.pick(0..8))];
            return modes | if split { 1 << 9 } else { 0 };
        }
        u16::from(split) << 1 | u16::from(self.random.one_in(3))
    }

    fn lpi(&mut self) -> Act {
        let member = self.pick(LPIS);
        let lpi = match self.random.below(32) {
            0..=13 => Lpi::Send(self.flag()),
            14..=17 => Lpi::Move(self.cpu()),
            18..=19 => Lpi::Discard,
            20..=24 => Lpi::Map(self.cpu()),
            25..=26 => Lpi::Clear,
            _ => {
                let (enabled, priority) = (self.mostly(), self.either());
                Lpi::Configure { enabled, priority, all: self.random.one_in(3) }
            }
        };
        Act::Lpi(member, lpi)
    }
}

const _: () = assert!(MEMBERS.len() == LPIS.end);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        let sequence = |seed| Generator::new(Style::new(Model::V3, seed), seed).sequence(200);
        assert_eq!(sequence(1), sequence(1));
        assert_ne!(sequence(1), sequence(2));
    }

    #[test]
    fn one_cpu_is_alone() {
        let style = Style { cpus: 1, ..Style::new(Model::V3, 1) };
        let ops = Generator::new(style, 1).sequence(1000);
        assert!(ops.iter().all(|op| op.by == 0 && !matches!(op.act, Act::Irq { of: 1, .. })));
    }
}
