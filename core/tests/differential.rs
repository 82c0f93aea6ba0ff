//! The lock-free engine against the locked one: the same operations, the same results, the same deliveries in
//! the same order.
#![cfg(feature = "locked")]

mod common;

use common::*;
use proptest::prelude::*;
use vgic_core::Vgic;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::locked::LockedVgic;
use vgic_core::reclaim::{Epoch, Slots};

const VCPUS: u16 = 3;
const EVENTS: u32 = 6;
const LPIS: u32 = 5;

#[derive(Clone, Copy, Debug)]
enum Op {
    Map {
        event: u32,
        lpi: u32,
        target: u16,
        config: LpiConfig,
    },
    Unmap(u32),
    UnmapDevice,
    Retarget(u32, u16),
    MoveAll(u16, u16),
    SetConfig(u32, LpiConfig),
    Clear(u32),
    Inject(u32),
    Pulse(Wired),
    ClearPulse(Wired),
    Level(Wired, bool),
    Configure(Wired, WiredConfig),
    LpisEnabled(u16, bool),
    Power(u16, bool),
    /// Entry, some acknowledges, some ends (newest first), exit.
    Run {
        vcpu: u16,
        take: usize,
        end: usize,
    },
}

/// What came of an operation.
#[derive(Clone, PartialEq, Debug)]
enum Outcome {
    Done,
    Result(Result<(), Error>),
    Count(Result<usize, Error>),
    /// Whether it was mapped. Where the bit of an interrupt is that waits in a list register differs: the locked engine
    /// takes it back at every exit.
    Injected(Result<bool, Error>),
    Ran {
        flushed: Flushed,
        taken: Vec<u32>,
        ended: Vec<u32>,
    },
}

/// No two interrupts ever have the same priority: when one that was active, or moved, or had its priority changed is
/// queued behind others of its priority is left open, and the engines differ.
fn level(which: u32, high: bool) -> Priority {
    Priority::new(((2 * which + u32::from(high)) * 8) as u8)
}

fn config(lpi: u32) -> impl Strategy<Value = LpiConfig> {
    (prop::bool::weighted(0.8), any::<bool>())
        .prop_map(move |(enabled, high)| LpiConfig { enabled, priority: level(lpi, high) })
}

fn vcpu() -> impl Strategy<Value = u16> {
    0..VCPUS
}

fn wired() -> impl Strategy<Value = Wired> {
    prop_oneof![
        (vcpu(), prop::sample::select(vec![2u32, 27]))
            .prop_map(|(v, n)| Wired::Private(VcpuId(v), Intid(n))),
        (40u32..43).prop_map(|n| Wired::Spi(Intid(n))),
    ]
}

fn wired_config(wired: Wired) -> impl Strategy<Value = (Wired, WiredConfig)> {
    let which = match wired {
        Wired::Private(_, Intid(2)) => LPIS,
        Wired::Private(..) => LPIS + 1,
        Wired::Spi(intid) => LPIS + 2 + intid.0 - 40,
    };
    (prop::bool::weighted(0.8), any::<[bool; 2]>(), vcpu()).prop_map(
        move |(enabled, [high, sampled], target)| {
            let config = WiredConfig {
                enabled,
                priority: level(which, high),
                group: Group::Group1,
                trigger: if sampled { Trigger::Level } else { Trigger::Edge },
                target: VcpuId(target),
            };
            (wired, config)
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..EVENTS, 0..LPIS, vcpu()).prop_flat_map(|(event, lpi, target)| {
            config(lpi).prop_map(move |config| Op::Map { event, lpi, target, config })
        }),
        1 => (0..EVENTS).prop_map(Op::Unmap),
        1 => Just(Op::UnmapDevice),
        3 => (0..EVENTS, vcpu()).prop_map(|(e, v)| Op::Retarget(e, v)),
        1 => (vcpu(), vcpu()).prop_map(|(a, b)| Op::MoveAll(a, b)),
        2 => (0..LPIS).prop_flat_map(|n| config(n).prop_map(move |c| Op::SetConfig(n, c))),
        2 => (0..EVENTS).prop_map(Op::Clear),
        12 => (0..EVENTS).prop_map(Op::Inject),
        3 => wired().prop_map(Op::Pulse),
        1 => wired().prop_map(Op::ClearPulse),
        3 => (wired(), any::<bool>()).prop_map(|(w, high)| Op::Level(w, high)),
        4 => wired().prop_flat_map(wired_config).prop_map(|(w, c)| Op::Configure(w, c)),
        1 => (vcpu(), any::<bool>()).prop_map(|(v, on)| Op::LpisEnabled(v, on)),
        1 => (vcpu(), any::<bool>()).prop_map(|(v, on)| Op::Power(v, on)),
        12 => (vcpu(), 0..6usize, 0..6usize).prop_map(|(vcpu, take, end)| Op::Run { vcpu, take, end }),
    ]
}

