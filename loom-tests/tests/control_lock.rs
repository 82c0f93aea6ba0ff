//! The lock of the control plane: the order of turns.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::Turns;
use vgic_loom_tests::model;
use vgic_loom_tests::sched::sync::atomic::{AtomicUsize, Ordering};
use vgic_loom_tests::sched::thread;

/// A counter that is incremented in two steps, without any ordering: unless turns order the
/// accesses, an addition is lost or an old value is read.
struct Shared {
    turns: Turns,
    value: AtomicUsize,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self { turns: Turns::default(), value: AtomicUsize::new(0) })
    }

    fn add_one(&self) {
        let value = self.value.load(Ordering::Relaxed);
        self.value.store(value + 1, Ordering::Relaxed);
    }

    fn turn(&self) {
        self.turns.take();
        self.add_one();
        self.turns.pass();
    }

    fn get(&self) -> usize {
        self.turns.take();
        let value = self.value.load(Ordering::Relaxed);
        self.turns.pass();
        value
    }
}

/// Only one thread has the turn at a time, every thread gets it in the end (loom finds a thread
/// that sleeps forever), and each sees the writes of earlier turns.
#[test]
fn turns_of_three_threads() {
    model(4, 8_451, || {
        let shared = Shared::new();
        let others = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.turn())
        });
        shared.turn();
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(shared.get(), 3);
    });
}

/// A thread that is seen waiting gets its turn before the thread that passes its own turn and takes
/// another.
#[test]
fn who_waits_is_not_passed_over() {
    model(6, 3_181, || {
        let shared = Shared::new();
        shared.turns.take();
        let other = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.turn()
        });
        let waits = shared.turns.waiting() > 0;
        shared.turns.pass();
        let value = shared.get();
        assert!(!waits || value == 1, "passed over");
        other.join().unwrap();
        assert_eq!(shared.get(), 1);
    });
}
