//! What is mapped, written into the guest's tables, in Linux's format ([`super::table`]): when the machine has stopped.

use alloc::vec::Vec;

use super::Its;
use super::command::CollectionId;
use super::maps::Maps;
use super::table::{Baser, ENTRY, collection_entry, device_entry, event_entry, write_entry};
use crate::engine::Engine;
use crate::gic::Gic;
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
    let place = |device: DeviceId| table.entry(memory, device.0.into()).ok().flatten();
    let reachable =
        || maps.devices.iter().filter_map(|(&id, device)| Some((id, device, place(id)?)));
    let mut result = Ok(());
    let followers = reachable().skip(1).map(|(id, ..)| Some(id.0)).chain([None]);
    for ((id, device, address), following) in reachable().zip(followers) {
        let entry = device_entry(id.0, following, device.itt, device.size);
        result = result.and(write_entry(memory, address, entry));
        let followers = device.events.keys().skip(1).copied().map(Some).chain([None]);
        for ((&number, event), following) in device.events.iter().zip(followers) {
            let entry = event_entry(number, following, event.intid, event.collection);
            let address = device.itt.checked_add(u64::from(number) * ENTRY);
            let address = address.ok_or(MemoryError { address: device.itt })?;
            result = result.and(write_entry(memory, address, entry));
        }
    }
    result
}

/// Collections are one after the other, whatever their numbers, and end with an entry that is not valid, if there is room for it.
fn save_collections<E: Engine>(
    maps: &Maps<E>,
    table: Baser,
    memory: &dyn GuestMemory,
) -> Result<(), MemoryError> {
    let entries = maps
        .collections
        .iter()
        .map(|(&id, &target): (&CollectionId, _)| collection_entry(id, target));
    let mut result = Ok(());
    for (n, entry) in entries.chain([0]).enumerate() {
        let Some(address) = table.entry(memory, n as u64)? else { break };
        result = result.and(write_entry(memory, address, entry));
    }
    result
}

impl<E: Engine> Gic<E> {
    /// Writes which LPIs are pending into the pending tables of the redistributors, so that nothing else is pending in the table of one whose LPIs
    /// are enabled. All vCPUs must be powered off or closed: what a vCPU has in
    /// its list registers is not seen.
    ///
    /// # Errors
    /// [`MemoryError`]: a table is not there; the others have been written.
    pub fn save_pending_tables(&self) -> Result<(), MemoryError> {
        let saved = self.with_its_cx(None, |cx| {
            let redists = cx.redists.iter().map(|redist| (redist.tables(), redist.has_lpis()));
            cx.lpis.save_pending(&redists.collect::<Vec<_>>())
        });
        saved.unwrap_or(Ok(()))
    }
}
