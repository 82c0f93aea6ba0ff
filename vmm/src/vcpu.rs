//! The vCPUs' threads.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vgic_core::ids::VcpuId;
use vgic_kvm::{Exit, KvmGic};
use vm_device::bus::MmioAddress;
use vm_device::device_manager::{IoManager, MmioManager};

use crate::accounts::Accounts;
use crate::memory::Memory;
use crate::stats::VcpuStats;

/// Core registers of KVM_SET_ONE_REG: 64 bits each. The number is the offset in `struct kvm_regs`,
/// in words.
const CORE: u64 = 0x6030_0000_0010_0000;
const X0: u64 = CORE;
const PC: u64 = CORE + 0x100 / 4;
const PSTATE: u64 = CORE + 0x108 / 4;
/// PSTATE: EL1 with its own stack pointer, all exceptions masked.
const EL1H_MASKED: u64 = 0x3c5;

/// The way a machine ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The guest powered it off.
    Off,
    /// The guest reset it. This VMM ends the machine in this case too.
    Reset,
    /// The guest reported a crash.
    Crash,
    /// A vCPU cannot continue.
    Failed,
}

/// Creates vCPU `n`. vCPU 0 starts at `entry` with `x0`; the others start when they are powered on.
pub(crate) fn create(vm: &VmFd, n: u16, entry: u64, x0: u64) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(n.into()).context("KVM_CREATE_VCPU")?;
    init(vm, &vcpu, n)?;
    if n == 0 {
        for (register, value) in [(X0, x0), (PC, entry), (PSTATE, EL1H_MASKED)] {
            set_register(&vcpu, register, value)?;
        }
    }
    Ok(vcpu)
}

#[cfg(target_arch = "aarch64")]
fn init(vm: &VmFd, vcpu: &VcpuFd, n: u16) -> Result<()> {
    use kvm_bindings::{KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, kvm_vcpu_init};
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).context("KVM_ARM_PREFERRED_TARGET")?;
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    if n > 0 {
        init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    vcpu.vcpu_init(&init).context("KVM_ARM_VCPU_INIT")
}

#[cfg(target_arch = "aarch64")]
fn set_register(vcpu: &VcpuFd, register: u64, value: u64) -> Result<()> {
    vcpu.set_one_reg(register, &value.to_le_bytes()).context("KVM_SET_ONE_REG")?;
    Ok(())
}

/// Fails. [`vgic_kvm::Machine::check_host`] has refused earlier, except with the kernel's GICv3.
#[cfg(not(target_arch = "aarch64"))]
fn init(_: &VmFd, _: &VcpuFd, _: u16) -> Result<()> {
    anyhow::bail!("arm64 guests need an arm64 host")
}

#[cfg(not(target_arch = "aarch64"))]
fn set_register(_: &VcpuFd, register: u64, _: u64) -> Result<()> {
    anyhow::bail!("register {register:#x} is arm64's")
}

/// Returns the end that an event of KVM stands for, if any.
fn end_of(event: u32) -> Option<End> {
    match event {
        1 => Some(End::Off),
        2 => Some(End::Reset),
        3 => Some(End::Crash),
        _ => None,
    }
}

/// Describes why a vCPU cannot continue.
fn reason(exit: Exit) -> String {
    match exit {
        Exit::FailEntry { reason, cpu } => {
            format!("KVM_EXIT_FAIL_ENTRY: the guest cannot be entered on CPU {cpu}: {reason:#x}")
        }
        Exit::InternalError(suberror) => format!("KVM_EXIT_INTERNAL_ERROR: {suberror}"),
        Exit::Unknown(reason) => format!("KVM_RUN returned for reason {reason}"),
        other => format!("{other:?}"),
    }
}

/// The state that vCPU threads share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) bus: Arc<IoManager>,
    /// The first vCPU that ends sends the reason.
    pub(crate) end: Sender<End>,
    pub(crate) accounts: Arc<Accounts>,
    /// Never read. It keeps the guest's memory for as long as a thread may run the guest.
    pub(crate) _memory: Memory,
}

/// Ends the machine if a vCPU's thread panics. Otherwise no thread would notice.
struct EndOnPanic(Sender<End>);

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.send(End::Failed);
        }
    }
}

/// A running vCPU.
pub(crate) struct Running {
    thread: JoinHandle<Result<VcpuStats>>,
}

