//! The guest's mappings: devices, events and collections. This is the ITS's own copy, which only
//! commands and writes of GITS_BASER change.
//!
//! An event is in the engine ([`MsiControl`]) while injections through it count, which is while its
//! collection is mapped. When a collection is unmapped, a pending LPI of its events stays in place,
//! and moves with the collection once the collection is mapped again. Until then the event is
//! *parked* in a second domain, into which no thread injects.

use alloc::collections::BTreeMap;
use core::ops::Bound;

use super::command::{CollectionId, Fault};
use super::events::Events;
use super::exec::{Exec, Stop};
use super::job::{Long, Lost, Place};
use crate::arch::ids::{DeviceId, EventId, Intid, VcpuId};
use crate::engine::{Engine, Error, MsiControl};
use crate::lockfree::cost::btree_entry;

/// The engine's domain that has an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Link {
    /// The domain that MSIs are translated with.
    Live,
    /// The domain into which no thread injects.
    Parked,
    /// No domain.
    None,
}

/// A mapped event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) intid: Intid,
    pub(crate) collection: CollectionId,
    pub(crate) link: Link,
}

/// The reason for which a walk over the events has stopped.
pub(crate) enum Walk {
    /// It found a wanted event.
    Event(DeviceId, EventId, Event),
    /// It examined enough events. The walk continues at this place.
    Pause(Place),
    /// There are no more events.
    End,
}

/// A mapped device.
#[derive(Debug)]
pub(crate) struct Device {
    /// One less than the device's number of EventID bits.
    pub(crate) size: u8,
    /// Address of the device's interrupt translation table.
    pub(crate) itt: u64,
    pub(crate) events: Events,
}

/// Heap bytes of a device without its events.
pub(crate) const DEVICE: usize = btree_entry::<DeviceId, Device>();
/// Heap bytes of a mapped collection.
pub(crate) const COLLECTION: usize = btree_entry::<CollectionId, VcpuId>();
/// Heap bytes of a collection that has events.
const MEMBERS: usize = btree_entry::<CollectionId, u32>();

/// All mappings of an ITS.
pub(crate) struct Maps<E: Engine> {
    pub(crate) msi: E::Msi,
    parked: E::Msi,
    pub(crate) devices: BTreeMap<DeviceId, Device>,
    pub(crate) collections: BTreeMap<CollectionId, VcpuId>,
    /// The number of events of each collection that has any, mapped or not.
    members: BTreeMap<CollectionId, u32>,
    /// The number of events of all devices.
    events: u32,
    /// The command that is being performed, if it takes more than one slice.
    pub(crate) long: Option<Long>,
    /// The lost mappings that are still to be unmapped.
    pub(crate) lost: Lost,
    /// The number of bytes that the engine has been told of.
    counted: usize,
}

impl<E: Engine> Drop for Maps<E> {
    fn drop(&mut self) {
        self.count_bytes(0, self.counted);
    }
}

