//! GICv3's system registers on stock KVM.
//!
//! KVM gives nobody the accesses to `ICC_*_EL1` of a guest that has no interrupt controller in the kernel: they are UNDEFINED, in the
//! guest. So the vCPU is debugged: a hardware breakpoint is on the vector that the exception goes to, VBAR_EL1 + 0x200 (and + 0, if there are four
//! breakpoints or more). Of what stops there, an access is performed, and the guest goes on after it; everything else is the guest's
//! own, and is let past the breakpoint. Accesses that are made often get a breakpoint of their own, which comes before the instruction.
//!
//! # What the vCPU's thread does
//!
//! [`Traps::start`] before the vCPU is first run, after it is initialised again, and whenever it is found powered off: it stops after its first
//! instruction then, and gets the breakpoints that the VM's other vCPUs are known to need. [`Traps::follow`] after each exit that is no
//! debug exit; [`Traps::handle`] after each that is, when the CPU interface has taken in what has come. If that returns
//! [`Handled::NewTable`], all other vCPUs are called out of KVM_RUN.
//!
//! VBAR_EL1 is looked at whenever the vCPU exits for anything but an access. That is
//! enough for a guest that accesses the distributor or a redistributor between setting VBAR_EL1 and its first access, as one does that sets a GICv3 up; a vCPU that
//! is powered on later, and does not, is served by what is known of the others. It is also enough for one that changes VBAR_EL1 later (Linux does, on CPUs with Spectre-BHB), and takes an interrupt
//! or touches a device before its next access that has no breakpoint of its own. A guest that sets VBAR_EL1 and at once makes such an access gets an UNDEF.
//!
//! # What it costs
//!
//! One debug exit for each access. Calls into the kernel for registers: eight if it came as an UNDEF, three if it has a breakpoint of its own (where it is,
//! Xt, and where it goes on), one less with XZR; one more (two where the text is in the lower half of the address space) if the guest
//! has caused any other exit since the last one. One for each exit that is no access.
//!
//! # What a guest can notice
//!
//! * An access that comes as an UNDEF overwrites ESR_EL1, ELR_EL1 and SPSR_EL1. What they held is lost when the exception is taken, before
//!   anybody is told, so it cannot be put back. Seen only by a handler that accesses ICC_* before it has read them; Linux saves
//!   ELR_EL1 and SPSR_EL1 first. An access with a breakpoint of its own overwrites nothing.
//! * Its hardware breakpoints, watchpoints and single steps do not work, at EL0 either: KVM takes them away from a guest that is debugged. A program
//!   that is stepped (ptrace's PTRACE_SINGLESTEP) does not stop, as if it had been continued. BRK and BKPT do work: they exit, and are delivered by hand.
//! * A guest whose EL1 is AArch32 is not served. PSTATE.EXLOCK (FEAT_GCS) is not set on a BRK that is delivered.

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
