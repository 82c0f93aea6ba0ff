//! The lock-free engine against the locked one: the same operations must give the same results, and
//! the same deliveries in the same order.
#![cfg(feature = "locked")]

mod common;

use common::*;
use proptest::prelude::*;
use vgic_core::Vgic;
use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::locked::LockedVgic;
use vgic_core::lr::{ListRegisters, Lr, LrState};
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
    /// Replaces a configuration but for one field.
    Update(Wired, WiredConfig, Keep),
    SetActive(Wired, bool),
    /// Sends SGI 3 of a vCPU from these senders.
    PulseFrom(u16, u8),
    ClearFrom(u16, u8),
    Gates(u16, Gates),
    /// Reads the state of an interrupt as other threads see it.
    Read(Wired),
    /// Does an entry, some acknowledges, some ends (newest first), and an exit.
    Run {
        vcpu: u16,
        take: usize,
        end: usize,
    },
}

/// The field of a configuration that stays as it is.
#[derive(Clone, Copy, Debug)]
enum Keep {
    Enabled,
    Priority,
    Trigger,
    Target,
}

/// The SGI that has senders. Other SGIs are pulsed.
const SENT: Intid = Intid(3);

/// The result of an operation.
#[derive(Clone, PartialEq, Debug)]
enum Outcome {
    Done,
    Result(Result<(), Error>),
    Count(Result<usize, Error>),
    /// Whether the interrupt was mapped. The place of the pending bit of an interrupt that waits in
    /// a list register differs: the locked engine takes it back at every exit.
    Injected(Result<bool, Error>),
    Config(Result<WiredConfig, Error>),
    Read {
        config: Result<WiredConfig, Error>,
        line: Result<bool, Error>,
        pending: Result<bool, Error>,
        active: Result<bool, Error>,
        senders: Option<Result<u8, Error>>,
    },
    Ran {
        flushed: Flushed,
        taken: Vec<u32>,
        ended: Vec<u32>,
    },
}

/// No two interrupts ever have the same priority. The time at which an interrupt that was active,
/// or moved, or had its priority changed is queued behind others of its priority is left open, and
/// the engines differ.
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

/// Any wired interrupt, including the SGI that has senders.
fn any_wired() -> impl Strategy<Value = Wired> {
    prop_oneof![4 => wired(), 1 => vcpu().prop_map(|v| Wired::Private(VcpuId(v), SENT))]
}

fn wired_config(wired: Wired) -> impl Strategy<Value = (Wired, WiredConfig)> {
    let which = match wired {
        Wired::Private(_, SENT) => LPIS + 5,
        Wired::Private(_, Intid(2)) => LPIS,
        Wired::Private(..) => LPIS + 1,
        Wired::Spi(intid) => LPIS + 2 + intid.0 - 40,
    };
    (prop::bool::weighted(0.8), any::<[bool; 2]>(), vcpu()).prop_map(
        move |(enabled, [high, sampled], target)| {
            let config = WiredConfig {
                enabled,
                priority: level(which, high),
                // The PPI and one of the SPIs are in Group 0, to test the gates.
                group: if which % 3 == 0 { Group::Group0 } else { Group::Group1 },
                trigger: if sampled { Trigger::Level } else { Trigger::Edge },
                target: VcpuId(target),
            };
            (wired, config)
        },
    )
}

fn gates() -> impl Strategy<Value = Gates> {
    any::<[bool; 3]>().prop_map(|[group0, group1, lpis]| Gates {
        groups: [group0, group1],
        lpis,
        msis: true,
    })
}

