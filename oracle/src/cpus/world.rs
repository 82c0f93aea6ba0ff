//! Decides which operations on two CPUs have one right outcome.
//!
//! [`World`] follows a sequence by its operations and by the acknowledged interrupts. When an
//! operation is due, it turns the operation into accesses, and passes over operations with more
//! than one right outcome. It also decides which bits of the answers must be equal
//! (`differences.md`).

use super::generate::{Act, Op, Set};
use super::lpis::Lpis;
use super::steps::{CPUS, Outcome, Step};
use super::style::{Groups, INPUTS, MEMBERS, PRIVATE, SGIS, Style, WIRED};
use super::{v2, v3};
use crate::target::Model;

/// Counts of the events of a sequence. They show that a comparison is not empty.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Coverage {
    /// Operations that were performed, not passed over.
    pub performed: u64,
    /// Accesses of these operations, including those of the comparison.
    pub accesses: u64,
    /// Interrupts that were acknowledged, of each group.
    pub acknowledged: [u64; 2],
    /// LPIs that were acknowledged.
    pub lpis: u64,
    /// The largest number of interrupts acknowledged and not ended at one CPU.
    pub deepest: usize,
    /// Interrupts that were deactivated by DIR.
    pub deactivated: u64,
}

impl Coverage {
    /// Adds the counts of another sequence.
    pub fn add(&mut self, other: Self) {
        self.performed += other.performed;
        self.accesses += other.accesses;
        self.acknowledged[0] += other.acknowledged[0];
        self.acknowledged[1] += other.acknowledged[1];
        self.lpis += other.lpis;
        self.deepest = self.deepest.max(other.deepest);
        self.deactivated += other.deactivated;
    }
}

/// A wired interrupt.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Irq {
    pub(super) enabled: bool,
    pub(super) group1: bool,
    pub(super) edge: bool,
    pub(super) line: bool,
    pub(super) active: bool,
    /// Whether the interrupt may be pending.
    pub(super) pending: bool,
    pub(super) route: u8,
}

/// An interrupt that was acknowledged and not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Taken {
    /// The value that the acknowledge returned.
    pub(super) value: u64,
    pub(super) member: usize,
    pub(super) group: u8,
}

/// A CPU interface.
#[derive(Clone, Default, Debug)]
pub(super) struct Cpu {
    pub(super) stack: Vec<Taken>,
    /// Active interrupts with a priority that has been dropped.
    pub(super) dropped: Vec<Taken>,
    pub(super) split: bool,
    /// All bits of the control register except the group enables.
    pub(super) modes: u16,
    pub(super) groups: [bool; 2],
    /// Whether the priority mask lets every interrupt pass.
    pub(super) unmasked: bool,
}

/// The known state of both machines.
pub struct World {
    pub(super) style: Style,
    private: [[Irq; PRIVATE]; CPUS],
    spis: [Irq; WIRED - PRIVATE],
    pub(super) cpus: [Cpu; CPUS],
    pub(super) lpis: Lpis,
    ops: u32,
    coverage: Coverage,
}

impl World {
    /// Creates the state after a reset.
    pub fn new(style: Style) -> Self {
        let irq = |member: usize| Irq {
            enabled: true,
            group1: match style.groups {
                Groups::Zero => false,
                Groups::One => true,
                Groups::Both => !member.is_multiple_of(2),
            },
            edge: SGIS.contains(&member),
            ..Irq::default()
        };
        Self {
            style,
            private: [std::array::from_fn(irq); CPUS],
            spis: std::array::from_fn(|spi| irq(PRIVATE + spi)),
            cpus: Default::default(),
            lpis: Lpis::default(),
            ops: 0,
            coverage: Coverage::default(),
        }
    }

    /// Returns the first steps of every sequence. They enable all interrupts and let them through.
    pub fn prologue(&mut self) -> Vec<Step> {
        for cpu in &mut self.cpus {
            cpu.groups = [true; 2];
            cpu.unmasked = true;
        }
        let steps = match self.style.model {
            Model::V2 => v2::prologue(self),
            _ => v3::prologue(self),
        };
        steps.into_iter().map(Step::checking).collect()
    }

