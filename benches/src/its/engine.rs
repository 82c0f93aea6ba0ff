//! An engine that is a machine with one ITS.

use std::sync::{Arc, Mutex, PoisonError};

use vgic_core::engine::{
    Config, Engine, Error, Gates, Injected, Injector, Kick, Usage, Wired, WiredConfig,
};
use vgic_core::gic::{Affinity, Gic, Model, Setup, SetupError};
use vgic_core::ids::{DeviceId, EventId, Intid, VcpuId};
use vgic_core::its::{Its, ItsConfig, ItsPort, ItsRoute};
use vgic_core::memory::GuestMemory;

use super::boot::boot;
use super::driver::{Driver, Watch};
use super::layout::{GICD, GICR, GITS, Layout, RAM, TRANSLATER};
use super::ram::Ram;

/// Participants of a machine in addition to those of the engine's user: the machine's LPIs, the
/// ITS's record of unmapped collections, the driver's bus, the driver's host, and the setup.
const PARTICIPANTS: u16 = 5;
/// DeviceID bits that the driver has tables for.
const DEVICE_BITS: u8 = 20;
/// EventID bits that the driver has tables for.
const EVENT_BITS: u8 = 24;

/// Engine `E` in a machine with one ITS.
pub struct ViaIts<E: Engine> {
    gic: Gic<E>,
    /// The ITS's only driver, until [`Engine::msi`] takes it.
    driver: Arc<Mutex<Option<Driver<E>>>>,
}

impl<E: Engine> Clone for ViaIts<E> {
    fn clone(&self) -> Self {
        Self { gic: self.gic.clone(), driver: Arc::clone(&self.driver) }
    }
}

impl<E: Engine> ViaIts<E> {
    /// Injects by a device's write of an EventID to GITS_TRANSLATER.
    #[inline]
    pub fn write_translater(&self, injector: &ThroughIts<E>, device: DeviceId, event: EventId) {
        let written = self.gic.send_msi(&injector.0, device, TRANSLATER, event.0);
        written.expect("there is an ITS");
    }

    /// Returns the ITS.
    pub fn its(&self) -> Its<E> {
        self.gic.its(0).expect("it was set up")
    }
}

fn refused(error: SetupError) -> Error {
    match error {
        SetupError::Engine(error) => error,
        error => unreachable!("the configuration was checked: {error}"),
    }
}

fn setup(
    config: &Config,
    ram: Arc<dyn GuestMemory>,
    watch: Arc<Watch>,
) -> Result<Setup, SetupError> {
    let mut setup = Setup::new(40);
    setup.create(Model::V3)?;
    for n in 0..u32::from(config.vcpus) {
        // Clusters of 16, which suit senders of SGIs.
        setup.add_vcpu(Affinity(((n / 16) << 8) | (n % 16)))?;
    }
    setup.set_bounds(Config {
        participants: config.participants.saturating_add(PARTICIPANTS),
        ..config.clone()
    });
    setup.set_spis(0)?;
    setup.set_memory(ram)?;
    setup.set_distributor(GICD)?;
    setup.add_redistributors(GICR, config.vcpus.into())?;
    setup.add_its(ItsConfig {
        device_bits: config.device_bits,
        event_bits: config.event_bits,
        max_devices: config.max_devices,
        max_events: config.max_events,
        ..ItsConfig::at(GITS)
    })?;
    setup.set_its_trace(watch);
    Ok(setup)
}

impl<E: Engine> Engine for ViaIts<E> {
    type Vcpu = E::Vcpu;
    type Msi = Driver<E>;
    type Domain = ItsPort<E>;
    type Route = ItsRoute<E>;
    type Injector = ThroughIts<E>;

    const NAME: &'static str = E::NAME;

    fn new(config: &Config, kick: Arc<dyn Kick>) -> Result<Self, Error> {
        config.check()?;
        for (fits, field) in [
            (config.lpis >= 1, "lpis"),
            (config.device_bits <= DEVICE_BITS, "device_bits"),
            (config.event_bits <= EVENT_BITS, "event_bits"),
        ] {
            if !fits {
                return Err(Error::Config(field));
            }
        }
        let layout = Layout::new(config);
        let (ram, watch) = (Arc::new(Ram::new(RAM, layout.bytes)), Arc::new(Watch::default()));
        let setup = setup(config, Arc::<Ram>::clone(&ram), Arc::clone(&watch)).map_err(refused)?;
        let gic: Gic<E> = setup.init(kick).map_err(refused)?;
        let bus = gic.bus()?;
        boot(&bus, &layout, config.vcpus);
        let driver = Driver::new(&gic, bus, ram, layout, watch, config.vcpus)?;
        Ok(Self { gic, driver: Arc::new(Mutex::new(Some(driver))) })
    }

    fn vcpu(&self, vcpu: VcpuId) -> Result<E::Vcpu, Error> {
        self.gic.engine().vcpu(vcpu)
    }

    /// Returns the driver. There is only one, so a second call fails.
    fn msi(&self) -> Result<Driver<E>, Error> {
        let mut driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        driver.take().ok_or(Error::TooManyParticipants)
    }

    fn injector(&self) -> Result<ThroughIts<E>, Error> {
        self.gic.engine().injector().map(ThroughIts)
    }

    /// Returns the engine's usage. The ITS's own copy of the mappings is not included.
    fn usage(&self) -> Usage {
        self.gic.engine().usage()
    }
}

/// An injector that sends its MSIs through the ITS.
pub struct ThroughIts<E: Engine>(E::Injector);

/// Generates methods that forward to the engine's injector.
macro_rules! delegate {
    ($($name:ident($($arg:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> Result<$result, Error> {
            self.0.$name($($arg),*)
        })*
    };
}

impl<E: Engine> Injector for ThroughIts<E> {
    type Domain = ItsPort<E>;
    type Route = ItsRoute<E>;

    #[inline]
    fn inject(&self, port: &ItsPort<E>, device: DeviceId, event: EventId) -> Injected {
        port.inject(&self.0, device, event)
    }

    #[inline]
    fn inject_route(&self, route: &ItsRoute<E>) -> Injected {
        route.inject(&self.0)
    }

    fn update(
        &self,
        wired: Wired,
        f: impl Fn(WiredConfig) -> WiredConfig,
    ) -> Result<WiredConfig, Error> {
        self.0.update(wired, f)
    }

    fn update_gates(&self, vcpu: VcpuId, f: impl Fn(Gates) -> Gates) -> Result<(), Error> {
        self.0.update_gates(vcpu, f)
    }

    delegate! {
        set_level(wired: Wired, high: bool) -> ();
        pulse(wired: Wired) -> Injected;
        clear_pulse(wired: Wired) -> ();
        configure(wired: Wired, config: WiredConfig) -> ();
        config(wired: Wired) -> WiredConfig;
        line(wired: Wired) -> bool;
        is_pending(wired: Wired) -> bool;
        is_active(wired: Wired) -> bool;
        set_active(wired: Wired, active: bool) -> ();
        pulse_from(vcpu: VcpuId, sgi: Intid, senders: u8) -> ();
        clear_from(vcpu: VcpuId, sgi: Intid, senders: u8) -> ();
        senders(vcpu: VcpuId, sgi: Intid) -> u8;
        map_phys(wired: Wired, pintid: u16) -> ();
        unmap_phys(wired: Wired) -> ();
        phys(wired: Wired) -> Option<u16>;
    }
}
