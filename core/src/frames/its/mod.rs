//! The Interrupt Translation Service: MSIs become LPIs, as the guest maps them (IHI 0069, chapter
//! 5).
//!
//! A guest gives an ITS commands, in a queue in its memory, that map events of devices to LPIs and
//! LPIs to their targets. An MSI is a pair (DeviceID, EventID). The ITS translates it by the
//! mappings made so far:
//!
//! * **Injections** take no lock, and are independent of commands.
//!   [`Its::port`](crate::its::Its::port) and [`Its::route`](crate::its::Its::route) make handles
//!   that check whether the ITS is enabled, and then inject through the engine's MSI domain.
//!   `Gic::send_msi` does the same for a write to GITS_TRANSLATER.
//! * **Commands** are performed by the vCPU that writes GITS_CWRITER, one at a time, in the files
//!   `unit` (registers and turns), `exec` (each command) and `maps` (the mappings).
//!
//! The ITS reads the guest's tables only where a command says so, and never trusts their contents.

pub(crate) mod command;
mod events;
mod exec;
mod job;
mod layout;
pub(crate) mod maps;
pub(crate) mod stats;
pub(crate) mod table;
pub(crate) mod unit;

use alloc::sync::Arc;

pub use command::{CollectionId, Command, Fault, Kind, RdBase};
pub use stats::{ItsStats, ItsTrace};

use crate::arch::ids::{DeviceId, EventId};
use crate::engine::{Engine, Injected, Injector};
use crate::frames::mmio::{Frame, Reg};
use unit::{Gate, ItsCx, Unit};

/// The shape and the bounds of an ITS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ItsConfig {
    /// Address of the two frames, 64 KiB each: the registers, and then GITS_TRANSLATER at 0x1_0040.
    pub base: u64,
    /// DeviceID bits, 1 to [`crate::engine::Config::device_bits`]. GITS_TYPER.Devbits.
    pub device_bits: u8,
    /// EventID bits, 1 to [`crate::engine::Config::event_bits`]. GITS_TYPER.ID_bits.
    pub event_bits: u8,
    /// Bits of a collection's number, 1 to 16. GITS_TYPER.CIL and CIDbits.
    pub collection_bits: u8,
    /// The number of collections that need no table. GITS_TYPER.HCC.
    pub hardware_collections: u8,
    /// Whether commands name redistributors by address instead of by number. GITS_TYPER.PTA.
    pub pta: bool,
    /// Whether a wrong command stalls the queue until the guest writes GITS_CWRITER.Retry.
    /// Otherwise the command is ignored.
    pub stall: bool,
    /// The DeviceID that is used when a vCPU itself writes GITS_TRANSLATER, which the architecture
    /// leaves open. With `None`, such a write has no effect.
    pub cpu_device: Option<DeviceId>,
    /// The most devices that are mapped at one time.
    pub max_devices: u32,
    /// The most events that are mapped at one time.
    pub max_events: u32,
    /// Work that is done at a time, before the lock on the mappings is released for other threads,
    /// and before the host is asked whether it takes over the rest
    /// ([`crate::engine::Kick::commands_left`]).
    ///
    /// The unit of work takes less than a microsecond. Examining an event, device, collection or
    /// LPI costs one unit, a command costs two, and making, changing or removing a mapping costs
    /// twelve.
    pub slice: u32,
    /// Work that is done in one access to a register, in the unit of [`ItsConfig::slice`]. The rest
    /// is done when the guest reads GITS_CREADR or GITS_CTLR, or writes GITS_CTLR or GITS_CWRITER.
    pub most: u32,
}

impl ItsConfig {
    /// An ITS at `base` with 16 bits for all IDs.
    pub const fn at(base: u64) -> Self {
        Self {
            base,
            device_bits: 16,
            event_bits: 16,
            collection_bits: 16,
            hardware_collections: 0,
            pta: false,
            stall: false,
            cpu_device: None,
            max_devices: 1 << 16,
            max_events: 1 << 20,
            slice: 256,
            most: 2048,
        }
    }

    /// Address of GITS_TRANSLATER, to which devices send their MSIs.
    pub const fn doorbell(&self) -> u64 {
        self.base + FRAME + TRANSLATER as u64
    }
}

/// Size of each of the two frames.
pub(crate) const FRAME: u64 = 0x1_0000;
/// Offset of GITS_TRANSLATER in the translation frame.
pub(crate) const TRANSLATER: u32 = 0x40;

/// The injection side of an ITS. It is cheap to clone, and threads may share it. Each thread
/// injects with an injector of its own.
pub struct ItsPort<E: Engine> {
    pub(crate) gate: Arc<Gate>,
    domain: E::Domain,
}

impl<E: Engine> Clone for ItsPort<E> {
    fn clone(&self) -> Self {
        Self { gate: Arc::clone(&self.gate), domain: self.domain.clone() }
    }
}

impl<E: Engine> ItsPort<E> {
    /// A device sends the MSI of one of its events.
    #[inline]
    pub fn inject(&self, injector: &E::Injector, device: DeviceId, event: EventId) -> Injected {
        let injected = if self.gate.is_open() {
            injector.inject(&self.domain, device, event)
        } else {
            Injected::Unmapped
        };
        self.gate.translated(device, event, injected);
        injected
    }
}

/// One event of one device, resolved.
pub struct ItsRoute<E: Engine> {
    pub(crate) gate: Arc<Gate>,
    pub(crate) route: E::Route,
    pub(crate) device: DeviceId,
    pub(crate) event: EventId,
}

impl<E: Engine> ItsRoute<E> {
    /// The device sends the MSI of this event.
    #[inline]
    pub fn inject(&self, injector: &E::Injector) -> Injected {
        let injected = if self.gate.is_open() || cfg!(mutant = "its_gate_ignored") {
            injector.inject_route(&self.route)
        } else {
            Injected::Unmapped
        };
        self.gate.translated(self.device, self.event, injected);
        injected
    }
}

/// The translation frame. A vCPU that writes it counts as a device only if the host gives it a
/// DeviceID.
pub(crate) struct Translation<'u, E: Engine>(pub(crate) &'u Unit<E>);

impl<E: Engine> Frame<ItsCx<'_, E>> for Translation<'_, E> {
    type Kind = ();
    const LAYOUT: &'static [Reg<()>] = layout::TRANSLATION;

    fn read(&mut self, _cx: &ItsCx<'_, E>, (): (), _index: u32) -> u64 {
        0
    }

    fn write(&mut self, cx: &ItsCx<'_, E>, (): (), _index: u32, value: u64, mask: u64) {
        // A write of the upper half alone has no effect.
        if mask & 0xffff == 0 {
            return;
        }
        if let (Some(device), Some(injector)) = (self.0.config.cpu_device, cx.injector) {
            // A guest gets no response to its write.
            let _ = self.0.port.inject(injector, device, EventId(value as u32));
        }
    }
}
