//! The lock-free engine.
//!
//! Its modules, in the order in which each builds on those before:
//!
//! * `reclaim`: when memory may be freed.
//! * `pending`: pending bits.
//! * `irq`: one interrupt, its state word and its references.
//! * `notify`: mailboxes, and how a vCPU is told of a change.
//! * `map`: LPIs by INTID.
//! * `vm`: the shared part of one VM; `collect` frees its retired objects, `cost` counts their
//!   bytes.
//! * `msi`: devices, events and routes.
//! * `injector`, `vcpu` and `vgic`: the handles of users. `vcpu` also has the list registers.

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
