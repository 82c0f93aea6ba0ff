//! Helpers for the models of delivery: a small VM, its sources of interrupts, and vCPUs with a
//! guest.
//!
//! The model's main thread makes all handles before the explored part, and drops them after it. The
//! threads of a model take the handles and give them back.

use std::sync::Arc;

use crate::sched::sync::Notify;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::lr::{ListRegisters, Lr, LrState, Maintenance};
use vgic_core::reclaim::Slots;
use vgic_core::{MsiRoute, VgicInjector};

use crate::{NoKick, VcpuInterface, Vgic, end};

/// The control side of the VM's MSI domain.
pub type Msi = vgic_core::Msi<Slots>;

/// The only device.
pub const DEVICE: DeviceId = DeviceId(0);
/// The first event of the device.
pub const EVENT: EventId = EventId(0);
/// The first vCPU.
pub const A: VcpuId = VcpuId(0);
/// The second vCPU.
pub const B: VcpuId = VcpuId(1);
/// The third vCPU.
pub const C: VcpuId = VcpuId(2);
/// The only SPI.
pub const SPI: Wired = Wired::Spi(Intid(PRIVATE_INTIDS));
/// The priority of all LPIs, unless a model says otherwise.
pub const PRIORITY: u8 = 0xa0;
/// An enabled LPI.
pub const ON: LpiConfig = LpiConfig::enabled(PRIORITY);
/// An enabled LPI of a higher priority than those that are [`ON`].
pub const URGENT: LpiConfig = LpiConfig::enabled(PRIORITY - 0x20);
/// A disabled LPI.
pub const OFF: LpiConfig = LpiConfig { enabled: false, ..ON };

/// The LPI of an event.
pub fn lpi(event: u32) -> Intid {
    Intid(LPI_BASE + event)
}

/// The only SGI that models use.
pub const SGI: Intid = Intid(0);

/// A handle through which a thread accesses the registers.
pub type Registers = VgicInjector<Slots>;

/// The configuration of an enabled, edge-triggered interrupt for `target`.
pub fn edge_for(target: VcpuId) -> WiredConfig {
    let priority = Priority::new(PRIORITY);
    let (group, trigger) = (Group::Group1, Trigger::Edge);
    WiredConfig { enabled: true, priority, group, trigger, target }
}

/// Creates a VM with one edge-triggered SPI that targets A.
pub fn spi_vm(vcpus: u16) -> (Vm, Registers) {
    let vm = Vm::with_exits(vcpus, 1);
    let registers = vm.injector();
    target(&registers, A);
    (vm, registers)
}

/// Retargets the SPI.
pub fn target(registers: &Registers, target: VcpuId) {
    registers.configure(SPI, edge_for(target)).unwrap();
}

/// Raises the SPI.
pub fn pulse(registers: &Registers) {
    let _ = registers.pulse(SPI).unwrap();
}

/// A host that does not kick, but lets one thread wait for exits.
pub struct Exits(Notify);

impl Kick for Exits {
    fn kick(&self, _: VcpuId) {}

    fn wait_for_exit(&self, _: VcpuId, done: &dyn Fn() -> bool) {
        while !done() {
            self.0.wait();
        }
    }

    fn exited(&self, _: VcpuId) {
        self.0.notify();
    }
}

/// A VM.
pub struct Vm {
    /// The control side of the only MSI domain.
    pub msi: Msi,
    vgic: Vgic,
}

impl Vm {
    /// Creates a VM with one device of two events, and a host that ignores kicks.
    pub fn new(vcpus: u16) -> Self {
        Self::with(vcpus, 0, Arc::new(NoKick))
    }

