//! Decides which operations have one right outcome.
//!
//! Sequences are random, and are cut down when they fail. So the meaning of an operation, and
//! whether it may be performed at all, are decided only when the operation is due. [`Rules`]
//! follows a sequence by its actions and by the reference's answers. It changes operations with an
//! outcome that the architecture does not define, one bit at a time if possible, and passes over
//! the rest.

use crate::regs::{self, Kind, Reg, low};
use crate::target::{Action, Answer, GICC, GICD, Model};

/// An operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// An action. [`Rules`] may change the value that it writes.
    Do(Action),
    /// Ends the interrupt that was acknowledged last.
    End,
    /// Deactivates the n-th of the active interrupts that are not between acknowledge and end. SPIs
    /// that GICD_ISACTIVER made active are left out.
    Deactivate(u8),
}

/// INTIDs that GICv2's sequences make deliverable. They are few, so that operations meet.
pub const POOL: [u32; 12] = [0, 3, 15, 18, 27, 30, 32, 33, 47, 63, 64, 287];
/// The number of levels of a 5-bit priority, without the one that no mask lets pass.
const LEVELS: u32 = 31;

/// Returns a priority of a pool member that no other member has: among equal priorities, the choice
/// is the implementation's.
pub fn own_priority(member: u32, pick: u32) -> u8 {
    let members = POOL.len() as u32;
    let picks = (LEVELS - member).div_ceil(members);
    (8 * (member + members * (pick % picks))) as u8
}

const IAR: u64 = GICC + 0xc;
/// The number of INTIDs, including the numbers of CPU 1's private interrupts.
const INTIDS: usize = 320;

/// Fields of GICC_CTLR.
mod ctlr {
    pub(super) const GROUPS: u64 = 3;
    pub(super) const ACK_CTL: u64 = 1 << 2;
    pub(super) const CBPR: u64 = 1 << 4;
    pub(super) const EOI_MODE: u64 = 1 << 9;
}

/// Counts of the events of a sequence. They show that a comparison is not empty.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Coverage {
    /// Actions of the sequence that were performed.
    pub performed: u64,
    /// Interrupts that were acknowledged.
    pub acknowledged: u64,
    /// The largest number of interrupts acknowledged and not ended at one time.
    pub deepest: usize,
    /// Operations after which the CPU's FIQ line was high.
    pub fiq: u64,
}

/// The known state of both GICs.
#[derive(Clone, Debug)]
pub struct Rules {
    model: Model,
    /// The number of the candidate's list registers.
    lrs: usize,
    /// The values of the acknowledges that have not been ended, the newest last.
    stack: Vec<u64>,
    active: [bool; INTIDS],
    /// SPIs that were made active by GICD_ISACTIVER.
    stuck: [bool; INTIDS],
    enabled: [bool; INTIDS],
    group: [bool; INTIDS],
    edge: [bool; INTIDS],
    line: [bool; INTIDS],
    priority: [u8; INTIDS],
    dist_ctlr: u64,
    cpu_ctlr: u64,
    mask: u64,
    /// GICC_BPR and GICC_ABPR.
    binary_points: [u64; 2],
    coverage: Coverage,
}

impl Rules {
    /// Creates the state after a reset. The candidate has `lrs` list registers.
    pub fn new(model: Model, lrs: usize) -> Self {
        let mut edge = [false; INTIDS];
        edge.iter_mut().zip(0..).for_each(|(edge, intid)| *edge = is_sgi(intid));
        Self {
            model,
            lrs,
            stack: Vec::new(),
            active: [false; INTIDS],
            stuck: [false; INTIDS],
            enabled: [false; INTIDS],
            group: [false; INTIDS],
            edge,
            line: [false; INTIDS],
            priority: [0; INTIDS],
            dist_ctlr: 0,
            cpu_ctlr: 0,
            mask: 0,
            binary_points: [2, 3],
            coverage: Coverage::default(),
        }
    }

    /// Returns the first actions of every sequence. They remove differences that the architecture
    /// allows and that would otherwise appear everywhere (differences.md).
    pub fn prologue(model: Model) -> Vec<Action> {
        let word = |address, value| Action::Write { address, bytes: 4, value };
        if model != Model::V2 {
            return Vec::new();
        }
        let mut actions = vec![
            word(GICC + 4, 0xf0),
            word(GICC + 8, 2),
            word(GICC + 0x1c, 3),
            word(GICD + 0x100, 0xffff),
        ];
        actions.extend((0..).zip(POOL).map(|(member, intid)| Action::Write {
            address: GICD + 0x400 + u64::from(intid),
            bytes: 1,
            value: own_priority(member, 1).into(),
        }));
        actions
    }

