//! Accesses to the register frames, by vCPUs and by devices that write MSIs.

use super::{Frames, Gic, Place};
use crate::arch::ids::{DeviceId, EventId, VcpuId};
use crate::engine::{Engine, Error};
use crate::frames::its::unit::{ItsCx, Unit};
use crate::frames::its::{TRANSLATER, Translation};
use crate::frames::machine::Cx;
use crate::frames::mmio::{self, MmioError};

impl<E: Engine> Gic<E> {
    /// A device writes `data` to `address`, which must be the target of an MSI: GITS_TRANSLATER of
    /// an ITS, a register of GICv3's message-based SPIs (GICD_SETSPI_NSR or GICD_CLRSPI_NSR), or
    /// MSI_SETSPI_NS of a GICv2m frame. `device` is the DeviceID that the ITS uses; the others
    /// ignore it.
    ///
    /// # Errors
    /// [`MmioError::Unmapped`]: the address is none of these.
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
                // A device gets no response to its write.
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

    /// Makes a handle for the frames, for a thread that runs no vCPU, or that does not use a
    /// software CPU interface.
    ///
    /// # Errors
    /// [`Error::TooManyParticipants`].
    pub fn bus(&self) -> Result<GicBus<E>, Error> {
        Ok(GicBus { injector: self.0.engine.injector()?, gic: self.clone() })
    }
}

/// An access to a frame that does not involve a CPU interface.
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

/// One thread's handle for the register frames. It can be sent to another thread, but not shared
/// between threads.
pub struct GicBus<E: Engine> {
    injector: E::Injector,
    pub(super) gic: Gic<E>,
}

impl<E: Engine> GicBus<E> {
    /// The handle through which this thread injects interrupts.
    pub fn injector(&self) -> &E::Injector {
        &self.injector
    }

    /// Reads `data.len()` bytes at `address`, as vCPU `vcpu`.
    ///
    /// An access to a register of pending or active state may wait for other vCPUs to leave the
    /// guest ([`crate::engine::Injector::is_pending`]). So the thread that runs a vCPU must not
    /// call this between the vCPU's entry and exit.
    ///
    /// # Errors
    /// [`MmioError`]: the guest gets an external abort. GICv2's CPU interface is
    /// [`MmioError::Unmapped`] here.
    pub fn read(&self, vcpu: VcpuId, address: u64, data: &mut [u8]) -> Result<(), MmioError> {
        self.access(vcpu, address, Access::Read(data))
    }

    /// Writes `data` at `address`, as vCPU `vcpu`. May wait as [`GicBus::read`] does.
    ///
    /// # Errors
    /// As [`GicBus::read`].
    pub fn write(&self, vcpu: VcpuId, address: u64, data: &[u8]) -> Result<(), MmioError> {
        self.access(vcpu, address, Access::Write(data))
    }

    /// Does a part, of bounded length, of the work that is left at the redistributor of vCPU `of`
    /// ([`crate::engine::Kick::lpis_left`]), in place of the guest's accesses.
    ///
    /// Returns whether more is left. The rest may have to wait for the vCPUs:
    /// [`Kick::lpis_left`](crate::engine::Kick::lpis_left) describes when to call again.
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
                    // Does a part of the work that is left: before a read, which reports the rest,
                    // and after a write, which may begin new work.
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
