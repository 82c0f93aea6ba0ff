#![doc = include_str!("../README.md")]
#![cfg_attr(not(feature = "std"), no_std)]

extern crate alloc;

mod arch;
pub mod engine;
mod frames;
pub mod gic;
mod host;
#[cfg(feature = "locked")]
pub mod locked;
mod lockfree;
mod observe;
mod sync;

/// The Interrupt Translation Service (IHI 0069, chapter 5): set-up, handles, counters, dumps.
pub mod its {
    pub use crate::frames::its::*;
    pub use crate::gic::{CollectionDump, DeviceDump, EventDump, GicDump, Its, ItsDump, ItsEntry};
}

pub use arch::{cpuif, ids, lr};
pub use frames::mmio::MmioError;
pub use host::{line, memory, wait};
pub use lockfree::injector::VgicInjector;
pub use lockfree::msi::{Msi, MsiDomain, MsiRoute};
#[cfg(all(feature = "probe", not(any(loom, shuttle))))]
pub use lockfree::probe;
pub use lockfree::reclaim;
pub use lockfree::vcpu::VcpuInterface;
pub use lockfree::vgic::Vgic;
pub use observe::{counters, trace};
#[cfg(any(loom, shuttle))]
pub use sync::Turns;
#[cfg(all(feature = "count-ops", not(any(loom, shuttle))))]
pub use sync::counted;
