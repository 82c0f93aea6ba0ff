//! Whole engines under threads. Each test is one of the scenarios that have broken other GICs, or
//! one of the engine's own guarantees, with all permitted operations going on at once.
//!
//! A test is a series of episodes ([`threads::together`]). In an episode, threads inject, move,
//! unmap, disable and so on, and each vCPU has a thread that enters the guest when it was kicked,
//! as a host does, and not otherwise. Then the threads end, the vCPUs run until none is kicked any
//! more, and the books must balance: they show any interrupt that was lost, or delivered twice.
//! Episodes are many and short, because the next change of an interrupt usually repairs the effect
//! of a lost one.
//!
//! Nothing here depends on time. `VGIC_STRESS_SCALE` is the length of the tests in percent. With
//! the feature `trace`, the lock-free engine dawdles wherever it takes or gives back a reference
//! ([`world::Build`]), which makes its narrow windows wide.
//!
//! # Under ThreadSanitizer
//!
//! Threads are ordered by atomics of this file and by `join`, never by synchronization that only
//! std knows about. The threads use Relaxed accesses for the data that they pass to each other
//! through the engine, so that the tests add no order to the engine's own.

/// Makes each function a test of each engine.
macro_rules! on_every_engine {
    ($($(#[$meta:meta])* fn $name:ident<$e:ident>() $body:block)*) => {
        $(fn $name<$e: $crate::world::Build>() $body)*

        mod epoch {
            $(#[test] $(#[$meta])* fn $name() { $crate::threads::alone(super::$name::<vgic_core::Vgic<vgic_core::reclaim::Epoch>>); })*
        }
        mod slots {
            $(#[test] $(#[$meta])* fn $name() { $crate::threads::alone(super::$name::<vgic_core::Vgic<vgic_core::reclaim::Slots>>); })*
        }
        #[cfg(feature = "locked")]
        mod locked {
            $(#[test] $(#[$meta])* fn $name() { $crate::threads::alone(super::$name::<vgic_core::locked::LockedVgic>); })*
        }
    };
}

#[path = "stress/delivery.rs"]
mod delivery;
#[path = "stress/guest.rs"]
mod guest;
#[path = "stress/host.rs"]
mod host;
#[path = "stress/lifetime.rs"]
mod lifetime;
#[path = "stress/memory.rs"]
mod memory;
#[path = "stress/threads.rs"]
mod threads;
#[path = "stress/wired.rs"]
mod wired;
#[path = "stress/world.rs"]
mod world;
