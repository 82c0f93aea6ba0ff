//! The map from addresses to frames. It is built once, when the controller is set up. A lookup is a
//! binary search in an array that does not change afterward.

use alloc::vec::Vec;

/// The reason that a frame cannot be placed at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RegionError {
    /// The frame does not lie in the address space.
    OutOfRange(u64),
    /// The frame's address is not a multiple of `align`.
    Misaligned { base: u64, align: u64 },
    /// The frame overlaps the frame at `other`.
    Overlap { base: u64, other: u64 },
}

/// A frame in the address space.
#[derive(Clone, Copy, Debug)]
struct Region<T> {
    base: u64,
    size: u64,
    what: T,
}

/// Frames by address.
#[derive(Clone, Debug)]
pub(crate) struct Regions<T> {
    /// Sorted by base; no two overlap.
    sorted: Vec<Region<T>>,
    /// The first address beyond the address space.
    end: u64,
}

impl<T: Copy> Regions<T> {
    /// An address space of `bits` (up to 63) bits without frames.
    pub(crate) fn new(bits: u32) -> Self {
        Self { sorted: Vec::new(), end: 1 << bits.min(63) }
    }

    /// Adds a frame. Its base must be a multiple of `align`.
    pub(crate) fn insert(
        &mut self,
        base: u64,
        size: u64,
        align: u64,
        what: T,
    ) -> Result<(), RegionError> {
        let end = base.checked_add(size).filter(|&end| end <= self.end);
        let end = end.ok_or(RegionError::OutOfRange(base))?;
        if !base.is_multiple_of(align) {
            return Err(RegionError::Misaligned { base, align });
        }
        let at = self.sorted.partition_point(|r| r.base < base);
        let before = at.checked_sub(1).map(|i| self.sorted[i]);
        let before = before.filter(|r| r.base + r.size > base);
        let after = self.sorted.get(at).copied().filter(|r| r.base < end);
        if let Some(other) = before.or(after) {
            return Err(RegionError::Overlap { base, other: other.base });
        }
        self.sorted.insert(at, Region { base, size, what });
        Ok(())
    }

    /// Returns the frame at an address, and the offset of the address in it.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<(T, u32)> {
        let after = self.sorted.partition_point(|r| r.base <= address);
        let region = self.sorted[..after].last()?;
        let offset = address - region.base;
        (offset < region.size).then_some((region.what, offset as u32))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_by_address() {
        let mut regions = Regions::new(32);
        regions.insert(0x2000, 0x1000, 0x1000, 'b').unwrap();
        regions.insert(0x1000, 0x1000, 0x1000, 'a').unwrap();
        regions.insert(0xffff_f000, 0x1000, 0x1000, 'z').unwrap();
        let found = [0xfff, 0x1000, 0x1fff, 0x2000, 0x3000, 0xffff_ffff, 1 << 32, u64::MAX];
        let found = found.map(|address| regions.find(address));
        assert_eq!(
            found,
            [
                None,
                Some(('a', 0)),
                Some(('a', 0xfff)),
                Some(('b', 0)),
                None,
                Some(('z', 0xfff)),
                None,
                None
            ]
        );
    }

    #[test]
    fn bad_places_are_refused_and_leave_nothing() {
        let mut regions = Regions::new(32);
        regions.insert(0x4000, 0x2000, 0x1000, 0).unwrap();
        for (base, size, align, error) in [
            (0x3000, 0x1001, 0x1000, RegionError::Overlap { base: 0x3000, other: 0x4000 }),
            (0x4000, 0x1000, 0x1000, RegionError::Overlap { base: 0x4000, other: 0x4000 }),
            (0x5000, 0x1000, 0x1000, RegionError::Overlap { base: 0x5000, other: 0x4000 }),
            (0x3000, 0x9000, 0x1000, RegionError::Overlap { base: 0x3000, other: 0x4000 }),
            (0x8800, 0x100, 0x1000, RegionError::Misaligned { base: 0x8800, align: 0x1000 }),
            (0xffff_f000, 0x1001, 0x1000, RegionError::OutOfRange(0xffff_f000)),
            (!0xfff, 0x1000, 0x1000, RegionError::OutOfRange(!0xfff)),
        ] {
            assert_eq!(regions.insert(base, size, align, 1), Err(error));
        }
        assert_eq!(regions.sorted.len(), 1);
    }
}
