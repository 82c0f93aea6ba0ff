//! What can be observed of an engine while it runs: counters and trace hooks.

pub mod counters;
pub mod trace;
