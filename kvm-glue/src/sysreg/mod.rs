//! GICv3's system registers on stock KVM.

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
pub use trap::{Handled, TrapStats, Traps, Vectors};
pub use walk::{Physical, Regime};
