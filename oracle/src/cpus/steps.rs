//! Accesses in the form that both sides get, and their answers.

use anyhow::Result;
use vgic_core::gic::SysReg;

pub use super::wire::{Kind, Operation, Outcome};

/// The number of CPUs of the machine.
pub const CPUS: usize = 2;

/// An access, and the parts of its answer that must be equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The access.
    pub operation: Operation,
    /// The bits of the value that are compared.
    pub mask: u64,
    /// Whether the lines of the CPUs are compared.
    pub lines: bool,
    /// Whether the comparison inserted this access.
    pub check: bool,
}

impl Step {
    const fn new(kind: Kind, cpu: u8, width: u8, address: u64, value: u64) -> Self {
        let operation = Operation { kind, cpu, width, register: 0, address, value };
        Self { operation, mask: u64::MAX, lines: true, check: false }
    }

    /// A read of `width` bytes by a CPU.
    pub const fn read(cpu: u8, width: u8, address: u64) -> Self {
        Self::new(Kind::Read, cpu, width, address, 0)
    }

    /// A write of `width` bytes by a CPU.
    pub const fn write(cpu: u8, width: u8, address: u64, value: u64) -> Self {
        Self::new(Kind::Write, cpu, width, address, value)
    }

    /// A read of a system register by a CPU.
    pub const fn mrs(cpu: u8, register: u8) -> Self {
        let mut step = Self::new(Kind::ReadRegister, cpu, 8, 0, 0);
        step.operation.register = register;
        step
    }

    /// A write of a system register by a CPU.
    pub const fn msr(cpu: u8, register: u8, value: u64) -> Self {
        let mut step = Self::new(Kind::WriteRegister, cpu, 8, 0, value);
        step.operation.register = register;
        step
    }

    /// A new level of an input line. A PPI's line is that of the given CPU.
    pub const fn line(cpu: u8, intid: u32, high: bool) -> Self {
        Self::new(Kind::Line, cpu, 0, intid as u64, high as u64)
    }

    /// Clears memory.
    pub const fn clear(address: u64, len: u64) -> Self {
        Self::new(Kind::Clear, 0, 8, address, len)
    }

    /// Returns this step, with only some bits of its value compared.
    pub const fn masked(self, mask: u64) -> Self {
        Self { mask, ..self }
    }

    /// Returns this step, without a comparison of the lines after it: the next step is a part of
    /// the same operation.
    pub const fn within(self) -> Self {
        Self { lines: false, ..self }
    }

    /// Returns this step, marked as one that the comparison inserted.
    pub const fn checking(self) -> Self {
        Self { check: true, ..self }
    }
}

/// Returns the system register with a number of [`super::wire`].
pub fn system_register(register: u8) -> SysReg {
    match register {
        super::wire::PMR => SysReg::ICC_PMR_EL1,
        n => SysReg::new(3, 0, 12, n >> 3, n & 7),
    }
}

/// A step with both answers.
#[derive(Clone, Debug)]
pub struct Row {
    /// The step.
    pub step: Step,
    /// The reference's answer.
    pub reference: Outcome,
    /// The candidate's answer, or the reason why it has none.
    pub candidate: Result<Outcome, String>,
}

impl Row {
    /// Whether both answers agree in the parts that are compared.
    pub fn agrees(&self) -> bool {
        self.candidate.as_ref().is_ok_and(|candidate| {
            (candidate.value ^ self.reference.value) & self.step.mask == 0
                && candidate.faulted == self.reference.faulted
                && (candidate.asserted == self.reference.asserted || !self.step.lines)
        })
    }
}

/// A machine with two CPUs.
pub trait Machine {
    /// Performs accesses in order, and returns an answer for each.
    ///
    /// # Errors
    /// If the machine fails. A GIC's answer to an invalid access is not an error.
    fn perform(&mut self, steps: &[Step]) -> Result<Vec<Outcome>>;
}
