//! The handle of one VM's engine, which makes the handles of its vCPUs, MSI domains and injectors.
//!
//! Models: `lifetime_handles`.

use alloc::sync::Arc;

use crate::arch::ids::VcpuId;
use crate::engine::{Config, Engine, Error, Kick, Usage};
use crate::lockfree::injector::VgicInjector;
use crate::lockfree::map::lpis::Lpis;
use crate::lockfree::msi::{Msi, MsiDomain, MsiRoute};
use crate::lockfree::notify::Dispatcher;
use crate::lockfree::reclaim::limbo::Limbo;
use crate::lockfree::reclaim::{Reclaim, Slots};
use crate::lockfree::vcpu::VcpuInterface;
use crate::lockfree::vm::{Shared, WiredIrqs};

/// A virtual interrupt controller without locks: the handle of one VM's engine.
///
/// ```
/// use std::sync::Arc;
/// use vgic_core::cpuif::CpuInterface;
/// use vgic_core::engine::*;
/// use vgic_core::ids::*;
/// use vgic_core::Vgic;
///
/// struct NoKick; // this example has one thread
/// impl Kick for NoKick {
///     fn kick(&self, _: VcpuId) {}
/// }
///
/// let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), Arc::new(NoKick))?;
/// let (device, event) = (DeviceId(8), EventId(0));
/// let mut msi = vgic.msi()?;
/// msi.map(device, event, Intid(8192), VcpuId(0), LpiConfig::enabled(0xa0))?;
///
/// let mut vcpu = vgic.vcpu(VcpuId(0))?;
/// vcpu.open();
/// let injector = vgic.injector()?;
/// assert_eq!(injector.inject(&msi.domain(), device, event), Injected::Pending);
///
/// // The software CPU interface stands for the hardware's list registers and the guest.
/// let mut cpu = CpuInterface::new(4).unwrap();
/// cpu.set_pmr(0xff);
/// cpu.set_igrpen1(1);
/// vcpu.flush(&mut cpu);
/// assert_eq!(cpu.iar1(), Intid(8192));
/// let _ = cpu.eoir1(Intid(8192)); // nothing physical to deactivate
/// vcpu.fold(&mut cpu);
/// # Ok::<(), Error>(())
/// ```
pub struct Vgic<R: Reclaim = Slots>(Arc<Shared<R>>);

impl<R: Reclaim> Clone for Vgic<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Reclaim> Vgic<R> {
    fn build(config: &Config, dispatcher: Dispatcher) -> Self {
        let dispatcher = Arc::new(dispatcher);
        Self(Arc::new(Shared {
            config: config.clone(),
            lpis: Lpis::new(config.lpis, config.max_lpis, &dispatcher),
            limbo: Limbo::new(),
            wired: WiredIrqs::new(config, &dispatcher),
            reclaim: R::new(config.participants),
            dispatcher,
        }))
    }

    /// Makes an engine that reports every reference to `tracer`.
    ///
    /// # Errors
    /// As [`Engine::new`].
    #[cfg(feature = "trace")]
    pub fn with_tracer(
        config: &Config,
        kick: Arc<dyn Kick>,
        tracer: Arc<dyn crate::observe::trace::Tracer>,
    ) -> Result<Self, Error> {
        config.check()?;
        let mut dispatcher = Dispatcher::new(config.vcpus, kick);
        dispatcher.tracer = Some(tracer);
        Ok(Self::build(config, dispatcher))
    }

    /// The counters of a vCPU; `None` if there is no such vCPU.
    #[cfg(feature = "counters")]
    pub fn counters(&self, vcpu: VcpuId) -> Option<crate::observe::counters::VcpuCounters> {
        self.0.dispatcher.has_vcpu(vcpu).then(|| self.0.dispatcher.vcpu(vcpu).counters.get())
    }
}

impl<R: Reclaim> Engine for Vgic<R> {
    type Vcpu = VcpuInterface<R>;
    type Msi = Msi<R>;
    type Domain = MsiDomain<R>;
    type Route = MsiRoute<R>;
    type Injector = VgicInjector<R>;

    const NAME: &'static str = "lockfree";

    fn new(config: &Config, kick: Arc<dyn Kick>) -> Result<Self, Error> {
        config.check()?;
        Ok(Self::build(config, Dispatcher::new(config.vcpus, kick)))
    }

    fn vcpu(&self, vcpu: VcpuId) -> Result<VcpuInterface<R>, Error> {
        VcpuInterface::new(Arc::clone(&self.0), vcpu)
    }

    fn msi(&self) -> Result<Msi<R>, Error> {
        Msi::new(Arc::clone(&self.0))
    }

    fn injector(&self) -> Result<VgicInjector<R>, Error> {
        let participant = self.0.reclaim.register().ok_or(Error::TooManyParticipants)?;
        Ok(VgicInjector { participant, shared: Arc::clone(&self.0) })
    }

    fn usage(&self) -> Usage {
        let counts = &self.0.dispatcher.retired.counts;
        Usage { lpis: counts.irqs.get(), garbage: counts.garbage.get(), bytes: counts.bytes() }
    }
}
