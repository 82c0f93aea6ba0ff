//! The guest's memory, where the LPI configuration and pending tables are.

/// An access to guest memory that could not be performed: nothing is there, or it cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no guest memory at {address:#x}")]
pub struct MemoryError {
    /// Where the access began.
    pub address: u64,
}

/// The guest's memory by guest physical address.
///
/// The guest writes it at the same time. An access of up to 8 bytes that is aligned to its size must be single-copy atomic,
/// and a read must see what the guest wrote before it wrote the register, or rang the doorbell, that makes the engine
/// read: acquire ordering, which an ordinary load after the exit that brought the register access has. A write of the engine is
/// release. Nothing is assumed about longer accesses.
///
/// It is called by control operations, on their threads, while they hold what orders them among themselves: it must not call the interrupt
/// controller, nor wait for a thread that does.
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
