//! The machine: its devices, its vCPUs, and their run.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvm_ioctls::VcpuFd;
use vgic_core::ids::VcpuId;
use vgic_kvm::error::open_kvm;
use vgic_kvm::ioevent::IoEvent;
use vm_device::bus::{MmioAddress, MmioAddressOffset, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};
use vm_device::{DeviceMmio, MutDeviceMmio};
use vm_memory::{Bytes, GuestAddress};

use crate::accounts::{Accounts, Counters, Ioctls};
use crate::args::{GicKind, Run};
use crate::doorbell::{self, Doorbell, lock};
use crate::irq::{self, Irqs};
use crate::memory::{self, Memory};
use crate::output::Output;
use crate::pci::transport::{Place, VirtioPci};
use crate::pci::{Ecam, Function, Functions, Window};
use crate::stats::{EngineStats, KernelVcpu, PerInterrupt, Report, VcpuStats};
use crate::vcpu::{self, End, Running, Shared};
use crate::virtio::{blk::Disk, rng::Rng};
use crate::{boot, console, fdt, map};

fn range(base: u64, size: u64) -> Result<MmioRange> {
    MmioRange::new(MmioAddress(base), size).map_err(|e| anyhow::anyhow!("{e:?}"))
}

fn functions(
    run: &Run,
    vm: &Arc<kvm_ioctls::VmFd>,
    memory: &Memory,
    irqs: &Arc<Irqs>,
) -> Result<Functions> {
    let mut functions: Vec<Box<dyn Function>> = Vec::new();
    let place = |number: usize| {
        let (irqs, vm) = (Arc::clone(irqs), Arc::clone(vm));
        Place {
            number: number as u8,
            memory: Arc::clone(memory),
            make_doorbell: Box::new(move |fd, at| Ok(Box::new(IoEvent::new(&vm, fd, at, None)?))),
            make_sender: Box::new(move || irqs.sender()),
        }
    };
    // Device 0 is the host bridge's place. It stays empty, as no bridge is needed.
    functions.push(Box::new(Nothing));
    for path in &run.disk {
        let disk = Disk::open(path, run.queues)?;
        functions.push(Box::new(VirtioPci::new(disk, place(functions.len()))?));
    }
    if run.rng {
        functions.push(Box::new(VirtioPci::new(Rng::new()?, place(functions.len()))?));
    }
    ensure!(functions.len() <= 32, "too many disks");
    Ok(Functions::new(functions))
}

/// An empty slot.
struct Nothing;

impl Function for Nothing {
    fn config_read(&mut self, _: usize, _: &mut [u8]) {}
    fn config_write(&mut self, _: usize, _: &[u8]) {}
    fn bar(&self) -> Option<(u64, u64)> {
        None
    }
    fn bar_read(&mut self, _: u64, _: &mut [u8]) {}
    fn bar_write(&mut self, _: u64, _: &[u8]) {}
}

fn bus(
    run: &Run,
    vm: &Arc<kvm_ioctls::VmFd>,
    memory: &Memory,
    irqs: &Arc<Irqs>,
    accounts: &Arc<Accounts>,
    output: Output,
) -> Result<IoManager> {
    let mut bus = IoManager::new();
    let mut add = |base, size, device: Arc<dyn DeviceMmio + Send + Sync>| {
        let added = bus.register_mmio(range(base, size)?, device);
        added.map_err(|e| anyhow::anyhow!("a device at {base:#x}: {e:?}"))
    };
    add(map::PL011, 0x1000, console::start(irqs, output)?)?;
    let functions = Arc::new(functions(run, vm, memory, irqs)?);
    add(map::ECAM, map::ECAM_SIZE, Arc::new(Ecam(Arc::clone(&functions))))?;
    add(map::PCI_MMIO, map::PCI_MMIO_SIZE, Arc::new(Window(functions)))?;
    if run.raw.is_some() || run.doorbell {
        let doorbell = Doorbell::new(Arc::clone(irqs), Arc::clone(memory), Arc::clone(accounts))?;
        add(map::DOORBELL, 0x1000, Arc::new(DoorbellDevice(doorbell::Shared::new(doorbell))))?;
    }
    Ok(bus)
}

/// The doorbell on the bus.
struct DoorbellDevice(doorbell::Shared);

impl DeviceMmio for DoorbellDevice {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        lock(&self.0).mmio_read(base, offset, data);
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        lock(&self.0).mmio_write(base, offset, data);
    }
}

