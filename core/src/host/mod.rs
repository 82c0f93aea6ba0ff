//! What a host of the engine uses or implements: kick tokens, interrupt lines, and guest memory.

pub mod line;
pub mod memory;
pub mod wait;