/// Starts a vCPU with the interrupt controller in user space.
pub(crate) fn start(gic: &KvmGic, id: VcpuId, vcpu: VcpuFd, shared: Shared) -> Result<Running> {
    let (sender, started) = std::sync::mpsc::channel();
    let gic = gic.clone();
    let thread = thread::Builder::new().name(format!("vcpu{}", id.0)).spawn(move || {
        // Both are dropped after the vCPU, so the guest's memory outlives the vCPU.
        let shared = shared;
        let _guard = EndOnPanic(shared.end.clone());
        let mut runner = gic.attach(id, vcpu).map_err(|(e, _)| e)?;
        shared.accounts.attach(id, runner.stopper());
        let _ = sender.send(());
        loop {
            let end = match runner.run(&mut &*shared.bus) {
                Ok(Exit::Stopped) if shared.accounts.tell(id, runner.stats()) => None,
                Ok(Exit::Stopped) => break,
                Ok(Exit::SystemEvent(event, _)) => end_of(event),
                Ok(exit @ (Exit::FailEntry { .. } | Exit::InternalError(_) | Exit::Unknown(_))) => {
                    eprintln!("vgic-vmm: vCPU {}: {}", id.0, reason(exit));
                    Some(End::Failed)
                }
                Err(e) => {
                    eprintln!("vgic-vmm: vCPU {}: {e}", id.0);
                    Some(End::Failed)
                }
            };
            if let Some(end) = end {
                let _ = shared.end.send(end);
                break;
            }
        }
        let stats = runner.stats();
        shared.accounts.tell(id, stats);
        drop(runner.detach());
        Ok(VcpuStats::new(stats, gic.line_stats(id)))
    })?;
    match started.recv().context("a vCPU's thread has not started") {
        Ok(()) => Ok(Running { thread }),
        Err(e) => {
            // Return the thread's own error, if there is one.
            thread.join().ok().transpose()?;
            Err(e)
        }
    }
}

impl Running {
    /// Waits until the vCPU has stopped, and returns its statistics.
    pub(crate) fn join(self) -> Result<VcpuStats> {
        self.thread.join().map_err(|_| anyhow::anyhow!("a vCPU's thread has panicked"))?
    }
}

/// Starts a vCPU with the kernel's interrupt controller. Its thread ends with the process.
pub(crate) fn start_kernel(
    n: u16,
    vcpu: VcpuFd,
    shared: Shared,
    stats: Arc<crate::stats::KernelVcpu>,
) -> Result<()> {
    thread::Builder::new().name(format!("vcpu{n}")).spawn(move || {
        // Dropped after the vCPU, as in `start`.
        let shared = shared;
        let _guard = EndOnPanic(shared.end.clone());
        let mut vcpu = vcpu;
        loop {
            let ran = vcpu.run();
            stats.exits.add();
            let end = match ran {
                Ok(VcpuExit::MmioRead(address, data)) => {
                    stats.device_exits.add();
                    // The bus is the only target. Reads of an address without a device return all
                    // ones.
                    data.fill(0xff);
                    let _ = shared.bus.mmio_read(MmioAddress(address), data);
                    None
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    stats.device_exits.add();
                    let _ = shared.bus.mmio_write(MmioAddress(address), data);
                    None
                }
                Ok(VcpuExit::SystemEvent(event, _)) => end_of(event),
                Ok(VcpuExit::Intr) => None,
                Err(e) if [libc::EINTR, libc::EAGAIN].contains(&e.errno()) => None,
                other => {
                    eprintln!("vgic-vmm: vCPU {n}: {other:?}");
                    Some(End::Failed)
                }
            };
            if let Some(end) = end {
                let _ = shared.end.send(end);
                return;
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_thread_that_panics_ends_the_machine() {
        let (end, ended) = channel();
        let quiet = end.clone();
        thread::spawn(move || drop(EndOnPanic(quiet))).join().unwrap();
        assert!(ended.try_recv().is_err(), "it has only ended");
        let thread = thread::spawn(move || {
            let _guard = EndOnPanic(end);
            panic!("as it is to be in this test");
        });
        assert!(thread.join().is_err());
        assert_eq!(ended.try_recv(), Ok(End::Failed));
    }

    #[test]
    fn what_a_vcpu_fails_for_is_told() {
        assert!(reason(Exit::FailEntry { reason: 0x1f, cpu: 3 }).contains("CPU 3: 0x1f"));
        assert!(reason(Exit::InternalError(4)).ends_with("ERROR: 4"));
        assert!(reason(Exit::Unknown(99)).ends_with("99"));
    }
}
