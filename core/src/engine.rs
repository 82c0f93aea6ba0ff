//! What an engine offers, whichever way it is built: the vocabulary shared by the lock-free engine
//! ([`crate::Vgic`]) and the locked one that it is compared with, and the host's side ([`Kick`]).

use alloc::sync::Arc;
use core::ops::ControlFlow;

use crate::ids::{DeviceId, EventId, Group, Intid, LPI_BASE, Priority, VcpuId};
use crate::lr::ListRegisters;

/// The host's way to make a vCPU look at its interrupts.
///
/// After `kick(v)` returns, the thread of vCPU `v` must come back to [`Vcpu::flush`] without any
/// further event: if it is in the guest it leaves it, if it sleeps it wakes, and if it is about to
/// do either it does not. A kick is a token: one that arrives early is not lost
/// ([`crate::wait::WaitCell`] is such a token). Nor may it be left to a thread that has kicked the same vCPU before: that one
/// may have been preempted before it did what it has to.
///
/// Any thread may call it; it must not block, and must not call the engine back. Nothing is reclaimed while it runs, and
/// others who make interrupts pending for the same vCPU rely on it.
pub trait Kick: Send + Sync + 'static {
    /// Kicks one vCPU.
    fn kick(&self, vcpu: VcpuId);

    /// Whether this host wants [offers](Kick::offer) instead of kicks where an offer will do. Asked once, when the engine is made.
    fn wants_offers(&self) -> bool {
        false
    }

    /// An enabled interrupt has been posted to a vCPU, is forwarded to it, and looks pending. For a host that
    /// [wants](Kick::wants_offers) to know: one whose guest acknowledges by accesses that trap, and that therefore only has to see
    /// to it that the guest is interrupted ([`crate::line::LineCell`]). The vCPU comes back to [`Vcpu::flush`] before the guest's acknowledge.
    ///
    /// Called for each post of such an interrupt, whether or not something was posted before, and again when something about one
    /// changes that has been posted and not been seen yet. What concerns nobody but a guest that acknowledges (a line has
    /// fallen, an interrupt has been disabled) is then not told at all: it is seen at the latest with the acknowledge. What others wait for
    /// (an interrupt moves to another vCPU, state is read) is still a kick.
    fn offer(&self, vcpu: VcpuId, group: Group, priority: Priority) {
        let _ = (group, priority);
        self.kick(vcpu);
    }

    /// Waits until `done`, which vCPU `vcpu` brings about when it leaves the guest; it has been kicked. Called by who reads or writes
    /// the active state of an interrupt that is in that vCPU's list registers, and never by injections, entries and exits.
    ///
    /// May return before `done`, if the calling thread has to stop. A register of pending state is then answered as it was when `vcpu` entered the guest. An
    /// interrupt that was pending or active then is answered as active: a guest that waits for it to be handled asks again. What is written is written, and
    /// takes effect before `vcpu` enters the guest once more.
    ///
    /// The default looks again and again: with the feature `std` it lets other threads run in between, then sleeps for up to a millisecond
    /// between looks, so that a real-time thread does not keep that vCPU's thread off its CPU. It does not return before `done`. A host that would rather be
    /// told sleeps until [`Kick::exited`].
    fn wait_for_exit(&self, vcpu: VcpuId, done: &dyn Fn() -> bool) {
        let _ = vcpu;
        #[cfg(feature = "std")]
        let mut patience = crate::wait::Patience::default();
        while !done() {
            #[cfg(feature = "std")]
            patience.pause();
            #[cfg(not(feature = "std"))]
            core::hint::spin_loop();
        }
    }

    /// vCPU `vcpu` has left its guest, and somebody [waits](Kick::wait_for_exit) for that: everybody whose wait began before is done. Called by the vCPU's thread, and only if
    /// somebody waits; like a kick, it must not block, and must not call the engine back. Does nothing by default.
    fn exited(&self, vcpu: VcpuId) {
        let _ = vcpu;
    }

    /// The level of the input of an interrupt that has been [mapped](Injector::map_phys) to a physical one and is
    /// level-sensitive. The engine asks when the guest has ended the interrupt: nobody else saw the line fall, as the
    /// guest deactivates the physical interrupt without an exit. It may ask more than once: a host that sets the level at the same time
    /// changes its answer first. `None`, the default: as it was set last.
    fn input_level(&self, irq: Wired) -> Option<bool> {
        let _ = irq;
        None
    }

    /// ITS number `its` has worked off a part of its command queue, and has more to do. `true`: the host calls
    /// [`Its::work`](crate::its::Its::work) soon (through a handle that it must not keep for ever, as that keeps the controller, which keeps the host), from
    /// any thread, but not from here, and the vCPU whose guest gave the commands comes back to its
    /// guest. `false`, the default: the commands are gone on with before it does.
    fn commands_left(&self, its: usize) -> bool {
        let _ = its;
        false
    }

    /// An access to the redistributor of vCPU `vcpu` has begun something that takes longer than one access may: LPIs are cleared, configured or read from a pending table. The next
    /// accesses to its registers go on with it. A host that would rather not leave it to the guest calls [`GicBus::work`](crate::gic::GicBus::work) until that returns
    /// false, from any thread, but not from here.
    ///
    /// At the bound on dead objects, a piece waits for unmapped LPIs that lie in vCPUs' mailboxes. So a vCPU's own thread enters and
    /// exits ([`GicCpu::enter`](crate::gic::GicCpu::enter)) between two calls, and another thread calls again later, not in a loop. Does nothing by default.
    fn lpis_left(&self, vcpu: VcpuId) {
        let _ = vcpu;
    }

    /// Deactivates a physical interrupt, because the virtual one that is tied to it was deactivated where no hardware does that:
    /// without a list register, by a write to its active state, or at a software CPU interface ([`crate::gic::GicCpu`]). Does nothing by
    /// default.
    fn deactivate_phys(&self, pintid: u16) {
        let _ = pintid;
    }
}

