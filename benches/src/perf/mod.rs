//! `cargo xtask perf`: all measurements, the report on them, and the comparison of two reports.
//!
//! A [`path::Path`] is a timed operation of an engine or of a peer. Paths of one [`path::Key`] do
//! the same work, and are measured in turns, round by round, beside one uncontended
//! read-modify-write ([`measure`]). So a figure can be given in nanoseconds, in read-modify-writes,
//! and as a ratio to each peer, all from the same rounds.

pub mod accesses;
pub mod churn;
pub mod compare;
pub mod data;
pub mod heap;
pub mod measure;
pub mod operations;
pub mod path;
pub mod paths;
pub mod peer;
pub mod plot;
pub mod report;
pub mod stats;
pub mod storms;
pub mod targets;
pub mod vm;
