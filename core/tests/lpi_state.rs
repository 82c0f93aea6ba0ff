//! LPIs have no active state (IHI 0069, 4.1.2): no interrupt that a guest has not ended keeps an
//! LPI from being delivered, at any vCPU to which it has moved. The tests run on both engines, with
//! a CPU interface that lets an acknowledged LPI go, and with list registers that keep it active,
//! as hardware's do.
#![cfg(feature = "locked")]

use std::sync::Arc;

use proptest::prelude::*;
use vgic_core::Vgic;
use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::locked::LockedVgic;
use vgic_core::lr::{ListRegisters, Lr, LrState, Maintenance};

const VCPUS: u16 = 2;
const LPIS: u32 = 4;
const DEVICE: DeviceId = DeviceId(1);
const LRS: usize = 2;

struct NoKick; // one thread

impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

/// List registers with a guest.
trait Guest: ListRegisters {
    fn new() -> Self;
    /// Acknowledges an interrupt even if others are active: its active priorities are cleared, as a
    /// crash kernel does.
    fn acknowledge(&mut self) -> Option<u32>;
    fn end(&mut self, intid: u32);
}

impl Guest for CpuInterface {
    fn new() -> Self {
        let mut cpu = Self::new(LRS).unwrap();
        cpu.set_pmr(0xff);
        cpu.set_igrpen1(1);
        cpu
    }

    fn acknowledge(&mut self) -> Option<u32> {
        self.set_ap1r(0, 0);
        Some(self.iar1().0).filter(|&intid| intid != SPURIOUS)
    }

    fn end(&mut self, intid: u32) {
        let _ = self.eoir1(Intid(intid));
    }
}

/// List registers that stay active until the end.
struct Hardware([Lr; LRS]);

impl ListRegisters for Hardware {
    fn count(&self) -> usize {
        LRS
    }
    fn read(&self, n: usize) -> Lr {
        self.0[n]
    }
    fn write(&mut self, n: usize, lr: Lr) {
        self.0[n] = lr;
    }
    fn take_eoi_count(&mut self) -> u32 {
        0 // LPIs do not count
    }
    fn set_maintenance(&mut self, _: Maintenance) {}
}

impl Guest for Hardware {
    fn new() -> Self {
        Self([Lr::EMPTY; LRS])
    }

    fn acknowledge(&mut self) -> Option<u32> {
        let lr = self.0.iter_mut().find(|lr| lr.state() == LrState::Pending)?;
        *lr = lr.with_state(LrState::Active);
        Some(lr.intid().0)
    }

    fn end(&mut self, intid: u32) {
        let mine = |lr: &&mut Lr| lr.intid().0 == intid && lr.state().is_active();
        if let Some(lr) = self.0.iter_mut().find(mine) {
            let pending = lr.state() == LrState::PendingActive;
            *lr = lr.with_state(if pending { LrState::Pending } else { LrState::Invalid });
        }
    }
}

struct World<E: Engine, G> {
    msi: E::Msi,
    injector: E::Injector,
    vcpus: Vec<(E::Vcpu, G)>,
    /// The interrupts that each vCPU has acknowledged and not ended.
    held: Vec<Vec<u32>>,
}

impl<E: Engine, G: Guest> World<E, G> {
    fn new() -> Self {
        let engine = E::new(&Config::with_vcpus(VCPUS), Arc::new(NoKick)).unwrap();
        let mut msi = engine.msi().unwrap();
        for n in 0..LPIS {
            map::<E>(&mut msi, n, 0);
        }
        let vcpu = |n| {
            let mut vcpu = engine.vcpu(VcpuId(n)).unwrap();
            vcpu.open();
            (vcpu, G::new())
        };
        let vcpus = (0..VCPUS).map(vcpu).collect();
        Self { msi, injector: engine.injector().unwrap(), vcpus, held: vec![Vec::new(); 2] }
    }

    fn inject(&mut self, n: u32) {
        let _ = self.injector.inject(&self.msi.domain(), DEVICE, EventId(n));
    }

    /// Exits and enters every vCPU, until none has anything to take in.
    fn settle(&mut self) {
        for _ in 0..4 {
            for (vcpu, lrs) in &mut self.vcpus {
                vcpu.fold(lrs);
                vcpu.flush(lrs);
            }
        }
    }

    /// Acknowledges one interrupt, and does not end it.
    fn acknowledge(&mut self, vcpu: usize) -> Option<u32> {
        let taken = self.vcpus[vcpu].1.acknowledge()?;
        self.held[vcpu].push(taken);
        Some(taken)
    }

    /// Acknowledges everything, and ends nothing. Returns the numbers of the LPIs.
    fn drain(&mut self, vcpu: usize) -> Vec<u32> {
        let mut all = Vec::new();
        loop {
            self.settle();
            match self.acknowledge(vcpu) {
                Some(intid) => all.push(intid - LPI_BASE),
                None => break,
            }
            assert!(all.len() < 100, "it does not end");
        }
        all.sort();
        all
    }
}

fn map<E: Engine>(msi: &mut E::Msi, n: u32, target: u16) {
    let (event, intid) = (EventId(n), Intid(LPI_BASE + n));
    msi.map(DEVICE, event, intid, VcpuId(target), LpiConfig::enabled(0xa0)).unwrap();
}

