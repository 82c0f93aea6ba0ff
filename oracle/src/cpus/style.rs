//! The shape of a sequence: interrupts, groups, CPUs, list registers.

use std::ops::Range;

use crate::generate::Random;
use crate::target::Model;

/// The INTIDs in use: SGIs; PPIs and SPIs with inputs; other SPIs; LPIs. There are few, so that
/// operations meet, and so that each INTID has priorities of its own: among equal priorities, the
/// choice is the implementation's.
pub const MEMBERS: [u32; 16] =
    [0, 3, 15, 23, 27, 30, 33, 34, 39, 40, 63, 100, 8192, 8193, 8255, 8256];
/// Indices of the SGIs.
pub const SGIS: Range<usize> = 0..3;
/// The number of members that are private, and come first.
pub const PRIVATE: usize = 6;
/// Indices of the members with an input.
pub const INPUTS: Range<usize> = 3..9;
/// Indices of the SPIs.
pub const SPIS: Range<usize> = PRIVATE..12;
/// The number of members that are not LPIs, and come first.
pub const WIRED: usize = 12;
/// Indices of the LPIs.
pub const LPIS: Range<usize> = WIRED..16;

/// Returns a priority that no other member has.
pub fn own_priority(member: usize, pick: u8) -> u8 {
    let second = pick & 1 != 0 && member + MEMBERS.len() < 31;
    (8 * (member + if second { MEMBERS.len() } else { 0 })) as u8
}

/// The groups that a sequence has interrupts in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Groups {
    /// Only Group 0, and no LPIs.
    Zero,
    /// Only Group 1.
    One,
    /// Both groups.
    Both,
}

/// The properties of a sequence that do not change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    /// The GIC's architecture version.
    pub model: Model,
    /// The number of CPUs that perform operations.
    pub cpus: u8,
    /// The number of list registers of the candidate.
    pub lrs: usize,
    /// Whether the candidate's vCPUs stay in their guests until they are kicked.
    pub stays: bool,
    /// The groups in use.
    pub groups: Groups,
    /// Whether there are LPIs.
    pub lpis: bool,
    /// The number of operations between two checks of the interrupts that the CPUs would take next.
    pub look_every: u32,
    /// The number of operations between two comparisons of all readable registers.
    pub sweep_every: u32,
}

impl Style {
    /// Derives a style from a seed. Successive seeds give 1 to 16 list registers in turn.
    pub fn new(model: Model, seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x0057_e1e5);
        let groups = match (model, random.below(4)) {
            (_, 0) => Groups::Zero,
            (Model::V3, 1) => Groups::One,
            _ => Groups::Both,
        };
        let lpis = model == Model::V3 && groups != Groups::Zero;
        Self {
            model,
            cpus: if random.one_in(5) { 1 } else { 2 },
            lrs: 1 + (seed % 16) as usize,
            stays: random.one_in(2),
            groups,
            lpis: lpis && !random.one_in(4),
            look_every: [1, 4, 32][random.below(3) as usize],
            sweep_every: 32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_differ() {
        let all = (0..MEMBERS.len()).flat_map(|m| [own_priority(m, 0), own_priority(m, 1)]);
        let mut all: Vec<(usize, u8)> = all.enumerate().map(|(n, p)| (n / 2, p)).collect();
        all.dedup();
        for &(member, priority) in &all {
            assert!(all.iter().all(|&(m, p)| m == member || p != priority), "{member} {priority}");
            assert!(priority < 0xf8);
        }
    }
}
