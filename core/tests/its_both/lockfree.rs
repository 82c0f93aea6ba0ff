#[path = "../its/guest.rs"]
#[allow(dead_code)] // what only the ITS's own tests need
pub(crate) mod guest;
#[path = "../gicv3/world.rs"]
#[allow(dead_code)] // as above
mod world;

pub(crate) type Engine = vgic_core::Vgic;