/// How long the reader of the output may take for each piece when the machine has ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// The maximum number of threads that send interrupts: the console, and each device for itself and
/// for each of its queues. The doorbell device has one more for each of its injectors.
fn senders(run: &Run) -> Result<u16> {
    let disks = run.disk.len() * (1 + usize::from(run.queues));
    let rng = if run.rng { 2 } else { 0 };
    let all = 1 + disks + rng + doorbell::SENDERS;
    u16::try_from(all).map_err(|_| {
        anyhow::anyhow!("{all} handles for interrupts are too many: fewer disks, or queues")
    })
}

/// Runs a machine to its end.
pub(crate) fn run(run: &Run) -> Result<(End, Report)> {
    let vm = Arc::new(open_kvm()?.create_vm().context("KVM_CREATE_VM")?);
    if run.gic != GicKind::KernelV3 {
        // Check this first, as later steps could fail for the same reason.
        vgic_kvm::Machine::check_host(&vm)?;
    }
    let memory = memory::new(run.memory)?;
    memory::register(&vm, &memory)?;
    let layout = boot::load(run, &memory)?;
    let create = |n| vcpu::create(&vm, n, layout.entry, layout.fdt);
    let vcpus: Vec<VcpuFd> = (0..run.smp).map(create).collect::<Result<_>>()?;
    let irqs = Arc::new(Irqs::new(run.gic, &vm, run.smp, &memory, senders(run)?)?);
    let blob = fdt::write(run, &layout, &irqs)?;
    memory.write_slice(&blob, GuestAddress(layout.fdt)).context("no room for the device tree")?;
    let counts: Vec<_> = vcpus.iter().map(|_| Arc::new(KernelVcpu::default())).collect();
    let counters = match &*irqs {
        Irqs::User(gic) => Counters::User(gic.clone()),
        Irqs::Kernel(_) => Counters::Kernel(counts.clone()),
    };
    let accounts = Arc::new(Accounts::new(counters, run.smp));
    let output = Output::start(std::io::stdout()).context("a thread for the output")?;
    let bus = Arc::new(bus(run, &vm, &memory, &irqs, &accounts, output.clone())?);
    let (end, ended) = channel();
    let _memory = Arc::clone(&memory);
    let shared = Shared { bus, end, accounts: Arc::clone(&accounts), _memory };
    let (end, vcpus, engine) = match &*irqs {
        Irqs::User(gic) => {
            let started: Vec<Running> = (0..)
                .zip(vcpus)
                .map(|(n, vcpu)| vcpu::start(gic, VcpuId(n), vcpu, shared.clone()))
                .collect::<Result<_>>()?;
            let end = ended.recv()?;
            // All vCPUs are told to stop before one is joined, and all are joined before an error
            // of one is handled.
            accounts.over();
            let stopped: Vec<_> = started.into_iter().map(Running::join).collect();
            let stats: Vec<_> = stopped.into_iter().collect::<Result<_>>()?;
            let counters = (0..run.smp).filter_map(|n| gic.gic().engine().counters(VcpuId(n)));
            (end, stats, counters.map(EngineStats::from).collect())
        }
        Irqs::Kernel(_) => {
            for ((n, vcpu), counts) in (0..).zip(vcpus).zip(&counts) {
                vcpu::start_kernel(n, vcpu, shared.clone(), Arc::clone(counts))?;
            }
            let end = ended.recv()?;
            (end, counts.iter().map(|counts| VcpuStats::of_kernel(counts)).collect(), Vec::new())
        }
    };
    output.finish(PATIENCE);
    let (gic, kernel_msis) = match &*irqs {
        Irqs::User(_) => (if run.gic == GicKind::V3 { "v3" } else { "v2" }, 0),
        Irqs::Kernel(_) => ("kernel-v3", irq::msis()),
    };
    let (kvm_irq_line, kvm_signal_msi) = (irq::kernel_lines(), kernel_msis);
    let mut ioctls = Ioctls { kvm_irq_line, kvm_signal_msi, ..Ioctls::default() };
    vcpus.iter().for_each(|vcpu| vcpu.add_ioctls(&mut ioctls));
    let storms = accounts.storms();
    let report = Report {
        gic,
        end: format!("{end:?}").to_lowercase(),
        msis: irq::msis(),
        ioctls,
        storms,
        per_interrupt: PerInterrupt::of(&vcpus),
        vcpus,
        engine,
    };
    Ok((end, report))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: Run,
    }

    #[test]
    fn every_thread_of_every_device_has_a_handle() {
        let arguments = "vgic-vmm --kernel Image --smp 123 --queues 16 --rng";
        let disks = (0..30).flat_map(|n| ["--disk".to_owned(), format!("disk{n}")]);
        let all = arguments.split(' ').map(str::to_owned).chain(disks);
        let run = Cli::parse_from(all).run;
        assert_eq!(usize::from(senders(&run).unwrap()), 1 + 30 * 17 + 2 + doorbell::SENDERS);
    }
}
