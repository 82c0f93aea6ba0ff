//! GICv2 (IHI 0048B): the distributor, the memory-mapped CPU interface, and the MSI frames of
//! GICv2m.

pub(crate) mod cpu;
pub(crate) mod dist;
pub(crate) mod layout;
pub(crate) mod v2m;
