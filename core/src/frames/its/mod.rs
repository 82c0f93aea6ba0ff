//! The Interrupt Translation Service: MSIs become LPIs, as the guest maps them (IHI 0069, chapter 5).
//!
//! A guest tells an ITS by commands, in a queue in its memory, which event of which device is which LPI, and where that goes. An MSI, which is
//! (DeviceID, EventID), is translated by what has been mapped so far:
//!
//! * **Injections** take no lock, and know nothing of commands: [`Its::port`](crate::its::Its::port) and [`Its::route`](crate::its::Its::route) give handles that look whether the ITS is enabled,
//!   and then inject through the engine's MSI domain. `Gic::send_msi` does the same for a write to GITS_TRANSLATER.
//! * **Commands** are performed by the vCPU that writes GITS_CWRITER, one at a time, in the files `unit` (registers, and whose turn it is),
//!   `exec` (each command) and `maps` (what is mapped).
//!
//! What a guest has in its tables is only looked at where a command says so, and never trusted.

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
    /// Address of its two frames, 64 KiB each: registers, and GITS_TRANSLATER at 0x1_0040.
    pub base: u64,
    /// DeviceID bits, 1 to [`crate::engine::Config::device_bits`]. GITS_TYPER.Devbits.
    pub device_bits: u8,
    /// EventID bits, 1 to [`crate::engine::Config::event_bits`]. GITS_TYPER.ID_bits.
    pub event_bits: u8,
    /// Bits of the number of a collection, 1 to 16. GITS_TYPER.CIL and CIDbits.
    pub collection_bits: u8,
    /// How many collections need no table. GITS_TYPER.HCC.
    pub hardware_collections: u8,
    /// Whether commands name redistributors by address, and not by number. GITS_TYPER.PTA.
    pub pta: bool,
    /// Whether a wrong command stalls the queue until the guest writes GITS_CWRITER.Retry. Otherwise it is ignored.
    pub stall: bool,
    /// The DeviceID of a vCPU that writes GITS_TRANSLATER itself, which the architecture leaves open. `None`: that has no effect.
    pub cpu_device: Option<DeviceId>,
    /// Most devices that are mapped at one time.
    pub max_devices: u32,
    /// Most events that are mapped at one time.
    pub max_events: u32,
    /// How much is done at a time, before `maps` is given up to who else wants it, and before the host is asked whether it would
    /// rather go on later ([`crate::engine::Kick::commands_left`]). In units of work: an event, device, collection or LPI
    /// that is looked at costs one, a command two, and a mapping that is made, changed or taken away twelve. A unit
    /// takes less than a microsecond.
    pub slice: u32,
    /// How much is done in one access to a register, in the same unit, before the guest has to come back for the rest. What
    /// has been begun is gone on with when the guest reads GITS_CREADR or GITS_CTLR, or writes a register.
    pub most: u32,
}

impl ItsConfig {
    /// An ITS with 16 bits of everything.
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

    /// Address of GITS_TRANSLATER: where devices send their MSIs.
    pub const fn doorbell(&self) -> u64 {
        self.base + FRAME + TRANSLATER as u64
    }
}

/// Size of each of the two frames.
pub(crate) const FRAME: u64 = 0x1_0000;
/// Offset of GITS_TRANSLATER in the translation frame.
pub(crate) const TRANSLATER: u32 = 0x40;

/// The injection side of an ITS: cloned freely, shared by threads, each with an injector of its own.
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

/// The translation frame. A vCPU that writes it is a device only if the host says which.
pub(crate) struct Translation<'u, E: Engine>(pub(crate) &'u Unit<E>);

impl<E: Engine> Frame<ItsCx<'_, E>> for Translation<'_, E> {
    type Kind = ();
    const LAYOUT: &'static [Reg<()>] = layout::TRANSLATION;

    fn read(&mut self, _cx: &ItsCx<'_, E>, (): (), _index: u32) -> u64 {
        0
    }

    fn write(&mut self, cx: &ItsCx<'_, E>, (): (), _index: u32, value: u64, mask: u64) {
        // Not the upper half alone.
        if mask & 0xffff == 0 {
            return;
        }
        if let (Some(device), Some(injector)) = (self.0.config.cpu_device, cx.injector) {
            // A guest's write has no answer.
            let _ = self.0.port.inject(injector, device, EventId(value as u32));
        }
    }
}
