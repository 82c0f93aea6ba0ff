#[path = "../its/guest.rs"]
#[allow(dead_code)] // used only by the ITS's own tests
pub(crate) mod guest;
#[path = "../gicv3/world.rs"]
#[allow(dead_code)] // as above
mod world;

pub(crate) type Engine = vgic_core::locked::LockedVgic;