/// The shape and the bounds of one VM's interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Number of vCPUs, 1 to [`crate::ids::MAX_VCPUS`].
    pub vcpus: u16,
    /// Number of SPIs, 0 to 988: INTIDs 32 up.
    pub spis: u16,
    /// Number of extended PPIs of each vCPU, 0 to 64: INTIDs 1056 up.
    pub eppis: u16,
    /// Number of extended SPIs, 0 to 1024: INTIDs 4096 up.
    pub espis: u16,
    /// Number of LPI INTIDs, 0 to 2^24 - 8192: INTIDs 8192 up. Costs no memory until they are mapped.
    pub lpis: u32,
    /// Most LPIs that exist at one time, including those that wait to be reclaimed. One that only an idle route
    /// still remembers does not count.
    pub max_lpis: u32,
    /// DeviceID bits of each MSI domain, 1 to 32.
    pub device_bits: u8,
    /// EventID bits of each device, 1 to 32.
    pub event_bits: u8,
    /// Most devices that exist at one time in all MSI domains.
    pub max_devices: u32,
    /// Most events that are mapped at one time in all MSI domains.
    pub max_events: u32,
    /// Most heap bytes of everything that mappings cost: what [`Usage::bytes`] says, the dead included, and what the heap
    /// itself needs for it. With the other bounds, whichever is reached first refuses a mapping.
    ///
    /// With N = 544 bytes for a node of a tree of 64, and one level for each 6 bits of a key (the first level is part
    /// of its tree), the objects of mappings cost, on a 64-bit machine:
    ///
    /// | | bytes |
    /// |---|---|
    /// | an LPI | 128 |
    /// | each started 2,048 INTIDs of which one is mapped | 2,300 |
    /// | nodes of the tree of LPIs | N for each started 64 INTIDs, 64^2 INTIDs, ... of which one is mapped |
    /// | a device of which an event is mapped, or has a route | 640 |
    /// | nodes of the tree of devices | N for each started 64 DeviceIDs, ... |
    /// | nodes of a device's events | N for each started 64 EventIDs, ... |
    /// | one dead object more | 32 |
    ///
    /// An ITS has two domains: that of its events, and one of those whose collection is not mapped. Its own maps
    /// cost 12 to 24 bytes an event, some 100 for each run of neighbours (64 at most), 160 a device, 40 a collection.
    ///
    /// So a machine of 1,000 devices with 32 neighbouring events each needs 6 MiB, and 65,536 devices of 16 events
    /// 4,096 apart would need 1.2 GiB, which is refused. Not counted are the fixed parts of a machine and the routes,
    /// which are the host's own. A few more mappings than that can be made by several ITSs at the same time: a
    /// node for each level.
    pub max_bytes: u64,
    /// Most dead objects (LPIs, blocks of pending bits, tree nodes, devices) that wait for memory to be reclaimed before
    /// mapping is refused. They wait while someone is pinned, as a thread is that was preempted while it injects.
    pub max_garbage: u32,
    /// Most threads that take part at one time, 1 to 32,767: injectors, MSI controls and vCPU interfaces. In a [`Setup`](crate::gic::Setup) only the host's own
    /// are counted: what the machine needs for its vCPUs and ITSs is added.
    /// Each has a slot (two cache lines) in the fixed-slot reclamation backend; crossbeam-epoch has no bound.
    pub participants: u16,
}

