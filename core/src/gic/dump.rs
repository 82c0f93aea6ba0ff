//! Snapshots of an interrupt controller's LPIs and ITSs, for people and for tools.
//!
//! While the caller looks at an entry, no lock and no reference is held: a caller that stops
//! half-way leaves nothing behind. An entry that is mapped or unmapped during the walk may be
//! missing, and different entries may show different moments.

use alloc::vec::Vec;
use core::fmt;
use core::ops::{Bound, ControlFlow};

use super::{Gic, Its};
use crate::arch::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};
use crate::engine::{Engine, LpiState, MsiControl};
use crate::frames::its::command::CollectionId;
use crate::frames::its::maps::{Link, Maps};
use crate::frames::its::stats::ItsStats;

/// A mapped device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct DeviceDump {
    /// The device's ID.
    pub device: DeviceId,
    /// The device's number of EventID bits.
    pub event_bits: u8,
    /// Address of the device's interrupt translation table.
    pub itt: u64,
}

/// A mapped event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct EventDump {
    /// The event's device.
    pub device: DeviceId,
    /// The event's ID.
    pub event: EventId,
    /// The LPI that the event is mapped to.
    pub intid: Intid,
    /// The collection that the event belongs to.
    pub collection: u16,
    /// Whether MSIs of the event have an effect when the ITS is enabled. They have none while the
    /// collection is not mapped, nor while the ITS still unmaps the contents of a table that the
    /// guest has given up.
    pub live: bool,
}

/// A mapped collection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CollectionDump {
    /// The collection's number.
    pub collection: u16,
    /// The vCPU that the collection's LPIs go to.
    pub target: VcpuId,
}

/// One entry of an ITS's mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum ItsEntry {
    /// A collection.
    Collection(CollectionDump),
    /// A device. Its events follow.
    Device(DeviceDump),
    /// An event.
    Event(EventDump),
}

/// All mappings and counters of an ITS.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ItsDump {
    /// GITS_CTLR.Enabled.
    pub enabled: bool,
    /// The mapped collections, sorted by number.
    pub collections: Vec<CollectionDump>,
    /// The mapped devices, sorted by DeviceID.
    pub devices: Vec<DeviceDump>,
    /// The mapped events, sorted by DeviceID and EventID.
    pub events: Vec<EventDump>,
    /// The counters of the ITS.
    pub stats: ItsStats,
}

/// The LPIs and the ITSs of an interrupt controller.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GicDump {
    /// Every LPI that exists, sorted by INTID.
    pub lpis: Vec<LpiState>,
    /// Number of LPIs that a guest tried to make pending without an ITS, but that a bound of the VM
    /// refused.
    pub refused: u64,
    /// The ITSs, in the order in which they were set up.
    pub its: Vec<ItsDump>,
}

/// How many entries are copied at a time, while commands wait.
const BATCH: usize = 256;

/// The last entry that was copied, in the order of [`Its::visit`]. `None` at the beginning.
type Cursor = Option<ItsEntry>;

fn collections<E: Engine>(
    maps: &Maps<E>,
    after: Bound<CollectionId>,
) -> impl Iterator<Item = ItsEntry> {
    maps.collections
        .range((after, Bound::Unbounded))
        .map(|(&id, &target)| ItsEntry::Collection(CollectionDump { collection: id.0, target }))
}

fn devices<E: Engine>(maps: &Maps<E>, after: Bound<DeviceId>) -> impl Iterator<Item = ItsEntry> {
    let devices = maps.devices.range((after, Bound::Unbounded));
    devices.flat_map(|(&id, device)| {
        let event_bits = device.size + 1;
        let head = ItsEntry::Device(DeviceDump { device: id, event_bits, itt: device.itt });
        core::iter::once(head).chain(events(maps, id, Bound::Unbounded))
    })
}

fn events<E: Engine>(
    maps: &Maps<E>,
    device: DeviceId,
    after: Bound<u32>,
) -> impl Iterator<Item = ItsEntry> {
    let found = maps.devices.get(&device).into_iter();
    let events = found.flat_map(move |device| device.events.above(after));
    events.map(move |(event, found)| {
        ItsEntry::Event(EventDump {
            device,
            event: EventId(event),
            intid: found.intid,
            collection: found.collection.0,
            // Nothing is translated while mappings of a lost table are being unmapped.
            live: found.link == Link::Live && !maps.lost.is_some(),
        })
    })
}

