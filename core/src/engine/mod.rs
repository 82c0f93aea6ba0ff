//! What an engine offers, whichever way it is built: the vocabulary shared by the lock-free engine
//! ([`crate::Vgic`]) and the locked one that it is compared with, and the host's side ([`Kick`]).

mod config;
mod host;
mod irq;

use alloc::sync::Arc;
use core::ops::ControlFlow;

use crate::arch::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};
use crate::arch::lr::ListRegisters;
pub use config::{Config, Error};
pub use host::Kick;
pub use irq::{Gates, Injected, LpiConfig, LpiPlace, LpiState, Trigger, Wired, WiredConfig};

/// What [`Vcpu::flush`] left in the list registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flushed {
    /// Number of entries in use, active ones included.
    pub in_lrs: usize,
    /// Number of entries that are pending: something for the guest to take.
    pub pending: usize,
    /// Whether more is waiting than the list registers hold.
    pub waiting: bool,
}

/// What came of a walk over a part of the LPIs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Part {
    /// How many LPIs were looked at, those that nothing is mapped to included.
    pub looked: u32,
    /// Of how many of them something was changed.
    pub changed: u32,
    /// Where to go on. `None`: that was all.
    pub next: Option<Intid>,
}

/// What exists, and what it costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// LPIs that exist, those waiting to be reclaimed included.
    pub lpis: usize,
    /// Objects of any kind waiting to be reclaimed.
    pub garbage: usize,
    /// Heap bytes that the mappings cost: LPIs, their tables and pending bits, devices and event tables, and the maps of ITSs.
    pub bytes: usize,
}

/// One virtual interrupt controller: a cheap handle, cloned freely.
pub trait Engine: Clone + Send + Sync + 'static {
    /// A vCPU's own side.
    type Vcpu: Vcpu;
    /// The control side of one MSI domain.
    type Msi: MsiControl<Domain = Self::Domain, Route = Self::Route>;
    /// The injection side of one MSI domain.
    type Domain: Clone + Send + Sync + 'static;
    /// One event of one device, resolved. For one thread at a time.
    type Route: Send + 'static;
    /// One thread's handle for injecting.
    type Injector: Injector<Domain = Self::Domain, Route = Self::Route>;

    /// What reports call it.
    const NAME: &'static str;

    /// Builds the controller of one VM. All vCPUs are closed (powered off), all wired interrupts
    /// disabled, LPIs enabled at every vCPU, nothing is mapped.
    ///
    /// # Errors
    /// [`Error::Config`] if a field is out of its range.
    fn new(config: &Config, kick: Arc<dyn Kick>) -> Result<Self, Error>;

    /// Takes the interface of a vCPU, closed. Dropping it gives it back.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], [`Error::VcpuInUse`], [`Error::TooManyParticipants`].
    fn vcpu(&self, vcpu: VcpuId) -> Result<Self::Vcpu, Error>;

    /// Makes a new MSI domain: a space of (DeviceID, EventID) pairs with its one controlling handle.
    ///
    /// # Errors
    /// [`Error::TooManyParticipants`].
    fn msi(&self) -> Result<Self::Msi, Error>;

    /// Makes a handle for a thread that injects.
    ///
    /// # Errors
    /// [`Error::TooManyParticipants`].
    fn injector(&self) -> Result<Self::Injector, Error>;

    /// What exists at this moment. Exact when nothing else is going on.
    fn usage(&self) -> Usage;
}

