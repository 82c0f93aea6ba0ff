//! MSI domains: (DeviceID, EventID) -> LPI.
//!
//! One domain is what one ITS translates with. Its control side ([`Msi`]) exists once, so commands happen in order;
//! its injection side ([`MsiDomain`]) is cloned freely and takes no lock: two trees are walked, devices first,
//! then the device's events. A [`MsiRoute`] has that behind it: it holds the event's slot itself, and keeps the LPI that
//! it found there, so that it needs a pin only when that changes.
//!
//! An event's slot owns one reference to its LPI; each mapped event and each route owns one to its device.

mod control;
mod domain;
mod route;

pub use control::Msi;
pub(crate) use domain::Device;
pub use domain::MsiDomain;
pub(crate) use route::Hold;
pub use route::MsiRoute;
