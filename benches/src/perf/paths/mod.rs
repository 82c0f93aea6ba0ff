//! All paths.

mod control;
mod engine;
mod frames;
mod lookup;
mod mailbox;
mod threads;

use vgic_core::Vgic;
use vgic_core::reclaim::{Epoch, Slots};

use super::path::Path;
use super::peer::Peer;

/// The engine as it is shipped.
pub type Shipped = Vgic<Slots>;
/// The engine with the other reclamation backend.
pub type WithEpoch = Vgic<Epoch>;

/// What reports call the engine.
pub const SHIPPED: &str = "vgic";
/// What they call it with the other reclamation backend.
pub const EPOCH: &str = "vgic, crossbeam-epoch";
/// The structure of the kernel's own GIC, behind the same interface.
pub const LOCKED: &str = "locked";
/// Another GIC with an ITS.
pub const ARM_VGIC: &str = "arm_vgic";

/// Numbers of LPIs that are mapped, or pending.
pub const SIZES: [u32; 3] = [1, 1024, 65_536];

/// Everything that can be measured in turns, group by group. Without `peer`, arm_vgic is left out.
pub fn all(peer: Option<&Peer>) -> Vec<Path> {
    let mut groups = vec![
        engine::injection(),
        engine::cycle(),
        engine::entry(),
        engine::number_of_events(),
        control::control(),
        control::commands(),
        frames::registers(),
        frames::fan_out(),
        lookup::lookup(),
        mailbox::mailbox(),
        threads::threads(),
        super::vm::machines(),
    ];
    if let Some(peer) = peer {
        peer.add_to(&mut groups);
    }
    groups.into_iter().flat_map(|group| group.paths).collect()
}

/// Calls `f` for each engine.
macro_rules! each_engine {
    ($f:path, $group:expr) => {
        $f(
            std::marker::PhantomData::<$crate::perf::paths::Shipped>,
            $crate::perf::paths::SHIPPED,
            $group,
        );
        $f(
            std::marker::PhantomData::<$crate::perf::paths::WithEpoch>,
            $crate::perf::paths::EPOCH,
            $group,
        );
        $f(
            std::marker::PhantomData::<vgic_core::locked::LockedVgic>,
            $crate::perf::paths::LOCKED,
            $group,
        );
    };
}
use each_engine;

/// The name of a group in which paths of the peer belong.
pub(crate) use engine::{
    BY_EVENT, BY_ROUTE, CYCLE, FIRST_BY_EVENT, FIRST_BY_ROUTE, NOTHING_TAKEN, ONE_TAKEN, TRANSLATER,
};
