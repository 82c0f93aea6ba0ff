//! The tests of `gicv2` on the locked engine.

#![cfg(feature = "locked")]

type Vgic = vgic_core::locked::LockedVgic;

#[path = "gicv2/active.rs"]
mod active;
#[path = "gicv2/conformance.rs"]
mod conformance;
#[path = "gicv2/cpu.rs"]
mod cpu;
#[path = "gicv2/dist.rs"]
mod dist;
#[path = "gicv2/known_bugs.rs"]
mod known_bugs;
#[path = "gicv2/sweep.rs"]
mod sweep;
#[path = "gicv2/targets.rs"]
mod targets;
#[path = "gicv2/v2m.rs"]
mod v2m;
#[path = "gicv2/world.rs"]
mod world;
