//! Tables in guest memory: GITS_BASER, and the entries of device, collection and interrupt
//! translation tables (IHI 0069, 5.2).
//!
//! The format of the entries is an implementation's choice. This is the format of Linux's virtual
//! ITS (table ABI revision 0): little-endian, 8 bytes an entry. So either of the two can restore
//! tables that the other one saved, if the guest has chosen the options that Linux offers: pages of
//! 64 KiB, and a flat collection table.
//!
//! | entry | fields |
//! |---|---|
//! | device | valid 63, next 62:49, address of its ITT 48:5 (bits 51:8), EventID bits - 1 4:0 |
//! | collection | valid 63, processor number 51:16, number of the collection 15:0 |
//! | event | next 63:48, INTID 47:16, number of the collection 15:0 |
//!
//! `next` is the distance to the next valid entry, capped at the field's maximum. It is 0 in the
//! last entry.
//!
//! The contents of the guest's tables are never trusted: the ITS reads them only to find the place
//! of an entry.

use super::command::CollectionId;
use crate::arch::ids::{Intid, VcpuId};
use crate::host::memory::{GuestMemory, MemoryError};

/// Size of an entry, in bytes.
pub(crate) const ENTRY: u64 = 8;

/// GITS_BASER.Type of the device table, which is GITS_BASER0.
pub(crate) const DEVICES: u64 = 1;
/// GITS_BASER.Type of the collection table, which is GITS_BASER1.
pub(crate) const COLLECTIONS: u64 = 4;

/// GITS_BASER.Valid, GITS_CBASER.Valid, and the bit that makes a level 1 entry valid.
pub(crate) const VALID: u64 = 1 << 63;
/// GITS_BASER.Indirect.
const INDIRECT: u64 = 1 << 62;
/// GITS_BASER: Type and Entry_Size, which are read-only.
const READ_ONLY: u64 = 0x7 << 56 | 0x1f << 48;
/// GITS_BASER.Page_Size.
const PAGE_SIZE_SHIFT: u32 = 8;
/// GITS_BASER.Shareability and GITS_CBASER.Shareability.
const SHAREABILITY: u64 = 0x3 << 10;
/// Address of a level 2 table in a level 1 entry, bits 51:12.
const LEVEL2_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A value of a GITS_BASER.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Baser(pub(crate) u64);

impl Baser {
    /// The value after a reset: no table, and pages of 64 KiB. The architecture leaves Page_Size
    /// after a reset open (12.19, `GITS_BASER<n>`). Guests that do not write Page_Size are used to
    /// this value from Linux and QEMU.
    pub(crate) const fn reset(kind: u64) -> Self {
        Self(kind << 56 | (ENTRY - 1) << 48 | 2 << PAGE_SIZE_SHIFT)
    }

    /// The value after a write of the bits of `mask`. Reserved values of Shareability and Page_Size
    /// are not kept.
    pub(crate) const fn written(self, value: u64, mask: u64) -> Self {
        let mask = mask & !READ_ONLY;
        let mut new = self.0 & !mask | value & mask;
        if new & SHAREABILITY == SHAREABILITY {
            new &= !SHAREABILITY;
        }
        // 0b11 is reserved, and taken for 64 KiB (12.19, GITS_BASER<n>).
        if new >> PAGE_SIZE_SHIFT & 3 == 3 {
            new &= !(1 << PAGE_SIZE_SHIFT);
        }
        Self(new)
    }

    pub(crate) const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    pub(crate) const fn is_indirect(self) -> bool {
        self.0 & INDIRECT != 0
    }

    const fn page(self) -> u64 {
        match self.0 >> PAGE_SIZE_SHIFT & 3 {
            0 => 0x1000,
            1 => 0x4000,
            _ => 0x1_0000,
        }
    }

    /// The address of the table. With pages of 64 KiB, bits 15:12 of the field are bits 51:48 of
    /// the address.
    const fn address(self) -> u64 {
        let field = self.0 & 0x0000_ffff_ffff_f000;
        if self.page() == 0x1_0000 {
            field & !0xffff | (field & 0xf000) << 36
        } else {
            field & !(self.page() - 1)
        }
    }

    /// Size of the table (or of its first level), in bytes.
    const fn bytes(self) -> u64 {
        self.page() * ((self.0 & 0xff) + 1)
    }

