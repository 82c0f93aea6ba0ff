//! The threads of an episode.

#![allow(clippy::disallowed_types)] // the tests take turns

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::{hint, mem, panic};

use vgic_core::engine::Engine;

use crate::guest::{Guest, settle};

/// Runs one test at a time: the threads of one test are enough for a machine.
pub(crate) fn alone(test: impl FnOnce()) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    test();
}

/// The state of an episode, which is either running or over.
#[derive(Default)]
pub(crate) struct Stage {
    over: AtomicBool,
    here: AtomicU32,
}

impl Stage {
    pub(crate) fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Waits until `done` returns true. Returns false if the episode ends first.
    pub(crate) fn until(&self, mut done: impl FnMut() -> bool) -> bool {
        loop {
            if done() {
                return true;
            }
            if !self.goes_on() {
                return false;
            }
            thread::yield_now();
        }
    }

    /// Waits until `n` threads are here.
    fn meet(&self, n: u32) {
        self.here.fetch_add(1, Ordering::AcqRel);
        let mut spins = 0;
        self.until(|| {
            while spins < 1000 && self.here.load(Ordering::Acquire) < n {
                spins += 1;
                hint::spin_loop();
            }
            self.here.load(Ordering::Acquire) >= n
        });
    }
}

/// Ends the episode at its end, or when a thread panics, so that the other threads do not wait for
/// it.
struct End<'a>(&'a Stage);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|what| panic::resume_unwind(what))
}

/// The work of one thread in an episode.
pub(crate) type Work<'a> = Box<dyn FnOnce(&Stage) + Send + 'a>;

/// Starts `work` at once, each piece on its own thread, and `run_vcpu` on one thread for each
/// guest. The episode is over when all work is done; then the guests run until nothing is left to
/// do.
pub(crate) fn together_with<E: Engine>(
    guests: &mut [Guest<E>],
    work: Vec<Work<'_>>,
    run_vcpu: impl Fn(&mut Guest<E>) + Sync,
) {
    let (stage, n) = (Stage::default(), work.len() as u32);
    let (stage, run_vcpu) = (&stage, &run_vcpu);
    thread::scope(|scope| {
        let end = End(stage);
        let start = |guest| {
            move || {
                let _end = End(stage);
                let guest: &mut Guest<E> = guest;
                while stage.goes_on() {
                    run_vcpu(guest);
                }
            }
        };
        let vcpus: Vec<_> = guests.iter_mut().map(|guest| scope.spawn(start(guest))).collect();
        let work = work.into_iter().map(|work| {
            scope.spawn(move || {
                // For a panic only: a thread that has done its work forgets it.
                let end = End(stage);
                stage.meet(n);
                work(stage);
                mem::forget(end);
            })
        });
        let work: Vec<_> = work.collect();
        work.into_iter().for_each(join);
        drop(end);
        vcpus.into_iter().for_each(join);
    });
    settle(guests);
}

/// Runs an episode with [`together_with`], in which the vCPUs do nothing but run.
pub(crate) fn together<E: Engine>(guests: &mut [Guest<E>], work: Vec<Work<'_>>) {
    together_with(guests, work, |guest| {
        if !guest.turn() {
            thread::yield_now();
        }
    });
}
