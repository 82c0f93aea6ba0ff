//! Waiting for another vCPU to leave its guest.
//!
//! Who reads the active or pending state of an interrupt that a vCPU has in its list registers waits until that vCPU's thread has taken them back. The thread that
//! waits sleeps: it may be a real-time thread, and the other one need its CPU. A vCPU that is out again tells, but only if the engine says
//! that somebody waits ([`Kick::exited`](vgic_core::engine::Kick::exited)); so exits cost nothing more than before.
//!
//! A vCPU's thread that is to stop does not wait any longer ([`crate::runner::Stop`]): the other thread may be held by a debugger, or have been stopped.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

thread_local! {
    /// Whether the vCPU that this thread runs is to stop.
    static STOP: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// The calling thread runs a vCPU, which is to stop when `stop` says so; or it does not any more.
pub(crate) fn stop_with(stop: Option<Arc<AtomicBool>>) {
    STOP.with(|mine| *mine.borrow_mut() = stop);
}

fn is_stopping() -> bool {
    // Acquire: pairs with `Stop::stop`.
    STOP.with(|stop| stop.borrow().as_ref().is_some_and(|stop| stop.load(Ordering::Acquire)))
}

/// Who waits, of one VM.
#[derive(Default)]
pub(crate) struct Exits {
    /// Held to look and to fall asleep, and passed through by who wakes: so that nobody falls asleep after the call.
    gate: Mutex<()>,
    told: Condvar,
}

impl Exits {
    fn gate(&self) -> MutexGuard<'_, ()> {
        // Nothing is under it that a panic could have left half done.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until `done`, or until the calling thread's vCPU is to stop.
    pub(crate) fn wait(&self, done: &dyn Fn() -> bool) {
        let mut gate = self.gate();
        while !done() && !is_stopping() {
            gate = self.told.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A vCPU has left its guest, or is to stop.
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

    /// Runs `until_looked`, once a thread has begun to wait for what never comes, and then stops that. Returns how often the thread has looked.
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

    /// The thread would look about as often as this one yields, if it did not sleep.
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
