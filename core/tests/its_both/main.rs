//! Both engines behind the same ITS, with the same operations: a guest gets the same LPIs from
//! both, for any operations.
#![cfg(feature = "locked")]
#![allow(clippy::duplicate_mod)] // one machine for each engine

mod locked;
mod lockfree;

use proptest::prelude::*;
use vgic_core::engine::Injected;
use vgic_core::ids::{DeviceId, EventId, Intid};
use vgic_core::its::{CollectionId, Command, RdBase};

const VCPUS: u32 = 3;

#[derive(Clone, Debug)]
enum Op {
    Command(Command),
    Msi(u32, u32),
    /// Takes all interrupts of a vCPU.
    Take(usize),
    /// Writes an LPI's configuration byte.
    Property(u32, u8),
    EnableLpis(usize, bool),
    EnableIts(bool),
    InvLpi(usize, u32),
}

fn command() -> impl Strategy<Value = Command> {
    let ids = || (0..3u32, 0..5u32).prop_map(|(d, e)| (DeviceId(d), EventId(e)));
    let collection = || (0..4u16).prop_map(CollectionId);
    let rdbase = || (0..4u64).prop_map(RdBase);
    let mapti = (ids(), 8191..8198u32, collection());
    prop_oneof![
        2 => (0..3u32, any::<bool>(), 0..4u8).prop_map(|(d, valid, size)| {
            Command::Mapd { device: DeviceId(d), valid, size, itt: lockfree::guest::itt(d) }
        }),
        3 => (collection(), any::<bool>(), rdbase())
            .prop_map(|(collection, valid, rdbase)| Command::Mapc { collection, valid, rdbase }),
        8 => mapti.prop_map(|((device, event), intid, collection)| {
            Command::Mapti { device, event, intid: Intid(intid), collection }
        }),
        3 => (ids(), collection())
            .prop_map(|((device, event), collection)| Command::Movi { device, event, collection }),
        1 => (rdbase(), rdbase()).prop_map(|(from, to)| Command::Movall { from, to }),
        2 => ids().prop_map(|(d, e)| Command::Discard(d, e)),
        4 => ids().prop_map(|(d, e)| Command::Int(d, e)),
        2 => ids().prop_map(|(d, e)| Command::Clear(d, e)),
        2 => ids().prop_map(|(d, e)| Command::Inv(d, e)),
        1 => collection().prop_map(Command::Invall),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let vcpu = || 0..VCPUS as usize;
    prop_oneof![
        12 => command().prop_map(Op::Command),
        8 => (0..3u32, 0..5u32).prop_map(|(d, e)| Op::Msi(d, e)),
        4 => vcpu().prop_map(Op::Take),
        2 => (8192..8198u32, any::<u8>()).prop_map(|(intid, byte)| Op::Property(intid, byte)),
        1 => (vcpu(), any::<bool>()).prop_map(|(vcpu, on)| Op::EnableLpis(vcpu, on)),
        1 => prop::bool::weighted(0.8).prop_map(Op::EnableIts),
        1 => (vcpu(), 8191..8199u32).prop_map(|(vcpu, intid)| Op::InvLpi(vcpu, intid)),
    ]
}

/// The result of an operation that the guest sees.
#[derive(PartialEq, Debug)]
enum Seen {
    Nothing,
    /// The position of the queue, and the engine's result of the command.
    Command(u64, String),
    Unmapped(bool),
    /// LPIs in the order of their INTIDs: LPIs of one priority come in the order in which the
    /// engine sees them.
    Taken(Vec<u64>),
    Enabled(u32),
}

macro_rules! perform {
    ($engine:ident) => {
        fn $engine(guest: &mut $engine::guest::Guest, op: &Op) -> Seen {
            let rd = |vcpu: usize| 0x080a_0000 + 0x2_0000 * vcpu as u64;
            match *op {
                Op::Command(command) => {
                    guest.put(&command.encode());
                    guest.ring();
                    let last = guest.log.results.lock().unwrap().last().copied();
                    Seen::Command(guest.world.r64($engine::guest::CREADR), format!("{last:?}"))
                }
                Op::Msi(device, event) => {
                    Seen::Unmapped(guest.msi(device, event) == Injected::Unmapped)
                }
                Op::Take(vcpu) => {
                    let mut taken = guest.take(vcpu);
                    taken.sort_unstable();
                    Seen::Taken(taken)
                }
                Op::Property(intid, byte) => {
                    guest.property(intid, byte & 0xfd);
                    Seen::Nothing
                }
                Op::EnableLpis(vcpu, on) => {
                    guest.world.w32(rd(vcpu), on.into());
                    Seen::Enabled(guest.world.r32(rd(vcpu)))
                }
                Op::EnableIts(on) => {
                    guest.world.w32($engine::guest::CTLR, on.into());
                    Seen::Enabled(guest.world.r32($engine::guest::CTLR))
                }
                Op::InvLpi(vcpu, intid) => {
                    guest.world.w64(rd(vcpu) + 0xa0, intid.into());
                    Seen::Nothing
                }
            }
        }
    };
}

perform!(lockfree);
perform!(locked);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 150 } else { 1500 }))]

    #[test]
    fn the_same_lpis(ops in prop::collection::vec(op(), 1..120)) {
        let mut ours = lockfree::guest::Guest::new(VCPUS);
        let mut theirs = locked::guest::Guest::new(VCPUS);
        for op in ops.iter().chain((0..VCPUS as usize).map(Op::Take).collect::<Vec<_>>().iter()) {
            prop_assert_eq!(lockfree(&mut ours, op), locked(&mut theirs, op), "{:?}", op);
        }
        let (ours, theirs) = (ours.its.dump(), theirs.its.dump());
        prop_assert_eq!(ours.events, theirs.events);
    }
}
