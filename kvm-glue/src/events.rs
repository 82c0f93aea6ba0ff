//! Interrupts that arrive through eventfds, for example from vhost-user back ends and VFIO. One
//! thread polls them all.
//!
//! With an interrupt controller in the kernel, KVM_IRQFD does this. Here a source is an eventfd and
//! a GSI. The routing table maps each GSI to an MSI or an SPI, and can be changed at any time.
//! Several writes to an eventfd before the loop reads it make one interrupt, as with an irqfd. One
//! system call for waiting serves all sources that are ready together.
//!
//! A masked source keeps its interrupt, and sends it when it is unmasked, as MSI-X requires. A
//! source with a *resample* eventfd is a level-triggered SPI that stays high until the guest ends
//! it. Then the loop writes to the resample eventfd, and a device that still needs service writes
//! to its source again ([`crate::resample`]). Several sources may share such an SPI, including
//! sources of different loops.
//!
//! ```no_run
//! use vgic_kvm::core::ids::Intid;
//! use vgic_kvm::events::{EventSources, Route};
//! use vgic_kvm::msi::Msi;
//! use vmm_sys_util::eventfd::EventFd;
//! # fn f(gic: &vgic_kvm::KvmGic) -> Result<(), vgic_kvm::Error> {
//! let sources = EventSources::start(gic)?;
//! // A queue of a vhost-user back end, which writes to this eventfd.
//! let call = EventFd::new(libc::EFD_NONBLOCK)?;
//! sources.set_route(0, Route::Msi(Msi { address: 0x0802_0040, data: 80, device: 8 }));
//! sources.add(0, &call)?;
//! sources.set_masked(0, true); // when the guest masks the vector
//! // INTx of a passed-through device, with its unmask eventfd.
//! let [intx, unmask] = [EventFd::new(libc::EFD_NONBLOCK)?, EventFd::new(libc::EFD_NONBLOCK)?];
//! sources.add_resampled(1, Intid(40), &intx, &unmask)?;
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use dashmap::{DashMap, Entry};
use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};
use vgic_core::engine::{Injector, Wired};
use vgic_core::ids::Intid;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::lines::Lines;
use crate::msi::{Msi, MsiInjector};
use crate::resample::Source;
use crate::{Error, KvmGic};

/// The interrupt that a GSI stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// An MSI.
    Msi(Msi),
    /// An SPI. An event pulses it, unless the source is resampled.
    Spi(Intid),
}

/// The state of a GSI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Gsi {
    route: Option<Route>,
    masked: bool,
    /// An event arrived while the GSI was masked or had no route.
    pending: bool,
}

const UNROUTED: Gsi = Gsi { route: None, masked: false, pending: false };

/// Counts of a loop's events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EventStats {
    /// Reads of an eventfd that found it written to.
    pub events: u64,
    /// MSIs and SPIs sent for these events.
    pub sent: u64,
}

/// A source of an SPI that is notified when the guest has ended the interrupt.
struct Resampled {
    source: Source,
    /// The resample eventfd.
    told: EventFd,
}

/// The state that the loop shares with the threads that configure it.
struct Shared {
    gsis: DashMap<u32, Gsi>,
    ids: DashMap<u32, SubscriberId>,
    /// By GSI. Locked by the loop and by threads that change sources, masks or routes, and never on
    /// a vCPU's interrupt path.
    resampled: Mutex<BTreeMap<u32, Resampled>>,
    lines: Arc<Lines>,
    injector: LoopInjector,
    events: AtomicU64,
    sent: AtomicU64,
}

/// An eventfd that the loop polls.
enum Subscriber {
    Source {
        gsi: u32,
        fd: EventFd,
        shared: Arc<Shared>,
    },
    /// Resampled interrupts have ended.
    Ends {
        fd: Arc<EventFd>,
        shared: Arc<Shared>,
    },
    /// The thread should end.
    Quit {
        fd: EventFd,
        quit: Arc<AtomicU64>,
    },
}

