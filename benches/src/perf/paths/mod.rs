//! All paths.

mod control;
mod engine;
mod frames;
mod lines;
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

/// The engine's name in reports.
pub const SHIPPED: &str = "vgic";
/// The name in reports of the engine with the other reclamation backend.
pub const EPOCH: &str = "vgic, crossbeam-epoch";
/// The structure of Linux's GIC, behind the same interface.
pub const LOCKED: &str = "locked";
/// Not an engine: the same cache lines, each of them only loaded.
pub const LINES: &str = "its cache lines, loaded";
/// Another GIC with an ITS.
pub const ARM_VGIC: &str = "arm_vgic";

/// Numbers of mapped or pending LPIs.
pub const SIZES: [u32; 3] = [1, 1024, 65_536];

/// Returns all paths that are measured in turns, by group. Without `peer`, arm_vgic is left out.
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

/// The names of the paths that arm_vgic has, too.
pub(crate) use engine::{
    BY_EVENT, BY_ROUTE, CYCLE, FIRST_BY_EVENT, FIRST_BY_ROUTE, NOTHING_TAKEN, ONE_TAKEN, TRANSLATER,
};

/// Paths with counted instructions, and the number of calls.
pub const COUNTED: &[(&str, u32)] = &[
    ("injection: coalesced, by MsiRoute, 1 mapped: vgic", 1000),
    ("injection: coalesced, by MsiRoute, 1 mapped: locked", 1000),
    ("injection: coalesced, by device and event, 1 mapped: vgic", 1000),
    ("injection: coalesced, by device and event, 1 mapped: locked", 1000),
    ("injection: coalesced, by a write to GITS_TRANSLATER, 1 mapped: vgic", 1000),
    ("injection: first, by MsiRoute, 1,024 mapped: vgic", 1024),
    ("full cycle: full cycle of an LPI chosen at random, 1 mapped: vgic", 1000),
    ("full cycle: full cycle of an LPI chosen at random, 1 mapped: locked", 1000),
    ("full cycle: full cycle of an LPI chosen at random, 65,536 mapped: vgic", 2000),
    ("full cycle: full cycle of an LPI chosen at random, 65,536 mapped: locked", 2000),
    ("full cycle: full cycle of one, all others pending, 16 pending: vgic", 1000),
    ("full cycle: full cycle of one, all others pending, 1,024 pending: vgic", 2000),
    ("full cycle: full cycle of one, all others pending, 1,024 pending: locked", 20),
    ("entry: entry and exit, nothing taken, 0 pending: vgic", 1000),
    ("entry: entry and exit, nothing taken, 16 pending: vgic", 1000),
    ("entry: entry and exit, nothing taken, 1,024 pending: vgic", 1000),
    ("control: map an event, and unmap it, 1,024 mapped: vgic", 1000),
    ("control: retarget twice, idle, 1,024 mapped: vgic", 1000),
    ("commands: MAPTI, and DISCARD, and SYNC: vgic", 1000),
    ("commands: MOVI, and SYNC: vgic", 1000),
    ("registers: GICv2: write ISENABLER, one interrupt: vgic", 1000),
    ("registers: GICv2: SPI: pulse, entry, IAR, EOIR, exit: vgic", 1000),
    ("registers: GICv3: SPI: pulse, entry, IAR, EOIR, exit: vgic", 1000),
    ("SGI fan-out: send an SGI, and deliver it at each target, 4 targets: vgic", 500),
    ("mailbox: push, and its share of a drain, 16 in a batch: vgic", 1600),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_there() {
        let all = all(None);
        let names: Vec<_> =
            all.iter().map(|p| format!("{}: {}: {}", p.key.group, p.key, p.who)).collect();
        for (name, _) in COUNTED {
            assert!(names.iter().any(|n| n == name), "{name}");
        }
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), names.len(), "two paths of one name");
    }
}
