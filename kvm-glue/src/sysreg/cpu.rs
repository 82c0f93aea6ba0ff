//! What the traps need of a vCPU and of its CPU interface. KVM's vCPU is one; so are those of the tests.

use vgic_core::engine::Engine;
use vgic_core::gic::{GicCpu, SysReg};

/// A register of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reg {
    /// X0 to X30.
    X(u8),
    /// SP_EL1.
    SpEl1,
    /// PC.
    Pc,
    /// PSTATE, in the format of an SPSR.
    Pstate,
    /// ELR_EL1.
    Elr,
    /// SPSR_EL1.
    Spsr,
    /// ESR_EL1.
    Esr,
    /// VBAR_EL1.
    Vbar,
    /// SCTLR_EL1.
    Sctlr,
    /// TCR_EL1.
    Tcr,
    /// TTBR0_EL1.
    Ttbr0,
    /// TTBR1_EL1.
    Ttbr1,
    /// ID_AA64PFR1_EL1: which parts of PSTATE there are.
    Pfr1,
}

/// The most breakpoints that a CPU can have.
pub const MOST_BREAKPOINTS: usize = 16;

/// What a vCPU is to stop for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Debug {
    /// After one instruction.
    pub step: bool,
    /// Before an instruction at one of these addresses, at EL1.
    pub breakpoints: [Option<u64>; MOST_BREAKPOINTS],
}

/// A vCPU that is not in the guest.
pub trait Cpu {
    /// Why an access has failed.
    type Error;

    /// Reads a register.
    ///
    /// # Errors
    /// The vCPU's.
    fn get(&mut self, reg: Reg) -> Result<u64, Self::Error>;

    /// Writes a register.
    ///
    /// # Errors
    /// The vCPU's.
    fn set(&mut self, reg: Reg, value: u64) -> Result<(), Self::Error>;

    /// Sets what it stops for from the next entry on, instead of what was set before. While anything is set, even nothing (`Some`
    /// of the default), it stops for all debug exceptions; with `None`, for none.
    ///
    /// # Errors
    /// The vCPU's.
    fn set_debug(&mut self, debug: Option<&Debug>) -> Result<(), Self::Error>;
}

/// The CPU interface's system registers.
pub trait Icc {
    /// The guest reads one. `None` if that is UNDEFINED.
    fn read(&mut self, reg: SysReg) -> Option<u64>;

    /// The guest writes one. `None`, without effect, if that is UNDEFINED.
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

/// A vCPU whose accesses are counted.
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
