//! The lock-free engine. Its modules, in the order in which each builds on those before:
//! `reclaim` (when memory may be freed), `pending` (bits), `irq` (one interrupt), `notify` (mailboxes and kicks), `map` (LPIs by INTID), `vgic`, `msi`,
//! `vcpu`.

pub(crate) mod collect;
pub(crate) mod cost;
pub(crate) mod injector;
pub(crate) mod irq;
pub(crate) mod map;
pub(crate) mod msi;
pub(crate) mod notify;
pub(crate) mod pending;
#[cfg(all(feature = "probe", not(any(loom, shuttle))))]
pub mod probe;
pub mod reclaim;
pub(crate) mod vcpu;
pub(crate) mod vgic;
pub(crate) mod vm;