/// A vCPU's own side, owned by the thread that runs it.
pub trait Vcpu: Send + 'static {
    /// Powers the vCPU on: from now on it is offered what is pending for it. No effect if it is open.
    fn open(&mut self);

    /// Powers the vCPU off. What it held goes back to where it is pending or active; while it
    /// is closed, interrupts for it stay pending. No effect if it is closed.
    fn close<L: ListRegisters>(&mut self, lrs: &mut L) {
        while !self.close_some(lrs) {}
    }

    /// The same in pieces of bounded length; returns whether all is done. From the first one on the vCPU is offered nothing. A flush, or
    /// [`Vcpu::open`], in between does all the rest at once.
    #[must_use]
    fn close_some<L: ListRegisters>(&mut self, lrs: &mut L) -> bool;

    /// Before the guest is entered: takes in what has changed, and fills the list registers.
    fn flush<L: ListRegisters>(&mut self, lrs: &mut L) -> Flushed;

    /// After the guest has been left: takes back what the guest did with the list registers.
    fn fold<L: ListRegisters>(&mut self, lrs: &mut L);

    /// The guest deactivates an interrupt (DIR, or EOIR with EOImode 0) that this vCPU has active. Between a flush and
    /// the fold after it, this is about interrupts without a list register: the others are the CPU interface's.
    /// Returns whether there was such an interrupt.
    fn deactivate(&mut self, intid: Intid) -> bool;

    /// Whether something has changed since the last flush, so that the vCPU must flush again before it goes to sleep.
    fn has_mail(&self) -> bool;
}

