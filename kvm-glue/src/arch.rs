//! The parts that differ on arm64. The rest of the crate builds and is checked on every
//! architecture.

use kvm_ioctls::VcpuFd;

/// The name of this architecture, if it is not arm64.
pub(crate) const NOT_ARM64: Option<&str> =
    if cfg!(target_arch = "aarch64") { None } else { Some(std::env::consts::ARCH) };

/// `KVM_CAP_ARM_USER_IRQ`, which the bindings of other architectures lack.
pub(crate) const CAP_ARM_USER_IRQ: u32 = 144;

/// `kvm_run.s.regs.device_irq_level` of a vCPU: the outputs of its timers and its PMU, as of the
/// last exit.
///
/// A raw pointer, since it is read while [`VcpuExit`](kvm_ioctls::VcpuExit) borrows the vCPU.
pub(crate) struct Outputs(*const u64);

impl Outputs {
    /// Returns the outputs of `vcpu`, which must outlive this value.
    #[cfg(target_arch = "aarch64")]
    #[allow(unsafe_code)] // A union in the kernel's interface.
    pub(crate) fn new(vcpu: &mut VcpuFd) -> Self {
        // SAFETY: `s` is a union of this one structure of plain integers and its padding; only its
        // address is taken.
        Self(unsafe { &raw const vcpu.get_kvm_run().s.regs.device_irq_level })
    }

    #[cfg(not(target_arch = "aarch64"))]
    pub(crate) fn new(_: &mut VcpuFd) -> Self {
        static NONE: u64 = 0;
        Self(&raw const NONE)
    }

    /// Returns the levels, as `KVM_ARM_DEV_*` bits.
    #[allow(unsafe_code)] // The page that KVM shares with us.
    pub(crate) fn levels(&self) -> u64 {
        // SAFETY: the pointer is into the `kvm_run` page of a vCPU that outlives this value. The
        // page does not move when the `VcpuFd` does. Only the kernel writes it, and only during
        // `KVM_RUN`, which this same thread calls.
        unsafe { self.0.read_volatile() }
    }
}

/// Returns the reason of the `KVM_EXIT_INTERNAL_ERROR` that `vcpu` has just exited with.
#[allow(unsafe_code)] // A union in the kernel's interface.
pub(crate) fn suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: a plain integer, in the union member that the exit reason selects; any bytes of the
    // page would be valid.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
}

/// Turns the access that the vCPU has just exited for into an external abort.
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

/// Returns the syndrome of a debug exit, in the format of ESR_EL2.
#[cfg(target_arch = "aarch64")]
pub(crate) fn syndrome(exit: &kvm_bindings::kvm_debug_exit_arch) -> u64 {
    u64::from(exit.hsr) | u64::from(exit.hsr_high) << 32
}

#[cfg(not(target_arch = "aarch64"))]
pub(crate) fn syndrome(_: &kvm_bindings::kvm_debug_exit_arch) -> u64 {
    0
}

/// Returns whether the guest has powered the vCPU off.
pub(crate) fn is_off(vcpu: &VcpuFd) -> Result<bool, kvm_ioctls::Error> {
    /// `KVM_MP_STATE_STOPPED`.
    const STOPPED: u32 = 5;
    Ok(vcpu.get_mp_state()?.mp_state == STOPPED)
}
