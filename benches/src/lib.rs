//! Shared parts of the benchmark programs: the host's side of an engine ([`host`]), random numbers
//! that a seed repeats ([`rng`]), and the storm itself ([`storm`]).

pub mod cost;
pub mod host;
pub mod rng;
pub mod storm;
