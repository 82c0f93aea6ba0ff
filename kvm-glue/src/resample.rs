//! Level-triggered interrupts whose source is told when the guest has ended them (VFIO's and vhost's *resample*).
//!
//! Such an SPI is tied to a physical interrupt of its own number (`Injector::map_phys`). No hardware has it: the CPU interface is
//! software, and what it reports as the end of the physical interrupt is the end of the virtual one.
//!
//! The engine reports the end from the vCPU's thread, where it must not be called back. So the level is lowered here, where the engine asks for it
//! (`Resampler::level`), and the source is told by the thread that serves it, woken through an eventfd.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;
use vgic_core::engine::Wired;
use vgic_core::ids::Intid;
use vmm_sys_util::eventfd::EventFd;

/// One interrupt's.
#[derive(Debug, Default)]
struct Input {
    level: AtomicBool,
    /// Its source has not been told yet of an end.
    ended: AtomicBool,
}

/// The levels of resampled SPIs, and which of them have ended.
#[derive(Debug, Default)]
pub struct Resampler {
    inputs: DashMap<u32, Input>,
    /// Wakes who serves the sources.
    wake: OnceLock<EventFd>,
}

impl Resampler {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Names the eventfd that is written to when an interrupt has ended. Once; returns whether this was the first time.
    pub fn set_wake(&self, wake: EventFd) -> bool {
        self.wake.set(wake).is_ok()
    }

    /// An SPI is resampled from now on.
    pub fn insert(&self, spi: Intid) {
        self.inputs.insert(spi.0, Input::default());
    }

    /// It is not any more.
    pub fn remove(&self, spi: Intid) {
        self.inputs.remove(&spi.0);
    }

    /// Its source asserts it. Before the engine is told ([`vgic_core::engine::Injector::set_level`]), so that an answer to the
    /// engine that is older than this is corrected.
    pub fn assert(&self, spi: Intid) {
        if let Some(input) = self.inputs.get(&spi.0) {
            // Release: pairs with `level`.
            input.level.store(true, Ordering::Release);
        }
    }

    /// The engine's question.
    pub(crate) fn level(&self, irq: Wired) -> Option<bool> {
        let Wired::Spi(spi) = irq else { return None };
        // Acquire: pairs with `assert` and `ended`.
        Some(self.inputs.get(&spi.0)?.level.load(Ordering::Acquire))
    }

    /// The guest has ended it.
    pub(crate) fn ended(&self, spi: u16) {
        let Some(input) = self.inputs.get(&u32::from(spi)) else { return };
        // AcqRel: an assertion that comes after this is kept.
        input.level.swap(false, Ordering::AcqRel);
        input.ended.swap(true, Ordering::AcqRel);
        drop(input);
        if let Some(wake) = self.wake.get() {
            // Fails only if 2^64 - 2 ends have not been seen.
            let _ = wake.write(1);
        }
    }

    /// Calls `f` with each interrupt that has ended since the last time.
    pub fn take_ended(&self, mut f: impl FnMut(Intid)) {
        for input in &self.inputs {
            // Acquire: pairs with `ended`.
            if input.ended.swap(false, Ordering::AcqRel) {
                f(Intid(*input.key()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_lowers_the_level_and_is_told_once() {
        let resampler = Resampler::new();
        let wake = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        assert!(resampler.set_wake(wake.try_clone().unwrap()));
        let spi = Intid(40);
        assert_eq!(resampler.level(Wired::Spi(spi)), None);
        resampler.insert(spi);
        resampler.assert(spi);
        assert_eq!(resampler.level(Wired::Spi(spi)), Some(true));
        resampler.ended(40);
        resampler.ended(41);
        assert_eq!(resampler.level(Wired::Spi(spi)), Some(false));
        assert_eq!(wake.read().unwrap(), 1);
        let mut ended = Vec::new();
        resampler.take_ended(|spi| ended.push(spi));
        resampler.take_ended(|spi| ended.push(spi));
        assert_eq!(ended, [spi]);
    }
}
