//! The contract of an engine: traits and types that the lock-free engine ([`crate::Vgic`]) and the
//! locked baseline share, and the callbacks of the host ([`Kick`]).

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

/// The contents of the list registers after [`Vcpu::flush`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flushed {
    /// Number of entries in use, active ones included.
    pub in_lrs: usize,
    /// Number of pending entries, which the guest can acknowledge.
    pub pending: usize,
    /// Whether more interrupts wait than the list registers hold.
    pub waiting: bool,
}

/// The result of a walk over a part of the LPIs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Part {
    /// Number of LPIs that were looked at, unmapped ones included.
    pub looked: u32,
    /// Number of LPIs that were changed.
    pub changed: u32,
    /// Where the next walk continues. `None`: there are no more LPIs.
    pub next: Option<Intid>,
}

/// Numbers of objects, and their cost in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Number of LPIs, including those that wait to be reclaimed.
    pub lpis: usize,
    /// Number of objects of any kind that wait to be reclaimed.
    pub garbage: usize,
    /// Heap bytes of the mappings: LPIs, their tables and pending bits, devices and event tables,
    /// and the maps of ITSs, without the heap's own overhead.
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
    /// One event of one device, resolved, for use by one thread at a time.
    type Route: Send + 'static;
    /// One thread's handle for injecting.
    type Injector: Injector<Domain = Self::Domain, Route = Self::Route>;

    /// The name of the engine in reports.
    const NAME: &'static str;

    /// Builds the controller of one VM. All vCPUs are closed (powered off), all wired interrupts
    /// are disabled, LPIs are enabled at every vCPU, and nothing is mapped.
    ///
    /// # Errors
    /// [`Error::Config`] if a field is out of its range.
    fn new(config: &Config, kick: Arc<dyn Kick>) -> Result<Self, Error>;

    /// Takes the interface of a vCPU, closed. Dropping the interface gives it back.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], [`Error::VcpuInUse`], [`Error::TooManyParticipants`].
    fn vcpu(&self, vcpu: VcpuId) -> Result<Self::Vcpu, Error>;

    /// Makes a new MSI domain, a space of (DeviceID, EventID) pairs, and returns its only control
    /// handle.
    ///
    /// # Errors
    /// [`Error::TooManyParticipants`].
    fn msi(&self) -> Result<Self::Msi, Error>;

    /// Makes a handle for a thread that injects.
    ///
    /// # Errors
    /// [`Error::TooManyParticipants`].
    fn injector(&self) -> Result<Self::Injector, Error>;

    /// Returns the numbers of objects and bytes. They are exact while no other thread changes them.
    fn usage(&self) -> Usage;
}

/// A vCPU's own side, owned by the thread that runs the vCPU.
pub trait Vcpu: Send + 'static {
    /// Powers the vCPU on: from now on it is offered its pending interrupts. No effect if it is
    /// open.
    fn open(&mut self);

    /// Powers the vCPU off. Its interrupts go back to where they are pending or active. While it is
    /// closed, interrupts for it stay pending. No effect if it is closed.
    fn close<L: ListRegisters>(&mut self, lrs: &mut L) {
        while !self.close_some(lrs) {}
    }

    /// Powers the vCPU off in pieces of bounded length, as [`Vcpu::close`] does at once. Returns
    /// whether the power-off is complete. From the first piece on, the vCPU is offered nothing. A
    /// flush, or [`Vcpu::open`], in between does all the rest at once.
    #[must_use]
    fn close_some<L: ListRegisters>(&mut self, lrs: &mut L) -> bool;

    /// Takes in changes, and fills the list registers. Call it before the guest is entered.
    fn flush<L: ListRegisters>(&mut self, lrs: &mut L) -> Flushed;

    /// Takes back the guest's changes to the list registers. Call it after the guest has been left.
    fn fold<L: ListRegisters>(&mut self, lrs: &mut L);

    /// Deactivates an interrupt that this vCPU has active, as its guest asks (DIR, or EOIR with
    /// EOImode 0). Between a flush and the fold after it, this concerns interrupts without a list
    /// register: the CPU interface deactivates the others. Returns whether there was such an
    /// interrupt.
    fn deactivate(&mut self, intid: Intid) -> bool;

    /// Whether something has changed since the last flush. If so, the vCPU must flush again before
    /// it sleeps.
    fn has_mail(&self) -> bool;
}

