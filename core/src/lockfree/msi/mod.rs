//! MSI domains: (DeviceID, EventID) -> LPI.
//!
//! An ITS translates through one domain. The control side of a domain ([`Msi`]) exists once, so
//! commands happen in order. The injection side ([`MsiDomain`]) is cloned freely and takes no lock:
//! it walks two trees, that of the devices and then that of the device's events. A [`MsiRoute`]
//! skips the walk: it holds the event's slot, and keeps the LPI that it found there, so that it
//! needs a pin only when the mapping changes.
//!
//! An event's slot owns one reference to its LPI; each mapped event and each route owns one to its
//! device.

mod control;
mod domain;
mod route;

pub use control::Msi;
pub(crate) use domain::Device;
pub use domain::MsiDomain;
pub(crate) use route::Hold;
pub use route::MsiRoute;
