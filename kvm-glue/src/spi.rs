//! An SPI as a device's interrupt output.
//!
//! [`SpiLine`] is the `Trigger` of vm-superio devices. vm-superio's `Serial` never lowers its line,
//! so its device tree node must say [`EDGE_RISING`](crate::fdt::EDGE_RISING).
//!
//! ```no_run
//! use vgic_kvm::core::ids::Intid;
//! # fn f(gic: &vgic_kvm::KvmGic) -> Result<(), Box<dyn std::error::Error>> {
//! let line = gic.spi(Intid(33))?;
//! let mut uart = vm_superio::Serial::new(line, std::io::stdout());
//! uart.write(0, b'x').map_err(|e| format!("{e:?}"))?;
//! # Ok(())
//! # }
//! ```

use vgic_core::VgicInjector;
use vgic_core::engine::{Error as EngineError, Injector, Wired};
use vgic_core::ids::Intid;

use crate::Error;

/// The line of an SPI, for one device. It can be sent to another thread, but not shared.
pub struct SpiLine {
    injector: VgicInjector,
    spi: Wired,
}

impl SpiLine {
    pub(crate) fn new(injector: VgicInjector, intid: Intid) -> Result<Self, Error> {
        let spi = Wired::Spi(intid);
        injector.line(spi)?;
        Ok(Self { injector, spi })
    }

    /// Sets the level. If the interrupt is edge-triggered, a rise makes it pending.
    ///
    /// # Errors
    /// None: the SPI was checked when this line was created.
    pub fn set(&self, high: bool) -> Result<(), EngineError> {
        self.injector.set_level(self.spi, high)
    }

    /// Makes the SPI pending once, regardless of its level.
    ///
    /// # Errors
    /// None, as for [`SpiLine::set`].
    pub fn pulse(&self) -> Result<(), EngineError> {
        self.injector.pulse(self.spi).map(|_| ())
    }
}

/// Raises the device's interrupt. If the guest has configured the SPI as level-triggered, the line
/// stays high until [`SpiLine::set`] lowers it.
impl vm_superio::Trigger for SpiLine {
    type E = EngineError;

    fn trigger(&self) -> Result<(), EngineError> {
        match self.injector.config(self.spi)?.trigger {
            vgic_core::engine::Trigger::Edge => self.pulse(),
            vgic_core::engine::Trigger::Level => self.set(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vgic_core::Vgic;
    use vgic_core::engine::*;
    use vgic_core::ids::VcpuId;
    use vm_superio::Trigger as _;

    use super::*;

    struct NoKick;
    impl Kick for NoKick {
        fn kick(&self, _: VcpuId) {}
    }

    #[test]
    fn a_trigger_follows_the_configuration() {
        let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), Arc::new(NoKick)).unwrap();
        let injector = vgic.injector().unwrap();
        assert!(SpiLine::new(vgic.injector().unwrap(), Intid(1000)).is_err());
        let line = SpiLine::new(vgic.injector().unwrap(), Intid(33)).unwrap();
        let spi = Wired::Spi(Intid(33));
        injector.update(spi, |c| WiredConfig { trigger: Trigger::Level, ..c }).unwrap();
        line.trigger().unwrap();
        assert_eq!(injector.is_pending(spi), Ok(true));
        line.set(false).unwrap();
        assert_eq!(injector.is_pending(spi), Ok(false));
        injector.update(spi, |c| WiredConfig { trigger: Trigger::Edge, ..c }).unwrap();
        line.trigger().unwrap();
        assert_eq!(injector.line(spi), Ok(false));
        assert_eq!(injector.is_pending(spi), Ok(true));
    }
}