impl Default for Config {
    /// One vCPU, 32 SPIs, 2^16 INTIDs and as many LPIs as fit in them, 16-bit DeviceIDs and EventIDs. Whatever a guest does
    /// costs less than 64 MiB.
    fn default() -> Self {
        Self {
            vcpus: 1,
            spis: 32,
            eppis: 0,
            espis: 0,
            lpis: (1 << 16) - crate::ids::LPI_BASE,
            max_lpis: 1 << 16,
            device_bits: 16,
            event_bits: 16,
            max_devices: 1 << 16,
            max_events: 1 << 20,
            max_bytes: 48 << 20,
            max_garbage: 1 << 16,
            participants: 256,
        }
    }
}

impl Config {
    /// The default shape with `vcpus` vCPUs.
    pub fn with_vcpus(vcpus: u16) -> Self {
        Self { vcpus, ..Self::default() }
    }

    /// The most bytes that mapping one event costs: an LPI, a device, and nodes of their own in all trees. Less than that for
    /// [`Config::max_bytes`], and nothing could be mapped.
    pub fn bytes_of_one(&self) -> u64 {
        crate::cost::of_one_mapping(self) as u64
    }

    /// Checks every bound that the fields' descriptions state.
    ///
    /// # Errors
    /// [`Error::Config`] names the first field that is out of its range.
    pub fn check(&self) -> Result<(), Error> {
        let checks: [(bool, &'static str); 11] = [
            (self.vcpus >= 1 && self.vcpus <= crate::ids::MAX_VCPUS, "vcpus"),
            (u32::from(self.spis) <= crate::ids::SPI_END - crate::ids::PRIVATE_INTIDS, "spis"),
            (u32::from(self.eppis) <= crate::ids::EPPI_END - crate::ids::EPPI_BASE, "eppis"),
            (u32::from(self.espis) <= crate::ids::ESPI_END - crate::ids::ESPI_BASE, "espis"),
            (self.lpis <= crate::ids::INTID_END - crate::ids::LPI_BASE, "lpis"),
            (self.device_bits >= 1 && self.device_bits <= 32, "device_bits"),
            (self.event_bits >= 1 && self.event_bits <= 32, "event_bits"),
            // Each may hold an LPI in passing, which is counted beside the routes that remember it (`refs`).
            (self.participants >= 1 && self.participants < 1 << 15, "participants"),
            (self.max_lpis >= 1, "max_lpis"),
            // References to one LPI are counted in 32 bits.
            (self.max_events <= 1 << 31, "max_events"),
            (self.max_garbage >= 1, "max_garbage"),
        ];
        if let Some((_, field)) = checks.iter().find(|(ok, _)| !ok) {
            return Err(Error::Config(field));
        }
        let least = self.bytes_of_one();
        if self.lpis > 0 && self.max_bytes < least {
            return Err(Error::Needs { field: "max_bytes", least });
        }
        Ok(())
    }
}

/// Why a control operation was refused. Nothing has changed when one is returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of [`Config`] is out of its range.
    #[error("configuration field `{0}` is out of its range")]
    Config(&'static str),
    /// A field of [`Config`] is too small for the rest of it.
    #[error("configuration field `{field}` must be {least} at least")]
    Needs {
        /// Which.
        field: &'static str,
        /// What it must be at least.
        least: u64,
    },
    /// There is no such vCPU.
    #[error("vCPU {} does not exist", .0.0)]
    NoSuchVcpu(VcpuId),
    /// The vCPU's interface is held by someone: a vCPU has one owner at a time.
    #[error("the interface of vCPU {} is in use", .0.0)]
    VcpuInUse(VcpuId),
    /// No participant slot is free ([`Config::participants`]).
    #[error("all participant slots are in use")]
    TooManyParticipants,
    /// The INTID is not one that the operation works on, or is beyond the configured number.
    #[error("INTID {0} is out of range here")]
    IntidRange(Intid),
    /// The DeviceID does not fit in [`Config::device_bits`].
    #[error("DeviceID {:#x} is out of range", .0.0)]
    DeviceRange(DeviceId),
    /// The EventID does not fit in [`Config::event_bits`].
    #[error("EventID {:#x} is out of range", .0.0)]
    EventRange(EventId),
    /// The event is mapped already.
    #[error("the event is mapped already")]
    EventMapped,
    /// Nothing is mapped there.
    #[error("nothing is mapped there")]
    NotMapped,
    /// [`Config::max_lpis`] LPIs are mapped.
    #[error("the VM's limit on LPIs is reached")]
    TooManyLpis,
    /// [`Config::max_devices`] devices exist.
    #[error("the VM's limit on devices is reached")]
    TooManyDevices,
    /// [`Config::max_events`] events are mapped.
    #[error("the VM's limit on mapped events is reached")]
    TooManyEvents,
    /// [`Config::max_bytes`] are in use.
    #[error("the VM's limit on memory is reached")]
    TooManyBytes,
    /// What is asked for would be there, if what is unmapped already had been reclaimed; or [`Config::max_garbage`] dead objects wait
    /// for that. It passes when those go on who hold it: vCPUs that have it in their mailbox or list registers, and threads that are in
    /// the middle of an injection. Try again.
    #[error("too much waits to be reclaimed; try again")]
    TooMuchGarbage,
}

/// What became of an injection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Injected {
    /// The interrupt's pending bit was clear, and now is set. An earlier occurrence that waits in a list register,
    /// where the guest may take it at any moment, is merged with this one if it turns out not to have been taken.
    Pending,
    /// The interrupt was pending already: the one delivery to come stands for both.
    Coalesced,
    /// Nothing is mapped there, or LPIs of its vCPU cannot become pending ([`Gates::msis`]): the injection has no effect.
    Unmapped,
}

