//! Threads and what they share, of loom or of shuttle: so that a model runs under either.

#[cfg(loom)]
pub use loom::{cell, sync, thread};

#[cfg(shuttle)]
pub use shuttle::thread;

/// The parts of `loom::cell` that models use.
#[cfg(shuttle)]
pub mod cell {
    /// Shuttle switches threads between operations of its own only, so that no access of a cell is torn.
    #[derive(Debug)]
    pub struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    // SAFETY: shuttle runs one thread at a time.
    #[allow(unsafe_code)]
    unsafe impl<T: Send> Sync for UnsafeCell<T> {}

    impl<T> UnsafeCell<T> {
        /// A cell.
        pub fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        /// Passes a pointer for reading to `f`.
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// Passes a pointer for writing to `f`.
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

/// The parts of `loom::sync` that models use.
#[cfg(shuttle)]
pub mod sync {
    pub use shuttle::sync::atomic;
    use shuttle::sync::{Condvar, Mutex};

    /// loom's `Notify`: one thread waits until it is notified, also before it waits.
    #[derive(Debug, Default)]
    pub struct Notify {
        notified: Mutex<bool>,
        changed: Condvar,
    }

    impl Notify {
        /// Not notified.
        pub fn new() -> Self {
            Self::default()
        }

        /// Lets the waiting thread go on, or the next one that waits.
        pub fn notify(&self) {
            *self.notified.lock().unwrap() = true;
            self.changed.notify_one();
        }

        /// Waits for a notification, and consumes it.
        pub fn wait(&self) {
            let mut notified = self.notified.lock().unwrap();
            while !*notified {
                notified = self.changed.wait(notified).unwrap();
            }
            *notified = false;
        }
    }
}
