//! The requests to the payload `accesses`, and its answers. The oracle, on the other side, includes
//! this file.
//!
//! A batch is the number of its operations, 4 bytes, followed by the operations. The answer has as
//! many results. All numbers are little-endian.

/// The size of an operation, in bytes.
pub const OPERATION_SIZE: usize = 24;
/// The size of a result, in bytes.
pub const RESULT_SIZE: usize = 16;
/// The maximum number of operations in a batch, so that both ends of a pipe never wait for each
/// other.
pub const MAX_BATCH: usize = 1024;
/// In place of the number of operations, this requests a reset of the machine. The machine sends
/// this number when it is up again.
pub const RESET: u32 = u32::MAX;

/// The kind of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A read of `width` bytes at `address`.
    Read,
    /// A write of `width` bytes at `address`.
    Write,
    /// A read of the system register `register`.
    ReadRegister,
    /// A write of the system register `register`.
    WriteRegister,
    /// Sets the input line of INTID `address` to the level `value`.
    Line,
    /// Clears `value` bytes of memory from `address`.
    Clear,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Read, Self::Write, Self::ReadRegister, Self::WriteRegister, Self::Line, Self::Clear];
}

/// Returns the number of the system register `S3_0_C12_C<crm>_<op2>`.
pub const fn register(crm: u8, op2: u8) -> u8 {
    crm << 3 | op2
}

/// The number of ICC_PMR_EL1, which has another CRn.
pub const PMR: u8 = 128;

/// A request for one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// The kind of the operation.
    pub kind: Kind,
    /// The CPU that performs it.
    pub cpu: u8,
    /// The width of an access in bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// The number of the system register; see [`register`].
    pub register: u8,
    /// The address, or the INTID of a line.
    pub address: u64,
    /// The value to write, the level, or the number of bytes.
    pub value: u64,
}

impl Operation {
    /// Encodes the operation for the wire.
    pub fn encode(&self) -> [u8; OPERATION_SIZE] {
        let mut bytes = [0; OPERATION_SIZE];
        bytes[0] = self.kind as u8;
        bytes[1] = self.cpu;
        bytes[2] = self.width;
        bytes[3] = self.register;
        bytes[8..16].copy_from_slice(&self.address.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }

    /// Decodes an operation. `None` if its kind is unknown.
    pub fn decode(bytes: &[u8; OPERATION_SIZE]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk()?;
        let &[kind, cpu, width, register, ..]: &[u8; 8] = head;
        let (address, value) = rest.split_first_chunk()?;
        Some(Self {
            kind: *Kind::ALL.get(usize::from(kind))?,
            cpu,
            width,
            register,
            address: u64::from_le_bytes(*address),
            value: u64::from_le_bytes(*value.first_chunk()?),
        })
    }
}

/// The result of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Outcome {
    /// The value that was read; 0 for other operations.
    pub value: u64,
    /// ISR_EL1 of both CPUs after the operation, which shows asserted interrupts.
    pub asserted: [u8; 2],
    /// Whether the access caused an exception.
    pub faulted: bool,
}

impl Outcome {
    /// ISR_EL1.I: an IRQ is asserted.
    pub const IRQ: u8 = 1 << 7;
    /// ISR_EL1.F: an FIQ is asserted.
    pub const FIQ: u8 = 1 << 6;

    /// Encodes the result for the wire.
    pub fn encode(&self) -> [u8; RESULT_SIZE] {
        let mut bytes = [0; RESULT_SIZE];
        bytes[..8].copy_from_slice(&self.value.to_le_bytes());
        [bytes[8], bytes[9]] = self.asserted;
        bytes[10] = u8::from(self.faulted);
        bytes
    }

    /// Decodes a result.
    pub fn decode(bytes: &[u8; RESULT_SIZE]) -> Self {
        let &[a, b, c, d, e, f, g, h, first, second, faulted, ..] = bytes;
        Self {
            value: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            asserted: [first, second],
            faulted: faulted != 0,
        }
    }
}
