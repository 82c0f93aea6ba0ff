//! GICv3 system registers on stock KVM.
//!
//! KVM does not report a guest's accesses to `ICC_*_EL1` if the VM has no interrupt controller in
//! the kernel: the accesses are UNDEFINED in the guest. So this module debugs the vCPU. A hardware
//! breakpoint is set on the vector of that exception, VBAR_EL1 + 0x200 (and on VBAR_EL1 + 0, if
//! there are four breakpoints or more). If the vCPU stops there for an access, the access is
//! performed, and the guest continues after it. Every other exception is the guest's own, and the
//! guest is moved past the breakpoint. An access that is made often gets a breakpoint of its own,
//! which stops the vCPU before the instruction.
//!
//! # Duties of the vCPU's thread
//!
//! * Call [`Traps::start`] before the vCPU is first run, after it is initialized again, and
//!   whenever it is found powered off. The vCPU then stops after its first instruction, and gets
//!   the breakpoints that the VM's other vCPUs are known to need.
//! * Call [`Traps::follow`] after each exit that is not a debug exit.
//! * Call [`Traps::handle`] after each debug exit, once the CPU interface has taken in the changes
//!   that have come. If it returns [`Handled::NewTable`], call all other vCPUs out of KVM_RUN.
//!
//! VBAR_EL1 is read whenever the vCPU exits for anything but an access. That is enough for these
//! guests:
//!
//! * A guest that accesses the distributor or a redistributor between setting VBAR_EL1 and its
//!   first access. A guest that sets a GICv3 up does so. A vCPU that is powered on later may not;
//!   it uses the table that is known from the other vCPUs.
//! * A guest that changes VBAR_EL1 later (Linux does, on CPUs with Spectre-BHB), and takes an
//!   interrupt or touches a device before its next access that has no breakpoint of its own.
//!
//! A guest that sets VBAR_EL1 and at once makes such an access gets an UNDEF.
//!
//! # Cost
//!
//! Each access costs one debug exit. It also costs calls into the kernel for registers:
//!
//! * Eight if it came as an UNDEF.
//! * Three if it has a breakpoint of its own: read PC, transfer Xt, write PC.
//! * One less with XZR.
//! * If the guest has caused any other exit since the last access: one more, or two more if the
//!   text is in the lower half of the address space.
//!
//! Each exit that is not an access costs one call.
//!
//! # Effects visible to the guest
//!
//! * An access that comes as an UNDEF overwrites ESR_EL1, ELR_EL1 and SPSR_EL1. Their old values
//!   are lost when the exception is taken, before any software is told, so they cannot be restored.
//!   Only a handler that accesses ICC_* before it has read these registers can notice; Linux saves
//!   ELR_EL1 and SPSR_EL1 first. An access with a breakpoint of its own overwrites nothing.
//! * The guest's hardware breakpoints, watchpoints and single steps do not work, at EL0 either: KVM
//!   takes them away from a guest that is debugged. A program that is stepped (ptrace's
//!   PTRACE_SINGLESTEP) does not stop, as if it had been continued. BRK and BKPT do work: they
//!   cause an exit, and this module delivers them.
//! * A guest with an AArch32 EL1 is not supported. PSTATE.EXLOCK (FEAT_GCS) is not set on a BRK
//!   that is delivered.

mod breakpoints;
pub mod cpu;
pub mod decode;
mod exception;
mod fetch;
pub mod kvm;
pub mod trap;
pub mod walk;

pub use cpu::{Cpu, Debug, Icc, Reg};
pub use decode::{Access, Direction, Rt, decode};
pub use trap::{ExitFor, Handled, TrapStats, Traps, Vectors};
pub use walk::{Physical, Regime};
