//! Jobs: long work, done in pieces.
//!
//! A command becomes a [`Job`] if its work grows with the number of the guest's mappings. So does a
//! write of a GITS_BASER that takes mappings away ([`Lost`]). The thread that has the turn (see
//! `unit`) performs a piece of the job. A job is a few numbers that describe the remaining work.
//! Nothing is locked, pinned or borrowed between two pieces, and each piece leaves every event in
//! one of the states of [`Link`].
//!
//! Examining an event or LPI costs [`LOOK`], and changing it costs [`CHANGE`] more. So a job that
//! finds nothing to change still pays for its search.

use super::command::{CollectionId, Command, Fault};
use super::exec::{Exec, Stop};
use super::maps::{Link, Maps, Walk};
use crate::arch::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};
use crate::engine::{Engine, MsiControl};

/// Work units for examining an event, a device, a collection or an LPI.
pub(crate) const LOOK: u32 = 1;
/// Work units for mapping, unmapping, parking or moving an event.
pub(crate) const CHANGE: u32 = 12;

/// The remaining work of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Job {
    /// MAPD: unmaps the device's events, then the device. Then maps the device again, if `to` has a
    /// size and an interrupt translation table.
    Mapd {
        /// The device.
        device: DeviceId,
        /// Size and address of the new table.
        to: Option<(u8, u64)>,
    },
    /// MAPC: moves each event of the collection to the target, or parks it if there is no target.
    Mapc {
        /// The collection.
        collection: CollectionId,
        /// The vCPU that its events go to.
        target: Option<VcpuId>,
        /// The first event that has not been examined.
        next: Place,
        /// The fault of the last event that was refused.
        fault: Option<Fault>,
    },
    /// MOVALL: moves LPIs.
    Movall {
        /// The vCPU that the LPIs leave.
        from: VcpuId,
        /// The vCPU that the LPIs go to.
        to: VcpuId,
        /// The first LPI that has not been examined.
        next: Intid,
    },
    /// INVALL, and the end of MOVALL: reads the configuration of a vCPU's LPIs again.
    Reconfigure {
        /// The vCPU.
        target: VcpuId,
        /// The first LPI that has not been examined.
        next: Intid,
    },
}

impl Job {
    pub(crate) const fn reconfigure(target: VcpuId) -> Self {
        Self::Reconfigure { target, next: Intid(LPI_BASE) }
    }
}

/// A place in the order of all events: by device, then by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Place {
    pub(crate) device: DeviceId,
    pub(crate) event: u32,
}

impl Place {
    /// The place before all events.
    pub(crate) const FIRST: Self = Self { device: DeviceId(0), event: 0 };

    /// The place after an event. Returns `None` if there is none.
    pub(crate) fn after(device: DeviceId, event: EventId) -> Option<Self> {
        match event.0.checked_add(1) {
            Some(event) => Some(Self { device, event }),
            None => Self::after_device(device),
        }
    }

    /// The place after all events of a device. Returns `None` if there is none.
    pub(crate) fn after_device(device: DeviceId) -> Option<Self> {
        Some(Self { device: DeviceId(device.0.checked_add(1)?), event: 0 })
    }
}

/// A command that is being performed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Long {
    pub(crate) job: Job,
    pub(crate) command: Command,
    /// Whether GITS_CREADR still points at this command. It does not if the queue has been replaced
    /// since.
    pub(crate) queued: bool,
}

/// Mappings that were in tables which GITS_BASER no longer names, and are still to be unmapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Lost {
    /// Devices from this number on are lost.
    devices: Option<DeviceId>,
    /// Collections from this number on are lost.
    collections: Option<CollectionId>,
    /// The first event that has not been examined for lost collections, if any.
    next: Option<Place>,
}

impl Lost {
    pub(crate) fn is_some(&self) -> bool {
        self.devices.is_some() || self.collections.is_some()
    }

    /// Marks the devices from a number on as lost.
    pub(crate) fn devices(&mut self, first: u64) {
        if let Ok(first) = u32::try_from(first) {
            let first = self.devices.map_or(first, |before| before.0.min(first));
            self.devices = Some(DeviceId(first));
        }
    }

    /// Marks the collections from a number on as lost.
    pub(crate) fn collections(&mut self, first: u64) {
        if let Ok(first) = u16::try_from(first) {
            let first = self.collections.map_or(first, |before| before.0.min(first));
            self.collections = Some(CollectionId(first));
            self.next = Some(Place::FIRST);
        }
    }
}

/// Whether a job, or a part of it, is done.
pub(crate) type Done = bool;

