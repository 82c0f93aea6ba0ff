//! The reasons for which a machine cannot be set up.

use super::Affinity;
use crate::engine::Error;
use crate::frames::regions::RegionError;

/// The reason for which a machine cannot be set up. A call that returns an error has changed
/// nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The model has been chosen already.
    #[error("the model has been chosen already")]
    AlreadyCreated,
    /// The model must be chosen first.
    #[error("no model has been chosen")]
    NotCreated,
    /// There is no interrupt controller of this device type.
    #[error("device type {0} is not known")]
    UnknownType(u32),
    /// The model must be chosen before vCPUs are added.
    #[error("there are vCPUs already")]
    VcpusCreated,
    /// The model cannot have that many vCPUs.
    #[error("this model has at most {0} vCPUs")]
    TooManyVcpus(u16),
    /// Another vCPU has that affinity.
    #[error("two vCPUs have affinity {0:?}")]
    AffinityTaken(Affinity),
    /// The frame's address has been set already.
    #[error("the address has been set already")]
    AddressSet,
    /// The frame or feature does not exist in this model.
    #[error("the model has no such frame")]
    WrongModel,
    /// The frame does not lie in the address space.
    #[error("{0:#x} is not in the address space")]
    OutOfRange(u64),
    /// The frame's address is not aligned.
    #[error("{base:#x} is not a multiple of {align:#x}")]
    Misaligned {
        /// The address.
        base: u64,
        /// The alignment that the address needs.
        align: u64,
    },
    /// The frame overlaps another one.
    #[error("the frame at {base:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// The frame's address.
        base: u64,
        /// The address of the other frame.
        other: u64,
    },
    /// A frame that the model needs has no address, or something else that the machine needs is
    /// missing.
    #[error("not initialised: {0}")]
    NotInitialised(&'static str),
    /// The value is out of its range.
    #[error("{0} is out of its range")]
    Value(&'static str),
    /// The machine and its host need more handles than the maximum of 65,535: this many.
    #[error("{0} handles of the interrupt controller are needed, and there can be 65,535")]
    Participants(usize),
    /// The engine refused the configuration.
    #[error(transparent)]
    Engine(#[from] Error),
}

impl From<RegionError> for SetupError {
    fn from(error: RegionError) -> Self {
        match error {
            RegionError::OutOfRange(base) => Self::OutOfRange(base),
            RegionError::Misaligned { base, align } => Self::Misaligned { base, align },
            RegionError::Overlap { base, other } => Self::Overlap { base, other },
        }
    }
}
