//! An engine behind an ITS. All mappings are made as a guest makes them, by commands in a queue in
//! guest memory.
//!
//! [`ViaIts`] is itself an [`Engine`](vgic_core::engine::Engine), so code that is generic over
//! engines can run through an ITS. Its vCPUs are those of the inner engine, its injections go
//! through the ITS, and its control side is a guest's [`Driver`].

pub(crate) mod boot;
mod driver;
mod engine;
pub(crate) mod layout;
pub(crate) mod ram;

pub use driver::Driver;
pub use engine::{ThroughIts, ViaIts};
