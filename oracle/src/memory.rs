//! The memory of this project's machines.

use std::sync::Mutex;

use vgic_core::memory::{GuestMemory, MemoryError};

/// A range of memory.
pub struct Memory {
    base: u64,
    bytes: Mutex<Vec<u8>>,
}

impl Memory {
    /// Creates `size` bytes of memory at address `base`, all zero.
    pub fn new(base: u64, size: u64) -> Self {
        Self { base, bytes: Mutex::new(vec![0; size as usize]) }
    }

    /// Clears `len` bytes.
    ///
    /// # Errors
    /// If the range is outside this memory.
    pub fn clear(&self, address: u64, len: u64) -> Result<(), MemoryError> {
        self.with(address, len as usize, |bytes| bytes.fill(0))
    }

    fn with<T>(
        &self,
        address: u64,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, MemoryError> {
        let error = MemoryError { address };
        let start = address.checked_sub(self.base).ok_or(error)? as usize;
        let end = start.checked_add(len).ok_or(error)?;
        let mut bytes = self.bytes.lock().map_err(|_| error)?;
        bytes.get_mut(start..end).map(f).ok_or(error)
    }
}

impl GuestMemory for Memory {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.with(address, data.len(), |bytes| data.copy_from_slice(bytes))
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.with(address, data.len(), |bytes| bytes.copy_from_slice(data))
    }
}
