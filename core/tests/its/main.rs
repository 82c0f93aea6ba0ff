//! The ITS as a guest's driver sees it, on the lock-free engine.

mod commands;
mod conformance;
mod dump;
mod enable_lpis;
mod found;
mod frame;
mod guest;
mod held_up;
mod jobs;
mod known_bugs;
mod queue;
mod save;
mod setup;
#[path = "../gicv3/world.rs"]
#[allow(dead_code)] // used only by the frames' own tests
mod world;

pub(crate) type Engine = vgic_core::Vgic;
