//! What is different on arm64, so that the rest is checked everywhere.

use kvm_ioctls::VcpuFd;

/// The name of an architecture that is not arm64.
pub(crate) const NOT_ARM64: Option<&str> =
    if cfg!(target_arch = "aarch64") { None } else { Some(std::env::consts::ARCH) };

/// `KVM_CAP_ARM_USER_IRQ`, which the bindings of other architectures do not have.
pub(crate) const CAP_ARM_USER_IRQ: u32 = 144;

/// `kvm_run.s.regs.device_irq_level` of a vCPU: the outputs of its timers and its PMU, as of the last exit.
///
/// A pointer, as it is read while the exit is being looked at.
pub(crate) struct Outputs(*const u64);

impl Outputs {
    /// Of `vcpu`, which is to outlive this.
    #[cfg(target_arch = "aarch64")]
    #[allow(unsafe_code)] // A union of the kernel's.
    pub(crate) fn new(vcpu: &mut VcpuFd) -> Self {
        // SAFETY: `s` is a union of this one structure of plain integers and its padding; only its address is taken.
        Self(unsafe { &raw const vcpu.get_kvm_run().s.regs.device_irq_level })
    }

    #[cfg(not(target_arch = "aarch64"))]
    pub(crate) fn new(_: &mut VcpuFd) -> Self {
        static NONE: u64 = 0;
        Self(&raw const NONE)
    }

    /// Bits as `KVM_ARM_DEV_*` has them.
    #[allow(unsafe_code)] // The page that KVM shares with us.
    pub(crate) fn levels(&self) -> u64 {
        // SAFETY: in the page of the vCPU that outlives this, which stays where it is when the `VcpuFd` moves. Only the kernel writes it,
        // and only in KVM_RUN, which this thread calls.
        unsafe { self.0.read_volatile() }
    }
}

/// The reason of a KVM_EXIT_INTERNAL_ERROR, which is what `vcpu` has just exited for.
#[allow(unsafe_code)] // A union of the kernel's.
pub(crate) fn suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: a plain integer, of the member that the exit reason says; any bytes of the page would do.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

/// The access that the vCPU has just exited for becomes an external abort.
#[cfg(target_arch = "aarch64")]
pub(crate) fn inject_abort(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut events = kvm_bindings::kvm_vcpu_events::default();
    events.exception.ext_dabt_pending = 1;
    vcpu.set_vcpu_events(&events)
}

#[cfg(not(target_arch = "aarch64"))]
pub(crate) fn inject_abort(_: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    Ok(())
}

/// The syndrome of a debug exit, as ESR_EL2 has it.
#[cfg(target_arch = "aarch64")]
pub(crate) fn syndrome(exit: &kvm_bindings::kvm_debug_exit_arch) -> u64 {
    u64::from(exit.hsr) | u64::from(exit.hsr_high) << 32
}

#[cfg(not(target_arch = "aarch64"))]
pub(crate) fn syndrome(_: &kvm_bindings::kvm_debug_exit_arch) -> u64 {
    0
}

/// Whether the guest has powered the vCPU off.
pub(crate) fn is_off(vcpu: &VcpuFd) -> Result<bool, kvm_ioctls::Error> {
    /// `KVM_MP_STATE_STOPPED`.
    const STOPPED: u32 = 5;
    Ok(vcpu.get_mp_state()?.mp_state == STOPPED)
}
