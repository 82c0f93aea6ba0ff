//! What is mapped, written into the guest's tables, in Linux's format ([`super::table`]): when the machine has stopped.

use alloc::vec::Vec;

use super::Its;
use super::maps::Maps;
use super::table::{Baser, ENTRY, collection_entry, device_entry, event_entry, write_entry};
use crate::engine::Engine;
use crate::gic::Gic;
use crate::gicv3::redist::Redist;
use crate::ids::DeviceId;
use crate::memory::{GuestMemory, MemoryError};

impl<E: Engine> Its<E> {
    /// Writes the device table, the interrupt translation tables, and the collection table. No vCPU may run meanwhile.
    ///
    /// Devices that the guest's present tables have no place for are left out, and so are collections beyond the end of theirs: the
    /// guest has taken their place away.
    ///
    /// # Errors
    /// [`MemoryError`]: a table is not there; the others have been written.
    pub fn save_tables(&self) -> Result<(), MemoryError> {
        let unit = self.unit();
        let maps = unit.maps();
        let [devices, collections] = unit.tables();
        let saved = self.gic.with_its_cx(None, |cx| {
            let memory = cx.lpis.memory();
            let devices = save_devices(&maps, devices, memory);
            devices.and(save_collections(&maps, collections, memory))
        });
        saved.unwrap_or(Ok(()))
    }
}

fn save_devices<E: Engine>(
    maps: &Maps<E>,
    table: Baser,
    memory: &dyn GuestMemory,
) -> Result<(), MemoryError> {
    // Looked up once: what the guest does to its level 1 table meanwhile is not to matter.
    let place = |device: DeviceId| table.entry(memory, device.0.into()).ok().flatten();
    let reachable = maps.devices.iter();
    let reachable: Vec<_> = reachable.filter_map(|(&id, d)| Some((id.0, d, place(id)?))).collect();
    let mut result = Ok(());
    for (n, &(id, device, address)) in reachable.iter().enumerate() {
        let following = reachable.get(n + 1).map(|(id, ..)| *id);
        let entry = device_entry(id, following, device.itt, device.size);
        result = result.and(write_entry(memory, address, entry));
        let followers = device.events.iter().skip(1).map(|(number, _)| Some(number)).chain([None]);
        for ((number, event), following) in device.events.iter().zip(followers) {
            let entry = event_entry(number, following, event.intid, event.collection);
            let address = device.itt.checked_add(u64::from(number) * ENTRY);
            let address = address.ok_or(MemoryError { address: device.itt })?;
            result = result.and(write_entry(memory, address, entry));
        }
    }
    result
}

/// In a flat table, collections are one after the other, whatever their numbers, and end with an entry that is not valid, if there is
/// room for it. In an indirect table, which Linux does not have for collections, each is at its number, where MAPC found a place for it.
///
/// A collection that events belong to, but that is not mapped, has an entry with a target that does not exist: without it, Linux would
/// refuse the events.
fn save_collections<E: Engine>(
    maps: &Maps<E>,
    table: Baser,
    memory: &dyn GuestMemory,
) -> Result<(), MemoryError> {
    let mapped = maps.collections.iter().map(|(&id, &target)| (id, Some(target)));
    let entries = mapped.chain(maps.unmapped_collections().map(|id| (id, None)));
    let entries = entries.map(|(id, target)| (u64::from(id.0), collection_entry(id, target)));
    let mut entries: Vec<_> = entries.collect();
    if !table.is_indirect() {
        entries.push((0, 0));
        entries.iter_mut().zip(0..).for_each(|(entry, n)| entry.0 = n);
    }
    let mut result = Ok(());
    for (n, entry) in entries {
        result = result.and(match table.entry(memory, n)? {
            Some(address) => write_entry(memory, address, entry),
            // No room for the end.
            None if entry == 0 => Ok(()),
            None => Err(MemoryError { address: 0 }),
        });
    }
    result
}

impl<E: Engine> Gic<E> {
    /// Writes which LPIs are pending into the pending tables of the redistributors whose LPIs are enabled, so that nothing else is pending there. All
    /// vCPUs must be powered off or closed: what a vCPU has in its list registers is not seen.
    ///
    /// A redistributor whose LPIs are not enabled has no table to write to; what is pending for it is left out.
    ///
    /// # Errors
    /// [`MemoryError`]: a table is not there; the others have been written.
    pub fn save_pending_tables(&self) -> Result<(), MemoryError> {
        let saved = self.with_its_cx(None, |cx| {
            let enabled = cx.redists.iter().filter(|redist| redist.has_lpis());
            cx.lpis.save_pending(&enabled.map(Redist::tables).collect::<Vec<_>>())
        });
        saved.unwrap_or(Ok(()))
    }
}
