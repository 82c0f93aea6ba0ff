//! A guest and a host that do anything, in any order. The register frames must withstand all of it.
//!
//! The input of a fuzz target is a sequence of steps on a machine of three vCPUs. A vCPU is entered
//! and left when a step says so, and leaves the guest when another vCPU waits for it. After each
//! step no interrupt may be in two places. A check step verifies that a vCPU, at its next entry, is
//! given exactly the interrupts that it should be given. At the end of a run the guest becomes
//! sensible and serves every interrupt that it is given. Then no interrupt may remain that should
//! have been given.
//!
//! The target of the ITS has a machine and steps of its own.

mod host;
mod its;
mod lpis;
mod machine;
mod op;
pub mod sysreg;

use crate::machine::Machine;
use crate::op::steps;

/// The frame that a target tests. Most accesses go there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// GICv2's distributor.
    GicdV2,
    /// GICv2's CPU interface.
    Gicc,
    /// A GICv2m frame.
    Gicv2m,
    /// GICv3's distributor.
    GicdV3,
    /// GICv3's redistributors.
    Gicr,
    /// GICv3's system registers.
    Icc,
    /// An ITS, with a machine and steps of its own.
    Its,
}

const VCPUS: u16 = 3;

/// Counts of the events of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Steps performed.
    pub steps: usize,
    /// SGIs acknowledged before the guest became sensible.
    pub sgis: usize,
    /// PPIs acknowledged before the guest became sensible.
    pub ppis: usize,
    /// SPIs acknowledged before the guest became sensible.
    pub spis: usize,
    /// LPIs acknowledged before the guest became sensible.
    pub lpis: usize,
    /// Interrupts ended or deactivated while their vCPU was in the guest or before its next entry.
    pub ended: usize,
    /// Interrupts that a check found pending in the list registers, as required.
    pub offered: usize,
    /// Interrupts that waited while the list registers were full.
    pub waiting: usize,
    /// Times that a vCPU was waited for to leave the guest.
    pub waits: usize,
    /// Interrupts acknowledged after the guest became sensible.
    pub drained: usize,
    /// Accesses that left work for the host: LPIs to be cleared or configured, or a pending table
    /// to be read.
    pub left: usize,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.sgis += other.sgis;
        self.ppis += other.ppis;
        self.spis += other.spis;
        self.lpis += other.lpis;
        self.ended += other.ended;
        self.offered += other.offered;
        self.waiting += other.waiting;
        self.waits += other.waits;
        self.drained += other.drained;
        self.left += other.left;
    }
}

/// Formats the steps of an input for a reader.
pub fn explain(frame: Frame, data: &[u8]) -> Vec<String> {
    match frame {
        Frame::Its => its::explain(data).collect(),
        _ => steps(data).map(|op| format!("{op:x?}")).collect(),
    }
}

/// Runs one input.
///
/// # Panics
/// If the machine violates an invariant.
pub fn run(frame: Frame, data: &[u8]) -> Report {
    if frame == Frame::Its {
        return its::run(data);
    }
    let mut machine = Machine::new(frame);
    for op in steps(data) {
        machine.perform(op);
        machine.check_places();
        machine.report.steps += 1;
    }
    machine.drain();
    machine.finish()
}