/// The control side of one MSI domain. There is one per domain, so what it does happens in order.
pub trait MsiControl: Send + 'static {
    /// The injection side.
    type Domain;
    /// A resolved event.
    type Route;

    /// The injection side of this domain.
    fn domain(&self) -> Self::Domain;

    /// Maps an event to an LPI delivered to `target`. Several events may share an LPI; the target
    /// and the configuration are then the newest ones.
    ///
    /// # Errors
    /// A range error, [`Error::NoSuchVcpu`], [`Error::EventMapped`], [`Error::TooManyLpis`],
    /// [`Error::TooManyDevices`], [`Error::TooManyEvents`], [`Error::TooManyBytes`], [`Error::TooMuchGarbage`].
    fn map(
        &mut self,
        device: DeviceId,
        event: EventId,
        intid: Intid,
        target: VcpuId,
        config: LpiConfig,
    ) -> Result<(), Error>;

    /// Maps an event to an LPI that another event is mapped to, in whichever domain, and leaves the LPI as it is. The caller sees to it
    /// that the other event stays mapped meanwhile.
    ///
    /// # Errors
    /// [`Error::NotMapped`] if there is no such LPI, and as [`MsiControl::map`].
    fn share(&mut self, device: DeviceId, event: EventId, intid: Intid) -> Result<(), Error>;

    /// Unmaps an event; its LPI is no longer pending. No injection that begins after this is delivered.
    ///
    /// # Errors
    /// [`Error::NotMapped`].
    fn unmap(&mut self, device: DeviceId, event: EventId) -> Result<(), Error>;

    /// Unmaps an event, and leaves its LPI as it is if another event is mapped to it, in whichever domain. No injection through this
    /// event that begins after this is delivered.
    ///
    /// # Errors
    /// [`Error::NotMapped`].
    fn detach(&mut self, device: DeviceId, event: EventId) -> Result<(), Error>;

    /// Unmaps every event of a device, and returns how many there were.
    fn unmap_device(&mut self, device: DeviceId) -> usize;

    /// Moves an event's LPI, pending state included, to another vCPU.
    ///
    /// # Errors
    /// [`Error::NotMapped`], [`Error::NoSuchVcpu`].
    fn retarget(&mut self, device: DeviceId, event: EventId, target: VcpuId) -> Result<(), Error>;

    /// Moves every LPI of the VM that is delivered to `from` to `to`, and returns how many there were.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`].
    fn move_all(&mut self, from: VcpuId, to: VcpuId) -> Result<usize, Error> {
        let (mut moved, mut first) = (0, Some(Intid(LPI_BASE)));
        while let Some(next) = first {
            let part = self.move_some(from, to, next, 1 << 10)?;
            moved += part.changed as usize;
            first = part.next;
        }
        Ok(moved)
    }

    /// The same for the LPIs from `first` up, until `most` have been looked at.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`].
    fn move_some(
        &mut self,
        from: VcpuId,
        to: VcpuId,
        first: Intid,
        most: u32,
    ) -> Result<Part, Error>;

    /// Changes the configuration of an LPI, in whichever domain it is mapped.
    ///
    /// # Errors
    /// [`Error::NotMapped`].
    fn set_config(&mut self, intid: Intid, config: LpiConfig) -> Result<(), Error>;

    /// The vCPU that an LPI is delivered to, in whichever domain it is mapped. `None` if it is not.
    fn target_of(&self, intid: Intid) -> Option<VcpuId>;

    /// Makes an LPI pending or not pending, in whichever domain it is mapped.
    ///
    /// # Errors
    /// [`Error::NotMapped`].
    fn set_pending(&mut self, intid: Intid, pending: bool) -> Result<(), Error>;

    /// If LPIs are disabled where an LPI goes ([`Gates::msis`]), it is not pending any more. If not, it stays as it is: it may
    /// have moved there meanwhile. Returns whether they are.
    fn silence(&mut self, intid: Intid) -> bool;

    /// Calls `f` with every LPI from `from` up that is mapped in any domain, in the order of their INTIDs, until it breaks. What is
    /// mapped or unmapped meanwhile may be left out.
    fn lpis_from(&self, from: Intid, f: &mut dyn FnMut(LpiState) -> ControlFlow<()>);

    /// The same, until `most` LPIs have been looked at, those that nothing is mapped to included.
    fn some_lpis(&self, from: Intid, most: u32, f: &mut dyn FnMut(LpiState)) -> Part;

    /// Makes an event's LPI not pending.
    ///
    /// # Errors
    /// [`Error::NotMapped`].
    fn clear(&mut self, device: DeviceId, event: EventId) -> Result<(), Error>;

    /// A handle that injects an event without a table walk, and sees every later remap of it.
    /// The event need not be mapped yet.
    ///
    /// # Errors
    /// A range error, [`Error::TooManyDevices`], [`Error::TooManyBytes`], [`Error::TooMuchGarbage`].
    fn route(&mut self, device: DeviceId, event: EventId) -> Result<Self::Route, Error>;

    /// Whether there is room for `bytes` more ([`Config::max_bytes`]), for who keeps something beside the domain that is a part of the
    /// cost of its mappings.
    ///
    /// # Errors
    /// [`Error::TooManyBytes`], [`Error::TooMuchGarbage`].
    fn check_bytes(&mut self, bytes: usize) -> Result<(), Error>;

    /// Counts bytes that the caller keeps, and some that it does not keep any more.
    fn count_bytes(&mut self, more: usize, less: usize);

    /// Reclaims what can be reclaimed now: a bounded number of objects, some thousands. What is left is reclaimed by later
    /// calls, and by mappings and unmappings, each of which reclaims more than it leaves behind.
    fn collect(&mut self);
}