/// The loop's injector. Threads that change masks and routes use it as well.
struct LoopInjector(Mutex<MsiInjector>);

impl LoopInjector {
    fn with<T>(&self, f: impl FnOnce(&MsiInjector) -> T) -> T {
        f(&lock(&self.0))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Sends the interrupt of a GSI, or marks it pending if the GSI is masked or has no route.
    fn fire(&self, gsi: u32) {
        let route = {
            let Some(mut entry) = self.gsis.get_mut(&gsi) else { return };
            match entry.route {
                Some(route) if !entry.masked => route,
                _ => {
                    entry.pending = true;
                    return;
                }
            }
        };
        self.send(gsi, route);
    }

    fn send(&self, gsi: u32, route: Route) {
        // Relaxed: a statistic.
        self.sent.fetch_add(1, Ordering::Relaxed);
        if let Some(Resampled { source, .. }) = lock(&self.resampled).get(&gsi) {
            let assert = |i: &MsiInjector| self.lines.resampler().assert(source, i.injector());
            return self.injector.with(assert);
        }
        self.injector.with(|injector| match route {
            // An MSI to an unused address has no effect, as on a bus.
            Route::Msi(msi) => _ = injector.send(&msi),
            Route::Spi(spi) => _ = injector.injector().pulse(Wired::Spi(spi)),
        });
    }

    /// Notifies the sources of interrupts that the guest has ended.
    fn tell(&self) {
        let resampler = self.lines.resampler();
        for Resampled { source, told } in lock(&self.resampled).values() {
            if resampler.take_ended(source) {
                // Before the notification: from then on the line is low until it is asserted again.
                self.injector.with(|i| resampler.settle(source.spi(), i.injector()));
                let _ = told.write(1);
            }
        }
    }

    /// Detaches the source of a GSI from its SPI, if it has one.
    fn untie(&self, gsi: u32) {
        if let Some(Resampled { source, .. }) = lock(&self.resampled).remove(&gsi) {
            self.injector.with(|i| self.lines.resampler().untie(source, i.injector()));
        }
    }
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        match self {
            Self::Source { gsi, fd, shared } => {
                if fd.read().is_ok() {
                    // Relaxed: a statistic.
                    shared.events.fetch_add(1, Ordering::Relaxed);
                    shared.fire(*gsi);
                }
            }
            Self::Ends { fd, shared } => {
                if fd.read().is_ok() {
                    shared.tell();
                }
            }
            Self::Quit { fd, quit } => {
                let _ = fd.read();
                // Relaxed: the loop that reads it runs on this thread.
                quit.store(1, Ordering::Relaxed);
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fd = match self {
            Self::Source { fd, .. } | Self::Quit { fd, .. } => fd,
            Self::Ends { fd, .. } => &**fd,
        };
        // This cannot fail for an open descriptor that is not polled yet; a source that is added
        // twice is refused earlier.
        let added = ops.add(Events::new(fd, EventSet::IN));
        debug_assert!(added.is_ok(), "{added:?}");
    }
}

/// Event sources of a VM, and the thread that serves them. Each such loop has its own GSI numbers.
pub struct EventSources {
    remote: RemoteEndpoint<Subscriber>,
    shared: Arc<Shared>,
    /// Wakes the loop when an interrupt has ended.
    ends: Arc<EventFd>,
    quit: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl EventSources {
    /// Starts the loop's thread.
    ///
    /// # Errors
    /// [`Error::Engine`] if no participant slot is free, [`Error::Events`], [`Error::Io`].
    pub fn start(gic: &KvmGic) -> Result<Self, Error> {
        Self::start_with(gic.msi_injector()?, Arc::clone(gic.lines()))
    }

    /// Starts the loop's thread with an injector that the VMM has made, which may know more
    /// doorbells.
    ///
    /// # Errors
    /// [`Error::Events`], [`Error::Io`].
    pub fn start_with(injector: MsiInjector, lines: Arc<Lines>) -> Result<Self, Error> {
        let ends = Arc::new(EventFd::new(libc::EFD_NONBLOCK)?);
        let quit = EventFd::new(libc::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            gsis: DashMap::new(),
            ids: DashMap::new(),
            resampled: Mutex::default(),
            lines,
            injector: LoopInjector(injector.into()),
            events: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        });
        let mut manager = EventManager::new()?;
        let subscriber = Subscriber::Ends { fd: Arc::clone(&ends), shared: Arc::clone(&shared) };
        manager.add_subscriber(subscriber);
        let done = Arc::new(AtomicU64::new(0));
        let fd = quit.try_clone()?;
        manager.add_subscriber(Subscriber::Quit { fd, quit: Arc::clone(&done) });
        let remote = manager.remote_endpoint();
        let thread = thread::Builder::new().name("vgic-events".into()).spawn(move || {
            // Relaxed: set by this thread.
            while done.load(Ordering::Relaxed) == 0 && manager.run().is_ok() {}
        })?;
        Ok(Self { remote, shared, ends, quit, thread: Some(thread) })
    }

    /// Sets the route of a GSI. An interrupt that arrived before the GSI had a route is sent now. A
    /// [resampled](EventSources::add_resampled) source sends its SPI regardless of its route.
    pub fn set_route(&self, gsi: u32, route: Route) {
        self.change(gsi, |entry| entry.route = Some(route));
    }

    /// Masks or unmasks a GSI. An interrupt that arrived while the GSI was masked is sent when it
    /// is unmasked.
    pub fn set_masked(&self, gsi: u32, masked: bool) {
        self.change(gsi, |entry| entry.masked = masked);
    }

    /// Returns whether an interrupt waits for the GSI to be unmasked or routed: MSI-X's pending
    /// bit.
    pub fn is_pending(&self, gsi: u32) -> bool {
        self.shared.gsis.get(&gsi).is_some_and(|entry| entry.pending)
    }

    fn change(&self, gsi: u32, f: impl FnOnce(&mut Gsi)) {
        let due = {
            let mut entry = self.shared.gsis.entry(gsi).or_insert(UNROUTED);
            f(&mut entry);
            let due = entry.route.filter(|_| entry.pending && !entry.masked);
            entry.pending &= due.is_none();
            due
        };
        if let Some(route) = due {
            self.shared.send(gsi, route);
        }
    }

    /// Adds a subscriber to the loop. The loop may find its eventfd ready before this function
    /// returns.
    fn subscribe(&self, subscriber: Subscriber) -> Result<SubscriberId, Error> {
        let add = |ops: &mut dyn SubscriberOps<Subscriber = Subscriber>| {
            Ok::<_, event_manager::Error>(ops.add_subscriber(subscriber))
        };
        Ok(self.remote.call_blocking(add)?)
    }

    /// Removes the entry of a GSI that has only default state.
    fn forget_unrouted(&self, gsi: u32) {
        self.shared.gsis.remove_if(&gsi, |_, entry| *entry == UNROUTED);
    }

    /// Adds a source: each time that the eventfd is written to, the interrupt of `gsi` is sent. If
    /// the eventfd has been written to already, that counts as the first time. The eventfd must be
    /// non-blocking.
    ///
    /// # Errors
    /// [`Error::SourceExists`], [`Error::Events`], [`Error::Io`].
    pub fn add(&self, gsi: u32, fd: &EventFd) -> Result<(), Error> {
        // The entry stays locked until the source is registered, so of two concurrent calls for one
        // GSI, one is refused. The loop does not use this map.
        let Entry::Vacant(place) = self.shared.ids.entry(gsi) else {
            return Err(Error::SourceExists(gsi));
        };
        let shared = Arc::clone(&self.shared);
        let source = Subscriber::Source { gsi, fd: fd.try_clone()?, shared };
        // Before the eventfd is polled: the loop records its events in this entry.
        self.shared.gsis.entry(gsi).or_insert(UNROUTED);
        match self.subscribe(source) {
            Ok(id) => {
                place.insert(id);
                Ok(())
            }
            Err(e) => {
                self.forget_unrouted(gsi);
                Err(e)
            }
        }
    }

    /// Adds a source of a level-triggered SPI. Each time that the guest has ended the interrupt,
    /// the loop writes to `resample`. Both eventfds must be non-blocking.
    ///
    /// Several sources may share the SPI, as PCI's INTx interrupts do, including sources of other
    /// loops of this machine. The SPI's level is the *or* of the sources' levels, and each end is
    /// reported to all sources. They cannot share the SPI with a [`crate::spi::SpiLine`].
    ///
    /// # Errors
    /// Those of [`EventSources::add`]; [`Error::TooManySources`]; [`Error::Engine`] if the SPI does
    /// not exist.
    pub fn add_resampled(
        &self,
        gsi: u32,
        spi: Intid,
        fd: &EventFd,
        resample: &EventFd,
    ) -> Result<(), Error> {
        // Locked as in `add`, and before any change to state that another source may use.
        let Entry::Vacant(place) = self.shared.ids.entry(gsi) else {
            return Err(Error::SourceExists(gsi));
        };
        let (fd, told, shared) = (fd.try_clone()?, resample.try_clone()?, Arc::clone(&self.shared));
        let resampler = self.shared.lines.resampler();
        let tie = |i: &MsiInjector| resampler.tie(spi, &self.ends, i.injector());
        let source = self.shared.injector.with(tie)?;
        lock(&self.shared.resampled).insert(gsi, Resampled { source, told });
        let before = self.shared.gsis.get(&gsi).and_then(|entry| entry.route);
        self.change(gsi, |entry| entry.route = Some(Route::Spi(spi)));
        match self.subscribe(Subscriber::Source { gsi, fd, shared }) {
            Ok(id) => {
                place.insert(id);
                Ok(())
            }
            Err(e) => {
                self.shared.untie(gsi);
                self.change(gsi, |entry| entry.route = before);
                self.forget_unrouted(gsi);
                Err(e)
            }
        }
    }

    /// Removes a GSI's source and its route.
    ///
    /// # Errors
    /// [`Error::NoSource`], [`Error::Events`].
    pub fn remove(&self, gsi: u32) -> Result<(), Error> {
        // Locked to the end, so the removal of the route cannot affect a source that another thread
        // adds for this GSI in the meantime.
        let Entry::Occupied(place) = self.shared.ids.entry(gsi) else {
            return Err(Error::NoSource(gsi));
        };
        let id = *place.get();
        let take =
            move |ops: &mut dyn SubscriberOps<Subscriber = Subscriber>| ops.remove_subscriber(id);
        drop(self.remote.call_blocking::<_, _, event_manager::Error>(take)?);
        self.shared.untie(gsi);
        self.shared.gsis.remove(&gsi);
        place.remove();
        Ok(())
    }

    /// Returns the counts so far.
    pub fn stats(&self) -> EventStats {
        // Relaxed: statistics.
        EventStats {
            events: self.shared.events.load(Ordering::Relaxed),
            sent: self.shared.sent.load(Ordering::Relaxed),
        }
    }
}

impl Drop for EventSources {
    fn drop(&mut self) {
        if self.quit.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
        // Otherwise the levels that the sources assert would stay high, and no thread would react
        // to an end.
        let resampled = std::mem::take(&mut *lock(&self.shared.resampled));
        for Resampled { source, .. } in resampled.into_values() {
            self.shared
                .injector
                .with(|i| self.shared.lines.resampler().untie(source, i.injector()));
        }
    }
}

#[cfg(test)]
mod tests;
