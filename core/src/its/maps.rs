//! What the guest has mapped: devices, events, collections. The ITS's own copy, which commands alone change.
//!
//! An event is in the engine ([`MsiControl`]) while injections through it count, which is while its collection is mapped. An event whose
//! collection is unmapped may have a pending LPI, which stays where it is, and moves with the collection once that is mapped again: until
//! then the event is *parked* in a second domain, which nobody injects into.

use alloc::collections::BTreeMap;
use core::ops::Bound;

use super::command::{CollectionId, Fault};
use super::events::Events;
use super::exec::{Exec, Stop};
use crate::engine::{Engine, Error, MsiControl};
use crate::ids::{DeviceId, EventId, Intid, VcpuId};

/// Where the engine has an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Link {
    /// In the domain that MSIs are translated with.
    Live,
    /// In the domain that nobody injects into.
    Parked,
    /// Nowhere.
    None,
}

/// A mapped event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) intid: Intid,
    pub(crate) collection: CollectionId,
    pub(crate) link: Link,
}

/// A mapped device.
#[derive(Debug)]
pub(crate) struct Device {
    /// One less than its number of EventID bits.
    pub(crate) size: u8,
    /// Address of its interrupt translation table.
    pub(crate) itt: u64,
    pub(crate) events: Events,
}

/// All of it.
pub(crate) struct Maps<E: Engine> {
    pub(crate) msi: E::Msi,
    parked: E::Msi,
    pub(crate) devices: BTreeMap<DeviceId, Device>,
    pub(crate) collections: BTreeMap<CollectionId, VcpuId>,
    /// How many events belong to each collection, mapped or not, that has any.
    members: BTreeMap<CollectionId, u32>,
    /// Events of all devices.
    events: u32,
}

impl<E: Engine> Maps<E> {
    pub(crate) fn new(engine: &E) -> Result<Self, Error> {
        Ok(Self {
            msi: engine.msi()?,
            parked: engine.msi()?,
            devices: BTreeMap::new(),
            collections: BTreeMap::new(),
            members: BTreeMap::new(),
            events: 0,
        })
    }

    /// A mapped event, in whatever state.
    pub(crate) fn event(&self, device: DeviceId, event: EventId) -> Option<Event> {
        self.devices.get(&device)?.events.get(event.0)
    }

    /// Collections that events belong to, but that are not mapped.
    pub(crate) fn unmapped_collections(&self) -> impl Iterator<Item = CollectionId> {
        self.members.keys().copied().filter(|id| !self.collections.contains_key(id))
    }

    fn set_link(&mut self, device: DeviceId, event: EventId, link: Link) {
        if let Some(device) = self.devices.get_mut(&device)
            && let Some(found) = device.events.get(event.0)
        {
            device.events.insert(event.0, Event { link, ..found });
        }
    }

    fn joins(&mut self, collection: CollectionId) {
        *self.members.entry(collection).or_default() += 1;
        self.events += 1;
    }

    fn leaves(&mut self, collection: CollectionId) {
        if let Some(members) = self.members.get_mut(&collection) {
            *members -= 1;
            if *members == 0 {
                self.members.remove(&collection);
            }
        }
        self.events -= 1;
    }

    /// Puts an event into the engine, so that MSIs of it have an effect.
    fn attach(
        &mut self,
        exec: &Exec<'_, E>,
        device: DeviceId,
        event: EventId,
        (intid, target): (Intid, VcpuId),
    ) -> Result<(), Stop> {
        let configuring = exec.lpis.configuring();
        let config = exec.lpis.config(exec.tables(target), intid);
        let mapped = self.msi.map(device, event, intid, target, config);
        drop(configuring);
        mapped.map_err(|error| match error {
            Error::TooMuchGarbage => Stop::Again,
            Error::TooManyEvents => Fault::TooManyEvents.into(),
            Error::TooManyDevices => Fault::TooManyDevices.into(),
            _ => Fault::TooManyLpis.into(),
        })?;
        // From now on it is the ITS's.
        exec.lpis.forget_direct(intid);
        Ok(())
    }