    /// Returns the counts of the sequence so far.
    pub fn coverage(&self) -> Coverage {
        self.coverage
    }

    fn on_stack(&self, intid: u32) -> bool {
        self.stack.iter().any(|&value| value & 0x3ff == intid.into())
    }

    /// Returns the action of an operation in the present state. `None` means that the operation is
    /// passed over.
    pub fn admit(&self, op: Op) -> Option<Action> {
        let word = |offset, value| Action::Write { address: GICC + offset, bytes: 4, value };
        match op {
            Op::Do(Action::Write { address, bytes, value }) => {
                let reg = regs::find(self.model, address)?;
                let value = self.value(reg, address, bytes, value)?;
                Some(Action::Write { address, bytes, value })
            }
            Op::Do(action) => Some(action),
            Op::End => self.stack.last().map(|&value| word(0x10, value)),
            // DIR with EOImode 0, or before EOIR, is UNPREDICTABLE (IHI 0048B, 4.4.15).
            Op::Deactivate(_) if self.cpu_ctlr & ctlr::EOI_MODE == 0 => None,
            Op::Deactivate(n) => {
                let dropped = |&intid: &u32| {
                    let n = intid as usize;
                    self.active[n] && !self.stuck[n] && !self.on_stack(intid)
                };
                let dropped: Vec<u32> = (0..INTIDS as u32).filter(dropped).collect();
                let n = usize::from(n) % dropped.len().max(1);
                dropped.get(n).map(|&intid| word(0x1000, intid.into()))
            }
        }
    }

    /// Returns the INTID of a register's bit or field, `width` bits wide, at an address.
    fn first(reg: &Reg, address: u64, width: u64) -> u32 {
        reg.first + ((address - reg.address) * 8 / width) as u32
    }

    /// Returns the bits of a bitmap for the INTIDs that satisfy `keep`.
    fn bits(first: u32, keep: impl Fn(u32) -> bool) -> u64 {
        (0..32).filter(|&n| first + n < INTIDS as u32 && keep(first + n)).fold(0, |b, n| b | 1 << n)
    }

    fn value(&self, reg: &Reg, address: u64, bytes: u8, value: u64) -> Option<u64> {
        let value = value & low(bytes);
        let first = Self::first(reg, address, 1);
        let v2 = self.model == Model::V2;
        Some(match reg.kind {
            Kind::Group if v2 => {
                // QEMU uses the group at the time of the end, not of the acknowledge.
                let fixed = Self::bits(first, |i| self.on_stack(i));
                let now = Self::bits(first, |i| self.group[i as usize]);
                let value = value & !fixed | now & fixed;
                let both = self.both_or_none(self.dist_ctlr) && self.both_or_none(self.cpu_ctlr);
                let alike = self.binary_points[1] == self.binary_points[0] + 1;
                if value != 0 && !(both && alike) {
                    return None;
                }
                value
            }
            Kind::SetEnable if v2 => value & Self::bits(first, |i| POOL.contains(&i)),
            // Whether SGIs can be disabled is IMPLEMENTATION DEFINED (IHI 0048B, 4.3.5).
            Kind::ClearEnable if v2 => value & !Self::bits(first, |i| i < 16),
            // Without its active state, ending an acknowledged interrupt is UNPREDICTABLE.
            Kind::ClearActive => value & !Self::bits(first, |i| self.on_stack(i)),
            Kind::Config => {
                let first = Self::first(reg, address, 2);
                let fixed = |i: u32| {
                    let i = i as usize;
                    // Changing an enabled interrupt is UNPREDICTABLE (IHI 0048B, 4.3.13).
                    is_sgi(i as u32) || self.enabled[i] || self.line[i] || self.active[i]
                };
                let field = |n: u32| {
                    let edge = self.edge[(first + n) as usize];
                    let bit = 2 << (2 * n);
                    if fixed(first + n) { if edge { bit } else { 0 } } else { value & bit }
                };
                (0..16).map(field).sum()
            }
            Kind::Priority => {
                let first = Self::first(reg, address, 8) as usize;
                let byte = |n: usize| {
                    let value = (value >> (8 * n)) as u8 & 0xf8;
                    let intid = first + n;
                    let fixed = v2 && (self.on_stack(intid as u32) || !is_own(intid as u32, value));
                    u64::from(if fixed { self.priority[intid] } else { value }) << (8 * n)
                };
                (0..usize::from(bytes)).map(byte).sum()
            }
            // Only single bytes are written. A byte that is 0 makes QEMU take the SGI as pending
            // without a sender, and QEMU terminates when the SGI is acknowledged. CPU 0 is the only
            // sender.
            Kind::SetSgi if bytes != 1 || !POOL.contains(&Self::first(reg, address, 8)) => {
                return None;
            }
            Kind::SetSgi => 1,
            Kind::Sgir if value >> 24 & 3 == 3 || !POOL.contains(&(value as u32 & 0xf)) => {
                return None;
            }
            // An SPI that is made active by this register is active at all of QEMU's CPUs. Neither
            // EOIR nor DIR changes that.
            Kind::SetActive if v2 => value & !Self::bits(first, |i| self.on_stack(i)),
            Kind::DistCtlr if v2 => self.enables(value & 3, value & 3)?,
            Kind::DistCtlr => value & 3,
            Kind::CpuCtlr => self.cpu_ctlr(value & 0x21f)?,
            // With both groups in use, both binary points stay alike: the specification can be read
            // in two ways as to which of them decides between groups.
            Kind::BinaryPoint if !self.stack.is_empty() || self.group.contains(&true) => {
                return None;
            }
            Kind::BinaryPoint => (value & 7).max(if address == GICC + 8 { 2 } else { 3 }),
            Kind::Mask => value & 0xf8,
            Kind::Router => {
                let skip = 8 * ((address - reg.address) % 8);
                value & regs::AFFINITY >> skip
            }
            Kind::Table => {
                let skip = 8 * ((address - reg.address) % 8);
                // The only size is 16 bits of INTID, which all implementations have. Addresses are
                // limited to those that every IPA space has.
                let fields = if reg.name == "GICR_PROPBASER" { 0xffff_f000 } else { 0xffff_0000 };
                let id_bits = if reg.name == "GICR_PROPBASER" { 15 } else { 0 };
                value & fields >> skip | id_bits >> skip
            }
            Kind::Waker => value & 2,
            // EnableLPIs stays clear, since there are no tables at the addresses.
            Kind::Fixed if reg.name == "GICR_CTLR" => 0,
            Kind::Acknowledge | Kind::End | Kind::Deactivate | Kind::HighestPending => return None,
            _ => value,
        })
    }

