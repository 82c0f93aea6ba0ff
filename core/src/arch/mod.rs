//! The parts that the architecture defines: interrupt numbers, list registers, and the CPU
//! interface that a guest sees.
//!
//! Nothing here depends on an engine.

pub mod cpuif;
pub mod ids;
pub mod lr;
