//! Threads and synchronization types of loom or of shuttle, so that a model runs under either.

#[cfg(loom)]
pub use loom::{cell, sync, thread};

#[cfg(shuttle)]
pub use shuttle::thread;

/// The parts of `loom::cell` that models use.
#[cfg(shuttle)]
pub mod cell {
    /// Shuttle switches threads only at its own operations, so that no access to a cell is torn.
    #[derive(Debug)]
    pub struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    // SAFETY: shuttle runs one thread at a time.
    #[allow(unsafe_code)]
    unsafe impl<T: Send> Sync for UnsafeCell<T> {}

    impl<T> UnsafeCell<T> {
        /// Creates a cell.
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

    /// The counterpart of loom's `Notify`: one thread waits for a notification, which may come
    /// before the wait.
    #[derive(Debug, Default)]
    pub struct Notify {
        notified: Mutex<bool>,
        changed: Condvar,
    }

    impl Notify {
        /// Creates a `Notify` without a notification.
        pub fn new() -> Self {
            Self::default()
        }

        /// Wakes the waiting thread, or lets the next wait return at once.
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