    /// Maps an event that is not mapped, of a device that is.
    pub(crate) fn add_event(
        &mut self,
        exec: &Exec<'_, E>,
        device: DeviceId,
        event: EventId,
        (intid, collection): (Intid, CollectionId),
    ) -> Result<(), Stop> {
        if self.events >= exec.config.max_events {
            return Err(Fault::TooManyEvents.into());
        }
        let mut link = Link::None;
        if let Some(&target) = self.collections.get(&collection) {
            self.attach(exec, device, event, (intid, target))?;
            link = Link::Live;
        }
        if let Some(device) = self.devices.get_mut(&device) {
            device.events.insert(event.0, Event { intid, collection, link });
            self.joins(collection);
        }
        Ok(())
    }

    /// Unmaps an event.
    pub(crate) fn remove_event(&mut self, device: DeviceId, event: EventId) {
        let Some(events) = self.devices.get_mut(&device).map(|device| &mut device.events) else {
            return;
        };
        let Some(Event { link, collection, .. }) = events.remove(event.0) else { return };
        self.leaves(collection);
        // It is there: that is what its link says.
        let _ = match link {
            Link::Live if cfg!(mutant = "discard_without_clear") => self.msi.detach(device, event),
            Link::Live => self.msi.unmap(device, event),
            Link::Parked => self.parked.unmap(device, event),
            Link::None => Ok(()),
        };
    }

    /// Moves an event to a collection that is mapped, and its LPI to where that is.
    pub(crate) fn move_event(
        &mut self,
        exec: &Exec<'_, E>,
        device: DeviceId,
        event: EventId,
        (collection, target): (CollectionId, VcpuId),
    ) -> Result<(), Fault> {
        let events = self.devices.get_mut(&device).map(|device| &mut device.events);
        let events = events.ok_or(Fault::EventUnmapped)?;
        let found = events.get(event.0).ok_or(Fault::EventUnmapped)?;
        if found.link != Link::Live {
            return Err(Fault::CollectionUnmapped);
        }
        let (old, intid) = (found.collection, found.intid);
        events.insert(event.0, Event { collection, ..found });
        self.leaves(old);
        self.joins(collection);
        self.send_to(exec, device, event, (intid, target));
        Ok(())
    }

    /// An event's LPI is delivered there from now on, configured as that redistributor's table says.
    fn send_to(
        &mut self,
        exec: &Exec<'_, E>,
        device: DeviceId,
        event: EventId,
        (intid, target): (Intid, VcpuId),
    ) {
        if self.msi.target_of(intid) != Some(target) {
            // The event is there, and so is the vCPU.
            let _ = self.msi.retarget(device, event, target);
            exec.lpis.reconfigure_one(&mut self.msi, exec.tables(target), intid);
        }
    }

    /// Unmaps a device with all its events.
    pub(crate) fn remove_device(&mut self, device: DeviceId) -> Option<Device> {
        let removed = self.devices.remove(&device)?;
        self.msi.unmap_device(device);
        self.parked.unmap_device(device);
        for (_, event) in removed.events.iter() {
            self.leaves(event.collection);
        }
        Some(removed)
    }

    /// Unmaps all devices, without a trace in the guest's tables.
    pub(crate) fn remove_devices(&mut self) {
        while let Some((&device, _)) = self.devices.first_key_value() {
            self.remove_device(device);
        }
    }

    /// The first event after `after` of which `wanted` is true, and how many were looked at.
    fn next(
        &self,
        wanted: impl Fn(&Event) -> bool,
        after: Option<(DeviceId, EventId)>,
    ) -> (u32, Option<(DeviceId, EventId, Event)>) {
        let from = after.map_or(DeviceId(0), |(device, _)| device);
        let mut looked = 0;
        let found = self.devices.range(from..).find_map(|(&id, device)| {
            let above = match after {
                Some((same, event)) if same == id => Bound::Excluded(event.0),
                _ => Bound::Unbounded,
            };
            looked += 1;
            let mut events = device.events.above(above);
            let (event, found) = events.find(|(_, event)| {
                looked += 1;
                wanted(event)
            })?;
            Some((id, EventId(event), found))
        });
        (looked, found)
    }

