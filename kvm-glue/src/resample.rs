//! Level-triggered interrupts whose sources are told when the guest has ended them (VFIO's and vhost's *resample*).
//!
//! Such an SPI is tied to a physical interrupt of its own number (`Injector::map_phys`). No hardware has it: the CPU interface is
//! software, and what it reports as the end of the physical interrupt is the end of the virtual one.
//!
//! Several sources may share an SPI, as PCI's INTx do: its level is the *or* of theirs. An end lowers them all, and each is told; one that still
//! wants attention asserts it again.
//!
//! # Who reads, who writes
//!
//! The engine reports ends and asks for levels on the vCPU's thread, where it must not be called back and nothing may wait: `level` and
//! `ended` take no lock. They look at a fixed array of words, one for each SPI, and at a snapshot (`ArcSwapOption`) of who is to be woken, which the vCPU's thread frees
//! if it is the last to look at one that was replaced meanwhile. Sources
//! are told by the threads that serve them, each woken through its own eventfd. Who ties and unties is the control path, and has a lock.
//!
//! # The word and the line
//!
//! `Input::level` is what the sources say; the engine has the line. Whoever changes the word sets the line after it, and looks at the word once more
//! ([`Resampler::settle`]); so does the engine when an interrupt ends (`Kick::input_level`). Both words are changed by read-modify-writes only: whoever
//! sets the line last sees, when it looks again, every change of the word whose line was set before that. So the line ends up as what the word says.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;
use vgic_core::engine::{Error as EngineError, Injector, Wired};
use vgic_core::ids::Intid;
use vmm_sys_util::eventfd::EventFd;

use crate::Error;

/// How many sources can share an SPI.
pub const MAX_SOURCES: usize = 63;

/// In `Input::level`: the SPI has or had sources. It stays, so that who asks at the same time as the last one goes still gets an answer.
const KNOWN: u64 = 1 << 63;

/// SPIs, and extended ones behind them.
const SPIS: u32 = 988;
const ESPIS: u32 = 1024;

fn index(spi: u32) -> Option<usize> {
    match spi {
        32..1020 => Some(spi as usize - 32),
        4096..5120 => Some((spi - 4096 + SPIS) as usize),
        _ => None,
    }
}

/// One SPI's.
#[derive(Debug, Default)]
struct Input {
    /// Bit n: source n asserts it. And [`KNOWN`].
    level: AtomicU64,
    /// Bit n: source n has not been told yet of an end.
    ended: AtomicU64,
    /// Wakes who serves its sources.
    wakes: ArcSwapOption<Vec<Arc<EventFd>>>,
}

impl Input {
    /// Sets the line to what the sources say, and looks again: they may have changed meanwhile, and who did that may have set the line before this.
    fn settle(&self, mut set: impl FnMut(bool) -> Result<(), EngineError>) {
        let mut is = None;
        loop {
            // Acquire: pairs with all that change it.
            let high = self.level.load(Ordering::Acquire) & !KNOWN != 0;
            if is == Some(high) || set(high).is_err() {
                return;
            }
            is = Some(high);
        }
    }
}

/// A source of an SPI: [tied](Resampler::tie), and to be untied.
#[derive(Debug)]
#[must_use]
pub struct Source {
    spi: Intid,
    bit: u64,
}

impl Source {
    /// Which SPI.
    pub fn spi(&self) -> Intid {
        self.spi
    }
}

/// By slot: what wakes who serves the source that has it.
type Slots = Vec<Option<Arc<EventFd>>>;

/// The levels of resampled SPIs, and which of them have ended.
#[derive(Debug, Default)]
pub struct Resampler {
    /// Made with the first source.
    inputs: OnceLock<Box<[Input]>>,
    /// For the control path.
    tied: Mutex<BTreeMap<u32, Slots>>,
}

impl Resampler {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes a source of an SPI, which is level-triggered, or treated as if it were. `wake` is written to when the guest has ended the SPI; it is to be
    /// non-blocking, since a vCPU's thread does that. Sources that one thread serves give the same one.
    ///
    /// # Errors
    /// [`Error::Engine`] if there is no such SPI; [`Error::TooManySources`].
    pub fn tie<I: Injector>(
        &self,
        spi: Intid,
        wake: &Arc<EventFd>,
        injector: &I,
    ) -> Result<Source, Error> {
        let index = index(spi.0).ok_or(EngineError::IntidRange(spi))?;
        let mut tied = self.tied.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = tied.get(&spi.0).map_or(&[][..], |slots| slots);
        let n = slots.iter().position(Option::is_none).unwrap_or(slots.len());
        if n == MAX_SOURCES {
            return Err(Error::TooManySources(spi));
        }
        if slots.is_empty() {
            injector.map_phys(Wired::Spi(spi), spi.0 as u16)?;
        }
        let make = || (0..SPIS + ESPIS).map(|_| Input::default()).collect();
        let input = &self.inputs.get_or_init(make)[index];
        let slots = tied.entry(spi.0).or_default();
        slots.resize(slots.len().max(n + 1), None);
        slots[n] = Some(Arc::clone(wake));
        // Relaxed: nobody asks for this source before the lock is given back.
        input.ended.fetch_and(!(1 << n), Ordering::Relaxed);
        publish(input, slots);
        // AcqRel: pairs with `level`, by which the engine finds that it is resampled.
        input.level.fetch_or(KNOWN, Ordering::AcqRel);
        Ok(Source { spi, bit: 1 << n })
    }

