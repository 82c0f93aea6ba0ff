//! What the guest has mapped: devices, events, collections. The ITS's own copy, which commands alone change.
//!
//! An event is in the engine ([`MsiControl`]) while injections through it count, which is while its collection is mapped. An event whose
//! collection is unmapped may have a pending LPI, which stays where it is, and moves with the collection once that is mapped again: until
//! then the event is *parked* in a second domain, which nobody injects into.

use alloc::collections::BTreeMap;
use core::ops::Bound;

use super::command::{CollectionId, Command, Fault};
use super::exec::{Exec, Stop};
use crate::engine::{Engine, Error, LpiConfig, MsiControl};
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
    pub(crate) events: BTreeMap<u32, Event>,
}

/// All of it.
pub(crate) struct Maps<E: Engine> {
    pub(crate) msi: E::Msi,
    /// Made when it is first needed.
    parked: Option<E::Msi>,
    pub(crate) devices: BTreeMap<DeviceId, Device>,
    pub(crate) collections: BTreeMap<CollectionId, VcpuId>,
    /// Events of all devices.
    events: u32,
    /// Last: the handles above are parts of it.
    engine: E,
}

impl<E: Engine> Maps<E> {
    pub(crate) fn new(engine: &E) -> Result<Self, Error> {
        Ok(Self {
            msi: engine.msi()?,
            parked: None,
            devices: BTreeMap::new(),
            collections: BTreeMap::new(),
            events: 0,
            engine: engine.clone(),
        })
    }

    /// About how much there is to do for a command: 1 for one that concerns one event.
    pub(crate) fn cost(&self, command: Command) -> u32 {
        match command {
            Command::Mapd { device, .. } => {
                1 + self.devices.get(&device).map_or(0, |device| device.events.len() as u32)
            }
            Command::Mapc { .. } | Command::Movall { .. } | Command::Invall(_) => {
                1 + self.events / 8
            }
            _ => 1,
        }
    }

    /// A mapped event, in whatever state.
    pub(crate) fn event(&self, device: DeviceId, event: EventId) -> Option<Event> {
        self.devices.get(&device)?.events.get(&event.0).copied()
    }

    fn set_link(&mut self, device: DeviceId, event: EventId, link: Link) {
        if let Some(device) = self.devices.get_mut(&device)
            && let Some(event) = device.events.get_mut(&event.0)
        {
            event.link = link;
        }
    }

