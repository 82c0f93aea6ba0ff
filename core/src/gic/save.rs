//! What is mapped, written into the guest's tables, in Linux's format ([`crate::frames::its::table`]): when the machine has stopped.

use alloc::vec::Vec;

use super::{Gic, Its};
use crate::arch::ids::DeviceId;
use crate::engine::Engine;
use crate::frames::gicv3::redist::Redist;
use crate::frames::its::maps::Maps;
use crate::frames::its::table::{
    Baser, ENTRY, collection_entry, device_entry, event_entry, read_entry, write_entry,
};
use crate::host::memory::{GuestMemory, MemoryError};

impl<E: Engine> Its<E> {
    /// Writes the device table, the interrupt translation tables, and the collection table. No vCPU may run meanwhile.
    ///
    /// A command that is being performed is finished before, if it does not wait for a vCPU. What the guest's
    /// present tables have no place for is left out: devices and collections beyond the end of their table, or
    /// behind a level 1 entry that is not valid. The guest has taken their place away.
    ///
    /// # Errors
    /// [`MemoryError`]: there is no memory where an entry has its place. All others have been written, and none
    /// of them leads to one that has not.
    pub fn save_tables(&self) -> Result<(), MemoryError> {
        let unit = self.unit();
        let saved = self.gic.with_its_cx(None, |cx| {
            unit.settle(cx);
            let maps = unit.maps();
            let [devices, collections] = unit.tables();
            let memory = cx.lpis.memory();
            let devices = save_devices(&maps, devices, memory);
            devices.and(save_collections(&maps, collections, memory))
        });
        saved.unwrap_or(Ok(()))
    }
}

/// Calls `f` with each of `entries` that has its place in memory, and with the number of the next one of
/// these.
fn in_memory<T>(
    memory: &dyn GuestMemory,
    entries: impl Iterator<Item = (u32, u64, T)>,
    mut f: impl FnMut((u32, u64, T), Option<u32>) -> Result<(), MemoryError>,
) -> Result<(), MemoryError> {
    let mut result = Ok(());
    let mut last = None;
    for entry in entries {
        match read_entry(memory, entry.1) {
            Err(error) => result = result.and(Err(error)),
            Ok(_) => {
                let number = entry.0;
                if let Some(before) = last.replace(entry) {
                    result = result.and(f(before, Some(number)));
                }
            }
        }
    }
    last.map_or(result, |last| result.and(f(last, None)))
}

fn save_devices<E: Engine>(
    maps: &Maps<E>,
    table: Baser,
    memory: &dyn GuestMemory,
) -> Result<(), MemoryError> {
    // Looked up once: what the guest does to its level 1 table meanwhile is not to matter.
    let place = |device: DeviceId| table.entry(memory, device.0.into()).ok().flatten();
    let devices = maps.devices.iter().filter_map(|(&id, d)| Some((id.0, place(id)?, d)));
    in_memory(memory, devices, |(id, address, device), following| {
        let entry = device_entry(id, following, device.itt, device.size);
        let result = write_entry(memory, address, entry);
        // Beyond the end of all memory: no address of it.
        let at = |number| device.itt.saturating_add(u64::from(number) * ENTRY);
        let events = device.events.iter().map(|(number, event)| (number, at(number), event));
        result.and(in_memory(memory, events, |(number, address, event), following| {
            let entry = event_entry(number, following, event.intid, event.collection);
            write_entry(memory, address, entry)
        }))
    })
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
        // Left out if the guest has taken its place away.
        if let Ok(Some(address)) = table.entry(memory, n) {
            result = result.and(write_entry(memory, address, entry));
        }
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
