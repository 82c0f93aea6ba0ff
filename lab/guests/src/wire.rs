//! What the payload `accesses` is told to do, and what it answers. The oracle, on the other side, includes this file.
//!
//! A batch is the number of its operations, 4 bytes, and the operations; the answer is as many results. All numbers are
//! little-endian.

/// Of an operation.
pub const OPERATION_SIZE: usize = 24;
/// Of a result.
pub const RESULT_SIZE: usize = 16;
/// Most operations of a batch: both ends of a pipe must not wait for each other.
pub const MAX_BATCH: usize = 1024;
/// In place of a number of operations: the machine is reset, and answers with this number when it is up again.
pub const RESET: u32 = u32::MAX;

/// What an operation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// A read of `width` bytes at `address`.
    Read,
    /// A write of `width` bytes at `address`.
    Write,
    /// A read of the system register `register`.
    ReadRegister,
    /// A write of it.
    WriteRegister,
    /// The input line of INTID `address` takes the level that `value` says.
    Line,
    /// `value` bytes of memory from `address` are cleared.
    Clear,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Read, Self::Write, Self::ReadRegister, Self::WriteRegister, Self::Line, Self::Clear];
}

/// The number of a system register: `S3_0_C12_C<crm>_<op2>`.
pub const fn register(crm: u8, op2: u8) -> u8 {
    crm << 3 | op2
}

/// That of ICC_PMR_EL1, which has another CRn.
pub const PMR: u8 = 128;

/// Something to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// What.
    pub kind: Kind,
    /// On which CPU.
    pub cpu: u8,
    /// 1, 2, 4 or 8.
    pub width: u8,
    /// See [`register`].
    pub register: u8,
    /// Where.
    pub address: u64,
    /// What to write.
    pub value: u64,
}

impl Operation {
    /// As it is sent.
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

    /// As it was sent; `None` if it is of no kind.
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

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Outcome {
    /// What was read, 0 if nothing was.
    pub value: u64,
    /// ISR_EL1 of both CPUs afterwards: what is asserted.
    pub asserted: [u8; 2],
    /// Whether the access was taken as an exception.
    pub faulted: bool,
}

impl Outcome {
    /// ISR_EL1.I.
    pub const IRQ: u8 = 1 << 7;
    /// ISR_EL1.F.
    pub const FIQ: u8 = 1 << 6;

    /// As it is sent.
    pub fn encode(&self) -> [u8; RESULT_SIZE] {
        let mut bytes = [0; RESULT_SIZE];
        bytes[..8].copy_from_slice(&self.value.to_le_bytes());
        [bytes[8], bytes[9]] = self.asserted;
        bytes[10] = u8::from(self.faulted);
        bytes
    }

    /// As it was sent.
    pub fn decode(bytes: &[u8; RESULT_SIZE]) -> Self {
        let &[a, b, c, d, e, f, g, h, first, second, faulted, ..] = bytes;
        Self {
            value: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            asserted: [first, second],
            faulted: faulted != 0,
        }
    }
}
