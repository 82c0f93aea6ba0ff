//! Observation of a running engine: counters and trace hooks.

pub mod counters;
pub mod trace;
