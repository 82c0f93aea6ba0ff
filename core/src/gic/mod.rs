//! A whole interrupt controller: an engine behind the register frames that a guest sees.
//!
//! [`Setup`] takes the shape of the machine (model, vCPUs, addresses), checks it, and makes a [`Gic`]. Each vCPU's
//! thread takes its [`GicCpu`], which performs everything that this vCPU's guest does: frame accesses, system registers, entries and
//! exits. Other threads reach the frames through a [`GicBus`], and inject through the [engine](Gic::engine).

mod cpu;
mod setup;
pub(crate) mod takers;

use alloc::boxed::Box;
use alloc::sync::Arc;

pub use crate::gicv3::sysregs::SysReg;
pub use cpu::GicCpu;
pub use setup::{Model, MsiFrame, Setup, SetupError};

use crate::engine::{Engine, Error, Kick, Wired};
use crate::gicv2::{dist::DistV2, v2m::V2m};
use crate::gicv3::lpis::LpiControl;
use crate::gicv3::{dist::DistV3, redist::Redist};
use crate::ids::{
    DeviceId, EPPI_BASE, ESPI_BASE, EventId, Intid, PRIVATE_END, PRIVATE_INTIDS, VcpuId,
};
use crate::its::unit::{ItsCx, Unit};
use crate::its::{Its, TRANSLATER, Translation};
use crate::mmio::bus::Regions;
use crate::mmio::{self, MmioError};

/// A vCPU's place in the machine: Aff3.Aff2.Aff1.Aff0, as in MPIDR_EL1, with Aff3 in bits 31:24
/// (the form of GICR_TYPER bits 63:32; IHI 0069, 12.11).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Affinity(pub u32);

impl Affinity {
    /// From the fields of MPIDR_EL1: Aff3 in bits 39:32, Aff2 to Aff0 in bits 23:0.
    pub const fn from_mpidr(mpidr: u64) -> Self {
        Self((mpidr & 0xff_ffff) as u32 | ((mpidr >> 32) as u32 & 0xff) << 24)
    }

    /// As the fields of MPIDR_EL1, the other bits 0: also the form of GICD_IROUTER.
    pub const fn mpidr(self) -> u64 {
        (self.0 & 0xff_ffff) as u64 | ((self.0 >> 24) as u64) << 32
    }
}

/// What the frames know of the machine that they are in.
pub(crate) struct Machine {
    /// Number of SPIs, of extended SPIs, and of extended PPIs of each vCPU.
    pub(crate) spis: u16,
    pub(crate) espis: u16,
    pub(crate) eppis: u16,
    /// Number of LPIs: INTIDs 8192 up. 0 if there are none.
    pub(crate) lpis: u32,
    /// Number of ITSs.
    pub(crate) itss: usize,
    /// Of each vCPU.
    pub(crate) affinities: Box<[Affinity]>,
    /// Address of each vCPU's RD_base.
    pub(crate) redists: Box<[u64]>,
    /// The guest begins with firmware ([`Setup::set_firmware`]).
    pub(crate) firmware: bool,
}

impl Machine {
    /// Whether guests make LPIs pending through GICR_SETLPIR: where there is no ITS.
    pub(crate) fn has_direct_lpis(&self) -> bool {
        self.lpis > 0 && self.itss == 0
    }

    pub(crate) fn vcpus(&self) -> u16 {
        self.affinities.len() as u16
    }

    /// The SGIs and PPIs of a vCPU.
    pub(crate) fn private(&self, vcpu: VcpuId) -> impl Iterator<Item = Wired> + use<> {
        let extended = EPPI_BASE..EPPI_BASE + u32::from(self.eppis);
        (0..PRIVATE_END).chain(extended).map(move |n| Wired::Private(vcpu, Intid(n)))
    }

    /// The SPIs.
    pub(crate) fn shared(&self) -> impl Iterator<Item = Wired> + use<> {
        let some = |base: u32, n: u16| base..base + u32::from(n);
        let spis = some(PRIVATE_INTIDS, self.spis).chain(some(ESPI_BASE, self.espis));
        spis.map(|n| Wired::Spi(Intid(n)))
    }

    /// The wired interrupts that a vCPU can have.
    pub(crate) fn wired(&self, vcpu: VcpuId) -> impl Iterator<Item = Wired> + use<> {
        self.private(vcpu).chain(self.shared())
    }

    /// The vCPU with an affinity.
    pub(crate) fn vcpu(&self, affinity: Affinity) -> Option<VcpuId> {
        self.affinities.iter().position(|&a| a == affinity).map(|n| VcpuId(n as u16))
    }
}

