//! Accesses, as both sides get them, and what they answer.

use anyhow::Result;
use vgic_core::gic::SysReg;

pub use super::wire::{Kind, Operation, Outcome};

/// CPUs of the machine.
pub const CPUS: usize = 2;

/// An access, and what of the answer must be equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The access.
    pub operation: Operation,
    /// The bits of its value.
    pub mask: u64,
    /// Whether the lines of the CPUs are compared.
    pub lines: bool,
    /// Whether it was put in by the comparison.
    pub check: bool,
}

impl Step {
    const fn new(kind: Kind, cpu: u8, width: u8, address: u64, value: u64) -> Self {
        let operation = Operation { kind, cpu, width, register: 0, address, value };
        Self { operation, mask: u64::MAX, lines: true, check: false }
    }

    /// A CPU reads `width` bytes.
    pub const fn read(cpu: u8, width: u8, address: u64) -> Self {
        Self::new(Kind::Read, cpu, width, address, 0)
    }

    /// A CPU writes them.
    pub const fn write(cpu: u8, width: u8, address: u64, value: u64) -> Self {
        Self::new(Kind::Write, cpu, width, address, value)
    }

    /// A CPU reads a system register.
    pub const fn mrs(cpu: u8, register: u8) -> Self {
        let mut step = Self::new(Kind::ReadRegister, cpu, 8, 0, 0);
        step.operation.register = register;
        step
    }

    /// A CPU writes one.
    pub const fn msr(cpu: u8, register: u8, value: u64) -> Self {
        let mut step = Self::new(Kind::WriteRegister, cpu, 8, 0, value);
        step.operation.register = register;
        step
    }

    /// An input line takes a level; a CPU's own, if it is a PPI's.
    pub const fn line(cpu: u8, intid: u32, high: bool) -> Self {
        Self::new(Kind::Line, cpu, 0, intid as u64, high as u64)
    }

    /// Memory is cleared.
    pub const fn clear(address: u64, len: u64) -> Self {
        Self::new(Kind::Clear, 0, 8, address, len)
    }

    /// The same, of which only some bits are compared.
    pub const fn masked(self, mask: u64) -> Self {
        Self { mask, ..self }
    }

    /// The same, after which lines may be as they like: the next step is a part of the operation.
    pub const fn within(self) -> Self {
        Self { lines: false, ..self }
    }

    /// The same, by which the comparison looks.
    pub const fn checking(self) -> Self {
        Self { check: true, ..self }
    }
}

/// A system register by its number in [`super::wire`].
pub fn system_register(register: u8) -> SysReg {
    match register {
        super::wire::PMR => SysReg::ICC_PMR_EL1,
        n => SysReg::new(3, 0, 12, n >> 3, n & 7),
    }
}

/// What was done, and what both said.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was done.
    pub step: Step,
    /// The reference's answer.
    pub reference: Outcome,
    /// The candidate's, or why it has none.
    pub candidate: Result<Outcome, String>,
}

impl Row {
    /// Whether both said the same, as far as they must.
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
    /// If it cannot go on. What a GIC answers to nonsense is no error.
    fn perform(&mut self, steps: &[Step]) -> Result<Vec<Outcome>>;
}
