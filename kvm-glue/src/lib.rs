#![doc = include_str!("../README.md")]

mod arch;
pub mod bus;
pub mod error;
pub mod events;
mod exits;
pub mod fdt;
pub mod ioevent;
pub mod lines;
pub mod machine;
pub mod memory;
pub mod msi;
pub mod resample;
pub mod runner;
mod signal;
pub mod spi;
pub mod stats;
pub mod sysreg;
pub mod timer;

pub use error::Error;
pub use machine::{GicV2Map, GicV3Map, KvmGic, Machine};
pub use runner::{Devices, Exit, Runner, Stop};
pub use vgic_core as core;