/// Who accesses a frame, and through which handle of the engine.
pub(crate) struct Cx<'a, E: Engine> {
    pub(crate) machine: &'a Machine,
    pub(crate) injector: &'a E::Injector,
    /// `None` if the machine has no LPIs.
    pub(crate) lpis: Option<&'a LpiControl<E>>,
    pub(crate) vcpu: VcpuId,
}

/// What is at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Dist,
    /// GICC, whichever vCPU looks at it.
    Cpu,
    /// The number of the frame.
    V2m(u16),
    /// RD_base and SGI_base of this vCPU.
    Redist(VcpuId),
    /// The registers of the ITS with this number.
    Its(u16),
    /// Its translation frame.
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
    /// Before the engine that it is a part of, as `lpis` is.
    units: Box<[Unit<E>]>,
    lpis: Option<LpiControl<E>>,
    engine: E,
    machine: Machine,
    regions: Regions<Place>,
    frames: Frames,
    host: Arc<dyn Kick>,
    lrs: usize,
}

/// An interrupt controller: a cheap handle, cloned freely.
pub struct Gic<E: Engine>(Arc<Shared<E>>);

impl<E: Engine> Clone for Gic<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E: Engine> Gic<E> {
    /// The engine, to inject, and to make MSI domains. Wired interrupts are configured through the frames, and only there:
    /// what the frames follow from is not all in the engine.
    pub fn engine(&self) -> &E {
        &self.0.engine
    }

    /// An ITS, by the order in which they were [set up](Setup::add_its).
    pub fn its(&self, number: usize) -> Option<Its<E>> {
        Its::new(self, number)
    }

    /// A device writes `data` to `address`: an MSI, if that is the GITS_TRANSLATER of an ITS, a register of GICv3's message-based
    /// SPIs (GICD_SETSPI_NSR, GICD_CLRSPI_NSR), or MSI_SETSPI_NS of a GICv2m frame. DeviceIDs are those of the ITS.
    ///
    /// # Errors
    /// [`MmioError::Unmapped`]: it is none of these.
    pub fn send_msi(
        &self,
        injector: &E::Injector,
        device: DeviceId,
        address: u64,
        data: u32,
    ) -> Result<(), MmioError> {
        let shared = &*self.0;
        let found = shared.regions.find(address).ok_or(MmioError::Unmapped(address))?;
        let cx = || {
            let (machine, lpis) = (&shared.machine, shared.lpis.as_ref());
            Cx::<E> { machine, injector, lpis, vcpu: VcpuId(0) }
        };
        let bytes = data.to_le_bytes();
        let write = Access::Write(&bytes);
        match (&shared.frames, found) {
            (_, (Place::Translation(n), TRANSLATER)) => {
                // A device's write has no answer.
                let _ = shared.units[usize::from(n)].port.inject(injector, device, EventId(data));
                Ok(())
            }
            (Frames::V3 { dist, .. }, (Place::Dist, offset @ (0x40 | 0x48))) => {
                write.perform(dist, &cx(), offset)
            }
            (Frames::V2 { v2m, .. }, (Place::V2m(n), offset @ 0x40)) => {
                write.perform(&v2m[usize::from(n)], &cx(), offset)
            }
            _ => Err(MmioError::Unmapped(address)),
        }
        .map_err(|e| e.at(address))
    }

    pub(crate) fn lpis(&self) -> Option<&LpiControl<E>> {
        self.0.lpis.as_ref()
    }

    pub(crate) fn units(&self) -> &[Unit<E>] {
        &self.0.units
    }

    /// What an ITS works with. `None` if the machine has none.
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

    /// The frames, for a thread that is not a vCPU's, or that has no use for a software CPU interface.
    ///
    /// # Errors
    /// [`Error::TooManyParticipants`].
    pub fn bus(&self) -> Result<GicBus<E>, Error> {
        Ok(GicBus { injector: self.0.engine.injector()?, gic: self.clone() })
    }

    /// Takes a vCPU, powered off.
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

/// An access to a frame that has no part in a CPU interface.
pub(crate) enum Access<'d> {
    Read(&'d mut [u8]),
    Write(&'d [u8]),
}

impl Access<'_> {
    fn perform<Cx, F: mmio::Frame<Cx>>(
        self,
        mut frame: F,
        cx: &Cx,
        offset: u32,
    ) -> Result<(), MmioError> {
        match self {
            Self::Read(data) => mmio::read(&mut frame, cx, offset, data),
            Self::Write(data) => mmio::write(&mut frame, cx, offset, data),
        }
    }
}

/// One thread's handle for the register frames. It can be sent to another thread, but not shared.
pub struct GicBus<E: Engine> {
    injector: E::Injector,
    gic: Gic<E>,
}

impl<E: Engine> GicBus<E> {
    /// The handle that injects.
    pub fn injector(&self) -> &E::Injector {
        &self.injector
    }

