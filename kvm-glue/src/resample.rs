//! Level-triggered interrupts with sources that are notified when the guest has ended the interrupt
//! (VFIO's and vhost's *resample*).
//!
//! Such an SPI is mapped to a physical interrupt of its own number (`Injector::map_phys`). No such
//! hardware interrupt exists: the CPU interface is software, and the end that it reports for the
//! physical interrupt is the end of the virtual one.
//!
//! Several sources may share an SPI, as PCI's INTx interrupts do. The SPI's level is the *or* of
//! the sources' levels. An end lowers all of them, and each source is notified; a source that still
//! needs service asserts its level again.
//!
//! # Readers and writers
//!
//! The engine reports ends and asks for levels on the vCPU's thread, where the engine must not be
//! called back and nothing may block. So `level` and `ended` take no lock. They use a fixed array
//! of words, one for each SPI, and a snapshot (`ArcSwapOption`) of the eventfds to wake. The vCPU's
//! thread frees a snapshot if it is the last reader of one that was replaced in the meantime. The
//! threads that serve the sources notify them; each such thread is woken through its own eventfd.
//! Adding and removing sources is the control path, and takes a lock.
//!
//! # The word and the line
//!
//! `Input::level` has the levels of the sources; the engine has the line. A thread that changes the
//! word sets the line after that, and then re-checks the word ([`Resampler::settle`]). The engine
//! does the same when an interrupt ends (`Kick::input_level`). Both the word and the line are
//! changed by read-modify-writes only. So the thread that sets the line last sees, in its re-check,
//! every change of the word by a thread that set the line earlier. Hence the line ends up at the
//! level that the word gives.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwapOption;
use vgic_core::engine::{Error as EngineError, Injector, Wired};
use vgic_core::ids::Intid;
use vmm_sys_util::eventfd::EventFd;

use crate::Error;

/// The maximum number of sources that can share an SPI.
pub const MAX_SOURCES: usize = 63;

/// In `Input::level`: the SPI has or had sources. The bit is never cleared, so an engine that asks
/// while the last source is being removed still gets an answer.
const KNOWN: u64 = 1 << 63;

/// The number of SPIs; the extended SPIs follow them in the array.
const SPIS: u32 = 988;
const ESPIS: u32 = 1024;

fn index(spi: u32) -> Option<usize> {
    match spi {
        32..1020 => Some(spi as usize - 32),
        4096..5120 => Some((spi - 4096 + SPIS) as usize),
        _ => None,
    }
}

/// The state of one SPI.
#[derive(Debug, Default)]
struct Input {
    /// Bit n: source n asserts its level. Also contains [`KNOWN`].
    level: AtomicU64,
    /// Bit n: source n has not yet been notified of an end.
    ended: AtomicU64,
    /// The eventfds of the threads that serve the SPI's sources.
    wakes: ArcSwapOption<Vec<Arc<EventFd>>>,
}

impl Input {
    /// Sets the line to the sources' level, and re-checks the level: it may have changed in the
    /// meantime, and the thread that changed it may have set the line before this thread did.
    fn settle(&self, mut set: impl FnMut(bool) -> Result<(), EngineError>) {
        let mut is = None;
        loop {
            // Acquire: pairs with all operations that change the word.
            let high = self.level.load(Ordering::Acquire) & !KNOWN != 0;
            if is == Some(high) || set(high).is_err() {
                return;
            }
            is = Some(high);
        }
    }
}

/// A source of an SPI, added by [`Resampler::tie`]. It must be removed with [`Resampler::untie`].
#[derive(Debug)]
#[must_use]
pub struct Source {
    spi: Intid,
    bit: u64,
}

impl Source {
    /// Returns the SPI's INTID.
    pub fn spi(&self) -> Intid {
        self.spi
    }
}

/// By slot: the eventfd of the thread that serves the slot's source.
type Slots = Vec<Option<Arc<EventFd>>>;

/// The levels of resampled SPIs, and the ends that have not been reported yet.
#[derive(Debug, Default)]
pub struct Resampler {
    /// Allocated with the first source.
    inputs: OnceLock<Box<[Input]>>,
    /// The slots of each SPI that has sources, for the control path.
    tied: Mutex<BTreeMap<u32, Slots>>,
}