/// Converts a refusal by the engine into the outcome of a command.
fn stop(error: Error) -> Stop {
    match error {
        Error::TooMuchGarbage => Stop::Again,
        Error::TooManyEvents => Fault::TooManyEvents.into(),
        Error::TooManyDevices => Fault::TooManyDevices.into(),
        Error::TooManyBytes => Fault::TooManyBytes.into(),
        _ => Fault::TooManyLpis.into(),
    }
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
            long: None,
            lost: Lost::default(),
            counted: 0,
        })
    }

    /// A mapped event, regardless of its link.
    pub(crate) fn event(&self, device: DeviceId, event: EventId) -> Option<Event> {
        self.devices.get(&device)?.events.get(event.0)
    }

    /// Collections that have events but are not mapped.
    pub(crate) fn unmapped_collections(&self) -> impl Iterator<Item = CollectionId> {
        self.members.keys().copied().filter(|id| !self.collections.contains_key(id))
    }

    /// The numbers of mapped devices, collections and events.
    pub(crate) fn counts(&self) -> [usize; 3] {
        [self.devices.len(), self.collections.len(), self.events as usize]
    }

    fn set_link(&mut self, device: DeviceId, event: EventId, link: Link) {
        if let Some(device) = self.devices.get_mut(&device)
            && let Some(found) = device.events.get(event.0)
        {
            device.events.insert(event.0, Event { link, ..found });
        }
    }

    fn joins(&mut self, collection: CollectionId) {
        let members = self.members.entry(collection).or_default();
        *members += 1;
        if *members == 1 {
            self.count_bytes(MEMBERS, 0);
        }
        self.events += 1;
    }

    fn leaves(&mut self, collection: CollectionId) {
        if let Some(members) = self.members.get_mut(&collection) {
            *members -= 1;
            if *members == 0 {
                self.members.remove(&collection);
                self.count_bytes(0, MEMBERS);
            }
        }
        self.events -= 1;
    }

    /// Puts an event into the engine, so that its MSIs have an effect.
    fn attach(
        &mut self,
        exec: &Exec<'_, E>,
        device: DeviceId,
        event: EventId,
        (intid, target): (Intid, VcpuId),
    ) -> Result<(), Stop> {
        exec.lpis.sweep();
        let configuring = exec.lpis.configuring();
        let config = exec.lpis.config(exec.tables(target), intid);
        let mapped = self.msi.map(device, event, intid, target, config);
        drop(configuring);
        mapped.map_err(stop)?;
        // The LPI belongs to the ITS from now on.
        exec.lpis.forget_direct(intid);
        Ok(())
    }

    /// Maps an event that is not mapped. Its device is mapped.
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
        self.check_bytes(Events::MOST_NEW + MEMBERS)?;
        let mut link = Link::None;
        if let Some(&target) = self.collections.get(&collection) {
            self.attach(exec, device, event, (intid, target))?;
            link = Link::Live;
        }
        if let Some(device) = self.devices.get_mut(&device) {
            let before = device.events.bytes();
            device.events.insert(event.0, Event { intid, collection, link });
            let after = device.events.bytes();
            self.count_bytes(after, before);
            self.joins(collection);
        }
        Ok(())
    }

    /// Unmaps an event.
    pub(crate) fn remove_event(&mut self, device: DeviceId, event: EventId) {
        let Some(events) = self.devices.get_mut(&device).map(|device| &mut device.events) else {
            return;
        };
        let before = events.bytes();
        let removed = events.remove(event.0);
        let after = events.bytes();
        self.count_bytes(after, before);
        let Some(Event { link, collection, .. }) = removed else { return };
        self.leaves(collection);
        // The event's link says that it is there.
        let _ = match link {
            Link::Live if cfg!(mutant = "discard_without_clear") => self.msi.detach(device, event),
            Link::Live => self.msi.unmap(device, event),
            Link::Parked => self.parked.unmap(device, event),
            Link::None => Ok(()),
        };
    }

    /// Moves an event to a mapped collection, and its LPI to that collection's target.
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

    /// Delivers an event's LPI to `target` from now on, configured by that redistributor's table.
    fn send_to(
        &mut self,
        exec: &Exec<'_, E>,
        device: DeviceId,
        event: EventId,
        (intid, target): (Intid, VcpuId),
    ) {
        if self.msi.target_of(intid) != Some(target) {
            let _configuring = exec.lpis.configuring();
            // This comes first because it calls the host, which may panic.
            let config = exec.lpis.config(exec.tables(target), intid);
            // The event and the vCPU exist.
            let _ = self.msi.retarget(device, event, target);
            let _ = self.msi.set_config(intid, config);
        }
    }

    /// Maps a device that is not mapped.
    pub(crate) fn insert_device(&mut self, device: DeviceId, size: u8, itt: u64) {
        self.devices.insert(device, Device { size, itt, events: Events::default() });
        self.count_bytes(DEVICE, 0);
    }

    /// Unmaps a device that no longer has events. Returns whether the device was mapped.
    pub(crate) fn remove_device(&mut self, device: DeviceId) -> bool {
        let removed = self.devices.remove(&device).is_some();
        self.count_bytes(0, if removed { DEVICE } else { 0 });
        removed
    }

    /// The device with the highest number.
    pub(crate) fn last_device(&self) -> Option<DeviceId> {
        self.devices.last_key_value().map(|(&id, _)| id)
    }

    /// The device's event with the highest number.
    pub(crate) fn last_event(&self, device: DeviceId) -> Option<(EventId, Event)> {
        let (number, event) = self.devices.get(&device)?.events.last()?;
        Some((EventId(number), event))
    }

    /// The mapped collection with the highest number.
    pub(crate) fn last_collection(&self) -> Option<CollectionId> {
        self.collections.last_key_value().map(|(&id, _)| id)
    }

    /// Maps a collection, or changes its target.
    pub(crate) fn insert_collection(
        &mut self,
        collection: CollectionId,
        target: VcpuId,
    ) -> Result<(), Stop> {
        if !self.collections.contains_key(&collection) {
            self.check_bytes(COLLECTION)?;
            self.count_bytes(COLLECTION, 0);
        }
        self.collections.insert(collection, target);
        Ok(())
    }

    pub(crate) fn remove_collection(&mut self, collection: CollectionId) {
        if self.collections.remove(&collection).is_some() {
            self.count_bytes(0, COLLECTION);
        }
    }

    /// Tells the engine that `more` bytes have come into use here and `less` bytes are no longer in
    /// use. Bytes still in use at the end are subtracted on drop.
    fn count_bytes(&mut self, more: usize, less: usize) {
        self.counted = self.counted + more - less;
        self.msi.count_bytes(more, less);
    }

    /// Checks that the VM has room for `bytes` more bytes of these maps.
    pub(crate) fn check_bytes(&mut self, bytes: usize) -> Result<(), Stop> {
        self.msi.check_bytes(bytes).map_err(stop)
    }

    /// Checks that the VM has room for an event of this collection, if it would be the first one.
    pub(crate) fn check_member(&mut self, collection: CollectionId) -> Result<(), Stop> {
        if self.members.contains_key(&collection) { Ok(()) } else { self.check_bytes(MEMBERS) }
    }

    /// Whether any collection from this number on has an event.
    pub(crate) fn has_members(&self, first: CollectionId) -> bool {
        self.members.range(first..).next().is_some()
    }

    /// Whether this collection has an event.
    pub(crate) fn has_member(&self, collection: CollectionId) -> bool {
        self.members.contains_key(&collection)
    }

    /// Finds the first wanted event from a place on, or stops after `most` events and devices.
    /// Returns also how many were examined.
    pub(crate) fn walk(
        &self,
        from: Place,
        most: u32,
        wanted: impl Fn(&Event) -> bool,
    ) -> (u32, Walk) {
        let mut looked = 0;
        let pause = |place: Option<Place>| place.map_or(Walk::End, Walk::Pause);
        for (&id, device) in self.devices.range(from.device..) {
            let first = if id == from.device { from.event } else { 0 };
            looked += 1;
            for (number, event) in device.events.above(Bound::Included(first)) {
                looked += 1;
                if wanted(&event) {
                    return (looked, Walk::Event(id, EventId(number), event));
                }
                if looked >= most {
                    return (looked, pause(Place::after(id, EventId(number))));
                }
            }
            if looked >= most {
                return (looked, pause(Place::after_device(id)));
            }
        }
        (looked, Walk::End)
    }

    /// Makes an event of a newly mapped collection have an effect at the collection's target. Fails
    /// if a bound refuses that; the event then stays without effect.
    pub(crate) fn bring(
        &mut self,
        exec: &Exec<'_, E>,
        (device, event): (DeviceId, EventId),
        found: Event,
        target: VcpuId,
    ) -> Result<(), Stop> {
        if found.link == Link::Live {
            self.send_to(exec, device, event, (found.intid, target));
            return Ok(());
        }
        if cfg!(mutant = "unpark_drops_first") && found.link == Link::Parked {
            let _ = self.parked.detach(device, event);
        }
        self.attach(exec, device, event, (found.intid, target))?;
        if found.link == Link::Parked {
            // The same event in the live domain has the LPI now, so the LPI stays as it is.
            let _ = self.parked.detach(device, event);
        }
        self.set_link(device, event, Link::Live);
        Ok(())
    }

    /// Takes an event out of the domain that MSIs are translated with. If a bound of the VM does
    /// not permit to park the event, its LPI is no longer pending, and this is counted.
    ///
    /// The LPI's configuration and target stay as they are, and are not even read, because they are
    /// changed through other domains, too.
    pub(crate) fn park(
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
