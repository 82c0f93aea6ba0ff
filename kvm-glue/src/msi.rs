//! Message-signaled interrupts of devices: an address and data, and for an ITS also the sender's
//! DeviceID.

use vgic_core::engine::{Injected, Injector, Wired};
use vgic_core::gic::MsiFrame;
use vgic_core::ids::{DeviceId, EventId, Intid};
use vgic_core::its::{Its, ItsPort};
use vgic_core::{MsiDomain, Vgic, VgicInjector};

use crate::Error;

/// Offset of MSI_SETSPI_NS in a GICv2m frame.
pub const V2M_DOORBELL: u64 = 0x40;
/// Offset of GITS_TRANSLATER from the base of an ITS.
pub const ITS_DOORBELL: u64 = 0x1_0040;

/// A message: the address and data that a device writes, and the device's ID.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Msi {
    /// The address that is written to.
    pub address: u64,
    /// The value that is written.
    pub data: u32,
    /// The DeviceID, which only an ITS uses.
    pub device: u32,
}

/// The interrupt of an MSI, as [`MsiInjector::resolve`] finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Target {
    /// An edge-triggered SPI of a GICv2m frame.
    Spi(Intid),
    /// An event of a device. The first field is the number of the doorbell, which gives the domain
    /// or ITS that translates the event.
    Event(usize, DeviceId, EventId),
}

/// A receiver of MSIs.
enum Doorbell {
    V2m(MsiFrame),
    Domain { address: u64, domain: MsiDomain },
    Its { address: u64, port: ItsPort<Vgic> },
}

impl Doorbell {
    fn take(&self, number: usize, msi: &Msi) -> Option<Target> {
        match self {
            Self::V2m(frame) => {
                let (first, count) = (u32::from(frame.first), u32::from(frame.count));
                let mine = msi.address == frame.base + V2M_DOORBELL
                    && msi.data.checked_sub(first).is_some_and(|n| n < count);
                mine.then_some(Target::Spi(Intid(msi.data)))
            }
            Self::Domain { address, .. } | Self::Its { address, .. } => (msi.address == *address)
                .then_some(Target::Event(number, DeviceId(msi.device), EventId(msi.data))),
        }
    }
}

/// One thread's handle for sending MSIs. It can be sent to another thread, but not shared.
pub struct MsiInjector {
    injector: VgicInjector,
    doorbells: Vec<Doorbell>,
}

impl MsiInjector {
    pub(crate) fn new(injector: VgicInjector, frames: &[MsiFrame]) -> Self {
        Self { injector, doorbells: frames.iter().copied().map(Doorbell::V2m).collect() }
    }

    /// Adds a doorbell of an MSI domain, like an ITS's GITS_TRANSLATER ([`ITS_DOORBELL`]).
    pub fn add_domain(&mut self, address: u64, domain: MsiDomain) {
        self.doorbells.push(Doorbell::Domain { address, domain });
    }

    /// Adds an ITS, with its GITS_TRANSLATER as the doorbell.
    pub fn add_its(&mut self, its: &Its<Vgic>) {
        let address = its.config().doorbell();
        self.doorbells.push(Doorbell::Its { address, port: its.port() });
    }

    /// Resolves an MSI to its target. The result stays valid for as long as the injector lives,
    /// regardless of the guest's mappings.
    ///
    /// # Errors
    /// [`Error::NoDoorbell`].
    pub fn resolve(&self, msi: &Msi) -> Result<Target, Error> {
        let mut targets = self.doorbells.iter().enumerate().filter_map(|(n, d)| d.take(n, msi));
        targets.next().ok_or(Error::NoDoorbell { address: msi.address, data: msi.data })
    }

    /// Sends an MSI.
    ///
    /// # Errors
    /// [`Error::NoDoorbell`].
    pub fn send(&self, msi: &Msi) -> Result<Injected, Error> {
        self.signal(&self.resolve(msi)?)
    }

    /// Sends an MSI that [`MsiInjector::resolve`] has resolved.
    ///
    /// # Errors
    /// [`Error::Engine`] for an SPI that does not exist.
    pub fn signal(&self, target: &Target) -> Result<Injected, Error> {
        match *target {
            Target::Spi(intid) => Ok(self.injector.pulse(Wired::Spi(intid))?),
            Target::Event(number, device, event) => match self.doorbells.get(number) {
                Some(Doorbell::Domain { domain, .. }) => {
                    Ok(self.injector.inject(domain, device, event))
                }
                Some(Doorbell::Its { port, .. }) => Ok(port.inject(&self.injector, device, event)),
                _ => Ok(Injected::Unmapped),
            },
        }
    }

    /// Returns the engine's handle, which also sets levels.
    pub fn injector(&self) -> &VgicInjector {
        &self.injector
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vgic_core::Vgic;
    use vgic_core::engine::*;
    use vgic_core::ids::VcpuId;

    use super::*;
    use crate::Error;

    struct NoKick;
    impl Kick for NoKick {
        fn kick(&self, _: VcpuId) {}
    }

    #[test]
    fn an_address_and_data_become_an_interrupt() {
        let config = Config { spis: 96, ..Config::default() };
        let vgic: Vgic = Vgic::new(&config, Arc::new(NoKick)).unwrap();
        let frame = MsiFrame { base: 0x0802_0000, first: 64, count: 32 };
        let mut sender = MsiInjector::new(vgic.injector().unwrap(), &[frame]);
        let msi = |address, data| Msi { address, data, device: 8 };
        assert_eq!(sender.resolve(&msi(0x0802_0040, 64)).unwrap(), Target::Spi(Intid(64)));
        assert_eq!(sender.send(&msi(0x0802_0040, 95)).unwrap(), Injected::Pending);
        assert_eq!(sender.send(&msi(0x0802_0040, 95)).unwrap(), Injected::Coalesced);
        for (address, data) in [(0x0802_0040, 63), (0x0802_0040, 96), (0x0802_0044, 64)] {
            let refused = sender.send(&msi(address, data));
            assert!(matches!(refused, Err(Error::NoDoorbell { .. })), "{address:#x} {data}");
        }
        let mut control = vgic.msi().unwrap();
        sender.add_domain(0x0809_0040, control.domain());
        assert_eq!(sender.send(&msi(0x0809_0040, 3)).unwrap(), Injected::Unmapped);
        let on = LpiConfig::enabled(0);
        control.map(DeviceId(8), EventId(3), Intid(8192), VcpuId(0), on).unwrap();
        assert_eq!(sender.send(&msi(0x0809_0040, 3)).unwrap(), Injected::Pending);
    }
}