    /// Returns the counts of the sequence so far.
    pub fn coverage(&self) -> Coverage {
        self.coverage
    }

    pub(super) fn irq(&self, of: u8, member: usize) -> &Irq {
        match member.checked_sub(PRIVATE) {
            None => &self.private[usize::from(of)][member],
            Some(spi) => &self.spis[spi],
        }
    }

    pub(super) fn irq_mut(&mut self, of: u8, member: usize) -> &mut Irq {
        match member.checked_sub(PRIVATE) {
            None => &mut self.private[usize::from(of)][member],
            Some(spi) => &mut self.spis[spi],
        }
    }

    /// Whether an interrupt is between its acknowledge and its end, at any CPU that it can be at.
    pub(super) fn is_taken(&self, of: u8, member: usize) -> bool {
        self.cpus.iter().zip(0..).any(|(cpu, n)| {
            (member >= PRIVATE || n == of) && cpu.stack.iter().any(|taken| taken.member == member)
        })
    }

    /// Returns the steps of an operation in the present state. If there are none, the operation is
    /// passed over.
    pub fn admit(&mut self, op: Op) -> Vec<Step> {
        let mut steps = self.steps(op).unwrap_or_default();
        if steps.is_empty() {
            return steps;
        }
        self.coverage.performed += 1;
        self.ops += 1;
        if self.ops.is_multiple_of(self.style.look_every) {
            self.look(&mut steps);
        }
        if self.ops.is_multiple_of(self.style.sweep_every) {
            match self.style.model {
                Model::V2 => v2::sweep(op.by, &mut steps),
                _ => v3::sweep(op.by, &mut steps),
            }
        }
        self.coverage.accesses += steps.len() as u64;
        steps
    }

    fn look(&self, steps: &mut Vec<Step>) {
        for cpu in 0..CPUS as u8 {
            match self.style.model {
                Model::V2 => v2::look(cpu, steps),
                _ => v3::look(cpu, steps),
            }
        }
    }

    fn steps(&mut self, op: Op) -> Option<Vec<Step>> {
        let Op { by, act } = op;
        let v2 = self.style.model == Model::V2;
        Some(match act {
            Act::Irq { of, member, set } => self.set(by, of, member.into(), set)?,
            Act::Route(member, to) if v2 => v2::route(self, by, member.into(), to)?,
            Act::Route(member, to) => v3::route(by, MEMBERS[usize::from(member)], to),
            Act::Sgi { member, targets, others, .. } if v2 => {
                v2::sgi(by, MEMBERS[usize::from(member)], targets, others)
            }
            Act::Sgi { member, targets, others, by_group } => {
                v3::sgi(self, by, member.into(), targets, others, by_group)?
            }
            Act::Acknowledge(group) if v2 => v2::acknowledge(by, group),
            Act::Acknowledge(group) => v3::acknowledge(by, group),
            Act::End => {
                let taken = self.cpus[usize::from(by)].stack.pop()?;
                self.ended(by, taken);
                if v2 { v2::end(by, taken) } else { v3::end(by, taken.group, taken.value) }
            }
            Act::EndSpecial(group, n) => {
                let value = 1020 + u64::from(n);
                if v2 { return None } else { v3::end(by, group, value) }
            }
            Act::Deactivate(n) => self.deactivate(by, n)?,
            Act::Mask(value) if v2 => {
                self.cpus[usize::from(by)].unmasked = value >= 0xf8;
                v2::mask(by, value & 0xf8)
            }
            Act::Mask(value) => v3::mask(by, value),
            Act::BinaryPoint(_, value) if v2 => v2::binary_point(self, by, value)?,
            Act::BinaryPoint(group, value) => v3::binary_point(by, group, value),
            Act::Modes(modes) => self.modes(by, modes)?,
            Act::Groups(zero, one) => {
                // In QEMU an interrupt of a disabled group hides those of the other group. So both
                // groups get the same enable, unless no interrupt is in one of them.
                let both = v2 || self.style.groups == Groups::Both;
                let on = if both { [zero; 2] } else { [zero, one] };
                self.cpus[usize::from(by)].groups = on;
                if v2 { v2::control(self, by) } else { v3::groups(by, on) }
            }
            Act::Forward(groups) if v2 => v2::forward(self, by, groups)?,
            Act::Forward(groups) => v3::forward(by, groups),
            Act::ClearPriorities(_) if v2 => return None,
            Act::ClearPriorities(group) => self.clear_priorities(by, group),
            Act::Register(..) if v2 => return None,
            Act::Register(n, value) => v3::any_register(by, n, value)?,
            Act::Lpi(member, lpi) => self.lpis.change(by, member.into(), lpi)?,
            Act::LpisOff(of) => self.lpis.off(by, of)?,
            Act::LpisOn(of, preset) => self.lpis.on(by, of, preset)?,
        })
    }

