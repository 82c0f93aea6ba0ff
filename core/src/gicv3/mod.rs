//! GICv3 (IHI 0069), with one security state and affinity routing: distributor, redistributors, system registers.

pub(crate) mod bits;
pub(crate) mod dist;
mod layout;
mod left;
pub(crate) mod lpis;
pub(crate) mod redist;
pub(crate) mod state;
pub(crate) mod sysregs;
mod takers;
