//! The effect of each command (IHI 0069, 5.3).
//!
//! A command either has its whole effect, or, if it is wrong, none, and a [`Fault`] is counted. (A
//! command that meets a bound can have a part of its effect: the collection is mapped then, but
//! some of its events have no effect until it is mapped once more.) Commands take effect before the
//! next one is read, so SYNC has nothing to wait for. Work that takes long is left to a job
//! ([`super::job`]).
//!
//! The architecture leaves these points open:
//!
//! * MAPTI of an event that is mapped already does nothing. MAPD of a device that is mapped already
//!   unmaps its events first.
//! * MAPD and MAPTI do not access the ITT. It belongs to the engine, and the guest has to leave it
//!   alone. MAPD and MAPC require the place of their entry to be in memory.
//! * To unmap a device, event or collection, the ITS looks it up in its own copy. So unmapping
//!   works regardless of the state of the tables.
//! * Unmapping an event, alone or with its device, also clears its LPI's pending state. Unmapping a
//!   collection does not, and an MSI for an unmapped collection has no effect.
//! * The configuration of an LPI is also read when its event is mapped.
//! * MOVALL moves all LPIs of the redistributor, regardless of the ITS that they came through, and
//!   future MSIs follow. Collections keep their mappings. Mapping a collection again moves its LPIs
//!   to the redistributor that it names.
//! * MSIs and INTs for a redistributor that does not have LPIs enabled are ignored (12.11,
//!   GICR_CTLR). Mapping commands are performed.

use core::cell::Cell;

use super::ItsConfig;
use super::command::{CollectionId, Command, Fault, RdBase};
use super::job::{CHANGE, Job, LOOK, Place};
use super::maps::{Link, Maps};
use super::stats::Counters;
use super::table::{Baser, ENTRY, read_entry, write_entry};
use crate::arch::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};
use crate::engine::{Engine, MsiControl};
use crate::frames::gicv3::redist::Redist;
use crate::frames::lpi_tables::{LpiControl, Tables};
use crate::frames::machine::Machine;

/// The reason for which a command was not performed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// The command is wrong, or a bound refuses it.
    Fault(Fault),
    /// The command needs room that unmapped objects still take up. Try again.
    Again,
    /// The command takes long: this is the remaining work.
    Long(Job),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Work units for reading the configuration of an LPI again.
const RECONFIGURE: u32 = 2;

/// The context of commands, apart from the state that they change.
pub(crate) struct Exec<'a, E: Engine> {
    pub(crate) config: &'a ItsConfig,
    pub(crate) machine: &'a Machine,
    pub(crate) lpis: &'a LpiControl<E>,
    pub(crate) redists: &'a [Redist],
    pub(crate) counters: &'a Counters,
    /// The device table and the collection table.
    pub(crate) tables: [Baser; 2],
    /// Work done so far: events and LPIs examined, and commands.
    pub(crate) spent: Cell<u32>,
}

