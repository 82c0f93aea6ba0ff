//! Interrupts that come through eventfds, as from vhost-user back ends and VFIO: one thread polls them all.
//!
//! In-kernel interrupt controllers have KVM_IRQFD for this. Here a source is an eventfd and a GSI; the routing table says what a GSI
//! is, an MSI or an SPI, and can be changed at any time. Writes to an eventfd that come before the loop has read it are one interrupt, as
//! with an irqfd; what is ready together is served with one system call for waiting.
//!
//! A masked source keeps what comes, and sends it when it is unmasked (as MSI-X wants it). A source with a *resample* eventfd is a
//! level-triggered SPI that stays up until the guest ends it; then the resample eventfd is written to, and a device that still wants
//! attention writes to its source again ([`crate::resample`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
use crate::{Error, KvmGic};

/// What a GSI is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// An MSI.
    Msi(Msi),
    /// An SPI.
    Spi(Intid),
}

/// A GSI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Gsi {
    route: Option<Route>,
    masked: bool,
    /// Something has come while it was masked or had no route.
    pending: bool,
}

const UNROUTED: Gsi = Gsi { route: None, masked: false, pending: false };

/// What happened to sources.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EventStats {
    /// Times that an eventfd was found written to.
    pub events: u64,
    /// MSIs and SPIs made of them.
    pub sent: u64,
}

/// What the threads share.
struct Shared {
    gsis: DashMap<u32, Gsi>,
    ids: DashMap<u32, SubscriberId>,
    lines: Arc<Lines>,
    events: AtomicU64,
    sent: AtomicU64,
}

/// Something to poll.
enum Subscriber {
    Source {
        gsi: u32,
        fd: EventFd,
        shared: Arc<Shared>,
        injector: Arc<LoopInjector>,
    },
    /// A source that is told when the guest has ended its interrupt.
    Resampled {
        spi: Intid,
        gsi: u32,
        fd: EventFd,
        resample: EventFd,
        shared: Arc<Shared>,
        injector: Arc<LoopInjector>,
    },
    /// Interrupts have ended; the sources that are told are those of `resample`.
    Ends {
        fd: EventFd,
        shared: Arc<Shared>,
        resample: Arc<DashMap<u32, EventFd>>,
        injector: Arc<LoopInjector>,
    },
    /// Ends the thread.
    Quit {
        fd: EventFd,
        quit: Arc<AtomicU64>,
    },
}

/// The loop's own handle. Shared by what is polled, which is all in one thread; sent there once.
struct LoopInjector(std::sync::Mutex<MsiInjector>);

