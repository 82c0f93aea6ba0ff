//! A complete interrupt controller: an engine behind the register frames that a guest sees.
//!
//! [`Setup`] takes the shape of the machine (model, vCPUs, addresses), checks it, and makes a
//! [`Gic`]. The thread of each vCPU takes that vCPU's [`GicCpu`], which performs everything that
//! the vCPU's guest does: frame accesses, system register accesses, entries and exits. Other
//! threads access the frames through a [`GicBus`], and inject interrupts through the
//! [engine](Gic::engine).

mod bus;
mod cpu;
mod dump;
mod error;
mod its;
mod save;
mod setup;

use alloc::boxed::Box;
use alloc::sync::Arc;

pub use crate::frames::gicv3::icc::SysReg;
pub use crate::frames::machine::{Affinity, MsiFrame};
pub(crate) use bus::Access;
pub use bus::GicBus;
pub use cpu::GicCpu;
pub use dump::{CollectionDump, DeviceDump, EventDump, GicDump, ItsDump, ItsEntry};
pub use error::SetupError;
pub use its::Its;
pub use setup::{Model, Setup};

use crate::arch::ids::VcpuId;
use crate::engine::{Engine, Error, Kick};
use crate::frames::gicv2::{dist::DistV2, v2m::V2m};
use crate::frames::gicv3::{dist::DistV3, redist::Redist};
use crate::frames::its::unit::{ItsCx, Unit};
use crate::frames::lpi_tables::LpiControl;
use crate::frames::machine::Machine;
use crate::frames::regions::Regions;

/// The frame at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Dist,
    /// GICC. Each vCPU sees its own at this address.
    Cpu,
    /// The GICv2m frame with this number.
    V2m(u16),
    /// RD_base and SGI_base of this vCPU.
    Redist(VcpuId),
    /// The registers of the ITS with this number.
    Its(u16),
    /// The translation frame of the ITS with this number.
    Translation(u16),
}

/// The frames of a model.
// Shuttle's atomics are large.
#[cfg_attr(shuttle, allow(clippy::large_enum_variant))]
pub(crate) enum Frames {
    V2 { dist: DistV2, v2m: Box<[V2m]> },
    V3 { dist: DistV3, redists: Box<[Redist]> },
}

struct Shared<E: Engine> {
    /// `units` and `lpis` come before `engine`, so that they are dropped before the engine that
    /// they belong to.
    units: Box<[Unit<E>]>,
    lpis: Option<LpiControl<E>>,
    engine: E,
    machine: Machine,
    regions: Regions<Place>,
    frames: Frames,
    host: Arc<dyn Kick>,
    lrs: usize,
}

/// An interrupt controller. This is a handle that is cheap to clone.
pub struct Gic<E: Engine>(Arc<Shared<E>>);

impl<E: Engine> Clone for Gic<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Engine> Gic<E> {
    /// The engine, for injecting interrupts and for making MSI domains.
    ///
    /// Configure wired interrupts only through the frames: the frames keep state that the engine
    /// does not have.
    pub fn engine(&self) -> &E {
        &self.0.engine
    }

    pub(crate) fn lpis(&self) -> Option<&LpiControl<E>> {
        self.0.lpis.as_ref()
    }

    pub(crate) fn units(&self) -> &[Unit<E>] {
        &self.0.units
    }

    /// Calls `f` with the context that an ITS works in. Returns `None` if the machine has no ITS
    /// context: it is a GICv2, or has no LPIs.
    pub(crate) fn with_its_cx<T>(
        &self,
        injector: Option<&E::Injector>,
        f: impl FnOnce(&ItsCx<'_, E>) -> T,
    ) -> Option<T> {
        let shared = &*self.0;
        let Frames::V3 { redists, .. } = &shared.frames else { return None };
        let lpis = shared.lpis.as_ref()?;
        let (machine, host) = (&shared.machine, &*shared.host);
        Some(f(&ItsCx { machine, lpis, redists, host, injector }))
    }

    /// Takes a vCPU, which is powered off.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], [`Error::VcpuInUse`], [`Error::TooManyParticipants`].
    pub fn cpu(&self, vcpu: VcpuId) -> Result<GicCpu<E>, Error> {
        GicCpu::new(self, vcpu)
    }

    pub(crate) fn find(&self, address: u64) -> Option<(Place, u32)> {
        self.0.regions.find(address)
    }
}
