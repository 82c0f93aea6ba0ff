//! The register model of GICv3, as a guest on the lock-free engine sees it. One file per frame.

mod active;
mod any;
mod boot;
mod conformance;
mod dist;
mod every;
mod forward;
mod lpis;
mod redist;
mod sysregs;
mod world;

pub(crate) type Engine = vgic_core::Vgic;