    fn for_each(
        &mut self,
        exec: &Exec<'_, E>,
        wanted: impl Fn(&Event) -> bool,
        mut f: impl FnMut(&mut Self, DeviceId, EventId, Event) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut after = None;
        loop {
            let (looked, found) = self.next(&wanted, after);
            exec.spend(looked);
            let Some((device, event, found)) = found else { return Ok(()) };
            after = Some((device, event));
            f(self, device, event, found)?;
        }
    }

    /// Maps a collection, or moves it. Events that could not be had because of a bound stay without effect; the last such
    /// reason is returned.
    pub(crate) fn map_collection(
        &mut self,
        exec: &Exec<'_, E>,
        collection: CollectionId,
        target: VcpuId,
    ) -> Result<(), Stop> {
        // Even if it is there already: MOVALL may have moved its LPIs away.
        self.collections.insert(collection, target);
        if !self.members.contains_key(&collection) {
            return Ok(());
        }
        let mut result = Ok(());
        let wanted = |event: &Event| event.collection == collection;
        self.for_each(exec, wanted, |maps, device, event, found| {
            if found.link == Link::Live {
                maps.send_to(exec, device, event, (found.intid, target));
                return Ok(());
            }
            if cfg!(mutant = "unpark_drops_first") && found.link == Link::Parked {
                let _ = maps.parked.detach(device, event);
            }
            match maps.attach(exec, device, event, (found.intid, target)) {
                Ok(()) => {
                    if found.link == Link::Parked {
                        // Another event of this ITS has its LPI now, which stays as it is.
                        let _ = maps.parked.detach(device, event);
                    }
                    maps.set_link(device, event, Link::Live);
                }
                Err(Stop::Again) => return Err(Stop::Again),
                Err(fault) => result = Err(fault),
            }
            Ok(())
        })?;
        result
    }

    /// Unmaps a collection. What is pending stays so.
    pub(crate) fn unmap_collection(
        &mut self,
        exec: &Exec<'_, E>,
        collection: CollectionId,
    ) -> Result<(), Stop> {
        if !self.collections.contains_key(&collection) {
            return Ok(());
        }
        if self.members.contains_key(&collection) {
            let wanted = |event: &Event| event.collection == collection && event.link == Link::Live;
            self.for_each(exec, wanted, |maps, device, event, found| {
                maps.park(exec, device, event, found.intid)
            })?;
        }
        // Last, so that a command that is performed again finds what is left to do.
        self.collections.remove(&collection);
        Ok(())
    }

    /// Unmaps all collections.
    pub(crate) fn unmap_collections(&mut self, exec: &Exec<'_, E>) {
        self.collections.clear();
        let live = |event: &Event| event.link == Link::Live;
        // Nothing is refused here.
        let _ = self.for_each(exec, live, |maps, device, event, found| {
            if maps.park(exec, device, event, found.intid).is_err() {
                maps.drop_pending(exec, device, event);
            }
            Ok(())
        });
    }

    /// Takes an event out of the domain that MSIs are translated with. If a bound of the VM does not let it be parked, its LPI is no
    /// longer pending, which is counted.
    ///
    /// The LPI's configuration and target stay as they are, and are not even looked at: they are changed through other domains, too.
    fn park(
        &mut self,
        exec: &Exec<'_, E>,
        device: DeviceId,
        event: EventId,
        intid: Intid,
    ) -> Result<(), Stop> {
        if cfg!(mutant = "park_detaches_first") {
            let _ = self.msi.detach(device, event);
        }
        let link = match self.parked.share(device, event, intid) {
            Ok(()) if cfg!(mutant = "parked_stays_live") => Link::Parked,
            Ok(()) if cfg!(mutant = "park_clears") => {
                let _ = self.msi.unmap(device, event);
                Link::Parked
            }
            Ok(()) => {
                let _ = self.msi.detach(device, event);
                Link::Parked
            }
            Err(Error::TooMuchGarbage) => return Err(Stop::Again),
            Err(_) => {
                self.drop_pending(exec, device, event);
                return Ok(());
            }
        };
        self.set_link(device, event, link);
        Ok(())
    }

    /// Takes an event out of the engine.
    fn drop_pending(&mut self, exec: &Exec<'_, E>, device: DeviceId, event: EventId) {
        exec.counters.unparked();
        let _ = self.msi.unmap(device, event);
        self.set_link(device, event, Link::None);
    }
}