/// The control side of one MSI domain. A domain has one, so its operations happen in order.
pub trait MsiControl: Send + 'static {
    /// The injection side.
    type Domain;
    /// A resolved event.
    type Route;

    /// Returns a handle for the injection side of this domain.
    fn domain(&self) -> Self::Domain;

    /// Maps an event to an LPI that is delivered to `target`. Several events may share an LPI; the
    /// newest target and configuration then apply.
    ///
    /// # Errors
    /// A range error, [`Error::NoSuchVcpu`], [`Error::EventMapped`], [`Error::TooManyLpis`],
    /// [`Error::TooManyDevices`], [`Error::TooManyEvents`], [`Error::TooManyBytes`],
    /// [`Error::TooMuchGarbage`].
    fn map(
        &mut self,
        device: DeviceId,
        event: EventId,
        intid: Intid,
        target: VcpuId,
        config: LpiConfig,
    ) -> Result<(), Error>;

    /// Maps an event to an LPI that another event of any domain is mapped to, and leaves the LPI as
    /// it is. The caller ensures that the other event stays mapped during the call.
    ///
    /// # Errors
    /// [`Error::NotMapped`] if there is no such LPI, and as [`MsiControl::map`].
    fn share(&mut self, device: DeviceId, event: EventId, intid: Intid) -> Result<(), Error>;

    /// Unmaps an event. Its LPI is no longer pending. No injection that begins after this is
    /// delivered.
    ///
    /// # Errors
    /// [`Error::NotMapped`].
    fn unmap(&mut self, device: DeviceId, event: EventId) -> Result<(), Error>;

    /// Unmaps an event, and leaves its LPI as it is if another event of any domain is mapped to it.
    /// No injection through this event that begins after this is delivered.
    ///
    /// # Errors
    /// [`Error::NotMapped`].
    fn detach(&mut self, device: DeviceId, event: EventId) -> Result<(), Error>;

    /// Unmaps every event of a device, and returns their number.
    fn unmap_device(&mut self, device: DeviceId) -> usize;

    /// Moves an event's LPI, pending state included, to another vCPU.
    ///
    /// # Errors
    /// [`Error::NotMapped`], [`Error::NoSuchVcpu`].
    fn retarget(&mut self, device: DeviceId, event: EventId, target: VcpuId) -> Result<(), Error>;

    /// Moves every LPI of the VM that is delivered to `from` to `to`, and returns their number.
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

    /// Moves LPIs from `first` up, as [`MsiControl::move_all`] does, until `most` LPIs have been
    /// looked at.
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

    /// Changes the configuration of an LPI that is mapped in any domain.
    ///
    /// # Errors
    /// [`Error::NotMapped`].
    fn set_config(&mut self, intid: Intid, config: LpiConfig) -> Result<(), Error>;

    /// Returns the vCPU that an LPI is delivered to, or `None` if no domain maps the LPI.
    fn target_of(&self, intid: Intid) -> Option<VcpuId>;

    /// Makes an LPI that is mapped in any domain pending or not pending.
    ///
    /// # Errors
    /// [`Error::NotMapped`].
    fn set_pending(&mut self, intid: Intid, pending: bool) -> Result<(), Error>;

    /// Makes an LPI not pending if its target vCPU takes no LPIs ([`Gates::msis`]). Otherwise
    /// leaves it as it is, because it may have moved there in the meantime. Returns whether the
    /// vCPU takes none; false if the LPI is not mapped.
    fn silence(&mut self, intid: Intid) -> bool;

    /// Calls `f` with every LPI from `from` up that is mapped in any domain, in ascending order,
    /// until `f` breaks. An LPI that is mapped or unmapped during the call may be left out.
    fn lpis_from(&self, from: Intid, f: &mut dyn FnMut(LpiState) -> ControlFlow<()>);

    /// Calls `f` as [`MsiControl::lpis_from`] does, until `most` LPIs have been looked at, unmapped
    /// ones included.
    fn some_lpis(&self, from: Intid, most: u32, f: &mut dyn FnMut(LpiState)) -> Part;

    /// Makes an event's LPI not pending.
    ///
    /// # Errors
    /// [`Error::NotMapped`].
    fn clear(&mut self, device: DeviceId, event: EventId) -> Result<(), Error>;

    /// Returns a handle that injects an event without a table walk, and sees every later remap of
    /// it. The event need not be mapped yet.
    ///
    /// # Errors
    /// A range error, [`Error::TooManyDevices`], [`Error::TooManyBytes`],
    /// [`Error::TooMuchGarbage`].
    fn route(&mut self, device: DeviceId, event: EventId) -> Result<Self::Route, Error>;

    /// Whether there is room for `bytes` more ([`Config::max_bytes`]). It is for callers that keep
    /// data beside the domain that counts as a part of the cost of its mappings.
    ///
    /// # Errors
    /// [`Error::TooManyBytes`], [`Error::TooMuchGarbage`].
    fn check_bytes(&mut self, bytes: usize) -> Result<(), Error>;

    /// Counts bytes that the caller keeps from now on, and bytes that it has freed.
    fn count_bytes(&mut self, more: usize, less: usize);

    /// Reclaims a bounded number of objects, some thousands. Later calls, mappings and unmappings
    /// reclaim the rest; each mapping and unmapping reclaims more than it leaves behind.
    fn collect(&mut self);
}

