//! What the architecture defines: interrupt numbers, list registers, and the CPU interface that a guest sees.
//!
//! Nothing here knows an engine.

pub mod cpuif;
pub mod ids;
pub mod lr;