/// Adds the entries that follow `after` to `batch`, at most [`BATCH`] of them.
fn batch<E: Engine>(maps: &Maps<E>, after: Cursor, batch: &mut Vec<ItsEntry>) {
    use Bound::{Excluded, Unbounded};
    match after {
        None => {
            batch.extend(collections(maps, Unbounded).chain(devices(maps, Unbounded)).take(BATCH));
        }
        Some(ItsEntry::Collection(CollectionDump { collection, .. })) => {
            let rest = collections(maps, Excluded(CollectionId(collection)));
            batch.extend(rest.chain(devices(maps, Unbounded)).take(BATCH));
        }
        Some(ItsEntry::Device(DeviceDump { device, .. })) => {
            let rest = events(maps, device, Unbounded);
            batch.extend(rest.chain(devices(maps, Excluded(device))).take(BATCH));
        }
        Some(ItsEntry::Event(EventDump { device, event, .. })) => {
            let rest = events(maps, device, Excluded(event.0));
            batch.extend(rest.chain(devices(maps, Excluded(device))).take(BATCH));
        }
    }
}

impl<E: Engine> Its<E> {
    /// Calls `f` with every mapping until `f` breaks: first the collections, then each device
    /// followed by its events. Commands continue to be performed in between.
    pub fn visit(&self, mut f: impl FnMut(ItsEntry) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut entries = Vec::with_capacity(BATCH);
        let mut after = None;
        loop {
            batch(&self.unit().maps(), after, &mut entries);
            let Some(&last) = entries.last() else { return ControlFlow::Continue(()) };
            after = Some(last);
            entries.drain(..).try_for_each(&mut f)?;
        }
    }

    /// Returns all mappings and counters.
    pub fn dump(&self) -> ItsDump {
        let mut dump = ItsDump {
            enabled: self.unit().port.gate.is_enabled(),
            collections: Vec::new(),
            devices: Vec::new(),
            events: Vec::new(),
            stats: self.stats(),
        };
        let _ = self.visit(|entry| {
            match entry {
                ItsEntry::Collection(collection) => dump.collections.push(collection),
                ItsEntry::Device(device) => dump.devices.push(device),
                ItsEntry::Event(event) => dump.events.push(event),
            }
            ControlFlow::Continue(())
        });
        dump
    }
}

impl<E: Engine> Gic<E> {
    /// Calls `f` with every LPI that exists, in the order of INTIDs, until `f` breaks.
    pub fn visit_lpis(&self, mut f: impl FnMut(LpiState) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut entries = Vec::with_capacity(BATCH);
        let mut from = Intid(LPI_BASE);
        let Some(lpis) = self.lpis() else { return ControlFlow::Continue(()) };
        loop {
            lpis.with_msi(|msi| {
                msi.lpis_from(from, &mut |lpi| {
                    entries.push(lpi);
                    if entries.len() < BATCH {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                });
            });
            let Some(last) = entries.last() else { return ControlFlow::Continue(()) };
            from = Intid(last.intid.0 + 1);
            entries.drain(..).try_for_each(&mut f)?;
        }
    }

    /// Returns the state of all LPIs and ITSs.
    pub fn dump(&self) -> GicDump {
        let mut lpis = Vec::new();
        let _ = self.visit_lpis(|lpi| {
            lpis.push(lpi);
            ControlFlow::Continue(())
        });
        let its = (0..).map_while(|n| self.its(n)).map(|its| its.dump()).collect();
        let refused = self.lpis().map_or(0, |lpis| lpis.refused());
        GicDump { lpis, refused, its }
    }
}

impl fmt::Display for ItsDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", if self.enabled { "enabled" } else { "not enabled" })?;
        for c in &self.collections {
            writeln!(f, "  collection {} -> vCPU {}", c.collection, c.target.0)?;
        }
        let mut events = self.events.iter().peekable();
        for d in &self.devices {
            writeln!(
                f,
                "  device {:#x}: {} EventID bits, ITT at {:#x}",
                d.device.0, d.event_bits, d.itt
            )?;
            while let Some(e) = events.next_if(|e| e.device <= d.device) {
                let live = if e.live { "" } else { ", without effect" };
                writeln!(
                    f,
                    "    event {} -> LPI {}, collection {}{live}",
                    e.event.0, e.intid, e.collection
                )?;
            }
        }
        for (command, n) in &self.stats.commands {
            writeln!(f, "  {command}: {n}")?;
        }
        for (command, fault, n) in &self.stats.faults {
            writeln!(f, "  {command}, {fault}: {n}")?;
        }
        writeln!(f, "  MSIs without effect: {}", self.stats.untranslated)
    }
}

impl fmt::Display for GicDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::engine::LpiPlace;
        for lpi in &self.lpis {
            let enabled = if lpi.config.enabled { "enabled" } else { "disabled" };
            let pending = if lpi.pending { ", pending" } else { "" };
            write!(f, "LPI {} -> vCPU {}: {enabled}", lpi.intid, lpi.target.0)?;
            write!(f, ", priority {:?}{pending}", lpi.config.priority)?;
            match lpi.place {
                LpiPlace::Idle => writeln!(f)?,
                LpiPlace::Queued => writeln!(f, ", queued")?,
                LpiPlace::Held(vcpu) => writeln!(f, ", held by vCPU {}", vcpu.0)?,
            }
        }
        for (n, its) in self.its.iter().enumerate() {
            write!(f, "ITS {n}: {its}")?;
        }
        Ok(())
    }
}
