//! Waits for another vCPU to leave its guest.
//!
//! A read of the active or pending state of an interrupt in another vCPU's list registers waits
//! until that vCPU's thread has taken the list registers back. The waiting thread sleeps: it may be
//! a real-time thread, and the other thread may need its CPU. A vCPU that has left its guest wakes
//! the waiters, but only if the engine says that there are any
//! ([`Kick::exited`](vgic_core::engine::Kick::exited)). So exits without waiters have no extra
//! cost.
//!
//! A wait ends when the waiting thread's own vCPU should stop ([`crate::runner::Stop`]), since the
//! other thread may be held by a debugger or have been stopped.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

thread_local! {
    /// The flag that tells this thread's vCPU to stop.
    static STOP: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Sets the stop flag of the vCPU that the calling thread runs; `None`: the thread runs no vCPU any
/// more.
pub(crate) fn stop_with(stop: Option<Arc<AtomicBool>>) {
    STOP.with(|mine| *mine.borrow_mut() = stop);
}

fn is_stopping() -> bool {
    // Acquire: pairs with `Stop::stop`.
    STOP.with(|stop| stop.borrow().as_ref().is_some_and(|stop| stop.load(Ordering::Acquire)))
}

/// The waiting threads of one VM.
#[derive(Default)]
pub(crate) struct Exits {
    /// A waiter holds the lock from its check until it sleeps, and a waker takes and releases the
    /// lock before it notifies. So no waiter falls asleep after the notification for an exit that
    /// it has not seen.
    gate: Mutex<()>,
    told: Condvar,
}

impl Exits {
    fn gate(&self) -> MutexGuard<'_, ()> {
        // The lock protects no data that a panic could have left inconsistent.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until `done` returns true, or until the calling thread's vCPU should stop.
    pub(crate) fn wait(&self, done: &dyn Fn() -> bool) {
        let mut gate = self.gate();
        while !done() && !is_stopping() {
            gate = self.told.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wakes all waiters: a vCPU has left its guest, or should stop.
    pub(crate) fn tell(&self) {
        drop(self.gate());
        self.told.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    /// Starts a thread that waits for a condition that never holds, runs `until_looked` after the
    /// thread's first check, and then stops the thread. Returns the number of checks.
    fn looks(until_looked: impl FnOnce(&Exits)) -> usize {
        let (exits, looks) = (Exits::default(), AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                stop_with(Some(Arc::clone(&stop)));
                exits.wait(&|| {
                    looks.fetch_add(1, Ordering::Relaxed);
                    false
                });
            });
            while looks.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            until_looked(&exits);
            stop.store(true, Ordering::Release);
            exits.tell();
        });
        looks.load(Ordering::Relaxed)
    }

    /// A thread that did not sleep would check about as often as this one yields.
    #[test]
    fn who_waits_sleeps_until_it_is_to_stop() {
        let looked = looks(|_| (0..10_000).for_each(|_| thread::yield_now()));
        assert!(looked < 100, "looked {looked} times");
    }

    #[test]
    fn who_waits_looks_at_most_once_for_each_exit() {
        let looked = looks(|exits| (0..1000).for_each(|_| exits.tell()));
        assert!(looked < 1100, "looked {looked} times");
    }
}
