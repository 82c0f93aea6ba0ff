//! What can go wrong, and what to do about it.

use vgic_core::engine::Error as EngineError;
use vgic_core::gic::SetupError;
use vgic_core::ids::{Intid, VcpuId};

/// Why something could not be set up or run. Nothing half-made stays behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no `/dev/kvm`.
    #[error(
        "there is no /dev/kvm: load the kvm module, or run on a host whose kernel has it (on arm64, one that was booted at EL2)"
    )]
    NoKvm,
    /// `/dev/kvm` must not be opened.
    #[error(
        "no permission to open /dev/kvm: run as a member of its group (usually `kvm`), or as root"
    )]
    NoPermission,
    /// The kernel lacks something.
    #[error("this kernel's KVM lacks {name} (capability {number}): it needs {since} or later")]
    Capability {
        /// The capability's name.
        name: &'static str,
        /// Its number.
        number: u32,
        /// The kernel that brought it.
        since: &'static str,
    },
    /// The CPUs have no breakpoints to spare for accesses to GICv3's CPU interface.
    #[error(
        "this host's CPUs have no hardware breakpoints for guests (capability 119, KVM_CAP_GUEST_DEBUG_HW_BPS, is 0), and a GICv3 in user space needs one; a GICv2 needs none"
    )]
    NoBreakpoints,
    /// This machine is no arm64 machine.
    #[error(
        "this host is {0}, and an interrupt controller for arm64 guests needs an arm64 host; the library builds elsewhere, but does not run"
    )]
    WrongArchitecture(&'static str),
    /// A vCPU has a runner already.
    #[error("vCPU {} is attached already: each vCPU has one runner, which is dropped before another one is made", .0.0)]
    AlreadyAttached(VcpuId),
    /// The calling thread has a runner already.
    #[error(
        "this thread has a vCPU's runner already: each vCPU needs a thread of its own, as calls out of the guest go to the thread"
    )]
    ThreadInUse,
    /// KVM_IRQ_LINE does not take a vCPU's lines.
    #[error(
        "KVM does not take the lines of vCPU {}: {source}; the VM has an interrupt controller in the kernel, or KVM knows no vCPU of that number", .vcpu.0
    )]
    CpuLine {
        /// Whose.
        vcpu: VcpuId,
        /// The kernel's answer.
        source: kvm_ioctls::Error,
    },
    /// An interrupt that is to be a timer's or the PMU's is no PPI.
    #[error("INTID {} cannot be a timer's or the PMU's interrupt: PPIs are 16 to 31", .0.0)]
    NotPpi(Intid),
    /// The shape of the machine is refused: overlapping or misaligned addresses, numbers out of range.
    #[error("the interrupt controller cannot be set up like this: {0}")]
    Setup(#[from] SetupError),
    /// The engine refuses.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A system call failed.
    #[error("{what}: {source}")]
    Kvm {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        source: kvm_ioctls::Error,
    },
    /// The signal that calls vCPU threads out of their guests cannot be had.
    #[error("signal {number} cannot be handled: {source}")]
    Signal {
        /// The signal's number.
        number: i32,
        /// Why.
        source: vmm_sys_util::errno::Error,
    },
    /// The signal that calls vCPUs out cannot be unblocked in the calling thread.
    #[error("unblocking the signal that calls vCPUs out of their guests: {0}")]
    SignalMask(vmm_sys_util::signal::Error),
    /// The device tree cannot be written.
    #[error("the device tree: {0}")]
    Fdt(#[from] vm_fdt::Error),
    /// The event loop refuses.
    #[error("the event loop: {0}")]
    Events(event_manager::Error),
    /// Reading, writing or copying a file descriptor, or starting a thread, failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// There is no such source of events.
    #[error("there is no event source for GSI {0}")]
    NoSource(u32),
    /// A GSI has a source already.
    #[error("GSI {0} has an event source already")]
    SourceExists(u32),
    /// An SPI has as many resampled sources as it can have.
    #[error("SPI {} has {} resampled sources already, which is the most that can share one: use another SPI", .0.0, crate::resample::MAX_SOURCES)]
    TooManySources(Intid),
    /// Nothing takes MSIs at that address.
    #[error("no MSI doorbell takes data {data:#x} at {address:#x}")]
    NoDoorbell {
        /// Where the MSI is written.
        address: u64,
        /// What is written.
        data: u32,
    },
}

impl From<event_manager::Error> for Error {
    fn from(e: event_manager::Error) -> Self {
        Self::Events(e)
    }
}

/// Puts a name to what failed.
pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { what, source }
}

/// Opens KVM.
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