    /// Puts an event into the engine, so that MSIs of it have an effect.
    fn attach(
        &mut self,
        exec: &Exec<'_, E>,
        device: DeviceId,
        event: EventId,
        (intid, target): (Intid, VcpuId),
    ) -> Result<(), Stop> {
        let _configuring = exec.lpis.configuring();
        let config: LpiConfig = exec.lpis.config(exec.tables(target), intid);
        self.msi.map(device, event, intid, target, config).map_err(|error| match error {
            Error::TooMuchGarbage => Stop::Again,
            _ => Fault::Bounds.into(),
        })
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
            return Err(Fault::Bounds.into());
        }
        let mut link = Link::None;
        if let Some(&target) = self.collections.get(&collection) {
            self.attach(exec, device, event, (intid, target))?;
            link = Link::Live;
        }
        if let Some(device) = self.devices.get_mut(&device) {
            device.events.insert(event.0, Event { intid, collection, link });
            self.events += 1;
        }
        Ok(())
    }

    /// Unmaps an event.
    pub(crate) fn remove_event(&mut self, device: DeviceId, event: EventId) {
        let Some(events) = self.devices.get_mut(&device).map(|device| &mut device.events) else {
            return;
        };
        let Some(Event { link, .. }) = events.remove(&event.0) else { return };
        self.events -= 1;
        // It is there: that is what its link says.
        let _ = match link {
            Link::Live => self.msi.unmap(device, event),
            Link::Parked => {
                self.parked.as_mut().map_or(Ok(()), |parked| parked.unmap(device, event))
            }
            Link::None => Ok(()),
        };
    }

    /// Unmaps a device with all its events.
    pub(crate) fn remove_device(&mut self, device: DeviceId) -> Option<Device> {
        let removed = self.devices.remove(&device)?;
        self.msi.unmap_device(device);
        if let Some(parked) = &mut self.parked {
            parked.unmap_device(device);
        }
        self.events -= removed.events.len() as u32;
        Some(removed)
    }

    /// Unmaps everything, without a trace in the guest's tables.
    pub(crate) fn remove_devices(&mut self) {
        while let Some((&device, _)) = self.devices.first_key_value() {
            self.remove_device(device);
        }
    }

    /// The events of a collection, from the one after `after` up.
    fn next_of(
        &self,
        collection: CollectionId,
        after: Option<(DeviceId, EventId)>,
    ) -> Option<(DeviceId, EventId, Event)> {
        let from = after.map_or(DeviceId(0), |(device, _)| device);
        self.devices.range(from..).find_map(|(&id, device)| {
            let above = match after {
                Some((same, event)) if same == id => Bound::Excluded(event.0),
                _ => Bound::Unbounded,
            };
            let mut events = device.events.range((above, Bound::Unbounded));
            let (&event, found) = events.find(|(_, event)| event.collection == collection)?;
            Some((id, EventId(event), *found))
        })
    }

    fn for_each_of(
        &mut self,
        collection: CollectionId,
        mut f: impl FnMut(&mut Self, DeviceId, EventId, Event) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut after = None;
        while let Some((device, event, found)) = self.next_of(collection, after) {
            after = Some((device, event));
            f(self, device, event, found)?;
        }
        Ok(())
    }

    /// Maps a collection, or moves it. Its events that could not be had because of a bound stay without effect; the last such
    /// reason is returned.
    pub(crate) fn map_collection(
        &mut self,
        exec: &Exec<'_, E>,
        collection: CollectionId,
        target: VcpuId,
    ) -> Result<(), Stop> {
        // Even if it is there already: MOVALL may have moved its LPIs away.
        self.collections.insert(collection, target);
        let mut result = Ok(());
        self.for_each_of(collection, |maps, device, event, found| {
            match found.link {
                Link::Live => {
                    // It is there, and so is the vCPU.
                    let _ = maps.msi.retarget(device, event, target);
                }
                Link::Parked | Link::None => {
                    match maps.attach(exec, device, event, (found.intid, target)) {
                        Ok(()) => {
                            maps.unpark(device, event, found.link);
                            maps.set_link(device, event, Link::Live);
                        }
                        Err(Stop::Again) => return Err(Stop::Again),
                        Err(fault) => result = Err(fault),
                    }
                }
            }
            Ok(())
        })?;
        result
    }

    /// The LPI is mapped by another event of the ITS now, so that it stays as it is.
    fn unpark(&mut self, device: DeviceId, event: EventId, link: Link) {
        if link == Link::Parked
            && let Some(parked) = &mut self.parked
        {
            let _ = parked.detach(device, event);
        }
    }

    /// Unmaps a collection. What is pending stays so.
    pub(crate) fn unmap_collection(&mut self, collection: CollectionId) -> Result<(), Stop> {
        let Some(target) = self.collections.remove(&collection) else { return Ok(()) };
        self.for_each_of(collection, |maps, device, event, found| {
            if found.link == Link::Live {
                let link = maps.park(device, event, found.intid, target);
                maps.set_link(device, event, link);
            }
            Ok(())
        })
    }

    /// Unmaps all collections.
    pub(crate) fn unmap_collections(&mut self) {
        while let Some((&collection, _)) = self.collections.first_key_value() {
            // Only mapping can be refused.
            let _ = self.unmap_collection(collection);
        }
    }

    /// Takes an event out of the domain that MSIs are translated with. If a bound of the VM does not let it be parked, its LPI is no
    /// longer pending.
    fn park(&mut self, device: DeviceId, event: EventId, intid: Intid, target: VcpuId) -> Link {
        if self.parked.is_none() {
            self.parked = self.engine.msi().ok();
        }
        let mut config = None;
        self.msi.lpis_from(intid, &mut |lpi| {
            config = (lpi.intid == intid).then_some((lpi.config, lpi.target));
            core::ops::ControlFlow::Break(())
        });
        let (config, target) = config.unwrap_or((LpiConfig::enabled(0), target));
        let parked = self.parked.as_mut().map(|msi| msi.map(device, event, intid, target, config));
        if let Some(Ok(())) = parked {
            let _ = self.msi.detach(device, event);
            Link::Parked
        } else {
            let _ = self.msi.unmap(device, event);
            Link::None
        }
    }
}