    /// Reads `data.len()` bytes at `address`, as vCPU `vcpu`. Registers of pending and active state may wait for other
    /// vCPUs to leave the guest ([`crate::engine::Injector::is_pending`]): not to be called between the entry and the exit of a vCPU by the
    /// thread that runs it.
    ///
    /// # Errors
    /// [`MmioError`]: the guest is to get an external abort. GICv2's CPU interface is [`MmioError::Unmapped`] here.
    pub fn read(&self, vcpu: VcpuId, address: u64, data: &mut [u8]) -> Result<(), MmioError> {
        self.access(vcpu, address, Access::Read(data))
    }

    /// Writes `data` at `address`, as vCPU `vcpu`.
    ///
    /// # Errors
    /// As [`GicBus::read`].
    pub fn write(&self, vcpu: VcpuId, address: u64, data: &[u8]) -> Result<(), MmioError> {
        self.access(vcpu, address, Access::Write(data))
    }

    /// Goes on for a guest whose redistributor of vCPU `of` has work left ([`crate::engine::Kick::lpis_left`]): does a part of it, of bounded length. Returns
    /// whether there is more, which may have to wait for the vCPUs: [`Kick::lpis_left`] says how to go on.
    pub fn work(&self, of: VcpuId) -> bool {
        let shared = &*self.gic.0;
        let (machine, lpis) = (&shared.machine, shared.lpis.as_ref());
        let cx = Cx::<E> { machine, injector: &self.injector, lpis, vcpu: of };
        match &shared.frames {
            Frames::V3 { redists, .. } => redists.get(of.index()).is_some_and(|r| r.work(&cx)),
            Frames::V2 { .. } => false,
        }
    }

    fn access(&self, vcpu: VcpuId, address: u64, access: Access<'_>) -> Result<(), MmioError> {
        let found = self.gic.find(address).filter(|_| vcpu.0 < self.gic.0.machine.vcpus());
        let (place, offset) = found.ok_or(MmioError::Unmapped(address))?;
        self.access_at(vcpu, place, offset, access).map_err(|e| e.at(address))
    }

    pub(crate) fn access_at(
        &self,
        vcpu: VcpuId,
        place: Place,
        offset: u32,
        access: Access<'_>,
    ) -> Result<(), MmioError> {
        let shared = &*self.gic.0;
        let (machine, lpis) = (&shared.machine, shared.lpis.as_ref());
        let cx = Cx::<E> { machine, injector: &self.injector, lpis, vcpu };
        match (&shared.frames, place) {
            (Frames::V2 { dist, .. }, Place::Dist) => access.perform(dist, &cx, offset),
            (Frames::V2 { v2m, .. }, Place::V2m(n)) => {
                access.perform(&v2m[usize::from(n)], &cx, offset)
            }
            (Frames::V3 { dist, .. }, Place::Dist) => access.perform(dist, &cx, offset),
            // A region of redistributors may have room for more vCPUs than there are.
            (Frames::V3 { redists, .. }, Place::Redist(of)) => match redists.get(of.index()) {
                Some(redist) => {
                    let reads = matches!(access, Access::Read(_));
                    // A part of what is left to do: before a read says what is left, and after a write that begins something.
                    let mut left = reads && redist.work(&cx);
                    let done = access.perform(redist, &cx, offset);
                    left |= !reads && redist.work(&cx);
                    if left {
                        shared.host.lpis_left(of);
                    }
                    done
                }
                None => Err(MmioError::Unmapped(offset.into())),
            },
            (Frames::V3 { .. }, Place::Its(n)) => self
                .access_its(&shared.units[usize::from(n)], |cx, unit| {
                    access.perform(unit, cx, offset)
                }),
            (Frames::V3 { .. }, Place::Translation(n)) => self
                .access_its(&shared.units[usize::from(n)], |cx, unit| {
                    access.perform(Translation(unit), cx, offset)
                }),
            _ => Err(MmioError::Unmapped(offset.into())),
        }
    }

    fn access_its(
        &self,
        unit: &Unit<E>,
        f: impl FnOnce(&ItsCx<'_, E>, &Unit<E>) -> Result<(), MmioError>,
    ) -> Result<(), MmioError> {
        let done = self.gic.with_its_cx(Some(&self.injector), |cx| f(cx, unit));
        done.unwrap_or(Err(MmioError::Unmapped(0)))
    }
}
