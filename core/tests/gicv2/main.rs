//! The register model of GICv2, as a guest sees it (IHI 0048B), on the lock-free engine.

type Vgic = vgic_core::Vgic;

mod active;
mod conformance;
mod cpu;
mod dist;
mod known_bugs;
mod sweep;
mod targets;
mod v2m;
mod world;
