//! The layout of the guest's physical address space.

use vgic_core::engine::Config;
use vgic_core::ids::{DeviceId, Intid, LPI_BASE, VcpuId};

pub(crate) const GICD: u64 = 0x0800_0000;
pub(crate) const GITS: u64 = 0x0808_0000;
/// GITS_TRANSLATER, in the second frame of the ITS. Devices write EventIDs to it.
pub(crate) const TRANSLATER: u64 = GITS + 0x1_0040;
/// RD_base of vCPU 0. There is room for 512 redistributors.
pub(crate) const GICR: u64 = 0x1000_0000;
pub(crate) const REDIST_SIZE: u64 = 0x2_0000;
/// Start of the memory that the guest gives to the ITS and the redistributors.
pub(crate) const RAM: u64 = 0x1_0000_0000;

/// Bytes of the command queue: 2,048 commands.
pub(crate) const QUEUE_SIZE: u64 = 0x1_0000;

/// Bytes of a page of the device table.
pub(crate) const TABLE_PAGE: u64 = 0x1000;
/// Bytes of an entry of each ITS table, as in GITS_TYPER.ITT_entry_size and GITS_BASER.Entry_Size.
const ENTRY: u64 = 8;
/// Alignment of each area.
const ALIGN: u64 = 0x1_0000;
/// Alignment of an ITT.
const ITT_ALIGN: u64 = 0x100;

/// Addresses and sizes of the guest's tables.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// INTID bits of the LPI tables.
    pub(crate) id_bits: u8,
    pub(crate) event_bits: u8,
    pub(crate) queue: u64,
    properties: u64,
    pending: u64,
    pending_size: u64,
    pub(crate) collections: u64,
    /// The device table, or the first level of an indirect one.
    pub(crate) devices: u64,
    pub(crate) device_pages: u64,
    /// The second level of an indirect device table.
    second: Option<u64>,
    itts: u64,
    itt_size: u64,
    /// Bytes of memory from [`RAM`] up.
    pub(crate) bytes: u64,
}

impl Layout {
    pub(crate) fn new(config: &Config) -> Self {
        let last = LPI_BASE + config.lpis.max(1) - 1;
        let id_bits = (u32::BITS - last.leading_zeros()).max(14) as u8;
        let mut end = RAM;
        let mut area = |bytes: u64| {
            let area = end;
            end += bytes.next_multiple_of(ALIGN);
            area
        };
        let queue = area(QUEUE_SIZE);
        let properties = area((1 << id_bits) - u64::from(LPI_BASE));
        let pending_size = (1_u64 << id_bits >> 3).next_multiple_of(ALIGN);
        let pending = area(pending_size * u64::from(config.vcpus));
        let collections = area(u64::from(config.vcpus) * ENTRY);
        // As in Linux: flat, unless the table would need more than two pages.
        let flat = ENTRY << config.device_bits;
        let (device_pages, second) = if flat <= 2 * TABLE_PAGE {
            (flat.div_ceil(TABLE_PAGE), None)
        } else {
            let first = flat / TABLE_PAGE * ENTRY;
            (first.div_ceil(TABLE_PAGE), Some(area(flat)))
        };
        let devices = area(device_pages * TABLE_PAGE);
        let itt_size = (ENTRY << config.event_bits).next_multiple_of(ITT_ALIGN);
        let itts = area(itt_size << config.device_bits);
        Self {
            id_bits,
            event_bits: config.event_bits,
            queue,
            properties,
            pending,
            pending_size,
            collections,
            devices,
            device_pages,
            second,
            itts,
            itt_size,
            bytes: end - RAM,
        }
    }

    /// Returns the address of the LPI configuration table.
    pub(crate) fn properties(&self) -> u64 {
        self.properties
    }

    /// Returns the address of an LPI's byte in the configuration table.
    pub(crate) fn property(&self, intid: Intid) -> u64 {
        self.properties + u64::from(intid.0 - LPI_BASE)
    }

    /// Returns the address of a redistributor's LPI pending table.
    pub(crate) fn pending(&self, vcpu: VcpuId) -> u64 {
        self.pending + self.pending_size * u64::from(vcpu.0)
    }

    /// Returns the RD_base of a redistributor.
    pub(crate) fn redist(vcpu: VcpuId) -> u64 {
        GICR + REDIST_SIZE * u64::from(vcpu.0)
    }

    /// Returns whether the device table has two levels.
    pub(crate) fn is_indirect(&self) -> bool {
        self.second.is_some()
    }

    /// For an indirect device table: returns the address of a device's level 1 entry, and the
    /// address of the second-level page that belongs in the entry.
    pub(crate) fn level1(&self, device: DeviceId) -> Option<(u64, u64)> {
        let page = u64::from(device.0) * ENTRY / TABLE_PAGE;
        Some((self.devices + page * ENTRY, self.second? + page * TABLE_PAGE))
    }

    /// Returns the address of a device's interrupt translation table.
    pub(crate) fn itt(&self, device: DeviceId) -> u64 {
        self.itts + self.itt_size * u64::from(device.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(device_bits: u8, event_bits: u8, lpis: u32) -> Layout {
        Layout::new(&Config { vcpus: 3, device_bits, event_bits, lpis, ..Config::default() })
    }

    #[test]
    fn nothing_overlaps() {
        for (device_bits, event_bits, lpis) in [(1, 1, 1), (10, 4, 1 << 14), (12, 12, 1 << 24)] {
            let lpis = lpis.min(vgic_core::ids::INTID_END - LPI_BASE);
            let l = layout(device_bits, event_bits, lpis);
            assert!(LPI_BASE + lpis <= 1 << l.id_bits);
            let mut areas = vec![
                (l.queue, QUEUE_SIZE),
                (l.properties, u64::from(lpis)),
                (l.collections, 3 * ENTRY),
                (l.devices, l.device_pages * TABLE_PAGE),
                (l.itts, l.itt_size << device_bits),
                (RAM + l.bytes, 0),
            ];
            areas.extend((0..3).map(|v| (l.pending(VcpuId(v)), 1 << l.id_bits >> 3)));
            areas.extend(l.second.map(|second| (second, ENTRY << device_bits)));
            areas.sort_unstable();
            for pair in areas.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{l:x?}");
            }
        }
    }

    #[test]
    fn many_devices_have_two_levels() {
        assert!(!layout(10, 1, 1).is_indirect());
        let l = layout(12, 1, 1);
        let (entry, page) = l.level1(DeviceId(4095)).unwrap();
        assert_eq!(entry, l.devices + 7 * 8);
        assert_eq!(page, l.second.unwrap() + 7 * TABLE_PAGE);
        assert_eq!(l.device_pages, 1);
    }
}