impl<E: Engine> Exec<'_, E> {
    /// Adds to the work done.
    pub(crate) fn spend(&self, work: u32) {
        self.spent.set(self.spent.get().saturating_add(work));
    }

    /// The work that is left in the slice, at least 1.
    pub(crate) fn left(&self) -> u32 {
        self.config.slice.saturating_sub(self.spent.get()).max(1)
    }

    /// Whether the slice is spent.
    pub(crate) fn is_spent(&self) -> bool {
        self.spent.get() >= self.config.slice
    }

    /// A redistributor's LPI tables.
    pub(crate) fn tables(&self, vcpu: VcpuId) -> Tables {
        let none = Tables { vcpu, propbaser: 0, pendbaser: 0, unread: u32::MAX };
        self.redists.get(vcpu.index()).map_or(none, Redist::tables)
    }

    fn target(&self, rdbase: RdBase) -> Result<VcpuId, Fault> {
        let vcpu = if self.config.pta {
            let base = rdbase.0 << 16;
            self.machine.redists.iter().position(|&rd| rd == base)
        } else {
            usize::try_from(rdbase.0).ok().filter(|&n| n < self.machine.affinities.len())
        };
        vcpu.map(|n| VcpuId(n as u16)).ok_or(Fault::RdbaseRange)
    }

    fn check_device(&self, device: DeviceId) -> Result<(), Fault> {
        let fits = u64::from(device.0) >> self.config.device_bits == 0;
        if fits { Ok(()) } else { Err(Fault::DeviceRange) }
    }

    fn check_collection(&self, collection: CollectionId) -> Result<(), Fault> {
        let fits = u32::from(collection.0) >> self.config.collection_bits == 0;
        if fits { Ok(()) } else { Err(Fault::CollectionRange) }
    }

    /// Whether a collection needs a table entry. The first collections need none.
    fn is_in_table(&self, collection: CollectionId) -> bool {
        collection.0 >= self.config.hardware_collections.into()
    }

    /// Checks that the place of a table entry is in memory.
    fn check_entry(&self, table: Baser, index: u64, range: Fault) -> Result<(), Fault> {
        let memory = self.lpis.memory();
        let address = table.entry(memory, index).map_err(|_| Fault::TableMemory)?;
        let entry = read_entry(memory, address.ok_or(range)?);
        entry.map(drop).map_err(|_| Fault::TableMemory)
    }

    /// Clears the table entry of an unmapped device or event, so that no reader takes it for mapped
    /// later. If the guest has moved the table away, the loss is its own.
    fn clear_entry(&self, address: Option<u64>) {
        let cleared = address.map(|address| write_entry(self.lpis.memory(), address, 0));
        if !matches!(cleared, Some(Ok(()))) {
            self.counters.unwritten();
        }
    }

    pub(crate) fn clear_table_entry(&self, table: Baser, index: u64) {
        self.clear_entry(table.entry(self.lpis.memory(), index).ok().flatten());
    }

    /// Performs a command or, if that takes long, returns the remaining work.
    pub(crate) fn perform(&self, maps: &mut Maps<E>, command: Command) -> Result<(), Stop> {
        match command {
            Command::Mapd { device, valid, size, itt } => {
                self.mapd(maps, device, valid.then_some((size, itt)))
            }
            Command::Mapc { collection, valid, rdbase } => {
                self.mapc(maps, collection, valid.then_some(rdbase))
            }
            Command::Mapti { device, event, intid, collection } => {
                self.mapti(maps, device, event, (intid, collection))
            }
            Command::Mapi { device, event, collection } => {
                self.mapti(maps, device, event, (Intid(event.0), collection))
            }
            Command::Movi { device, event, collection } => {
                self.movi(maps, device, event, collection)
            }
            Command::Movall { from, to } => {
                let (from, to) = (self.target(from)?, self.target(to)?);
                Err(Stop::Long(Job::Movall { from, to, next: Intid(LPI_BASE) }))
            }
            Command::Discard(device, event) => Ok(self.discard(maps, device, event)?),
            Command::Int(device, event) => match self.mapped(maps, device, event)? {
                (intid, Link::Live) => {
                    let _ = maps.msi.set_pending(intid, true);
                    Ok(())
                }
                _ => Err(Fault::EventUnmapped.into()),
            },
            Command::Clear(device, event) => {
                let (intid, _) = self.mapped(maps, device, event)?;
                // An LPI that the engine does not have is not pending.
                let _ = maps.msi.set_pending(intid, false);
                Ok(())
            }
            Command::Inv(device, event) => {
                let (intid, _) = self.mapped(maps, device, event)?;
                if let Some(target) = maps.msi.target_of(intid) {
                    self.lpis.reconfigure_one(&mut maps.msi, self.tables(target), intid);
                }
                Ok(())
            }
            Command::Invall(collection) => {
                self.check_collection(collection)?;
                let target = maps.collections.get(&collection);
                let target = *target.ok_or(Fault::CollectionUnmapped)?;
                Err(Stop::Long(Job::reconfigure(target)))
            }
            Command::Sync(rdbase) => Ok(self.target(rdbase).map(drop)?),
        }
    }

    pub(crate) fn has_lpis(&self, vcpu: VcpuId) -> bool {
        self.redists.get(vcpu.index()).is_some_and(Redist::has_lpis)
    }

    /// Reads the configuration of some LPIs of a redistributor again. Returns the cost, and the LPI
    /// to continue with.
    pub(crate) fn reconfigure(
        &self,
        maps: &mut Maps<E>,
        target: VcpuId,
        first: Intid,
    ) -> (u32, Option<Intid>) {
        let part =
            self.lpis.reconfigure_some(&mut maps.msi, self.tables(target), first, self.left());
        (LOOK * part.looked + RECONFIGURE * part.changed, part.next)
    }

    fn mapd(
        &self,
        maps: &mut Maps<E>,
        device: DeviceId,
        to: Option<(u8, u64)>,
    ) -> Result<(), Stop> {
        self.check_device(device)?;
        if let Some((size, _)) = to {
            if size >= self.config.event_bits {
                return Err(Fault::SizeRange.into());
            }
            self.check_entry(self.tables[0], device.0.into(), Fault::DeviceRange)?;
            let others = maps.devices.len() - usize::from(maps.devices.contains_key(&device));
            if others >= self.config.max_devices as usize {
                return Err(Fault::TooManyDevices.into());
            }
        }
        if to.is_some() && !maps.devices.contains_key(&device) {
            maps.check_bytes(super::maps::DEVICE)?;
        }
        Err(Stop::Long(Job::Mapd { device, to }))
    }

    fn mapc(
        &self,
        maps: &mut Maps<E>,
        collection: CollectionId,
        to: Option<RdBase>,
    ) -> Result<(), Stop> {
        self.check_collection(collection)?;
        let Some(rdbase) = to else {
            let mapped = maps.collections.contains_key(&collection);
            return if mapped { self.bring_all(maps, collection, None) } else { Ok(()) };
        };
        let target = self.target(rdbase)?;
        if self.is_in_table(collection) {
            self.check_entry(self.tables[1], collection.0.into(), Fault::CollectionRange)?;
        }
        // This is needed even if the collection is mapped to `target` already: MOVALL may have
        // moved its LPIs away.
        maps.insert_collection(collection, target)?;
        self.bring_all(maps, collection, Some(target))
    }

    /// Moves the events of a collection to a target, or parks them. The collection stays mapped
    /// until that is done.
    fn bring_all(
        &self,
        maps: &mut Maps<E>,
        collection: CollectionId,
        target: Option<VcpuId>,
    ) -> Result<(), Stop> {
        if maps.has_member(collection) {
            return Err(Stop::Long(Job::Mapc {
                collection,
                target,
                next: Place::FIRST,
                fault: None,
            }));
        }
        if target.is_none() {
            maps.remove_collection(collection);
        }
        Ok(())
    }

    /// Checks that a device is mapped, and can have an event with that number.
    fn check_event(&self, maps: &Maps<E>, device: DeviceId, event: EventId) -> Result<(), Fault> {
        self.check_device(device)?;
        let size = maps.devices.get(&device).ok_or(Fault::DeviceUnmapped)?.size;
        let fits = u64::from(event.0) >> (size + 1) == 0;
        if fits { Ok(()) } else { Err(Fault::EventRange) }
    }

    /// Looks up a mapped event.
    fn mapped(
        &self,
        maps: &Maps<E>,
        device: DeviceId,
        event: EventId,
    ) -> Result<(Intid, Link), Fault> {
        self.check_event(maps, device, event)?;
        let found = maps.event(device, event).ok_or(Fault::EventUnmapped)?;
        Ok((found.intid, found.link))
    }

    fn mapti(
        &self,
        maps: &mut Maps<E>,
        device: DeviceId,
        event: EventId,
        (intid, collection): (Intid, CollectionId),
    ) -> Result<(), Stop> {
        self.check_event(maps, device, event)?;
        self.check_collection(collection)?;
        // The collection need not be mapped, but its table must have room for it: a mapped event is
        // not mapped again.
        if self.is_in_table(collection) && !self.tables[1].has(collection.0.into()) {
            return Err(Fault::CollectionRange.into());
        }
        if !self.lpis.is_lpi(intid) {
            return Err(Fault::IntidRange.into());
        }
        if maps.event(device, event).is_some() {
            return Ok(());
        }
        self.spend(CHANGE);
        maps.add_event(self, device, event, (intid, collection))
    }

    fn movi(
        &self,
        maps: &mut Maps<E>,
        device: DeviceId,
        event: EventId,
        collection: CollectionId,
    ) -> Result<(), Stop> {
        self.check_event(maps, device, event)?;
        self.check_collection(collection)?;
        let target = *maps.collections.get(&collection).ok_or(Fault::CollectionUnmapped)?;
        maps.check_member(collection)?;
        self.spend(CHANGE);
        Ok(maps.move_event(self, device, event, (collection, target))?)
    }

    fn discard(&self, maps: &mut Maps<E>, device: DeviceId, event: EventId) -> Result<(), Fault> {
        self.mapped(maps, device, event)?;
        self.spend(CHANGE);
        maps.remove_event(device, event);
        let itt = maps.devices.get(&device).map(|device| device.itt);
        self.clear_entry(itt.and_then(|itt| itt.checked_add(u64::from(event.0) * ENTRY)));
        Ok(())
    }
}