/// A machine, and what each guest has acknowledged and not ended.
struct Side<E: Engine> {
    m: Machine<E>,
    active: Vec<Vec<Intid>>,
}

impl<E: Engine> Side<E> {
    fn new(lrs: usize) -> Self {
        let config = Config { spis: 16, ..Config::with_vcpus(VCPUS) };
        let mut side =
            Self { m: Machine::with(config, lrs), active: vec![Vec::new(); VCPUS.into()] };
        // A mapped start, so that most operations find something.
        for n in 0..LPIS {
            side.m.map(n, (n % u32::from(VCPUS)) as u16, 0xa0);
        }
        side
    }

    fn apply(&mut self, op: Op) -> Outcome {
        let m = &mut self.m;
        match op {
            Op::Map { event, lpi: n, target, config } => {
                Outcome::Result(m.msi.map(DEV, EventId(event), lpi(n), VcpuId(target), config))
            }
            Op::Unmap(event) => Outcome::Result(m.msi.unmap(DEV, EventId(event))),
            Op::UnmapDevice => Outcome::Count(Ok(m.msi.unmap_device(DEV))),
            Op::Retarget(event, v) => {
                Outcome::Result(m.msi.retarget(DEV, EventId(event), VcpuId(v)))
            }
            Op::MoveAll(a, b) => Outcome::Count(m.msi.move_all(VcpuId(a), VcpuId(b))),
            Op::SetConfig(n, config) => Outcome::Result(m.msi.set_config(lpi(n), config)),
            Op::Clear(event) => Outcome::Result(m.msi.clear(DEV, EventId(event))),
            Op::Inject(event) => Outcome::Injected(Ok(m.inject(event) != Injected::Unmapped)),
            Op::Pulse(w) => Outcome::Injected(m.injector.pulse(w).map(|i| i != Injected::Unmapped)),
            Op::ClearPulse(w) => Outcome::Result(m.injector.clear_pulse(w)),
            Op::Level(w, high) => Outcome::Result(m.injector.set_level(w, high)),
            Op::Configure(w, config) => Outcome::Result(m.injector.configure(w, config)),
            Op::LpisEnabled(v, on) => Outcome::Result(m.injector.set_lpis_enabled(VcpuId(v), on)),
            Op::Power(v, true) => {
                m.vcpus[usize::from(v)].open();
                Outcome::Done
            }
            Op::Power(v, false) => {
                let v = usize::from(v);
                m.vcpus[v].close(&mut m.cpus[v]);
                Outcome::Done
            }
            Op::Run { vcpu, take, end } => self.run(vcpu.into(), take, end),
        }
    }

    /// Lets every vCPU look at its mail, and pass on what is for another: the host would do so after a kick.
    fn settle(&mut self) {
        for _ in 0..3 {
            for v in 0..usize::from(VCPUS) {
                self.m.enter(v);
                self.m.exit(v);
            }
        }
    }