    fn set(&mut self, by: u8, of: u8, member: usize, set: Set) -> Option<Vec<Step>> {
        let v2 = self.style.model == Model::V2;
        // GICv2's registers are banked, so they are those of the accessing CPU.
        let (from, of) = (of, if v2 || matches!(set, Set::Line(_)) { by } else { of });
        let taken = self.is_taken(of, member);
        let input = INPUTS.contains(&member);
        let fixed_groups = self.style.groups != Groups::Both;
        let irq = self.irq_mut(of, member);
        match set {
            Set::Enabled(on) => irq.enabled = on,
            // QEMU's GICv2 uses the group at the time of the end, not of the acknowledge.
            Set::Group1(_) if fixed_groups || v2 && taken => return None,
            Set::Group1(on) => irq.group1 = on,
            Set::Priority(_) => {}
            Set::Pending(on) => irq.pending |= on,
            // Without its active state, ending the interrupt would be UNPREDICTABLE.
            Set::Active(_) if taken => return None,
            Set::Active(on) => irq.active = on,
            Set::Edge(_) if SGIS.contains(&member) => return None,
            // Changing the configuration is UNPREDICTABLE while the interrupt is enabled (IHI 0069,
            // 12.9, GICD_ICFGR).
            Set::Edge(_) if irq.enabled || irq.active || irq.line => return None,
            Set::Edge(edge) => irq.edge = edge,
            Set::Line(_) if !input => return None,
            Set::Line(high) => {
                irq.line = high;
                irq.pending |= high;
            }
        }
        // GICD_ISACTIVER makes an interrupt active at all of QEMU's CPUs, and QEMU's DIR
        // deactivates it at one of them.
        if set == Set::Active(false) || v2 && set == Set::Active(true) && member >= PRIVATE {
            for (cpu, n) in self.cpus.iter_mut().zip(0..) {
                cpu.dropped.retain(|taken| taken.member != member || (member < PRIVATE && n != of));
            }
        }
        if v2 { v2::set(self, by, from, member, set) } else { v3::set(self, by, of, member, set) }
    }

    fn ended(&mut self, by: u8, taken: Taken) {
        let cpu = &mut self.cpus[usize::from(by)];
        if taken.member >= WIRED {
            return;
        }
        if cpu.split {
            cpu.dropped.push(taken);
        } else {
            self.irq_mut(by, taken.member).active = false;
        }
    }

    fn deactivate(&mut self, by: u8, n: u8) -> Option<Vec<Step>> {
        let cpu = &mut self.cpus[usize::from(by)];
        // Without EOImode, DIR is UNPREDICTABLE.
        if !cpu.split || cpu.dropped.is_empty() {
            return None;
        }
        let taken = cpu.dropped.remove(usize::from(n) % cpu.dropped.len());
        self.irq_mut(by, taken.member).active = false;
        self.coverage.deactivated += 1;
        Some(match self.style.model {
            Model::V2 => v2::deactivate(by, taken),
            _ => v3::deactivate(by, taken.value),
        })
    }

