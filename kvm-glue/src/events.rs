//! Interrupts that come through eventfds, as from vhost-user back ends and VFIO: one thread polls them all.
//!
//! In-kernel interrupt controllers have KVM_IRQFD for this. Here a source is an eventfd and a GSI; the routing table says what a GSI
//! is, an MSI or an SPI, and can be changed at any time. Writes to an eventfd that come before the loop has read it are one interrupt, as
//! with an irqfd; what is ready together is served with one system call for waiting.
//!
//! A masked source keeps what comes, and sends it when it is unmasked (as MSI-X wants it). A source with a *resample* eventfd is a
//! level-triggered SPI that stays up until the guest ends it; then the resample eventfd is written to, and a device that still wants
//! attention writes to its source again ([`crate::resample`]). Several sources may share such an SPI, also sources of several loops.

//!
//! ```no_run
//! use vgic_kvm::core::ids::Intid;
//! use vgic_kvm::events::{EventSources, Route};
//! use vgic_kvm::msi::Msi;
//! use vmm_sys_util::eventfd::EventFd;
//! # fn f(gic: &vgic_kvm::KvmGic) -> Result<(), vgic_kvm::Error> {
//! let sources = EventSources::start(gic)?;
//! // A queue of a vhost-user back end: what it writes to is this eventfd.
//! let call = EventFd::new(libc::EFD_NONBLOCK)?;
//! sources.set_route(0, Route::Msi(Msi { address: 0x0802_0040, data: 80, device: 8 }));
//! sources.add(0, &call)?;
//! sources.set_masked(0, true); // as the guest masks the vector
//! // INTx of a device that is passed through, with its unmask eventfd.
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

/// A source of an SPI that is told when the guest has ended it.
struct Resampled {
    source: Source,
    /// How it is told.
    told: EventFd,
}

/// What the threads share.
struct Shared {
    gsis: DashMap<u32, Gsi>,
    ids: DashMap<u32, SubscriberId>,
    /// By GSI. Locked by the loop and by who changes sources, and by no vCPU.
    resampled: Mutex<BTreeMap<u32, Resampled>>,
    lines: Arc<Lines>,
    injector: LoopInjector,
    events: AtomicU64,
    sent: AtomicU64,
}

/// Something to poll.
enum Subscriber {
    Source {
        gsi: u32,
        fd: EventFd,
        shared: Arc<Shared>,
    },
    /// Interrupts have ended.
    Ends {
        fd: Arc<EventFd>,
        shared: Arc<Shared>,
    },
    /// Ends the thread.
    Quit {
        fd: EventFd,
        quit: Arc<AtomicU64>,
    },
}

/// The loop's own handle, which who changes masks and routes uses, too.
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
    /// Sends the interrupt of a GSI, or keeps it.
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
            // An MSI to nowhere has no effect, as on a bus.
            Route::Msi(msi) => _ = injector.send(&msi),
            Route::Spi(spi) => _ = injector.injector().pulse(Wired::Spi(spi)),
        });
    }

    /// Tells those sources whose interrupts the guest has ended.
    fn tell(&self) {
        let resampler = self.lines.resampler();
        for Resampled { source, told } in lock(&self.resampled).values() {
            if resampler.take_ended(source) {
                // Before it is told: then the line is low until it is asserted again.
                self.injector.with(|i| resampler.settle(source.spi(), i.injector()));
                let _ = told.write(1);
            }
        }
    }

    /// A GSI's source is none of its SPI any more.
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
                // Relaxed: same thread as the loop that looks.
                quit.store(1, Ordering::Relaxed);
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let fd = match self {
            Self::Source { fd, .. } | Self::Quit { fd, .. } => fd,
            Self::Ends { fd, .. } => &**fd,
        };
        // Cannot fail for a descriptor that is open and not polled yet; a source that is added twice is refused before.
        let added = ops.add(Events::new(fd, EventSet::IN));
        debug_assert!(added.is_ok(), "{added:?}");
    }
}

/// Event sources of a VM, and the thread that serves them. Each such loop has GSIs of its own.
pub struct EventSources {
    remote: RemoteEndpoint<Subscriber>,
    shared: Arc<Shared>,
    /// Wakes the loop when an interrupt has ended.
    ends: Arc<EventFd>,
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

    /// Says what a GSI is. What came before it had a route is sent now. A source that is [resampled](EventSources::add_resampled) is its SPI's whatever its
    /// route says.
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
        if let Some(route) = due {
            self.shared.send(gsi, route);
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
        let shared = Arc::clone(&self.shared);
        let source = Subscriber::Source { gsi, fd: fd.try_clone()?, shared };
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

    /// Serves an eventfd of a level-triggered SPI, and writes to `resample` each time that the guest has ended it; both are to be non-blocking.
    ///
    /// Several sources may share the SPI, as PCI's INTx do, also with sources of other loops of this machine: its level is the *or* of theirs, and all are told of
    /// each end. They do not share it with a [`crate::spi::SpiLine`].
    ///
    /// # Errors
    /// As [`EventSources::add`]; [`Error::TooManySources`]; [`Error::Engine`] if there is no such SPI.
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
        drop(self.remote.call_blocking::<_, _, event_manager::Error>(take)?);
        self.shared.untie(gsi);
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
        // What its sources assert would stay up, and nobody would be told of an end.
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
