//! The handle of one ITS.

use alloc::sync::Arc;

use super::Gic;
use crate::arch::ids::{DeviceId, EventId};
use crate::engine::{Engine, Error, MsiControl};
use crate::frames::its::unit::Unit;
use crate::frames::its::{ItsConfig, ItsPort, ItsRoute, ItsStats};

impl<E: Engine> Gic<E> {
    /// An ITS, by the order in which they were [set up](super::Setup::add_its).
    pub fn its(&self, number: usize) -> Option<Its<E>> {
        Its::new(self, number)
    }
}

/// One ITS of a [`Gic`]: a cheap handle, cloned freely.
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

    /// As it was set up.
    pub fn config(&self) -> &ItsConfig {
        &self.unit().config
    }

    /// The handle that devices of any number inject through.
    pub fn port(&self) -> ItsPort<E> {
        self.unit().port.clone()
    }

    /// The handle that injects one event of one device without a look-up, and sees whatever becomes of it. The event need not be mapped.
    ///
    /// # Errors
    /// A range error, [`Error::TooManyDevices`], [`Error::TooMuchGarbage`].
    ///
    /// Waits for the command that is being performed.
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

    /// Goes on with commands that were left to the host ([`crate::engine::Kick::commands_left`]).
    pub fn work(&self) {
        self.gic.with_its_cx(None, |cx| self.unit().work(cx));
    }

    /// What it has counted.
    pub fn stats(&self) -> ItsStats {
        self.unit().port.gate.counters.get()
    }
}
