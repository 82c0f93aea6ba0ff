//! Errors, with messages that say how to resolve them.

use vgic_core::engine::Error as EngineError;
use vgic_core::gic::SetupError;
use vgic_core::ids::{Intid, VcpuId};

/// A failure to set up or run a machine. A failed operation leaves no partial state behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `/dev/kvm` does not exist.
    #[error(
        "there is no /dev/kvm: load the kvm module, or run on a host whose kernel has it (on arm64, one that was booted at EL2)"
    )]
    NoKvm,
    /// The process has no permission to open `/dev/kvm`.
    #[error(
        "no permission to open /dev/kvm: run as a member of its group (usually `kvm`), or as root"
    )]
    NoPermission,
    /// The kernel lacks a capability.
    #[error("this kernel's KVM lacks {name} (capability {number}): it needs {since} or later")]
    Capability {
        /// The capability's name.
        name: &'static str,
        /// The capability's number.
        number: u32,
        /// The first kernel version that has it.
        since: &'static str,
    },
    /// The CPUs have no breakpoints for accesses to GICv3's CPU interface.
    #[error(
        "this host's CPUs have no hardware breakpoints for guests (capability 119, KVM_CAP_GUEST_DEBUG_HW_BPS, is 0), and a GICv3 in user space needs one; a GICv2 needs none"
    )]
    NoBreakpoints,
    /// The host is not an arm64 machine.
    #[error(
        "this host is {0}, and an interrupt controller for arm64 guests needs an arm64 host; the library builds elsewhere, but does not run"
    )]
    WrongArchitecture(&'static str),
    /// The vCPU already has a runner.
    #[error("vCPU {} is attached already: each vCPU has one runner, which is dropped before another one is made", .0.0)]
    AlreadyAttached(VcpuId),
    /// The calling thread already has a runner.
    #[error(
        "this thread has a vCPU's runner already: each vCPU needs a thread of its own, as calls out of the guest go to the thread"
    )]
    ThreadInUse,
    /// `KVM_IRQ_LINE` does not accept a vCPU's lines.
    #[error(
        "KVM does not take the lines of vCPU {}: {source}; the VM has an interrupt controller in the kernel, or KVM knows no vCPU of that number", .vcpu.0
    )]
    CpuLine {
        /// The vCPU.
        vcpu: VcpuId,
        /// The kernel's error.
        source: kvm_ioctls::Error,
    },
    /// An INTID that was given for a timer or the PMU is not a PPI.
    #[error("INTID {} cannot be a timer's or the PMU's interrupt: PPIs are 16 to 31", .0.0)]
    NotPpi(Intid),
    /// The machine's configuration is invalid: addresses overlap or are misaligned, or numbers are
    /// out of range.
    #[error("the interrupt controller cannot be set up like this: {0}")]
    Setup(#[from] SetupError),
    /// The engine reports an error.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A system call failed.
    #[error("{what}: {source}")]
    Kvm {
        /// The operation that failed.
        what: &'static str,
        /// The kernel's error.
        source: kvm_ioctls::Error,
    },
    /// The handler of the signal that takes vCPUs out of their guests cannot be installed.
    #[error("signal {number} cannot be handled: {source}")]
    Signal {
        /// The signal's number.
        number: i32,
        /// The system's error.
        source: vmm_sys_util::errno::Error,
    },
    /// The signal that takes vCPUs out of their guests cannot be unblocked in the calling thread.
    #[error("unblocking the signal that calls vCPUs out of their guests: {0}")]
    SignalMask(vmm_sys_util::signal::Error),
    /// The device tree cannot be written.
    #[error("the device tree: {0}")]
    Fdt(#[from] vm_fdt::Error),
    /// The event loop reports an error.
    #[error("the event loop: {0}")]
    Events(event_manager::Error),
    /// An operation on a file descriptor (reading, writing, duplicating) or the start of a thread
    /// failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// No event source has this GSI.
    #[error("there is no event source for GSI {0}")]
    NoSource(u32),
    /// The GSI already has an event source.
    #[error("GSI {0} has an event source already")]
    SourceExists(u32),
    /// The SPI already has the maximum number of resampled sources.
    #[error("SPI {} has {} resampled sources already, which is the most that can share one: use another SPI", .0.0, crate::resample::MAX_SOURCES)]
    TooManySources(Intid),
    /// No doorbell accepts an MSI with this data at this address.
    #[error("no MSI doorbell takes data {data:#x} at {address:#x}")]
    NoDoorbell {
        /// The address that the MSI is written to.
        address: u64,
        /// The value that is written.
        data: u32,
    },
}

impl From<event_manager::Error> for Error {
    fn from(e: event_manager::Error) -> Self {
        Self::Events(e)
    }
}

/// Returns a conversion of KVM's errors that names the failed operation.
pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { what, source }
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// [`Error::NoKvm`], [`Error::NoPermission`], [`Error::Kvm`].
pub fn open_kvm() -> Result<kvm_ioctls::Kvm, Error> {
    kvm_ioctls::Kvm::new().map_err(|e| match e.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => Error::NoKvm,
        libc::EACCES | libc::EPERM => Error::NoPermission,
        _ => kvm("opening /dev/kvm")(e),
    })
}
