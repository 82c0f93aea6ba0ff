//! Parts for hosts of an engine: kick tokens, interrupt lines, and guest memory.

pub mod line;
pub mod memory;
pub mod wait;
