//! The guest's memory, which holds the LPI configuration and pending tables.

/// An access to guest memory that failed: there is no memory, or it cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no guest memory at {address:#x}")]
pub struct MemoryError {
    /// The first address of the access.
    pub address: u64,
}

/// The guest's memory by guest physical address.
///
/// The guest writes it at the same time. An access of up to 8 bytes that is aligned to its size
/// must be single-copy atomic. A read must see everything that the guest wrote before it wrote the
/// register, or rang the doorbell, that makes the engine read. This is acquire ordering; an
/// ordinary load has it after the exit that brought the register access. A write of the engine is
/// release. Longer accesses need no guarantee.
///
/// Control operations call it on their threads, while they hold locks of the control plane. It must
/// not call the interrupt controller, and must not wait for a thread that does.
pub trait GuestMemory: Send + Sync + 'static {
    /// Fills `data` from `address` up.
    ///
    /// # Errors
    /// [`MemoryError`]; `data` may have been filled in part.
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError>;

    /// Writes `data` from `address` up.
    ///
    /// # Errors
    /// [`MemoryError`]; a part may have been written.
    fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError>;
}
