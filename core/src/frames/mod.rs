//! The guest's view: the register frames of GICv2, GICv3 and the ITS, on any engine.

pub(crate) mod cpu_host;
pub(crate) mod gicv2;
pub(crate) mod gicv3;
pub(crate) mod its;
pub(crate) mod lpi_tables;
pub(crate) mod machine;
pub(crate) mod mmio;
pub(crate) mod regions;
pub(crate) mod targets;
