//! The register model of GICv2, as a guest sees it (IHI 0048B).

mod conformance;
mod cpu;
mod dist;
mod known_bugs;
mod sweep;
mod v2m;
mod world;
