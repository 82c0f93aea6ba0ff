//! GICv3 (IHI 0069) with one security state and affinity routing: the distributor, the
//! redistributors, and the system registers.

pub(crate) mod dist;
pub(crate) mod icc;
pub(crate) mod irq_regs;
mod layout;
mod left;
pub(crate) mod redist;
pub(crate) mod routing;
mod takers;
