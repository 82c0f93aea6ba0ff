//! Saves the mappings into the guest's tables, in Linux's format ([`crate::frames::its::table`]),
//! while the machine is stopped.

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
    /// Writes the device table, the interrupt translation tables, and the collection table. No vCPU
    /// may run during the call.
    ///
    /// A command that is being performed is finished first, unless it waits for a vCPU. Entries
    /// that have no place in the guest's present tables are left out: devices and collections
    /// beyond the end of their table, or behind a level 1 entry that is not valid. The guest has
    /// taken their place away.
    ///
    /// # Errors
    /// [`MemoryError`]: there is no memory at the place of an entry. All other entries have been
    /// written, and none of them leads to an entry that has not.
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

/// Calls `f` with each of `entries` that has its place in memory, and with the number of the next
/// entry that has.
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
    // Looked up once, so that a change that the guest makes to its level 1 table during the save
    // does not matter.
    let place = |device: DeviceId| table.entry(memory, device.0.into()).ok().flatten();
    let devices = maps.devices.iter().filter_map(|(&id, d)| Some((id.0, place(id)?, d)));
    in_memory(memory, devices, |(id, address, device), following| {
        let entry = device_entry(id, following, device.itt, device.size);
        let result = write_entry(memory, address, entry);
        // Saturates to an address beyond the end of all memory.
        let at = |number| device.itt.saturating_add(u64::from(number) * ENTRY);
        let events = device.events.iter().map(|(number, event)| (number, at(number), event));
        result.and(in_memory(memory, events, |(number, address, event), following| {
            let entry = event_entry(number, following, event.intid, event.collection);
            write_entry(memory, address, entry)
        }))
    })
}

/// Writes the collection table.
///
/// In a flat table, collections follow one another without gaps, and an entry that is not valid
/// ends them, if there is room for it. In an indirect table, which Linux does not have for
/// collections, each collection is at its number, where MAPC found a place for it.
///
/// A collection that has events but is not mapped gets an entry with a target that does not exist:
/// without that entry, Linux would refuse the events.
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
        // Left out if the guest has taken the entry's place away.
        if let Ok(Some(address)) = table.entry(memory, n) {
            result = result.and(write_entry(memory, address, entry));
        }
    }
    result
}

impl<E: Engine> Gic<E> {
    /// Writes the pending LPIs into the pending tables of all redistributors that have LPIs
    /// enabled, so that no others are pending there. All vCPUs must be powered off or closed: LPIs
    /// in a vCPU's list registers are not seen.
    ///
    /// A redistributor that does not have LPIs enabled has no table to write to, so LPIs that are
    /// pending for it are left out.
    ///
    /// # Errors
    /// [`MemoryError`]: a table is not in memory. The other tables have been written.
    pub fn save_pending_tables(&self) -> Result<(), MemoryError> {
        let saved = self.with_its_cx(None, |cx| {
            let enabled = cx.redists.iter().filter(|redist| redist.has_lpis());
            cx.lpis.save_pending(&enabled.map(Redist::tables).collect::<Vec<_>>())
        });
        saved.unwrap_or(Ok(()))
    }
}