    /// Creates a VM with one device of two events, `spis` SPIs, and the host `kick`.
    pub fn with(vcpus: u16, spis: u16, kick: Arc<dyn Kick>) -> Self {
        let config = Config {
            vcpus,
            spis,
            lpis: 2,
            device_bits: 1,
            event_bits: 1,
            // Few, because the collecting thread looks at each of them.
            participants: vcpus + 4,
            ..Config::default()
        };
        let vgic = Vgic::new(&config, kick).unwrap();
        Self { msi: vgic.msi().unwrap(), vgic }
    }

    /// Creates a VM for models that read and write the state of the SPIs: the reader or writer can
    /// wait for exits.
    pub fn with_exits(vcpus: u16, spis: u16) -> Self {
        Self::with(vcpus, spis, Arc::new(Exits(Notify::new())))
    }

    /// Creates the control side of another MSI domain.
    pub fn domain(&self) -> Msi {
        self.vgic.msi().unwrap()
    }

    /// Maps an event to its LPI.
    pub fn map(&mut self, event: u32, target: VcpuId, config: LpiConfig) {
        self.msi.map(DEVICE, EventId(event), lpi(event), target, config).unwrap();
    }

    /// Creates a handle with which one thread raises one event.
    pub fn source(&mut self, event: u32) -> Source {
        let route = self.msi.route(DEVICE, EventId(event)).unwrap();
        Source { injector: self.injector(), route }
    }

    /// Creates an injector for a thread.
    pub fn injector(&self) -> VgicInjector<Slots> {
        self.vgic.injector().unwrap()
    }

    /// Creates an open vCPU with two list registers.
    pub fn cpu(&mut self, id: VcpuId) -> Cpu {
        let mut cpu = self.closed_cpu(id);
        cpu.vcpu.open();
        cpu
    }

    /// Creates a vCPU with one list register, which an SGI keeps: the guest has acknowledged it and
    /// not ended it. Other interrupts wait in a bucket. (A lone interrupt that finds a free list
    /// register takes a shorter path, without a bucket.)
    pub fn busy_cpu(&mut self, id: VcpuId) -> Cpu {
        let sgi = Wired::Private(id, Intid(1));
        let registers = self.injector();
        let urgent = Priority::new(PRIORITY - 0x20);
        registers.configure(sgi, WiredConfig { priority: urgent, ..edge_for(id) }).unwrap();
        assert_eq!(registers.pulse(sgi), Ok(Injected::Pending));
        let mut cpu = self.cpu(id).with_one_lr();
        cpu.enter();
        assert_eq!(cpu.lrs.acknowledge(), 1);
        cpu.exit();
        assert_eq!(cpu.lrs.used(), 1, "it keeps the list register");
        cpu
    }

    /// Creates a closed vCPU with two list registers.
    pub fn closed_cpu(&self, id: VcpuId) -> Cpu {
        let vcpu = self.vgic.vcpu(id).unwrap();
        Cpu { vcpu, lrs: Lrs::new(2) }
    }

    /// Ends the model, when every source is gone. Unmaps the device: after that, no vCPU may have
    /// an LPI. Then drops the vCPUs: after that, no object may be left.
    pub fn end<T>(mut self, cpus: T) {
        self.msi.unmap_device(DEVICE);
        self.msi.collect();
        assert_eq!(self.vgic.usage().lpis, 0, "someone has an LPI that nobody needs");
        drop((cpus, self.msi));
        end(self.vgic);
    }
}

/// The handle with which one thread raises one event.
pub struct Source {
    /// The thread's injector.
    pub injector: VgicInjector<Slots>,
    route: MsiRoute<Slots>,
}

impl Source {
    /// Raises the event. Returns how many deliveries that makes due: none if the injection
    /// coalesced.
    pub fn raise(&self) -> usize {
        match self.send() {
            Injected::Pending => 1,
            Injected::Coalesced => 0,
            Injected::Unmapped => panic!("it is mapped"),
        }
    }

    /// Raises the event, for models in which the target vCPU may ignore MSIs.
    pub fn send(&self) -> Injected {
        self.injector.inject_route(&self.route)
    }
}