impl LoopInjector {
    fn with<T>(&self, f: impl FnOnce(&MsiInjector) -> T) -> T {
        f(&self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Shared {
    /// Sends the interrupt of a GSI, or keeps it.
    fn fire(&self, gsi: u32, injector: &LoopInjector) {
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
        self.send(route, injector);
    }

    fn send(&self, route: Route, injector: &LoopInjector) {
        // Relaxed: a statistic.
        self.sent.fetch_add(1, Ordering::Relaxed);
        injector.with(|injector| match route {
            // An MSI to nowhere has no effect, as on a bus.
            Route::Msi(msi) => _ = injector.send(&msi),
            Route::Spi(spi) => _ = injector.injector().pulse(Wired::Spi(spi)),
        });
    }

    fn event(&self) {
        // Relaxed: a statistic.
        self.events.fetch_add(1, Ordering::Relaxed);
    }
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        match self {
            Self::Source { gsi, fd, shared, injector } => {
                if fd.read().is_ok() {
                    shared.event();
                    shared.fire(*gsi, injector);
                }
            }
            Self::Resampled { spi, gsi, fd, shared, injector, .. } => {
                if fd.read().is_ok() {
                    shared.event();
                    let masked = shared.gsis.get_mut(gsi).is_some_and(|mut entry| {
                        entry.pending |= entry.masked;
                        entry.masked
                    });
                    if !masked {
                        assert_level(shared, *spi, injector);
                    }
                }
            }
            Self::Ends { fd, shared, resample, injector } => {
                if fd.read().is_ok() {
                    shared.lines.resampler().take_ended(|spi| {
                        // Low from here on as well, then the source may raise it again.
                        injector.with(|i| _ = i.injector().set_level(Wired::Spi(spi), false));
                        if let Some(resample) = resample.get(&spi.0) {
                            let _ = resample.write(1);
                        }
                    });
                }
            }
            Self::Quit { fd, quit } => {
                let _ = fd.read();
                // Relaxed: same thread as the loop that looks.
                quit.store(1, Ordering::Relaxed);
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fd = match self {
            Self::Source { fd, .. }
            | Self::Resampled { fd, .. }
            | Self::Ends { fd, .. }
            | Self::Quit { fd, .. } => fd,
        };
        // Cannot fail for a descriptor that is open and not polled yet; a source that is added twice is refused before.
        let added = ops.add(Events::new(fd, EventSet::IN));
        debug_assert!(added.is_ok(), "{added:?}");
    }
}

fn assert_level(shared: &Shared, spi: Intid, injector: &LoopInjector) {
    // Relaxed: a statistic.
    shared.sent.fetch_add(1, Ordering::Relaxed);
    shared.lines.resampler().assert(spi);
    injector.with(|i| _ = i.injector().set_level(Wired::Spi(spi), true));
}

/// The event sources of a VM, and the thread that serves them.
pub struct EventSources {
    remote: RemoteEndpoint<Subscriber>,
    shared: Arc<Shared>,
    resample: Arc<DashMap<u32, EventFd>>,
    injector: Arc<LoopInjector>,
    quit: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl EventSources {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::Engine`] if no participant slot is free, [`Error::Events`], [`Error::Io`].
    pub fn start(gic: &KvmGic) -> Result<Self, Error> {
        Self::start_with(gic.msi_injector()?, Arc::clone(gic.lines()))
    }

    /// The same for a VMM that has made its own injector, which may know more doorbells.
    ///
    /// # Errors
    /// [`Error::Events`], [`Error::Io`].
    pub fn start_with(injector: MsiInjector, lines: Arc<Lines>) -> Result<Self, Error> {
        let injector = Arc::new(LoopInjector(injector.into()));
        let resample = Arc::new(DashMap::new());
        let [ends, quit] = [EventFd::new(libc::EFD_NONBLOCK)?, EventFd::new(libc::EFD_NONBLOCK)?];
        let shared = Arc::new(Shared {
            gsis: DashMap::new(),
            ids: DashMap::new(),
            lines,
            events: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        });
        let mut manager = EventManager::new()?;
        shared.lines.resampler().set_wake(ends.try_clone()?);
        manager.add_subscriber(Subscriber::Ends {
            fd: ends,
            shared: Arc::clone(&shared),
            resample: Arc::clone(&resample),
            injector: Arc::clone(&injector),
        });
        let done = Arc::new(AtomicU64::new(0));
        let fd = quit.try_clone()?;
        manager.add_subscriber(Subscriber::Quit { fd, quit: Arc::clone(&done) });
        let remote = manager.remote_endpoint();
        let thread = thread::Builder::new().name("vgic-events".into()).spawn(move || {
            // Relaxed: set by this thread.
            while done.load(Ordering::Relaxed) == 0 && manager.run().is_ok() {}
        })?;
        Ok(Self { remote, shared, resample, injector, quit, thread: Some(thread) })
    }

    /// Says what a GSI is. What came before it had a route is sent now.
    pub fn set_route(&self, gsi: u32, route: Route) {
        self.change(gsi, |entry| entry.route = Some(route));
    }

    /// Masks or unmasks a GSI. What came meanwhile is sent when it is unmasked.
    pub fn set_masked(&self, gsi: u32, masked: bool) {
        self.change(gsi, |entry| entry.masked = masked);
    }

    /// Whether something waits for a GSI to be unmasked: MSI-X's pending bit.
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
        match due {
            Some(Route::Spi(spi)) if self.resample.contains_key(&spi.0) => {
                assert_level(&self.shared, spi, &self.injector);
            }
            Some(route) => self.shared.send(route, &self.injector),
            None => {}
        }
    }

    /// Has the loop poll it. It may find something before this returns.
    fn subscribe(&self, subscriber: Subscriber) -> Result<SubscriberId, Error> {
        let add = |ops: &mut dyn SubscriberOps<Subscriber = Subscriber>| {
            Ok::<_, event_manager::Error>(ops.add_subscriber(subscriber))
        };
        Ok(self.remote.call_blocking(add)?)
    }

    /// A GSI about which there is nothing to remember is forgotten.
    fn forget_unrouted(&self, gsi: u32) {
        self.shared.gsis.remove_if(&gsi, |_, entry| *entry == UNROUTED);
    }

    /// Serves an eventfd: each time it is written to, the interrupt of `gsi` is sent. If it has been written to already, that is the first time.
    ///
    /// # Errors
    /// [`Error::SourceExists`], [`Error::Events`], [`Error::Io`]. The eventfd is to be non-blocking.
    pub fn add(&self, gsi: u32, fd: &EventFd) -> Result<(), Error> {
        // Held until the source is there, so that of two that come at once one is refused. The loop does not look here.
        let Entry::Vacant(place) = self.shared.ids.entry(gsi) else {
            return Err(Error::SourceExists(gsi));
        };
        let (shared, injector) = (Arc::clone(&self.shared), Arc::clone(&self.injector));
        let source = Subscriber::Source { gsi, fd: fd.try_clone()?, shared, injector };
        // Before it is polled: what the loop finds goes there.
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

    /// Serves an eventfd of a level-triggered SPI, and writes to `resample` each time that the guest has ended it.
    ///
    /// An SPI has one such source. Several that share a line, as PCI's INTx may, are not supported: the one would lower what the other asserts.
    ///
    /// # Errors
    /// As [`EventSources::add`]; [`Error::SpiShared`]; [`Error::Engine`] if there is no such SPI.
    pub fn add_resampled(
        &self,
        gsi: u32,
        spi: Intid,
        fd: &EventFd,
        resample: &EventFd,
    ) -> Result<(), Error> {
        // As in `add`; and before anything is changed that another source may use.
        let Entry::Vacant(place) = self.shared.ids.entry(gsi) else {
            return Err(Error::SourceExists(gsi));
        };
        let (shared, injector) = (Arc::clone(&self.shared), Arc::clone(&self.injector));
        let [fd, told, kept] = [fd.try_clone()?, resample.try_clone()?, resample.try_clone()?];
        // The SPI is this source's from here on. The entry is not held: the loop looks there.
        match self.resample.entry(spi.0) {
            Entry::Occupied(_) => return Err(Error::SpiShared(spi)),
            Entry::Vacant(entry) => drop(entry.insert(kept)),
        }
        let mapped = self.injector.with(|i| i.injector().map_phys(Wired::Spi(spi), spi.0 as u16));
        if let Err(e) = mapped {
            self.resample.remove(&spi.0);
            return Err(e.into());
        }
        self.shared.lines.resampler().insert(spi);
        let before = self.shared.gsis.get(&gsi).and_then(|entry| entry.route);
        self.change(gsi, |entry| entry.route = Some(Route::Spi(spi)));
        let source = Subscriber::Resampled { spi, gsi, fd, resample: told, shared, injector };
        match self.subscribe(source) {
            Ok(id) => {
                place.insert(id);
                Ok(())
            }
            Err(e) => {
                self.untie(spi);
                self.change(gsi, |entry| entry.route = before);
                self.forget_unrouted(gsi);
                Err(e)
            }
        }
    }

    fn untie(&self, spi: Intid) {
        self.shared.lines.resampler().remove(spi);
        self.injector.with(|i| {
            let _ = i.injector().unmap_phys(Wired::Spi(spi));
            let _ = i.injector().set_level(Wired::Spi(spi), false);
        });
        // Last: from here on another source may have it.
        self.resample.remove(&spi.0);
    }

    /// Serves a GSI's eventfd no longer, and forgets its route.
    ///
    /// # Errors
    /// [`Error::NoSource`], [`Error::Events`].
    pub fn remove(&self, gsi: u32) -> Result<(), Error> {
        // Held to the end: who adds a source for this GSI meanwhile is not to have its route forgotten.
        let Entry::Occupied(place) = self.shared.ids.entry(gsi) else {
            return Err(Error::NoSource(gsi));
        };
        let id = *place.get();
        let take =
            move |ops: &mut dyn SubscriberOps<Subscriber = Subscriber>| ops.remove_subscriber(id);
        let was = self.remote.call_blocking::<_, _, event_manager::Error>(take)?;
        if let Subscriber::Resampled { spi, resample, .. } = was {
            drop(resample);
            self.untie(spi);
        }
        self.shared.gsis.remove(&gsi);
        place.remove();
        Ok(())
    }

    /// What happened until now.
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
    }
}

#[cfg(test)]
mod tests;
