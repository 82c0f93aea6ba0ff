//! GICv2 (IHI 0048B): distributor, memory-mapped CPU interface, and GICv2m's MSI frames.

pub(crate) mod cpu;
pub(crate) mod dist;
pub(crate) mod layout;
pub(crate) mod v2m;
