//! A guest and a host that do anything, in any order: what the register frames must stand.
//!
//! The input of a fuzz target is a sequence of steps on a machine of three vCPUs. vCPUs are entered and left when a step says
//! so, and when another one waits for them. After each step no interrupt may be in two places. A step
//! checks that a vCPU, at its next entry, is offered what it should be and nothing else. In the
//! end the guest becomes sensible and serves everything that it is offered; then nothing may be left that should have been.
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

/// The frame that a target is about; most accesses go there.
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
    /// An ITS, whose steps are its own.
    Its,
}

const VCPUS: u16 = 3;

/// What a run has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Steps that were made.
    pub steps: usize,
    /// SGIs that were taken before the guest became sensible.
    pub sgis: usize,
    /// PPIs.
    pub ppis: usize,
    /// SPIs.
    pub spis: usize,
    /// LPIs.
    pub lpis: usize,
    /// Interrupts that were ended, or deactivated, while their vCPU was in the guest or before its next entry.
    pub ended: usize,
    /// Interrupts that a check found in the list registers, pending, as they should be.
    pub offered: usize,
    /// Those that waited while the list registers were full.
    pub waiting: usize,
    /// Times that a vCPU was waited for to leave the guest.
    pub waits: usize,
    /// Those that were taken after it became sensible.
    pub drained: usize,
    /// Accesses that left work for the host: LPIs to be cleared or configured, a pending table to be read.
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

/// The steps of an input, to be read.
pub fn explain(frame: Frame, data: &[u8]) -> Vec<String> {
    match frame {
        Frame::Its => its::explain(data).collect(),
        _ => steps(data).map(|op| format!("{op:x?}")).collect(),
    }
}

/// Runs one input.
///
/// # Panics
/// On whatever must not be.
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
