//! The tests of `gicv3` on the locked engine.
#![cfg(feature = "locked")]

#[path = "gicv3/active.rs"]
mod active;
#[path = "gicv3/any.rs"]
mod any;
#[path = "gicv3/boot.rs"]
mod boot;
#[path = "gicv3/conformance.rs"]
mod conformance;
#[path = "gicv3/dist.rs"]
mod dist;
#[path = "gicv3/every.rs"]
mod every;
#[path = "gicv3/forward.rs"]
mod forward;
#[path = "gicv3/lpis.rs"]
mod lpis;
#[path = "gicv3/redist.rs"]
mod redist;
#[path = "gicv3/sysregs.rs"]
mod sysregs;
#[path = "gicv3/world.rs"]
mod world;

pub(crate) type Engine = vgic_core::locked::LockedVgic;
