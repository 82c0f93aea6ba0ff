//! An engine with a control side that sometimes forgets to unmap.

use std::ops::ControlFlow;
use std::sync::Arc;

use vgic_core::engine::{
    Config, Engine, Error, Kick, LpiConfig, LpiState, MsiControl, Part, Usage,
};
use vgic_core::ids::{DeviceId, EventId, Intid, VcpuId};

/// Engine `E`, in which every fourth unmapped event stays mapped.
#[derive(Clone)]
pub(crate) struct Forgetful<E>(E);

/// The control side of [`Forgetful`].
pub(crate) struct ForgetfulMsi<M> {
    inner: M,
    unmapped: u32,
    /// Events that are unmapped only when they are to be mapped again.
    forgotten: Vec<(DeviceId, EventId)>,
}

impl<E: Engine> Engine for Forgetful<E> {
    type Vcpu = E::Vcpu;
    type Msi = ForgetfulMsi<E::Msi>;
    type Domain = E::Domain;
    type Route = E::Route;
    type Injector = E::Injector;

    const NAME: &'static str = E::NAME;

    fn new(config: &Config, kick: Arc<dyn Kick>) -> Result<Self, Error> {
        E::new(config, kick).map(Self)
    }

    fn vcpu(&self, vcpu: VcpuId) -> Result<E::Vcpu, Error> {
        self.0.vcpu(vcpu)
    }

    fn msi(&self) -> Result<Self::Msi, Error> {
        Ok(ForgetfulMsi { inner: self.0.msi()?, unmapped: 0, forgotten: Vec::new() })
    }

    fn injector(&self) -> Result<E::Injector, Error> {
        self.0.injector()
    }

    fn usage(&self) -> Usage {
        self.0.usage()
    }
}

impl<M: MsiControl> MsiControl for ForgetfulMsi<M> {
    type Domain = M::Domain;
    type Route = M::Route;

    fn map(
        &mut self,
        device: DeviceId,
        event: EventId,
        intid: Intid,
        target: VcpuId,
        config: LpiConfig,
    ) -> Result<(), Error> {
        if let Some(at) = self.forgotten.iter().position(|&it| it == (device, event)) {
            self.forgotten.swap_remove(at);
            self.inner.unmap(device, event)?;
        }
        self.inner.map(device, event, intid, target, config)
    }

    fn unmap(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        self.unmapped += 1;
        if self.unmapped.is_multiple_of(4) {
            self.forgotten.push((device, event));
            return Ok(());
        }
        self.inner.unmap(device, event)
    }

    fn domain(&self) -> M::Domain {
        self.inner.domain()
    }

    fn share(&mut self, device: DeviceId, event: EventId, intid: Intid) -> Result<(), Error> {
        self.inner.share(device, event, intid)
    }

    fn detach(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        self.inner.detach(device, event)
    }

    fn unmap_device(&mut self, device: DeviceId) -> usize {
        self.inner.unmap_device(device)
    }

    fn retarget(&mut self, device: DeviceId, event: EventId, target: VcpuId) -> Result<(), Error> {
        self.inner.retarget(device, event, target)
    }

    fn move_some(
        &mut self,
        from: VcpuId,
        to: VcpuId,
        first: Intid,
        most: u32,
    ) -> Result<Part, Error> {
        self.inner.move_some(from, to, first, most)
    }

    fn set_config(&mut self, intid: Intid, config: LpiConfig) -> Result<(), Error> {
        self.inner.set_config(intid, config)
    }

    fn target_of(&self, intid: Intid) -> Option<VcpuId> {
        self.inner.target_of(intid)
    }

    fn set_pending(&mut self, intid: Intid, pending: bool) -> Result<(), Error> {
        self.inner.set_pending(intid, pending)
    }

    fn silence(&mut self, intid: Intid) -> bool {
        self.inner.silence(intid)
    }

    fn lpis_from(&self, from: Intid, f: &mut dyn FnMut(LpiState) -> ControlFlow<()>) {
        self.inner.lpis_from(from, f);
    }

    fn some_lpis(&self, from: Intid, most: u32, f: &mut dyn FnMut(LpiState)) -> Part {
        self.inner.some_lpis(from, most, f)
    }

    fn clear(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        self.inner.clear(device, event)
    }

    fn route(&mut self, device: DeviceId, event: EventId) -> Result<M::Route, Error> {
        self.inner.route(device, event)
    }

    fn check_bytes(&mut self, bytes: usize) -> Result<(), Error> {
        self.inner.check_bytes(bytes)
    }

    fn count_bytes(&mut self, more: usize, less: usize) {
        self.inner.count_bytes(more, less);
    }

    fn collect(&mut self) {
        self.inner.collect();
    }
}
