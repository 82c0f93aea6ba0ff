//! Look-up of an LPI by its INTID, beside maps that hold the same LPIs.
//!
//! Each implementation finds an object of 64 bytes and reads its target. The peers hash with
//! FxHash, as no attacker can make INTIDs collide here, and read in place, without counting
//! references.

use std::collections::HashMap;
use std::hint::black_box;
use std::marker::PhantomData;
use std::sync::RwLock;

use dashmap::DashMap;
use rustc_hash::FxBuildHasher;
use vgic_core::engine::Engine;
use vgic_core::ids::LPI_BASE;

use super::each_engine;
use crate::cost::Bench;
use crate::perf::path::{Group, repeat};

const WHAT: &str = "INTID to target";

/// An object of an interrupt's size.
#[repr(align(64))]
struct Lpi {
    target: u16,
}

fn lpis(count: u32) -> impl Iterator<Item = (u32, Box<Lpi>)> {
    (0..count).map(|n| (LPI_BASE + n, Box::new(Lpi { target: 0 })))
}

/// The same generator as in the engines' benchmarks, so that all pay the same for it.
fn picker(count: u32) -> impl FnMut() -> u32 {
    let mut next = 1_u32;
    move || {
        next ^= next << 13;
        next ^= next >> 17;
        next ^= next << 5;
        LPI_BASE + ((u64::from(next) * u64::from(count)) >> 32) as u32
    }
}

pub(super) fn lookup() -> Group {
    let mut group = Group::new("look-up");
    each_engine!(engines, &mut group);
    for count in [1024, 65_536] {
        let at = Some((u64::from(count), "mapped"));
        group.add("DashMap", WHAT, at, move || {
            let map = DashMap::with_hasher(FxBuildHasher);
            lpis(count).for_each(|(intid, lpi)| drop(map.insert(intid, lpi)));
            let mut pick = picker(count);
            repeat(move || {
                let found = map.get(&pick()).map(|lpi| lpi.target);
                assert_eq!(black_box(found), Some(0));
            })
        });
        group.add("RwLock<HashMap>", WHAT, at, move || {
            let map: HashMap<u32, Box<Lpi>, FxBuildHasher> = lpis(count).collect();
            let map = RwLock::new(map);
            let mut pick = picker(count);
            repeat(move || {
                let map = map.read().expect("nobody panics");
                let found = map.get(&pick()).map(|lpi| lpi.target);
                assert_eq!(black_box(found), Some(0));
            })
        });
        group.add("papaya", WHAT, at, move || {
            let map = papaya::HashMap::with_capacity_and_hasher(count as usize, FxBuildHasher);
            lpis(count).for_each(|(intid, lpi)| {
                map.pin().insert(intid, lpi);
            });
            let mut pick = picker(count);
            repeat(move || {
                let found = map.pin().get(&pick()).map(|lpi| lpi.target);
                assert_eq!(black_box(found), Some(0));
            })
        });
    }
    group
}

fn engines<E: Engine>(_: PhantomData<E>, who: &'static str, group: &mut Group) {
    for count in [1024, 65_536] {
        group.add(who, WHAT, Some((u64::from(count), "mapped")), move || {
            let mut b = Bench::<E>::new(count)?;
            repeat(move || b.look_up())
        });
    }
}
