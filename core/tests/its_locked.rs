//! The tests of `its` on the locked engine.
#![cfg(feature = "locked")]

#[path = "its/commands.rs"]
mod commands;
#[path = "its/conformance.rs"]
mod conformance;
#[path = "its/dump.rs"]
mod dump;
#[path = "its/enable_lpis.rs"]
mod enable_lpis;
#[path = "its/found.rs"]
mod found;
#[path = "its/frame.rs"]
mod frame;
#[path = "its/guest.rs"]
mod guest;
#[path = "its/held_up.rs"]
mod held_up;
#[path = "its/jobs.rs"]
mod jobs;
#[path = "its/known_bugs.rs"]
mod known_bugs;
#[path = "its/queue.rs"]
mod queue;
#[path = "its/save.rs"]
mod save;
#[path = "its/setup.rs"]
mod setup;
#[path = "gicv3/world.rs"]
#[allow(dead_code)] // used only by the frames' own tests
mod world;

pub(crate) type Engine = vgic_core::locked::LockedVgic;