/// An LPI's configuration: one byte of the LPI configuration table (IHI 0069, 5.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LpiConfig {
    /// Whether it may be delivered. While it may not, it stays pending.
    pub enabled: bool,
    /// Its priority.
    pub priority: Priority,
}

impl LpiConfig {
    /// Enabled at the given 8-bit priority.
    pub const fn enabled(priority: u8) -> Self {
        Self { enabled: true, priority: Priority::new(priority) }
    }
}

/// Where the engine has an LPI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum LpiPlace {
    /// Nowhere: nothing is to be done about it.
    Idle,
    /// In a queue, waiting for the vCPU to look.
    Queued,
    /// With this vCPU: in its list registers, or waiting for one.
    Held(VcpuId),
}

/// An LPI at one moment, as far as it can be seen from outside of the vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LpiState {
    /// Which.
    pub intid: Intid,
    /// Where it is delivered.
    pub target: VcpuId,
    /// Its configuration.
    pub config: LpiConfig,
    /// Whether it is pending outside of the list registers.
    pub pending: bool,
    /// Where it is.
    pub place: LpiPlace,
}

/// How the input of a wired interrupt is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// Pending from a rising edge until acknowledged.
    Edge,
    /// Pending while the line is high.
    Level,
}

/// An interrupt that exists from the start: an SGI or PPI of one vCPU, or an SPI.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wired {
    /// INTID 0 to 31, or an extended PPI, of one vCPU.
    Private(VcpuId, Intid),
    /// INTID 32 up, or an extended SPI.
    Spi(Intid),
}

/// The configuration of a wired interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WiredConfig {
    /// Whether it may be delivered. While it may not, it stays pending.
    pub enabled: bool,
    /// Its priority.
    pub priority: Priority,
    /// Its group. An interrupt of a group that the guest's CPU interface has not enabled
    /// ([`ListRegisters::groups_enabled`]) takes no list register.
    pub group: Group,
    /// How its input is read. SGIs are always edge-triggered.
    pub trigger: Trigger,
    /// The vCPU that takes it. Ignored for private interrupts.
    pub target: VcpuId,
}

/// What is forwarded to a vCPU. Interrupts that are not forwarded stay pending, and are offered once they are.
///
/// Where GICD_CTLR's group enables, GICR_WAKER and GICR_CTLR.EnableLPIs meet. All are on in a new engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gates {
    /// Interrupts of Group 0 and of Group 1, which LPIs are in.
    pub groups: [bool; 2],
    /// LPIs. While they are not forwarded, they stay pending.
    pub lpis: bool,
    /// Whether an LPI of this vCPU can become pending. While it cannot, an injection has no effect, and an LPI that is moved here is no longer pending.
    /// One that is pending already stays so until somebody clears it. With [`Gates::lpis`] this is GICR_CTLR.EnableLPIs (IHI 0069, 12.11).
    pub msis: bool,
}

impl Gates {
    /// Everything is forwarded.
    pub const OPEN: Self = Self { groups: [true; 2], lpis: true, msis: true };
    /// Nothing is, and LPIs do not become pending.
    pub const CLOSED: Self = Self { groups: [false; 2], lpis: false, msis: false };

    /// Whether they let an interrupt pass.
    #[inline(always)]
    pub(crate) const fn pass(self, group: Group, lpi: bool) -> bool {
        self.groups[group as usize] && (self.lpis || !lpi)
    }

    /// Whether one of them is open that is closed in `other`.
    pub(crate) fn opens_more_than(self, other: Self) -> bool {
        let open = [
            (self.groups[0], other.groups[0]),
            (self.groups[1], other.groups[1]),
            (self.lpis, other.lpis),
        ];
        open.iter().any(|&(mine, others)| mine && !others)
    }
}

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
    /// When it is acknowledged, bits 12:10 of its INTID are the sender's number ([`crate::lr::Lr::with_source`]).
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