impl Resampler {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a source of an SPI. The SPI is level-triggered, or treated as if it were. When the
    /// guest has ended the SPI, `wake` is written to; it must be non-blocking, since a vCPU's
    /// thread writes to it. Sources that one thread serves should pass the same `wake`.
    ///
    /// # Errors
    /// [`Error::Engine`] if the SPI does not exist; [`Error::TooManySources`].
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
        // Relaxed: no thread reads this source's bit before the lock is released.
        input.ended.fetch_and(!(1 << n), Ordering::Relaxed);
        publish(input, slots);
        // AcqRel: pairs with `level`, which tells the engine that the SPI is resampled.
        input.level.fetch_or(KNOWN, Ordering::AcqRel);
        Ok(Source { spi, bit: 1 << n })
    }

    /// Removes a source, and with it the level that it asserts.
    pub fn untie<I: Injector>(&self, source: Source, injector: &I) {
        let Source { spi, bit } = source;
        let Some(input) = self.input(spi.0) else { return };
        // Held to the end: otherwise a thread that adds a source to the SPI could have its mapping
        // removed after that.
        let mut tied = self.tied.lock().unwrap_or_else(PoisonError::into_inner);
        // AcqRel: pairs with `level`.
        input.level.fetch_and(!bit, Ordering::AcqRel);
        if let Some(slots) = tied.get_mut(&spi.0) {
            slots[bit.trailing_zeros() as usize] = None;
            publish(input, slots);
            if slots.iter().all(Option::is_none) {
                tied.remove(&spi.0);
                // The SPI was mapped, so it exists.
                let _ = injector.unmap_phys(Wired::Spi(spi));
            }
        }
        self.settle(spi, injector);
    }

    fn input(&self, spi: u32) -> Option<&Input> {
        self.inputs.get()?.get(index(spi)?)
    }

    /// Asserts the source's level, until the guest ends the interrupt the next time.
    pub fn assert<I: Injector>(&self, source: &Source, injector: &I) {
        let Some(input) = self.input(source.spi.0) else { return };
        // AcqRel: pairs with `level`. The writes of this source's device before this call are
        // visible to the vCPU that takes the interrupt.
        let old = input.level.fetch_or(source.bit, Ordering::AcqRel);
        if old & !KNOWN == 0 {
            // The line may still be high after the last end. If the guest has configured the SPI as
            // edge-triggered, it must see a rise.
            let _ = injector.set_level(Wired::Spi(source.spi), false);
        }
        self.settle(source.spi, injector);
    }

    /// Sets the engine's line to the sources' level.
    pub fn settle<I: Injector>(&self, spi: Intid, injector: &I) {
        if let Some(input) = self.input(spi.0) {
            input.settle(|high| injector.set_level(Wired::Spi(spi), high));
        }
    }

    /// Returns the level for the engine
    /// ([`Kick::input_level`](vgic_core::engine::Kick::input_level)); `None` if the SPI was never
    /// resampled.
    pub(crate) fn level(&self, irq: Wired) -> Option<bool> {
        let Wired::Spi(spi) = irq else { return None };
        // Acquire: pairs with all operations that change the word.
        let level = self.input(spi.0)?.level.load(Ordering::Acquire);
        (level & KNOWN != 0).then_some(level & !KNOWN != 0)
    }

    /// Records that the guest has ended the SPI, and wakes the threads that serve its sources.
    pub(crate) fn ended(&self, spi: u16) {
        let Some(input) = self.input(spi.into()) else { return };
        // AcqRel: pairs with `assert`. An assertion after this operation is kept. The source of an
        // earlier assertion is notified below.
        if input.level.fetch_and(KNOWN, Ordering::AcqRel) == 0 {
            return;
        }
        // AcqRel: pairs with `take_ended`. This also sets the bits of free slots; `tie` clears the
        // bit of the slot that it takes.
        input.ended.fetch_or(!0, Ordering::AcqRel);
        for wake in input.wakes.load().iter().flat_map(|wakes| wakes.iter()) {
            // This fails only after 2^64 - 2 ends that no thread has read.
            let _ = wake.write(1);
        }
    }

    /// Returns whether the guest has ended a source's interrupt since the last call. To be called
    /// by the woken thread. If so, the thread then [settles](Self::settle) the line, as the engine
    /// does not ask for the level after every kind of end, and notifies the source.
    pub fn take_ended(&self, source: &Source) -> bool {
        // AcqRel: pairs with `ended`, so the source's next assertion comes after that end.
        self.input(source.spi.0).is_some_and(|input| {
            input.ended.fetch_and(!source.bit, Ordering::AcqRel) & source.bit != 0
        })
    }
}

/// Publishes a new snapshot of the eventfds to wake, each of them once.
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