/// One thread's handle for everything that makes interrupts pending.
pub trait Injector: Send + 'static {
    /// An MSI domain.
    type Domain;
    /// A resolved event.
    type Route;

    /// Injects the MSI of one event of a device of `domain`.
    fn inject(&self, domain: &Self::Domain, device: DeviceId, event: EventId) -> Injected;

    /// Injects the MSI of an event through a [route](MsiControl::route).
    fn inject_route(&self, route: &Self::Route) -> Injected;

    /// Sets the level of a wired interrupt's line. A rise makes an edge-triggered interrupt
    /// pending.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn set_level(&self, wired: Wired, high: bool) -> Result<(), Error>;

    /// Makes a wired interrupt pending until it is acknowledged, also while its line is low: an
    /// SGI, an edge, a message-based SPI, or a write to a set-pending register.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn pulse(&self, wired: Wired) -> Result<Injected, Error>;

    /// Withdraws the effect of [`Injector::pulse`], if the interrupt has not been acknowledged.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn clear_pulse(&self, wired: Wired) -> Result<(), Error>;

    /// Changes the configuration of a wired interrupt.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn configure(&self, wired: Wired, config: WiredConfig) -> Result<(), Error>;

    /// Returns the configuration of a wired interrupt.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn config(&self, wired: Wired) -> Result<WiredConfig, Error>;

    /// Replaces the configuration of a wired interrupt by the result of `f`, atomically, and
    /// returns the new one. `f` may be called several times, and must always return the same for
    /// the same argument. A target that does not exist is ignored.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn update(
        &self,
        wired: Wired,
        f: impl Fn(WiredConfig) -> WiredConfig,
    ) -> Result<WiredConfig, Error>;

    /// Returns the level of a wired interrupt's line, as [`Injector::set_level`] set it last.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn line(&self, wired: Wired) -> Result<bool, Error>;

    /// Whether a wired interrupt is pending, by pulse or by line. If the interrupt is in a list
    /// register of a vCPU in its guest, this function kicks that vCPU, and waits until it has left
    /// ([`Kick::wait_for_exit`]). A thread that runs a vCPU must not call it between the flush and
    /// the fold of that vCPU.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn is_pending(&self, wired: Wired) -> Result<bool, Error>;

    /// Whether a wired interrupt is active. It waits as [`Injector::is_pending`] does.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn is_active(&self, wired: Wired) -> Result<bool, Error>;

    /// Makes a wired interrupt active or not active. An interrupt that is made active is active at
    /// its target vCPU until that vCPU deactivates it. The function waits as
    /// [`Injector::is_pending`] does. After it returns, no later acknowledge is undone.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn set_active(&self, wired: Wired, active: bool) -> Result<(), Error>;

    /// Adds senders of a GICv2 SGI, bit n for vCPU n. Such an SGI is pending once for each vCPU
    /// that sent it (IHI 0048B, 2.2.1). When it is acknowledged, bits 12:10 of its INTID are the
    /// number of the sender ([`Lr::with_source`](crate::arch::lr::Lr::with_source)).
    ///
    /// # Errors
    /// [`Error::IntidRange`] if it is not an SGI, [`Error::NoSuchVcpu`].
    fn pulse_from(&self, vcpu: VcpuId, sgi: Intid, senders: u8) -> Result<(), Error>;

    /// Removes senders of a GICv2 SGI from which it has not been acknowledged.
    ///
    /// # Errors
    /// As [`Injector::pulse_from`].
    fn clear_from(&self, vcpu: VcpuId, sgi: Intid, senders: u8) -> Result<(), Error>;

    /// Returns the senders for which the SGI is pending. It waits as [`Injector::is_pending`] does.
    ///
    /// # Errors
    /// As [`Injector::pulse_from`].
    fn senders(&self, vcpu: VcpuId, sgi: Intid) -> Result<u8, Error>;

    /// Maps a PPI or SPI to a physical interrupt (13 bits, 16 up). When the guest deactivates it,
    /// hardware deactivates the physical one (LR.HW; IHI 0069, 12.4, `ICH_LR<n>_EL2`). The mapping
    /// takes effect at the next delivery.
    ///
    /// # Errors
    /// [`Error::IntidRange`] if either is out of range, [`Error::NoSuchVcpu`].
    fn map_phys(&self, wired: Wired, pintid: u16) -> Result<(), Error>;

    /// Removes the mapping of a wired interrupt to a physical one.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn unmap_phys(&self, wired: Wired) -> Result<(), Error>;

    /// Returns the physical interrupt that a wired one is mapped to.
    ///
    /// # Errors
    /// [`Error::IntidRange`], [`Error::NoSuchVcpu`].
    fn phys(&self, wired: Wired) -> Result<Option<u16>, Error>;

    /// Replaces the gates of a vCPU, which decide on forwarding, by the result of `f`, atomically.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`].
    fn update_gates(&self, vcpu: VcpuId, f: impl Fn(Gates) -> Gates) -> Result<(), Error>;

    /// Sets whether LPIs are forwarded to a vCPU. While they are not, they stay pending.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`].
    fn set_lpis_enabled(&self, vcpu: VcpuId, enabled: bool) -> Result<(), Error> {
        self.update_gates(vcpu, |gates| Gates { lpis: enabled, ..gates })
    }
}
