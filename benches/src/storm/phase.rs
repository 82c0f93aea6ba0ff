//! The phase of a storm, and the gate at which its threads start.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex};

/// The phase of a storm, for its vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Phase {
    /// Injectors run, or deliveries are awaited.
    Going = 0,
    /// All is delivered: vCPUs end when they have nothing left to take.
    Over = 1,
    /// Something is lost: vCPUs end at once.
    Abandoned = 2,
}

/// The shared phase.
#[derive(Debug, Default)]
pub(super) struct Phases(AtomicU8);

impl Phases {
    pub(super) fn now(&self) -> Phase {
        // Relaxed: the coordinator kicks after it has changed the phase, and the kick's token
        // orders the change.
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Going,
            1 => Phase::Over,
            _ => Phase::Abandoned,
        }
    }

    /// Sets the phase. Only for the coordinator, which must kick every vCPU afterwards.
    pub(super) fn set(&self, phase: Phase) {
        self.0.store(phase as u8, Ordering::Relaxed);
    }
}

/// Holds threads back until all have arrived, or until one could not be created.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    arrived: usize,
    open: Option<bool>,
}

impl Gate {
    /// Waits for the gate to open. Returns whether the storm takes place.
    pub(super) fn pass(&self) -> bool {
        let mut state = self.state.lock().expect("nobody panics with it");
        state.arrived += 1;
        self.changed.notify_all();
        loop {
            match state.open {
                Some(go) => return go,
                None => state = self.changed.wait(state).expect("nobody panics with it"),
            }
        }
    }

    /// Waits for `threads` threads, then lets them go.
    pub(super) fn open(&self, threads: usize) {
        let mut state = self.state.lock().expect("nobody panics with it");
        while state.arrived < threads {
            state = self.changed.wait(state).expect("nobody panics with it");
        }
        state.open = Some(true);
        self.changed.notify_all();
    }

    /// Cancels the storm, unless the gate is open: every thread at the gate passes with `false`.
    pub(super) fn cancel(&self) {
        self.state.lock().expect("nobody panics with it").open.get_or_insert(false);
        self.changed.notify_all();
    }
}
