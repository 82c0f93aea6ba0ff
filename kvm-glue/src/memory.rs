//! The guest's memory for the core, through vm-memory.
//!
//! ```
//! use std::sync::Arc;
//! use vgic_core::memory::GuestMemory;
//! use vgic_kvm::memory::VmMemory;
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! let ranges = [(GuestAddress(0x4000_0000), 0x1_0000)];
//! let memory: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&ranges)?;
//! // Any `GuestAddressSpace` works, such as vm-memory's `GuestMemoryAtomic` for memory that
//! // changes while the guest runs.
//! let tables = VmMemory(Arc::new(memory));
//! tables.write(0x4000_0008, &1u64.to_le_bytes())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::sync::atomic::Ordering;

use vgic_core::memory::{GuestMemory, MemoryError};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

/// Implements the core's [`GuestMemory`] for an address space of vm-memory. The core's writes are
/// marked in the regions' dirty bitmaps, like all writes through vm-memory.
#[derive(Clone, Debug)]
pub struct VmMemory<M>(pub M);

/// Loads or stores an integer of the size of `$data` atomically, if the address is aligned;
/// otherwise evaluates `$else`.
macro_rules! by_size {
    ($address:expr, $data:expr, $access:ident, $else:expr) => {
        match $data.len() {
            1 => $access!(u8),
            2 if $address.is_multiple_of(2) => $access!(u16),
            4 if $address.is_multiple_of(4) => $access!(u32),
            8 if $address.is_multiple_of(8) => $access!(u64),
            _ => $else,
        }
    };
}

impl<M> GuestMemory for VmMemory<M>
where
    M: GuestAddressSpace + Send + Sync + 'static,
{
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        let (memory, at) = (self.0.memory(), GuestAddress(address));
        macro_rules! load {
            ($int:ty) => {
                memory.load::<$int>(at, Ordering::Acquire).map(|value| {
                    data.copy_from_slice(&value.to_ne_bytes());
                })
            };
        }
        let done = by_size!(address, data, load, memory.read_slice(data, at));
        done.map_err(|_| MemoryError { address })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        let (memory, at) = (self.0.memory(), GuestAddress(address));
        macro_rules! store {
            ($int:ty) => {{
                let bytes = data.try_into().map_err(|_| MemoryError { address })?;
                memory.store(<$int>::from_ne_bytes(bytes), at, Ordering::Release)
            }};
        }
        let done = by_size!(address, data, store, memory.write_slice(data, at));
        done.map_err(|_| MemoryError { address })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::bitmap::{AtomicBitmap, Bitmap};
    use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

    use super::*;

    #[test]
    fn what_is_written_is_read_and_dirty() {
        type Memory = GuestMemoryMmap<AtomicBitmap>;
        let ranges = [(GuestAddress(0x4000_0000), 0x4000)];
        let backend = Arc::new(Memory::from_ranges(&ranges).unwrap());
        let memory = VmMemory(Arc::clone(&backend));
        for (address, len) in
            [(0x4000_1000, 8), (0x4000_1004, 4), (0x4000_1001, 3), (0x4000_1fff, 1)]
        {
            let data: Vec<u8> = (1..=len).collect();
            memory.write(address, &data).unwrap();
            let mut back = vec![0; data.len()];
            memory.read(address, &mut back).unwrap();
            assert_eq!(back, data);
        }
        let region = backend.find_region(GuestAddress(0x4000_0000)).unwrap();
        let dirty = [0, 0x1000, 0x2000].map(|offset| region.bitmap().dirty_at(offset));
        assert_eq!(dirty, [false, true, false]);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let ranges = [(GuestAddress(0x4000_0000), 0x1000)];
        let memory = VmMemory(Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap()));
        for (address, len) in [(0x3fff_fff8, 8), (0x4000_0ffc, 8), (0x4000_1000, 1), (u64::MAX, 4)]
        {
            assert_eq!(memory.read(address, &mut vec![0; len]), Err(MemoryError { address }));
            assert_eq!(memory.write(address, &vec![0; len]), Err(MemoryError { address }));
        }
    }
}