    /// The number of entries that the table can have.
    pub(crate) const fn entries(self) -> u64 {
        let direct = self.bytes() / ENTRY;
        if self.is_indirect() { direct * (self.page() / ENTRY) } else { direct }
    }

    /// Returns the first entry that a guest takes away by writing `new` here. All entries from that
    /// number on are lost. `None`: no entries are lost.
    ///
    /// Mappings belong to the table that this register names (IHI 0069, 5.2 and 12.19). A table
    /// with another address, page size or number of levels is a different table, and has only the
    /// mappings that the guest makes in it. A table that becomes shorter loses its end. A table
    /// that is named again as before, as after a suspend, is the same table. So is one with a
    /// change in other attributes.
    pub(crate) const fn lost(self, new: Self) -> Option<u64> {
        if !self.is_valid() {
            return None;
        }
        let same = new.is_valid()
            && self.is_indirect() == new.is_indirect()
            && self.page() == new.page()
            && self.address() == new.address();
        if !same {
            Some(0)
        } else if new.entries() < self.entries() {
            Some(new.entries())
        } else {
            None
        }
    }

    /// Whether the table has room for an entry.
    pub(crate) const fn has(self, index: u64) -> bool {
        self.is_valid() && index < self.entries()
    }

    /// The address of an entry. Returns `None` if the table has no room for it.
    ///
    /// # Errors
    /// [`MemoryError`] if the level 1 entry cannot be read, or is not valid.
    pub(crate) fn entry(
        self,
        memory: &dyn GuestMemory,
        index: u64,
    ) -> Result<Option<u64>, MemoryError> {
        if !self.has(index) {
            return Ok(None);
        }
        if !self.is_indirect() {
            return Ok(Some(self.address() + index * ENTRY));
        }
        let each = self.page() / ENTRY;
        let address = self.address() + index / each * ENTRY;
        let level1 = read_entry(memory, address)?;
        if level1 & VALID == 0 {
            return Err(MemoryError { address });
        }
        let level2 = level1 & LEVEL2_ADDRESS & !(self.page() - 1);
        Ok(Some(level2 + index % each * ENTRY))
    }
}

/// GITS_CBASER: the command queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Queue(pub(crate) u64);

impl Queue {
    /// The value after a write of the bits of `mask`. The queue begins at a multiple of 64 KiB, so
    /// address bits 15:12 are not kept.
    pub(crate) const fn written(self, value: u64, mask: u64) -> Self {
        const WRITABLE: u64 = VALID | 0x7 << 59 | 0x7 << 53 | 0x000f_ffff_ffff_0000 | 0xcff;
        let mask = mask & WRITABLE;
        let new = self.0 & !mask | value & mask;
        Self(if new & SHAREABILITY == SHAREABILITY { new & !SHAREABILITY } else { new })
    }

    pub(crate) const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    pub(crate) const fn address(self) -> u64 {
        self.0 & 0x000f_ffff_ffff_0000
    }

    /// Size of the queue, in bytes.
    pub(crate) const fn bytes(self) -> u64 {
        0x1000 * ((self.0 & 0xff) + 1)
    }
}