    fn run(&mut self, v: usize, take: usize, end: usize) -> Outcome {
        let flushed = self.m.enter(v);
        let (mut taken, mut ended) = (Vec::new(), Vec::new());
        let cpu = &mut self.m.cpus[v];
        while taken.len() < take {
            let intid = cpu.iar1();
            if intid == Intid(SPURIOUS) {
                break;
            }
            taken.push(intid.0);
            self.active[v].push(intid);
        }
        while ended.len() < end {
            let Some(intid) = self.active[v].pop() else { break };
            let _ = cpu.eoir1(intid);
            ended.push(intid.0);
        }
        self.m.exit(v);
        Outcome::Ran { flushed, taken, ended }
    }

    /// Ends everything and takes everything, so that nothing that got lost stays hidden.
    fn finish(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for v in 0..VCPUS {
            outcomes.push(self.apply(Op::LpisEnabled(v, true)));
            outcomes.push(self.apply(Op::Power(v, true)));
        }
        for n in 40..43 {
            outcomes.push(self.apply(Op::Level(Wired::Spi(Intid(n)), false)));
        }
        for v in 0..VCPUS {
            outcomes.push(self.apply(Op::Level(Wired::Private(VcpuId(v), Intid(27)), false)));
        }
        for _ in 0..3 {
            for vcpu in 0..VCPUS {
                for _ in 0..12 {
                    outcomes.push(self.apply(Op::Run { vcpu, take: 1, end: 9 }));
                }
            }
        }
        outcomes
    }
}

fn compare<A: Engine, B: Engine>(lrs: usize, ops: &[Op]) -> Result<(), TestCaseError> {
    let (mut a, mut b) = (Side::<A>::new(lrs), Side::<B>::new(lrs));
    for (i, &op) in ops.iter().enumerate() {
        // When an interrupt arrives where it is moved to depends on when the old vCPU looks; so they all look, before
        // and after. Injections pile up in between.
        let piles_up =
            matches!(op, Op::Inject(_) | Op::Pulse(_) | Op::Clear(_) | Op::ClearPulse(_));
        if !piles_up {
            a.settle();
            b.settle();
        }
        prop_assert_eq!(
            a.apply(op),
            b.apply(op),
            "{} and {} differ at operation {}: {:?}",
            A::NAME,
            B::NAME,
            i,
            op
        );
        if !piles_up {
            a.settle();
            b.settle();
        }
    }
    let (a, b) = (a.finish(), b.finish());
    for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
        prop_assert_eq!(a, b, "{} and {} differ at the end, operation {}", A::NAME, B::NAME, i);
    }
    Ok(())
}

/// Injections and entries only, all of one priority or a few: what comes first is served first.
fn pile() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..EVENTS).prop_map(Op::Inject),
        1 => (vcpu(), 0..6usize).prop_map(|(vcpu, n)| Op::Run { vcpu, take: n, end: n }),
    ]
}

/// As many cases as the build is fast for; `PROPTEST_CASES` overrides it.
fn tries() -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => default.cases,
        None if cfg!(debug_assertions) => 250,
        None => 2500,
    };
    ProptestConfig { cases, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(tries())]

    #[test]
    fn slots_against_locked(lrs in 1..5usize, ops in prop::collection::vec(op(), 1..80)) {
        compare::<Vgic<Slots>, LockedVgic>(lrs, &ops)?;
    }

    #[test]
    fn epoch_against_slots(lrs in 1..5usize, ops in prop::collection::vec(op(), 1..80)) {
        compare::<Vgic<Epoch>, Vgic<Slots>>(lrs, &ops)?;
    }

    #[test]
    fn first_come_first_served(lrs in 1..5usize, priorities in 1..3u32, ops in prop::collection::vec(pile(), 1..200)) {
        let setup = (0..LPIS).map(|n| {
            let priority = Priority::new((n % priorities * 8) as u8);
            Op::SetConfig(n, LpiConfig { enabled: true, priority })
        });
        // All for one vCPU, so that they compete.
        let gather = (0..VCPUS).map(|v| Op::MoveAll(v, 0));
        let ops: Vec<Op> = setup.chain(gather).chain(ops).collect();
        compare::<Vgic<Slots>, LockedVgic>(lrs, &ops)?;
    }
}
