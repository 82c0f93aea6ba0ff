//! An engine behind an ITS: everything that is mapped is mapped as a guest does it, by commands in a queue in guest memory.
//!
//! [`ViaIts`] is an [`Engine`](vgic_core::engine::Engine) itself, so that whatever is written for engines runs through an ITS. Its vCPUs are those of the engine
//! inside, its injections go through the ITS, and its control side is a guest's [`Driver`].

pub(crate) mod boot;
mod driver;
mod engine;
pub(crate) mod layout;
pub(crate) mod ram;

pub use driver::Driver;
pub use engine::{ThroughIts, ViaIts};