    fn modes(&mut self, by: u8, modes: u16) -> Option<Vec<Step>> {
        let v2 = self.style.model == Model::V2;
        let cpu = &mut self.cpus[usize::from(by)];
        // If these bits change between acknowledge and end, GICv2's end is UNPREDICTABLE (IHI
        // 0048B, 4.4.1, 4.4.5).
        if v2 && !cpu.stack.is_empty() {
            return None;
        }
        cpu.modes = modes;
        cpu.split = modes & if v2 { 1 << 9 } else { 1 << 1 } != 0;
        Some(if v2 { v2::control(self, by) } else { v3::modes(by, modes) })
    }

    fn clear_priorities(&mut self, by: u8, group: u8) -> Vec<Step> {
        let cpu = &mut self.cpus[usize::from(by)];
        let (gone, left) = cpu.stack.drain(..).partition::<Vec<_>, _>(|t| t.group == group);
        cpu.stack = left;
        cpu.dropped.extend(gone.into_iter().filter(|taken| taken.member < WIRED));
        v3::clear_priorities(by, group)
    }

    /// Updates the state with the answers, and leaves bits out of the comparison that the answers
    /// make incomparable.
    pub fn observe(&mut self, steps: &mut [Step], answers: &[Outcome]) {
        let v2 = self.style.model == Model::V2;
        for (step, answer) in steps.iter_mut().zip(answers) {
            let by = step.operation.cpu;
            if step.check {
                let highest = match self.style.model {
                    Model::V2 => v2::is_highest_pending(step.operation),
                    _ => v3::is_highest_pending(step.operation),
                };
                // QEMU's GICC_HPPIR is 1023 for an interrupt that the mask holds back.
                let v2_masked = v2 && !self.cpus[usize::from(by)].unmasked;
                if highest && (v2_masked || self.is_hidden(by, answer.asserted[usize::from(by)])) {
                    step.mask = 0;
                }
                continue;
            }
            let group = match self.style.model {
                Model::V2 => v2::acknowledges(step.operation),
                _ => v3::acknowledges(step.operation),
            };
            if let Some(group) = group {
                // QEMU's GICC_IAR is 1022 for an interrupt of Group 1 even if it is not urgent
                // enough to be signaled.
                if v2 && answer.value >= 0x3fe && !self.cpus[usize::from(by)].stack.is_empty() {
                    step.mask = !1;
                }
                self.acknowledged(by, group, answer.value);
            }
        }
    }

    fn acknowledged(&mut self, by: u8, group: u8, value: u64) {
        let intid = if self.style.model == Model::V2 { value & 0x3ff } else { value };
        let Some(member) = MEMBERS.iter().position(|&m| u64::from(m) == intid) else { return };
        let group = if self.style.model == Model::V2 && member < WIRED {
            u8::from(self.irq(by, member).group1)
        } else {
            group
        };
        if member < WIRED {
            let irq = self.irq_mut(by, member);
            irq.active = true;
            irq.pending = irq.line;
        } else {
            self.coverage.lpis += 1;
        }
        let cpu = &mut self.cpus[usize::from(by)];
        cpu.stack.push(Taken { value, member, group });
        self.coverage.acknowledged[usize::from(group)] += 1;
        self.coverage.deepest = self.coverage.deepest.max(cpu.stack.len());
    }

    /// Whether a pending interrupt may be invisible: while active interrupts fill the list
    /// registers, an interrupt that cannot preempt need not be in one of them.
    fn is_hidden(&self, by: u8, asserted: u8) -> bool {
        let own = self.private[usize::from(by)].iter().chain(&self.spis);
        let active = own.filter(|irq| irq.active).count();
        asserted == 0 && active >= self.style.lrs
    }
}