    fn both_or_none(&self, enables: u64) -> bool {
        matches!(enables & ctlr::GROUPS, 0 | 3)
    }

    /// QEMU picks the best pending interrupt of both groups and checks the group's enable
    /// afterwards, so an interrupt of a disabled group hides the others. Therefore both groups are
    /// enabled, or none, or Group 0 alone while nothing is in Group 1.
    fn enables(&self, enables: u64, value: u64) -> Option<u64> {
        let alone = enables & ctlr::GROUPS == 1 && !self.group.contains(&true);
        (self.both_or_none(enables) || alone).then_some(value)
    }

    fn cpu_ctlr(&self, value: u64) -> Option<u64> {
        let modes = ctlr::ACK_CTL | ctlr::CBPR | ctlr::EOI_MODE;
        let changes = (value ^ self.cpu_ctlr) & modes != 0;
        // If these bits change between acknowledge and end, the end is UNPREDICTABLE (IHI 0048B,
        // 4.4.1, 4.4.5).
        if changes && !self.stack.is_empty() {
            return None;
        }
        self.enables(value, value)
    }

    /// Returns the bits in which the answers to an action must be equal, given the reference's
    /// answer.
    pub fn compared(&self, action: Action, reference: Answer) -> u64 {
        let Action::Read { address, bytes } = action else { return 0 };
        let Some(reg) = regs::find(self.model, address) else { return low(bytes) };
        // QEMU's GICC_HPPIR is 1023 for an interrupt that the mask holds back.
        let masked = self.mask != 0xf8 && reference.value == 0x3ff;
        // While active interrupts fill the list registers, an interrupt that cannot preempt need
        // not be in one of them, and is then not visible.
        let signaled = reference.lines.irq || reference.lines.fiq;
        let active = self.active.iter().filter(|&&active| active).count();
        let unseen = active >= self.lrs && !signaled;
        // QEMU's GICC_IAR is 1022 for an interrupt of Group 1 even if it is not urgent enough to be
        // signaled.
        let blocked = !self.stack.is_empty() && reference.value == 0x3fe;
        match reg.kind {
            Kind::HighestPending if masked || unseen => 0,
            Kind::Acknowledge if blocked => !1 & low(bytes),
            _ => reg.mask(address, bytes),
        }
    }

