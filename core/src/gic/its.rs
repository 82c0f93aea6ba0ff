//! The handle of one ITS.

use alloc::sync::Arc;

use super::Gic;
use crate::arch::ids::{DeviceId, EventId};
use crate::engine::{Engine, Error, MsiControl};
use crate::frames::its::unit::Unit;
use crate::frames::its::{ItsConfig, ItsPort, ItsRoute, ItsStats};

impl<E: Engine> Gic<E> {
    /// Returns the ITS with this number, in the order in which they were [set
    /// up](super::Setup::add_its).
    pub fn its(&self, number: usize) -> Option<Its<E>> {
        Its::new(self, number)
    }
}

/// One ITS of a [`Gic`]. This is a handle that is cheap to clone.
pub struct Its<E: Engine> {
    pub(super) gic: Gic<E>,
    number: usize,
}

impl<E: Engine> Clone for Its<E> {
    fn clone(&self) -> Self {
        Self { gic: self.gic.clone(), number: self.number }
    }
}

impl<E: Engine> Its<E> {
    pub(crate) fn new(gic: &Gic<E>, number: usize) -> Option<Self> {
        gic.units().get(number).map(|_| Self { gic: gic.clone(), number })
    }

    pub(super) fn unit(&self) -> &Unit<E> {
        &self.gic.units()[self.number]
    }

    /// The configuration with which the ITS was set up.
    pub fn config(&self) -> &ItsConfig {
        &self.unit().config
    }

    /// The handle through which any number of devices inject MSIs.
    pub fn port(&self) -> ItsPort<E> {
        self.unit().port.clone()
    }

    /// Makes a handle that injects one event of one device without a look-up, and follows every
    /// later change of the event's mapping. The event need not be mapped.
    ///
    /// Waits while another thread performs a slice of commands ([`ItsConfig::slice`]).
    ///
    /// # Errors
    /// A range error, [`Error::TooManyDevices`], [`Error::TooManyBytes`],
    /// [`Error::TooMuchGarbage`].
    pub fn route(&self, device: DeviceId, event: EventId) -> Result<ItsRoute<E>, Error> {
        if u64::from(device.0) >> self.config().device_bits != 0 {
            return Err(Error::DeviceRange(device));
        }
        if u64::from(event.0) >> self.config().event_bits != 0 {
            return Err(Error::EventRange(event));
        }
        let route = self.unit().maps().msi.route(device, event)?;
        Ok(ItsRoute { gate: Arc::clone(&self.unit().port.gate), route, device, event })
    }

    /// Performs commands that were left to the host ([`crate::engine::Kick::commands_left`]).
    pub fn work(&self) {
        self.gic.with_its_cx(None, |cx| self.unit().work(cx));
    }

    /// Returns the ITS's counters.
    pub fn stats(&self) -> ItsStats {
        self.unit().port.gate.counters.get()
    }
}