    /// Lets a source go, with what it asserts.
    pub fn untie<I: Injector>(&self, source: Source, injector: &I) {
        let Source { spi, bit } = source;
        let Some(input) = self.input(spi.0) else { return };
        // Held to the end: who ties the SPI anew is not to find it untied after that.
        let mut tied = self.tied.lock().unwrap_or_else(PoisonError::into_inner);
        // AcqRel: pairs with `level`.
        input.level.fetch_and(!bit, Ordering::AcqRel);
        if let Some(slots) = tied.get_mut(&spi.0) {
            slots[bit.trailing_zeros() as usize] = None;
            publish(input, slots);
            if slots.iter().all(Option::is_none) {
                tied.remove(&spi.0);
                // It was mapped, so it exists.
                let _ = injector.unmap_phys(Wired::Spi(spi));
            }
        }
        self.settle(spi, injector);
    }

    fn input(&self, spi: u32) -> Option<&Input> {
        self.inputs.get()?.get(index(spi)?)
    }

    /// A source wants attention, until the guest has ended the interrupt once more.
    pub fn assert<I: Injector>(&self, source: &Source, injector: &I) {
        let Some(input) = self.input(source.spi.0) else { return };
        // AcqRel: pairs with `level`. What this source's device wrote before is there for who takes the interrupt.
        let old = input.level.fetch_or(source.bit, Ordering::AcqRel);
        if old & !KNOWN == 0 {
            // Nobody may have lowered the line since it ended; a guest that takes it for edge-triggered is to see it rise.
            let _ = injector.set_level(Wired::Spi(source.spi), false);
        }
        self.settle(source.spi, injector);
    }

    /// Sets the engine's line to what the sources say.
    pub fn settle<I: Injector>(&self, spi: Intid, injector: &I) {
        if let Some(input) = self.input(spi.0) {
            input.settle(|high| injector.set_level(Wired::Spi(spi), high));
        }
    }

    /// The engine's question.
    pub(crate) fn level(&self, irq: Wired) -> Option<bool> {
        let Wired::Spi(spi) = irq else { return None };
        // Acquire: pairs with all that change it.
        let level = self.input(spi.0)?.level.load(Ordering::Acquire);
        (level & KNOWN != 0).then_some(level & !KNOWN != 0)
    }

    /// The guest has ended it.
    pub(crate) fn ended(&self, spi: u16) {
        let Some(input) = self.input(spi.into()) else { return };
        // AcqRel: pairs with `assert`. An assertion that comes after this is kept; of one that came before, its source is told below.
        if input.level.fetch_and(KNOWN, Ordering::AcqRel) == 0 {
            return;
        }
        // AcqRel: pairs with `take_ended`. Also for slots that are free: who ties one clears its bit.
        input.ended.fetch_or(!0, Ordering::AcqRel);
        for wake in input.wakes.load().iter().flat_map(|wakes| wakes.iter()) {
            // Fails only if 2^64 - 2 ends have not been seen.
            let _ = wake.write(1);
        }
    }

    /// Whether the guest has ended a source's interrupt since the last time. For who has been woken; then the line is to be [settled](Self::settle), as the
    /// engine does not ask for it after every kind of end, and the source told.
    pub fn take_ended(&self, source: &Source) -> bool {
        // AcqRel: pairs with `ended`, so that what the source asserts from now on comes after that.
        self.input(source.spi.0).is_some_and(|input| {
            input.ended.fetch_and(!source.bit, Ordering::AcqRel) & source.bit != 0
        })
    }
}

/// Makes a new snapshot of who is woken: each once.
fn publish(input: &Input, slots: &[Option<Arc<EventFd>>]) {
    let mut wakes: Vec<Arc<EventFd>> = Vec::new();
    for wake in slots.iter().flatten() {
        if !wakes.iter().any(|there| Arc::ptr_eq(there, wake)) {
            wakes.push(Arc::clone(wake));
        }
    }
    input.wakes.store((!wakes.is_empty()).then(|| Arc::new(wakes)));
}

#[cfg(test)]
mod tests;