impl<E: Engine> Exec<'_, E> {
    /// Continues a job until it is done or the slice is spent.
    pub(crate) fn go_on(&self, maps: &mut Maps<E>, job: &mut Job) -> Result<Done, Stop> {
        while !self.is_spent() {
            let done = match *job {
                Job::Mapd { device, to } => self.go_on_mapd(maps, device, to),
                Job::Mapc { .. } => self.go_on_mapc(maps, job)?,
                Job::Movall { from, to, next } => {
                    // Each LPI that is examined may have to be moved.
                    let most = (self.left() / (LOOK + CHANGE)).max(1);
                    let part = maps.msi.move_some(from, to, next, most);
                    let part = part.unwrap_or_default();
                    self.spend(LOOK * part.looked + CHANGE * part.changed);
                    // If LPIs are disabled at `from`, the LPIs there may have been configured by no
                    // table at all.
                    *job = match part.next {
                        Some(next) => Job::Movall { from, to, next },
                        None if self.has_lpis(from) => return Ok(true),
                        None => Job::reconfigure(to),
                    };
                    false
                }
                Job::Reconfigure { target, next } => {
                    let (work, next) = self.reconfigure(maps, target, next);
                    self.spend(work);
                    next.map(|next| *job = Job::Reconfigure { target, next }).is_none()
                }
            };
            if done {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn go_on_mapd(&self, maps: &mut Maps<E>, device: DeviceId, to: Option<(u8, u64)>) -> Done {
        if let Some((event, _)) = maps.last_event(device) {
            self.spend(LOOK + CHANGE);
            maps.remove_event(device, event);
            return false;
        }
        self.spend(LOOK);
        if maps.remove_device(device) {
            self.clear_table_entry(self.tables[0], device.0.into());
        }
        if let Some((size, itt)) = to {
            maps.insert_device(device, size, itt);
        }
        true
    }

    fn go_on_mapc(&self, maps: &mut Maps<E>, job: &mut Job) -> Result<Done, Stop> {
        let Job::Mapc { collection, target, next, fault } = job else { return Ok(true) };
        let parks = target.is_none();
        let wanted = |event: &super::maps::Event| {
            event.collection == *collection && !(parks && event.link != Link::Live)
        };
        let (looked, walk) = maps.walk(*next, self.left(), wanted);
        self.spend(LOOK * looked);
        match walk {
            Walk::Pause(place) => *next = place,
            Walk::Event(device, event, found) => {
                self.spend(CHANGE);
                let done = match *target {
                    Some(target) => maps.bring(self, (device, event), found, target),
                    None => maps.park(self, device, event, found.intid),
                };
                match done {
                    Ok(()) => {}
                    Err(Stop::Fault(why)) => *fault = Some(why),
                    again => return again.map(|()| false),
                }
                match Place::after(device, event) {
                    Some(place) => *next = place,
                    None => return self.end_of_mapc(maps, job),
                }
            }
            Walk::End => return self.end_of_mapc(maps, job),
        }
        Ok(false)
    }

    fn end_of_mapc(&self, maps: &mut Maps<E>, job: &Job) -> Result<Done, Stop> {
        let Job::Mapc { collection, target, fault, .. } = *job else { return Ok(true) };
        if target.is_none() {
            maps.remove_collection(collection);
        }
        fault.map_or(Ok(true), |fault| Err(fault.into()))
    }

    /// Continues to unmap lost mappings until none are left or the slice is spent.
    pub(crate) fn go_on_losing(&self, maps: &mut Maps<E>, lost: &mut Lost) -> Result<Done, Stop> {
        while !self.is_spent() {
            if let Some(first) = lost.devices {
                self.spend(LOOK);
                match maps.last_device().filter(|&last| last >= first) {
                    None => lost.devices = None,
                    Some(device) => match maps.last_event(device) {
                        Some((event, _)) => {
                            self.spend(CHANGE);
                            maps.remove_event(device, event);
                        }
                        None => _ = maps.remove_device(device),
                    },
                }
            } else if let Some(first) = lost.collections {
                self.go_on_losing_collections(maps, lost, first)?;
            } else {
                return Ok(true);
            }
        }
        Ok(!lost.is_some())
    }

    fn go_on_losing_collections(
        &self,
        maps: &mut Maps<E>,
        lost: &mut Lost,
        first: CollectionId,
    ) -> Result<(), Stop> {
        let live =
            |event: &super::maps::Event| event.collection >= first && event.link == Link::Live;
        let Some(place) = lost.next.filter(|_| maps.has_members(first)) else {
            // All events are parked, so remove the collections.
            self.spend(LOOK);
            match maps.last_collection().filter(|&last| last >= first) {
                Some(last) => maps.remove_collection(last),
                None => (lost.collections, lost.next) = (None, None),
            }
            return Ok(());
        };
        let (looked, walk) = maps.walk(place, self.left(), live);
        self.spend(LOOK * looked);
        match walk {
            Walk::Pause(place) => lost.next = Some(place),
            Walk::Event(device, event, found) => {
                self.spend(CHANGE);
                maps.park(self, device, event, found.intid)?;
                lost.next = Place::after(device, event);
            }
            Walk::End => lost.next = None,
        }
        Ok(())
    }
}