/// One thread's handle for everything that makes interrupts pending.
pub trait Injector: Send + 'static {
    /// An MSI domain.
    type Domain;
    /// A resolved event.
    type Route;

    /// A device of `domain` sends the MSI of one of its events.
    fn inject(&self, domain: &Self::Domain, device: DeviceId, event: EventId) -> Injected;

    /// The same through a [route](MsiControl::route).
    fn inject_route(&self, route: &Self::Route) -> Injected;

    /// Sets the level of a wired interrupt's line. For an edge-triggered interrupt, a rise makes it pending.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn set_level(&self, wired: Wired, high: bool) -> Result<(), Error>;

    /// Makes a wired interrupt pending until it is acknowledged, whatever its line says: an SGI, an
    /// edge, a message-based SPI, or a write to a set-pending register.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn pulse(&self, wired: Wired) -> Result<Injected, Error>;

    /// Withdraws what [`Injector::pulse`] did, if it has not been acknowledged.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn clear_pulse(&self, wired: Wired) -> Result<(), Error>;

    /// Changes the configuration of a wired interrupt.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn configure(&self, wired: Wired, config: WiredConfig) -> Result<(), Error>;

    /// The configuration of a wired interrupt.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn config(&self, wired: Wired) -> Result<WiredConfig, Error>;

    /// Replaces the configuration of a wired interrupt by `f` of it, atomically, and returns the new one. `f` may be
    /// called several times, and must always give the same. A target that does not exist is not taken over.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn update(
        &self,
        wired: Wired,
        f: impl Fn(WiredConfig) -> WiredConfig,
    ) -> Result<WiredConfig, Error>;

    /// The level of a wired interrupt's line, as it was [set](Injector::set_level) last.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn line(&self, wired: Wired) -> Result<bool, Error>;

    /// Whether a wired interrupt is pending, by pulse or by line. If it is in the list registers of a vCPU that is in the guest,
    /// that vCPU is kicked, and waited for until it has left ([`Kick::wait_for_exit`]). Not to be called between the flush
    /// and the fold of a vCPU by the thread that runs it.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn is_pending(&self, wired: Wired) -> Result<bool, Error>;

    /// Whether a wired interrupt is active. Waits as [`Injector::is_pending`] does.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn is_active(&self, wired: Wired) -> Result<bool, Error>;

    /// Makes a wired interrupt active, or not active. Made active, it is at its target vCPU until
    /// that deactivates it. Waits as [`Injector::is_pending`] does; when it returns, no acknowledge that
    /// comes later is undone.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn set_active(&self, wired: Wired, active: bool) -> Result<(), Error>;

    /// An SGI of GICv2, which is pending once for each vCPU that sent it (IHI 0048B, 2.2.1): adds senders, bit n for vCPU n.
    /// When it is acknowledged, bits 12:10 of its INTID are the sender's number ([`crate::arch::lr::Lr::with_source`]).
    ///
    /// # Errors
    /// [`Error::IntidRange`] if it is not an SGI, [`Error::NoSuchVcpu`].
    fn pulse_from(&self, vcpu: VcpuId, sgi: Intid, senders: u8) -> Result<(), Error>;

    /// Takes senders back of whom the SGI has not been acknowledged.
    ///
    /// # Errors
    /// As [`Injector::pulse_from`].
    fn clear_from(&self, vcpu: VcpuId, sgi: Intid, senders: u8) -> Result<(), Error>;

    /// The senders of whom the SGI is pending. Waits as [`Injector::is_pending`] does.
    ///
    /// # Errors
    /// As [`Injector::pulse_from`].
    fn senders(&self, vcpu: VcpuId, sgi: Intid) -> Result<u8, Error>;

    /// Ties a PPI or SPI to a physical interrupt (13 bits, 16 up): when the guest deactivates it, the hardware deactivates the
    /// physical one (LR.HW; IHI 0069, 12.4, `ICH_LR<n>_EL2`). Takes effect when it is offered next.
    ///
    /// # Errors
    /// [`Error::IntidRange`] if either is out of range, [`Error::NoSuchVcpu`].
    fn map_phys(&self, wired: Wired, pintid: u16) -> Result<(), Error>;

    /// Unties it.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn unmap_phys(&self, wired: Wired) -> Result<(), Error>;

    /// The physical interrupt that a wired one is tied to.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn phys(&self, wired: Wired) -> Result<Option<u16>, Error>;

    /// Changes what is forwarded to one vCPU: replaces its gates by `f` of them, atomically.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`].
    fn update_gates(&self, vcpu: VcpuId, f: impl Fn(Gates) -> Gates) -> Result<(), Error>;

    /// Whether LPIs are forwarded to one vCPU: while not, its LPIs stay pending.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`].
    fn set_lpis_enabled(&self, vcpu: VcpuId, enabled: bool) -> Result<(), Error> {
        self.update_gates(vcpu, |gates| Gates { lpis: enabled, ..gates })
    }
}
