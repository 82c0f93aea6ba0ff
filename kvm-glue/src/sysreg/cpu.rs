//! The interface of the traps to a vCPU and to its CPU interface. It is implemented for KVM's
//! vCPUs, and for the vCPUs of the tests.

use vgic_core::engine::Engine;
use vgic_core::gic::{GicCpu, SysReg};

/// A register of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reg {
    /// A general-purpose register, X0 to X30.
    X(u8),
    /// The stack pointer of EL1, SP_EL1.
    SpEl1,
    /// The program counter.
    Pc,
    /// PSTATE, in the format of an SPSR.
    Pstate,
    /// The exception link register, ELR_EL1.
    Elr,
    /// The saved program status register, SPSR_EL1.
    Spsr,
    /// The exception syndrome register, ESR_EL1.
    Esr,
    /// The vector base address register, VBAR_EL1.
    Vbar,
    /// The system control register, SCTLR_EL1.
    Sctlr,
    /// The translation control register, TCR_EL1.
    Tcr,
    /// The table base register of the lower half, TTBR0_EL1.
    Ttbr0,
    /// The table base register of the upper half, TTBR1_EL1.
    Ttbr1,
    /// The feature register ID_AA64PFR1_EL1, which tells the parts of PSTATE that exist.
    Pfr1,
}

/// The largest number of hardware breakpoints that a CPU can have.
pub const MOST_BREAKPOINTS: usize = 16;

/// The events that stop a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Debug {
    /// Stop after one instruction.
    pub step: bool,
    /// Stop before an instruction at one of these addresses, at EL1.
    pub breakpoints: [Option<u64>; MOST_BREAKPOINTS],
}

/// A vCPU that is not in the guest.
pub trait Cpu {
    /// The reason why an access has failed.
    type Error;

    /// Reads a register.
    ///
    /// # Errors
    /// The access to the vCPU failed.
    fn get(&mut self, reg: Reg) -> Result<u64, Self::Error>;

    /// Writes a register.
    ///
    /// # Errors
    /// The access to the vCPU failed.
    fn set(&mut self, reg: Reg, value: u64) -> Result<(), Self::Error>;

    /// Sets the events that stop the vCPU from the next entry on, in place of those set before.
    /// With `Some`, even of the default, the vCPU stops for all debug exceptions. With `None`, it
    /// stops for none.
    ///
    /// # Errors
    /// The access to the vCPU failed.
    fn set_debug(&mut self, debug: Option<&Debug>) -> Result<(), Self::Error>;
}

/// The CPU interface's system registers.
pub trait Icc {
    /// Reads a register for the guest. `None`: the access is UNDEFINED.
    fn read(&mut self, reg: SysReg) -> Option<u64>;

    /// Writes a register for the guest. `None`: the access is UNDEFINED, and has no effect.
    fn write(&mut self, reg: SysReg, value: u64) -> Option<()>;
}

impl<E: Engine> Icc for GicCpu<E> {
    fn read(&mut self, reg: SysReg) -> Option<u64> {
        self.icc_read(reg)
    }

    fn write(&mut self, reg: SysReg, value: u64) -> Option<()> {
        self.icc_write(reg, value)
    }
}

/// A vCPU with a count of the accesses to it.
pub(super) struct Counted<'a, C> {
    pub(super) cpu: &'a mut C,
    pub(super) calls: &'a mut u64,
}

impl<C: Cpu> Cpu for Counted<'_, C> {
    type Error = C::Error;

    fn get(&mut self, reg: Reg) -> Result<u64, C::Error> {
        *self.calls += 1;
        self.cpu.get(reg)
    }

    fn set(&mut self, reg: Reg, value: u64) -> Result<(), C::Error> {
        *self.calls += 1;
        self.cpu.set(reg, value)
    }

    fn set_debug(&mut self, debug: Option<&Debug>) -> Result<(), C::Error> {
        *self.calls += 1;
        self.cpu.set_debug(debug)
    }
}