/// The way in which an LPI gets to vCPU 1.
#[derive(Clone, Copy, Debug)]
enum Way {
    Movi,
    Movall,
    Remap,
}

fn moved<E: Engine, G: Guest>(way: Way) {
    let mut world = World::<E, G>::new();
    world.inject(0);
    world.settle();
    assert_eq!(world.acknowledge(0), Some(LPI_BASE));
    match way {
        Way::Movi => world.msi.retarget(DEVICE, EventId(0), VcpuId(1)).unwrap(),
        Way::Movall => drop(world.msi.move_all(VcpuId(0), VcpuId(1)).unwrap()),
        Way::Remap => {
            world.msi.unmap(DEVICE, EventId(0)).unwrap();
            map::<E>(&mut world.msi, 0, 1);
        }
    }
    world.inject(0);
    assert_eq!(world.drain(1), [0], "{way:?}");
    assert_eq!(world.drain(0), []);
}

fn never_ended<E: Engine, G: Guest>() {
    let mut world = World::<E, G>::new();
    for _ in 0..3 {
        // There are more LPIs than list registers.
        (0..LPIS).for_each(|n| world.inject(n));
        assert_eq!(world.drain(0), [0, 1, 2, 3]);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Inject(u32),
    Settle,
    Acknowledge(usize),
    /// Ends the newest interrupt, the oldest, or one between them.
    End(usize, usize),
    Move(u32, u16),
    MoveAll(u16, u16),
    Remap(u32, u16),
    PowerCycle(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let vcpu = || 0..VCPUS as usize;
    prop_oneof![
        6 => (0..LPIS).prop_map(Op::Inject),
        4 => Just(Op::Settle),
        6 => vcpu().prop_map(Op::Acknowledge),
        2 => (vcpu(), 0..4usize).prop_map(|(vcpu, n)| Op::End(vcpu, n)),
        2 => (0..LPIS, 0..VCPUS).prop_map(|(n, to)| Op::Move(n, to)),
        1 => (0..VCPUS, 0..VCPUS).prop_map(|(from, to)| Op::MoveAll(from, to)),
        1 => (0..LPIS, 0..VCPUS).prop_map(|(n, to)| Op::Remap(n, to)),
        1 => vcpu().prop_map(Op::PowerCycle),
    ]
}

/// The LPI that is injected last is delivered once, at its target, with any interrupts acknowledged
/// and not ended.
fn comes_anyway<E: Engine, G: Guest>(ops: &[Op]) -> Result<(), TestCaseError> {
    let mut world = World::<E, G>::new();
    let mut targets = [0; LPIS as usize];
    for op in ops {
        match *op {
            Op::Inject(n) => world.inject(n),
            Op::Settle => world.settle(),
            Op::Acknowledge(vcpu) => _ = world.acknowledge(vcpu),
            Op::End(vcpu, n) => {
                let held = &mut world.held[vcpu];
                if !held.is_empty() {
                    let intid = held.remove(n % held.len());
                    world.vcpus[vcpu].1.end(intid);
                }
            }
            Op::Move(n, to) => {
                targets[n as usize] = to;
                world.msi.retarget(DEVICE, EventId(n), VcpuId(to)).unwrap();
            }
            Op::MoveAll(from, to) => {
                targets.iter_mut().filter(|target| **target == from).for_each(|t| *t = to);
                world.msi.move_all(VcpuId(from), VcpuId(to)).unwrap();
            }
            Op::Remap(n, to) => {
                targets[n as usize] = to;
                world.msi.unmap(DEVICE, EventId(n)).unwrap();
                map::<E>(&mut world.msi, n, to);
            }
            Op::PowerCycle(n) => {
                let (vcpu, lrs) = &mut world.vcpus[n];
                vcpu.close(lrs);
                (*lrs, world.held[n]) = (G::new(), Vec::new());
                vcpu.open();
            }
        }
    }
    for vcpu in 0..VCPUS {
        world.drain(vcpu.into());
    }
    (0..LPIS).for_each(|n| world.inject(n));
    for vcpu in 0..VCPUS {
        let mine: Vec<u32> = (0..LPIS).filter(|&n| targets[n as usize] == vcpu).collect();
        prop_assert_eq!(world.drain(vcpu.into()), mine, "vCPU {}", vcpu);
    }
    Ok(())
}

macro_rules! tests {
    ($($name:ident: $engine:ty, $guest:ty;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn acknowledged_and_moved() {
                for way in [Way::Movi, Way::Movall, Way::Remap] {
                    moved::<$engine, $guest>(way);
                }
            }

            #[test]
            fn acknowledged_and_never_ended() {
                never_ended::<$engine, $guest>();
            }

            proptest! {
                #[test]
                fn whatever_was_not_ended(ops in proptest::collection::vec(op(), 0..60)) {
                    comes_anyway::<$engine, $guest>(&ops)?;
                }
            }
        }
    )*};
}

tests! {
    lockfree: Vgic, CpuInterface;
    lockfree_hardware: Vgic, Hardware;
    locked: LockedVgic, CpuInterface;
    locked_hardware: LockedVgic, Hardware;
}