fn new_op() -> impl Strategy<Value = Op> {
    let keep =
        || prop::sample::select(vec![Keep::Enabled, Keep::Priority, Keep::Trigger, Keep::Target]);
    prop_oneof![
        4 => (any_wired().prop_flat_map(wired_config), keep())
            .prop_map(|((w, c), keep)| Op::Update(w, c, keep)),
        3 => (any_wired(), any::<bool>()).prop_map(|(w, active)| Op::SetActive(w, active)),
        3 => (vcpu(), any::<u8>()).prop_map(|(v, senders)| Op::PulseFrom(v, senders & 0x15)),
        1 => (vcpu(), any::<u8>()).prop_map(|(v, senders)| Op::ClearFrom(v, senders)),
        1 => (vcpu(), gates()).prop_map(|(v, gates)| Op::Gates(v, gates)),
        5 => any_wired().prop_map(Op::Read),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![3 => old_op(), 1 => new_op()]
}

fn old_op() -> impl Strategy<Value = Op> {
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

/// A machine, and the interrupts that each guest has acknowledged and not ended.
struct Side<E: Engine> {
    m: Machine<E>,
    active: Vec<Vec<(Intid, Group)>>,
    starved: bool,
}

impl<E: Engine> Side<E> {
    fn new(lrs: usize) -> Self {
        let config = Config { spis: 16, ..Config::with_vcpus(VCPUS) };
        let active = vec![Vec::new(); VCPUS.into()];
        let mut side = Self { m: Machine::with(config, lrs), active, starved: false };
        // Events are mapped at the start, so that most operations find something.
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
            Op::Update(w, config, keep) => {
                Outcome::Config(m.injector.update(w, |old| match keep {
                    Keep::Enabled => WiredConfig { enabled: old.enabled, ..config },
                    Keep::Priority => WiredConfig { priority: old.priority, ..config },
                    Keep::Trigger => WiredConfig { trigger: old.trigger, ..config },
                    Keep::Target => WiredConfig { target: old.target, ..config },
                }))
            }
            Op::SetActive(w, active) => Outcome::Result(m.injector.set_active(w, active)),
            Op::PulseFrom(v, senders) => {
                Outcome::Result(m.injector.pulse_from(VcpuId(v), SENT, senders))
            }
            Op::ClearFrom(v, senders) => {
                Outcome::Result(m.injector.clear_from(VcpuId(v), SENT, senders))
            }
            Op::Gates(v, gates) => Outcome::Result(m.injector.update_gates(VcpuId(v), |_| gates)),
            Op::Read(w) => Outcome::Read {
                config: m.injector.config(w),
                line: m.injector.line(w),
                pending: m.injector.is_pending(w),
                active: m.injector.is_active(w),
                senders: match w {
                    Wired::Private(v, SENT) => Some(m.injector.senders(v, SENT)),
                    _ => None,
                },
            },
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

    /// Enters. Notes whether an active interrupt lost its list register to one that is not more
    /// urgent, because all list registers were active. Each engine chooses for itself which
    /// interrupt goes, and its place in line after that.
    fn enter(&mut self, v: usize) -> Flushed {
        let lrs = |cpu: &CpuInterface| (0..cpu.count()).map(|n| cpu.read(n)).collect::<Vec<_>>();
        let before = lrs(&self.m.cpus[v]);
        let flushed = self.m.enter(v);
        let least = before.iter().map(|lr| lr.priority()).max();
        let starving = before.iter().all(|lr| lr.state().is_active());
        let pending = |lr: &Lr| lr.state() == LrState::Pending && Some(lr.priority()) >= least;
        self.starved |= starving && lrs(&self.m.cpus[v]).iter().any(pending);
        flushed
    }

    /// Lets every vCPU process its mail, and pass on interrupts for another vCPU, as the host would
    /// do after a kick.
    fn settle(&mut self) {
        for _ in 0..3 {
            for v in 0..usize::from(VCPUS) {
                self.enter(v);
                self.m.exit(v);
            }
        }
    }

    fn run(&mut self, v: usize, take: usize, end: usize) -> Outcome {
        let flushed = self.enter(v);
        let (mut taken, mut ended) = (Vec::new(), Vec::new());
        let cpu = &mut self.m.cpus[v];
        while taken.len() < take {
            let (mut intid, mut group) = (cpu.iar1(), Group::Group1);
            if intid == Intid(SPURIOUS) {
                (intid, group) = (cpu.iar0(), Group::Group0);
            }
            if intid == Intid(SPURIOUS) {
                break;
            }
            taken.push(intid.0);
            self.active[v].push((intid, group));
        }
        while ended.len() < end {
            let Some((intid, group)) = self.active[v].pop() else { break };
            let _ = match group {
                Group::Group0 => cpu.eoir0(intid),
                Group::Group1 => cpu.eoir1(intid),
            };
            ended.push(intid.0);
        }
        self.m.exit(v);
        Outcome::Ran { flushed, taken, ended }
    }

    /// Reads every wired interrupt, and ends the active ones that the guest does not know of.
    fn calm(&mut self) -> Vec<Outcome> {
        let private =
            (0..VCPUS).flat_map(|v| [2, 3, 27].map(|n| Wired::Private(VcpuId(v), Intid(n))));
        let wired: Vec<Wired> = private.chain((40..43).map(|n| Wired::Spi(Intid(n)))).collect();
        let mut outcomes = Vec::new();
        for w in wired {
            outcomes.push(self.apply(Op::Read(w)));
            outcomes.push(self.apply(Op::SetActive(w, false)));
            self.settle();
            outcomes.push(self.apply(Op::Read(w)));
        }
        outcomes
    }

    /// Ends everything and takes everything, so that no lost interrupt stays hidden.
    fn finish(&mut self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for v in 0..VCPUS {
            outcomes.push(self.apply(Op::Gates(v, Gates::OPEN)));
            outcomes.push(self.apply(Op::Power(v, true)));
        }
        for n in 40..43 {
            outcomes.push(self.apply(Op::Level(Wired::Spi(Intid(n)), false)));
        }
        for v in 0..VCPUS {
            outcomes.push(self.apply(Op::Level(Wired::Private(VcpuId(v), Intid(27)), false)));
        }
        self.settle();
        let calm = self.calm();
        if self.starved {
            return outcomes;
        }
        outcomes.extend(calm);
        for _ in 0..3 {
            for vcpu in 0..VCPUS {
                for _ in 0..12 {
                    let ran = self.apply(Op::Run { vcpu, take: 1, end: 9 });
                    if self.starved {
                        return outcomes;
                    }
                    outcomes.push(ran);
                }
            }
        }
        outcomes
    }
}

fn compare<A: Engine, B: Engine>(lrs: usize, ops: &[Op]) -> Result<(), TestCaseError> {
    let (mut a, mut b) = (Side::<A>::new(lrs), Side::<B>::new(lrs));
    for (i, &op) in ops.iter().enumerate() {
        // The time at which a moved interrupt arrives depends on the time at which the old vCPU
        // processes its mail. So all vCPUs do so, before and after. Injections pile up in between.
        let piles_up = matches!(
            op,
            Op::Inject(_) | Op::Pulse(_) | Op::Clear(_) | Op::ClearPulse(_) | Op::Read(_)
        );
        if !piles_up {
            a.settle();
            b.settle();
        }
        let (of_a, of_b) = (a.apply(op), b.apply(op));
        if a.starved || b.starved {
            return Ok(());
        }
        prop_assert_eq!(
            of_a,
            of_b,
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
    if a.starved || b.starved {
        return Ok(());
    }
    let (a, b) = (a.finish(), b.finish());
    for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
        prop_assert_eq!(a, b, "{} and {} differ at the end, operation {}", A::NAME, B::NAME, i);
    }
    Ok(())
}

/// Injections and entries only, all of one priority or a few: interrupts are delivered first come,
/// first served.
fn pile() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..EVENTS).prop_map(Op::Inject),
        1 => (vcpu(), 0..6usize).prop_map(|(vcpu, n)| Op::Run { vcpu, take: n, end: n }),
    ]
}

/// As many cases as the build is fast enough for; `PROPTEST_CASES` overrides it.
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
        // Several interrupts that the host made active have no order among them, so all of them get
        // list registers.
        let lrs = if ops.iter().any(|op| matches!(op, Op::SetActive(..))) { 12 } else { lrs };
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
        // All LPIs move to one vCPU, so that they compete.
        let gather = (0..VCPUS).map(|v| Op::MoveAll(v, 0));
        let ops: Vec<Op> = setup.chain(gather).chain(ops).collect();
        compare::<Vgic<Slots>, LockedVgic>(lrs, &ops)?;
    }
}
