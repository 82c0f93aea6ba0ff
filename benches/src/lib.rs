//! Shared parts of the benchmark programs: the host's side of an engine ([`host`]), random numbers
//! that a seed reproduces ([`rng`]), and the storm ([`storm`]).

pub mod cost;
pub mod frames;
pub mod host;
pub mod its;
pub mod perf;
pub mod rng;
pub mod storm;

/// The examples of the repository's README, which must compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct ReadmeExamples;