/// Reads an entry.
pub(crate) fn read_entry(memory: &dyn GuestMemory, address: u64) -> Result<u64, MemoryError> {
    let mut bytes = [0; 8];
    memory.read(address, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes an entry.
pub(crate) fn write_entry(
    memory: &dyn GuestMemory,
    address: u64,
    entry: u64,
) -> Result<(), MemoryError> {
    memory.write(address, &entry.to_le_bytes())
}

/// The field `next` of an entry: the distance to the next entry, in `bits` bits.
fn next(this: u32, following: Option<u32>, bits: u32) -> u64 {
    following.map_or(0, |following| u64::from(following - this).min((1 << bits) - 1))
}

/// A device table entry.
pub(crate) fn device_entry(device: u32, following: Option<u32>, itt: u64, size: u8) -> u64 {
    VALID | next(device, following, 14) << 49 | (itt >> 8) << 5 | u64::from(size)
}

/// A collection table entry. For a collection that is not mapped, the target does not exist.
pub(crate) fn collection_entry(collection: CollectionId, target: Option<VcpuId>) -> u64 {
    let target = target.map_or(0xffff_ffff, |vcpu| u64::from(vcpu.0));
    VALID | target << 16 | u64::from(collection.0)
}

/// An interrupt translation table entry.
pub(crate) fn event_entry(
    event: u32,
    following: Option<u32>,
    intid: Intid,
    collection: CollectionId,
) -> u64 {
    next(event, following, 16) << 48 | u64::from(intid.0) << 16 | u64::from(collection.0)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Each doubleword up to 1 MiB has the value that the function gives for its address.
    struct Memory(fn(u64) -> u64);

    impl GuestMemory for Memory {
        fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
            if address >= 1 << 20 {
                return Err(MemoryError { address });
            }
            data.copy_from_slice(&(self.0)(address).to_le_bytes()[..data.len()]);
            Ok(())
        }

        fn write(&self, address: u64, _: &[u8]) -> Result<(), MemoryError> {
            Err(MemoryError { address })
        }
    }

    fn baser(value: u64) -> Baser {
        Baser::reset(DEVICES).written(value | VALID, u64::MAX)
    }

    #[test]
    fn type_and_entry_size_are_read_only() {
        let reset = Baser::reset(COLLECTIONS);
        assert_eq!(reset.0, 0x0407_0000_0000_0200, "pages of 64 KiB");
        assert_eq!(reset.written(u64::MAX, READ_ONLY), reset);
        assert!(!reset.is_valid() && reset.written(VALID, VALID).is_valid());
        assert_eq!(reset.written(0xf00, u64::MAX).0 & 0xf00, 0x200, "reserved values");
    }

    #[test]
    fn flat_tables() {
        let memory = Memory(|_| 0);
        for (page, bytes) in [(0, 0x1000), (1, 0x4000), (2, 0x1_0000), (3, 0x1_0000)] {
            let table = baser(0x4000_0000 | page << 8 | 1);
            assert_eq!(table.entries(), 2 * bytes / 8);
            assert_eq!(table.entry(&memory, 5), Ok(Some(0x4000_0028)));
            assert_eq!(table.entry(&memory, table.entries()), Ok(None));
        }
        assert_eq!(baser(0x4000_f000 | 2 << 8).entry(&memory, 0), Ok(Some(0x000f_0000_4000_0000)));
        assert_eq!(Baser::reset(DEVICES).entry(&memory, 0), Ok(None), "not valid");
    }

    #[test]
    fn indirect_tables() {
        let memory = Memory(|address| if address == 0x8 { VALID | 0x5_4321_0fff } else { 0 });
        let table = baser(INDIRECT);
        assert_eq!(table.entries(), 512 * 512);
        assert_eq!(table.entry(&memory, 512 + 3), Ok(Some(0x5_4321_0018)));
        assert_eq!(table.entry(&memory, 0), Err(MemoryError { address: 0 }), "not valid");
        let hole = baser(INDIRECT | 1 << 20);
        assert_eq!(hole.entry(&memory, 0), Err(MemoryError { address: 1 << 20 }));
    }

    #[test]
    fn what_a_new_table_takes_away() {
        let old = baser(0x4000_0000 | 2 << 8 | 1);
        assert_eq!(old.lost(old), None);
        assert_eq!(old.lost(old.written(1 << 59 | 1 << 10, 7 << 59 | 3 << 10)), None, "attributes");
        assert_eq!(old.lost(old.written(2, 0xff)), None, "longer");
        assert_eq!(old.lost(old.written(0, 0xff)), Some(0x1_0000 / 8), "shorter");
        for other in [0, 2 << 8, INDIRECT, 0x5000_0000] {
            let value = if other == 0 { 0 } else { old.0 ^ other };
            let lost = old.lost(old.written(value, u64::MAX));
            assert_eq!(lost, Some(0), "{other:#x}");
        }
        assert_eq!(Baser::reset(DEVICES).lost(old), None, "there was none");
    }

    #[test]
    fn entries_as_linux_has_them() {
        assert_eq!(device_entry(1, Some(4), 0x000f_edcb_a987_6500, 15), {
            1 << 63 | 3 << 49 | 0x0fed_cba9_8765 << 5 | 15
        });
        assert_eq!(device_entry(0, Some(0x8000), 0, 0), 1 << 63 | 0x3fff << 49);
        assert_eq!(collection_entry(CollectionId(7), Some(VcpuId(3))), 1 << 63 | 3 << 16 | 7);
        assert_eq!(event_entry(0, None, Intid(8195), CollectionId(7)), 8195 << 16 | 7);
        assert_eq!(event_entry(0, Some(1 << 20), Intid(0), CollectionId(0)), 0xffff << 48);
    }
}
