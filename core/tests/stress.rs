//! Whole engines under threads: each test is one of the scenarios that have broken other GICs, or one of the engine's own
//! promises, with everything going on at once that may.
//!
//! A test is a series of episodes ([`threads::together`]). In an episode, threads inject, move, unmap, disable
//! and so on, and each vCPU has a thread that enters the guest when it was kicked, as a host does, and not
//! otherwise. Then the threads end, the vCPUs go on until none is kicked any more, and the books must
//! balance: what was lost, or delivered twice, shows there. Many short episodes, because the next change of an
//! interrupt usually mends what a lost one has broken.
//!
//! Nothing here depends on time. `VGIC_STRESS_SCALE` is the length of the tests in percent. With the feature `trace`, the
//! lock-free engine dawdles wherever it takes or gives back a reference ([`world::Build`]), which makes its
//! narrow windows wide.
//!
//! # Under ThreadSanitizer
//!
//! Threads are ordered by atomics of this file and by `join`, never by what only std knows about. What the threads
//! tell each other through the engine they tell by Relaxed accesses, so that the tests add no order to the engine's own.

/// Makes each test a test of each engine.
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
