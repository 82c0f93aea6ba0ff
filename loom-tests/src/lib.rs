//! Helpers shared by the models in `tests/`.
#![cfg(any(loom, shuttle))]

pub mod delivery;
pub mod its;
pub mod lifetime;
pub mod sched;

use std::sync::Arc;
#[cfg(loom)]
use std::sync::atomic::{AtomicUsize, Ordering};

use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::lr::{ListRegisters, Lr, LrState, Maintenance};
use vgic_core::reclaim::Slots;

/// The engine under test. It uses the fixed-slot backend, which loom can explore exhaustively.
pub type Vgic = vgic_core::Vgic<Slots>;
/// A vCPU of [`Vgic`].
pub type VcpuInterface = vgic_core::VcpuInterface<Slots>;

/// Runs a model in every interleaving with at most `preemptions` preemptions. Panics if there were
/// fewer than `at_least` interleavings.
#[cfg(loom)]
pub fn model(preemptions: usize, at_least: usize, f: impl Fn() + Sync + Send + 'static) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        f();
    });
    let runs = runs.load(Ordering::Relaxed);
    let thread = std::thread::current();
    println!("{}: {runs} interleavings", thread.name().unwrap_or("model"));
    assert!(runs >= at_least, "only {runs} interleavings were explored, not {at_least}");
}

/// Runs a model in random schedules: half of them are unbounded, and half have a few preemptions at
/// random places (PCT). `VGIC_SCHEDULES` is the number of schedules of each kind.
#[cfg(shuttle)]
pub fn model(_preemptions: usize, _at_least: usize, f: impl Fn() + Sync + Send + 'static) {
    let schedules = std::env::var("VGIC_SCHEDULES").map_or(SCHEDULES, |n| {
        n.parse().expect("VGIC_SCHEDULES is the number of schedules of each kind")
    });
    let f = Arc::new(f);
    let random = Arc::clone(&f);
    shuttle::check_random(move || random(), schedules);
    shuttle::check_pct(move || f(), schedules, PCT_DEPTH);
    println!("{} schedules", 2 * schedules);
}

/// The number of schedules of each kind for each model.
#[cfg(shuttle)]
const SCHEDULES: usize = 2_000;
/// The preemptions of a PCT schedule, plus one.
#[cfg(shuttle)]
const PCT_DEPTH: usize = 5;

/// A host that does not need kicks.
pub struct NoKick;
impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

/// A small VM.
pub fn vgic(vcpus: u16) -> Vgic {
    let config = Config {
        vcpus,
        spis: 0,
        lpis: 2,
        device_bits: 1,
        event_bits: 1,
        participants: 8,
        ..Config::default()
    };
    Vgic::new(&config, Arc::new(NoKick)).unwrap()
}

/// List registers, and a guest that takes the interrupts in them.
#[derive(Default)]
pub struct Guest([Lr; 2]);

impl ListRegisters for Guest {
    fn count(&self) -> usize {
        2
    }
    fn read(&self, n: usize) -> Lr {
        self.0[n]
    }
    fn write(&mut self, n: usize, lr: Lr) {
        self.0[n] = lr;
    }
    fn take_eoi_count(&mut self) -> u32 {
        0
    }
    fn set_maintenance(&mut self, _: Maintenance) {}
}

impl Guest {
    /// Acknowledges and ends every pending interrupt. Returns how many there were.
    pub fn serve(&mut self) -> usize {
        let mut n = 0;
        for lr in &mut self.0 {
            if lr.state().is_pending() {
                *lr = lr.with_state(LrState::Invalid);
                n += 1;
            }
        }
        n
    }
}

/// Ends a model: checks that no object of the VM is left after all other handles are gone.
pub fn end(vgic: Vgic) {
    // The thread that dropped the last handle has collected. Objects that were pinned at that time
    // are collected here.
    vgic.msi().unwrap().collect();
    assert_eq!(vgic.usage(), Usage::default(), "something is left");
}