/// [`Vm::cpu`] or [`Vm::busy_cpu`].
pub type MakeCpu = fn(&mut Vm, VcpuId) -> Cpu;

/// A vCPU with its guest.
pub struct Cpu {
    /// The vCPU.
    pub vcpu: VcpuInterface,
    /// The list registers that the guest sees.
    pub lrs: Lrs,
}

impl Cpu {
    /// Gives the vCPU one list register only.
    pub fn with_one_lr(mut self) -> Self {
        self.lrs = Lrs::new(1);
        self
    }

    /// Enters the guest.
    pub fn enter(&mut self) {
        let flushed = self.vcpu.flush(&mut self.lrs);
        assert_eq!(flushed.in_lrs, self.lrs.used(), "what flush says is what is there");
    }

    /// Exits the guest.
    pub fn exit(&mut self) {
        self.vcpu.fold(&mut self.lrs);
    }

    /// Enters, lets the guest take every interrupt in the list registers, and exits. Returns how
    /// many interrupts it took.
    pub fn run(&mut self) -> usize {
        self.enter();
        let taken = self.lrs.take();
        self.exit();
        taken
    }

    /// Runs until no interrupt comes any more. Returns how many interrupts the guest took.
    pub fn settle(&mut self) -> usize {
        let mut all = 0;
        loop {
            let taken = self.run();
            all += taken;
            // A taken interrupt can make room for the next.
            if taken == 0 && !self.vcpu.has_mail() {
                return all;
            }
        }
    }

    /// Powers the vCPU off.
    pub fn close(&mut self) {
        self.vcpu.close(&mut self.lrs);
        assert_eq!(self.lrs.used(), 0, "a closed vCPU has nothing");
    }
}

/// List registers in memory.
pub struct Lrs {
    lrs: Vec<Lr>,
}

impl ListRegisters for Lrs {
    fn count(&self) -> usize {
        self.lrs.len()
    }
    fn read(&self, n: usize) -> Lr {
        self.lrs[n]
    }
    fn write(&mut self, n: usize, lr: Lr) {
        self.lrs[n] = lr;
    }
    fn take_eoi_count(&mut self) -> u32 {
        0
    }
    fn set_maintenance(&mut self, _: Maintenance) {}
}

impl Lrs {
    fn new(count: usize) -> Self {
        Self { lrs: vec![Lr::EMPTY; count] }
    }

    /// The number of list registers in use.
    pub fn used(&self) -> usize {
        self.lrs.iter().filter(|lr| lr.state() != LrState::Invalid).count()
    }

    /// Whether this interrupt is pending in a list register.
    pub fn offers(&self, intid: Intid) -> bool {
        self.lrs.iter().any(|lr| lr.state().is_pending() && lr.intid() == intid)
    }

    /// The number of list registers with a pending interrupt.
    pub fn pending(&self) -> usize {
        self.lrs.iter().filter(|lr| lr.state().is_pending()).count()
    }

    /// The guest acknowledges every interrupt that is pending and not active. Returns how many
    /// there were.
    pub fn acknowledge(&mut self) -> usize {
        let mut taken = 0;
        for lr in &mut self.lrs {
            if lr.state() == LrState::Pending {
                *lr = lr.with_state(LrState::Active);
                taken += 1;
            }
        }
        taken
    }

    /// The guest ends every active interrupt.
    pub fn eoi(&mut self) {
        for lr in &mut self.lrs {
            match lr.state() {
                LrState::Active => *lr = lr.with_state(LrState::Invalid),
                LrState::PendingActive => *lr = lr.with_state(LrState::Pending),
                LrState::Invalid | LrState::Pending => {}
            }
        }
    }

    /// The guest acknowledges and ends every interrupt that is pending and not active. Returns how
    /// many there were.
    pub fn take(&mut self) -> usize {
        let taken = self.acknowledge();
        self.eoi();
        taken
    }
}
