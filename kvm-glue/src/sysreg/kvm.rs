//! The vCPUs of KVM.

use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use vgic_core::memory::GuestMemory;

use super::cpu::Icc;
use super::trap::{ExitFor, Handled, TrapStats, Traps};
use crate::Error;
pub use vcpu::KvmCpu;

/// `KVM_CAP_SET_GUEST_DEBUG` and `KVM_CAP_GUEST_DEBUG_HW_BPS`. Defined here because the bindings of
/// other architectures lack the second one.
const CAP_SET_GUEST_DEBUG: u32 = 23;
const CAP_GUEST_DEBUG_HW_BPS: u32 = 119;

/// Returns the number of hardware breakpoints of a vCPU of `vm`, which is at least one.
///
/// # Errors
/// The host cannot trap accesses to the GICv3 CPU interface: [`Error::WrongArchitecture`] if it is
/// not arm64, [`Error::Capability`] if KVM cannot debug a guest, [`Error::NoBreakpoints`] if there
/// are no hardware breakpoints.
pub fn breakpoints(vm: &VmFd) -> Result<usize, Error> {
    if let Some(host) = crate::arch::NOT_ARM64 {
        return Err(Error::WrongArchitecture(host));
    }
    let check = |capability: u32| vm.check_extension_raw(capability.into());
    if check(CAP_SET_GUEST_DEBUG) <= 0 {
        let (name, since) = ("KVM_CAP_SET_GUEST_DEBUG", "Linux 4.2");
        return Err(Error::Capability { name, number: CAP_SET_GUEST_DEBUG, since });
    }
    match usize::try_from(check(CAP_GUEST_DEBUG_HW_BPS)) {
        Ok(n @ 1..) => Ok(n),
        _ => Err(Error::NoBreakpoints),
    }
}

/// The traps of a KVM vCPU, with the memory that holds the guest's instructions.
pub(crate) struct VcpuTraps {
    traps: Traps,
    memory: Arc<dyn GuestMemory>,
    started: bool,
}

impl VcpuTraps {
    pub(crate) fn new(traps: Traps, memory: Arc<dyn GuestMemory>) -> Self {
        Self { traps, memory, started: false }
    }

    pub(crate) fn stats(&self) -> TrapStats {
        self.traps.stats()
    }

    /// Starts the traps, unless they have been started. Call this before the vCPU is run.
    pub(crate) fn start_once(&mut self, vcpu: &VcpuFd) -> Result<(), Error> {
        if self.started { Ok(()) } else { self.start(vcpu) }
    }

    pub(crate) fn start(&mut self, vcpu: &VcpuFd) -> Result<(), Error> {
        self.started = true;
        self.traps.start(&mut KvmCpu(vcpu))
    }

    pub(crate) fn stop(&mut self, vcpu: &VcpuFd) -> Result<(), Error> {
        self.traps.stop(&mut KvmCpu(vcpu))
    }

    pub(crate) fn follow(&mut self, vcpu: &VcpuFd, exit: ExitFor) -> Result<(), Error> {
        self.traps.follow(&mut KvmCpu(vcpu), exit)
    }

    pub(crate) fn handle(
        &mut self,
        vcpu: &VcpuFd,
        icc: &mut impl Icc,
        syndrome: u64,
    ) -> Result<Handled, Error> {
        self.traps.handle(&mut KvmCpu(vcpu), icc, &*self.memory, syndrome)
    }
}

/// On other architectures, a KVM vCPU does not have these registers.
#[cfg(not(target_arch = "aarch64"))]
mod vcpu {
    use kvm_ioctls::VcpuFd;

    use super::super::cpu::{Cpu, Debug, Reg};
    use crate::Error;

    /// A KVM vCPU.
    #[derive(Debug)]
    pub struct KvmCpu<'a>(pub &'a VcpuFd);

    const REFUSED: Error = Error::WrongArchitecture(std::env::consts::ARCH);

    impl Cpu for KvmCpu<'_> {
        type Error = Error;

        fn get(&mut self, _: Reg) -> Result<u64, Error> {
            Err(REFUSED)
        }

        fn set(&mut self, _: Reg, _: u64) -> Result<(), Error> {
            Err(REFUSED)
        }

        fn set_debug(&mut self, _: Option<&Debug>) -> Result<(), Error> {
            Err(REFUSED)
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod vcpu {
    use kvm_bindings::{
        KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW, kvm_guest_debug,
    };
    use kvm_ioctls::VcpuFd;

    use super::super::cpu::{Cpu, Debug, Reg};
    use crate::Error;
    use crate::error::kvm;

    /// DBGBCR of a breakpoint: enabled, at EL1 only, for all bytes of an instruction.
    const AT_EL1: u64 = 0x1e3;

    /// The IDs of 64-bit registers for KVM_GET_ONE_REG. The ID of a core register holds the
    /// register's offset in `struct kvm_regs`, in 32-bit words; the ID of a system register holds
    /// its encoding.
    const CORE: u64 = 0x6030_0000_0010_0000;
    const SYSTEM: u64 = 0x6030_0000_0013_0000;

    const fn core(offset: u64) -> u64 {
        CORE | offset / 4
    }

    const fn system(crn: u64, crm: u64, op2: u64) -> u64 {
        SYSTEM | 3 << 14 | crn << 7 | crm << 3 | op2
    }

    fn id(reg: Reg) -> u64 {
        match reg {
            Reg::X(n) => core(8 * u64::from(n)),
            Reg::Pc => core(0x100),
            Reg::Pstate => core(0x108),
            Reg::SpEl1 => core(0x110),
            Reg::Elr => core(0x118),
            Reg::Spsr => core(0x120),
            Reg::Sctlr => system(1, 0, 0),
            Reg::Ttbr0 => system(2, 0, 0),
            Reg::Ttbr1 => system(2, 0, 1),
            Reg::Tcr => system(2, 0, 2),
            Reg::Esr => system(5, 2, 0),
            Reg::Vbar => system(12, 0, 0),
            Reg::Pfr1 => system(0, 4, 1),
        }
    }

    /// A KVM vCPU.
    #[derive(Debug)]
    pub struct KvmCpu<'a>(pub &'a VcpuFd);

    impl Cpu for KvmCpu<'_> {
        type Error = Error;

        fn get(&mut self, reg: Reg) -> Result<u64, Error> {
            let mut data = [0; 8];
            self.0.get_one_reg(id(reg), &mut data).map_err(kvm("reading a vCPU's register"))?;
            Ok(u64::from_ne_bytes(data))
        }

        fn set(&mut self, reg: Reg, value: u64) -> Result<(), Error> {
            let data = value.to_ne_bytes();
            self.0.set_one_reg(id(reg), &data).map_err(kvm("writing a vCPU's register"))?;
            Ok(())
        }

        fn set_debug(&mut self, debug: Option<&Debug>) -> Result<(), Error> {
            let mut set = kvm_guest_debug::default();
            if let Some(debug) = debug {
                set.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW;
                if debug.step {
                    set.control |= KVM_GUESTDBG_SINGLESTEP;
                }
                for (n, address) in debug.breakpoints.iter().enumerate() {
                    if let Some(address) = address {
                        (set.arch.dbg_bcr[n], set.arch.dbg_bvr[n]) = (AT_EL1, *address);
                    }
                }
            }
            self.0.set_guest_debug(&set).map_err(kvm("setting a vCPU's breakpoints"))
        }
    }
}