    /// Updates the state with an action and the reference's answer.
    pub fn observe(&mut self, action: Action, answer: Answer) {
        self.coverage.performed += 1;
        self.coverage.fiq += u64::from(answer.lines.fiq);
        match action {
            Action::Line { intid, high } => self.line[intid as usize] = high,
            Action::Read { address: IAR, .. } if self.model == Model::V2 => {
                let intid = answer.value & 0x3ff;
                if intid < INTIDS as u64 {
                    self.stack.push(answer.value);
                    self.active[intid as usize] = true;
                    self.coverage.acknowledged += 1;
                    self.coverage.deepest = self.coverage.deepest.max(self.stack.len());
                }
            }
            Action::Read { .. } | Action::Zero { .. } => {}
            Action::Write { address, bytes, value } => {
                if let Some(reg) = regs::find(self.model, address) {
                    self.written(reg, address, bytes, value);
                }
            }
        }
    }

    fn written(&mut self, reg: &Reg, address: u64, bytes: u8, value: u64) {
        let set = |bits: &mut [bool; INTIDS], to: Option<bool>| {
            let first = Self::first(reg, address, 1) as usize;
            for (n, bit) in bits.iter_mut().skip(first).take(32).enumerate() {
                let one = value >> n & 1 != 0;
                match to {
                    Some(to) if one => *bit = to,
                    Some(_) => {}
                    None => *bit = one,
                }
            }
        };
        match reg.kind {
            Kind::Group => set(&mut self.group, None),
            Kind::SetEnable => set(&mut self.enabled, Some(true)),
            Kind::ClearEnable => set(&mut self.enabled, Some(false)),
            Kind::SetActive => {
                set(&mut self.active, Some(true));
                set(&mut self.stuck, Some(true));
                self.stuck[..32].fill(false);
            }
            Kind::ClearActive => {
                set(&mut self.active, Some(false));
                set(&mut self.stuck, Some(false));
            }
            Kind::Config => {
                let first = Self::first(reg, address, 2) as usize;
                // SGIs are always edge-triggered. Writes do not change that.
                if !is_sgi(first as u32) {
                    for (n, edge) in self.edge[first..first + 16].iter_mut().enumerate() {
                        *edge = value >> (2 * n + 1) & 1 != 0;
                    }
                }
            }
            Kind::Priority => {
                let first = Self::first(reg, address, 8) as usize;
                self.priority[first..first + usize::from(bytes)]
                    .copy_from_slice(&value.to_le_bytes()[..usize::from(bytes)]);
            }
            Kind::DistCtlr => self.dist_ctlr = value,
            Kind::CpuCtlr => self.cpu_ctlr = value,
            Kind::Mask => self.mask = value,
            Kind::BinaryPoint => self.binary_points[usize::from(address != GICC + 8)] = value,
            Kind::End => {
                let ended = self.stack.pop().unwrap_or(0x3ff) & 0x3ff;
                if self.cpu_ctlr & ctlr::EOI_MODE == 0 && ended < INTIDS as u64 {
                    self.active[ended as usize] = false;
                }
            }
            Kind::Deactivate => self.active[(value & 0x3ff) as usize] = false,
            _ => {}
        }
    }
}

/// Whether a number stands for an SGI of either CPU.
fn is_sgi(intid: u32) -> bool {
    (0..regs::CPUS).any(|cpu| intid.wrapping_sub(regs::private(cpu, 0)) < 16)
}

/// Whether an INTID may have a priority without being equal to another INTID that can be delivered.
fn is_own(intid: u32, priority: u8) -> bool {
    let level = u32::from(priority / 8);
    match POOL.iter().position(|&i| i == intid) {
        Some(member) => level < LEVELS && level % POOL.len() as u32 == member as u32,
        None => true,
    }
}

impl Coverage {
    /// Adds the counts of another sequence.
    pub fn add(&mut self, other: Self) {
        self.performed += other.performed;
        self.acknowledged += other.acknowledged;
        self.deepest = self.deepest.max(other.deepest);
        self.fiq += other.fiq;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_share_a_priority() {
        for (a, i) in (0..).zip(POOL) {
            for pick in 0..9 {
                let priority = own_priority(a, pick);
                assert!(is_own(i, priority) && priority <= 0xf0);
                assert!(POOL.iter().all(|&other| other == i || !is_own(other, priority)));
            }
        }
    }

    #[test]
    fn ends_are_of_the_newest() {
        let mut rules = Rules::new(Model::V2, 16);
        assert_eq!(rules.admit(Op::End), None);
        let iar = Action::Read { address: GICC + 0xc, bytes: 4 };
        for value in [33, 3, 1023] {
            rules.observe(iar, Answer { value, ..Answer::default() });
        }
        for value in [3, 33] {
            let end = Action::Write { address: GICC + 0x10, bytes: 4, value };
            assert_eq!(rules.admit(Op::End), Some(end));
            rules.observe(end, Answer::default());
        }
        assert_eq!(rules.admit(Op::End), None);
    }
}
