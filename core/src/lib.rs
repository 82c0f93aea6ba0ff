#![doc = include_str!("../README.md")]
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod bitmap;
mod block;
mod collect;
mod control;
mod cost;
#[cfg(all(feature = "count-ops", not(any(loom, shuttle))))]
pub mod counted;
pub mod counters;
pub mod cpuif;
pub mod engine;
pub mod gic;
mod gicv2;
mod gicv3;
mod graveyard;
mod hub;
pub mod ids;
mod irq;
pub mod its;
pub mod line;
#[cfg(feature = "locked")]
pub mod locked;
mod lpis;
pub mod lr;
mod mailbox;
pub mod memory;
mod mmio;
mod msi;
#[cfg(all(feature = "probe", not(any(loom, shuttle))))]
pub mod probe;
mod ready;
pub mod reclaim;
mod refcount;
mod refs;
mod sync;
pub mod trace;
mod tree;
mod vcpu;
mod vgic;
pub mod wait;

#[cfg(any(loom, shuttle))]
pub use sync::Turns;

pub use mmio::MmioError;
pub use msi::{Msi, MsiDomain, MsiRoute};
pub use vcpu::VcpuInterface;
pub use vgic::{Vgic, VgicInjector};
