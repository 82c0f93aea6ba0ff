//! GICv3's system registers on stock KVM.

pub mod decode;
pub mod walk;

pub use decode::{Access, Direction, Rt, decode};
