//! Helpers for the models of the ITS: a machine with devices, with vCPUs that have the software CPU
//! interface, and with a guest that gives commands through the queue in its memory.
//!
//! The guest's memory and the log of commands are behind locks that loom does not see: they exist
//! for the models' checks, and order nothing.

use std::sync::{Arc, Mutex};

use vgic_core::engine::*;
use vgic_core::gic::{Affinity, Gic, GicBus, GicCpu, Model, Setup};
use vgic_core::ids::*;
use vgic_core::its::{
    CollectionId, Command, Fault, Its, ItsConfig, ItsPort, ItsRoute, ItsTrace, RdBase,
};
use vgic_core::memory::{GuestMemory, MemoryError};

use crate::{NoKick, Vgic, end};

const GICD: u64 = 0x0800_0000;
const GICR: u64 = 0x0900_0000;
const GITS: u64 = 0x0a00_0000;

/// The ITS's registers.
const CTLR: u64 = GITS;
const CBASER: u64 = GITS + 0x80;
const CWRITER: u64 = GITS + 0x88;
const CREADR: u64 = GITS + 0x90;
const BASER0: u64 = GITS + 0x100;

const VALID: u64 = 1 << 63;
/// GITS_CTLR.Quiescent.
const QUIESCENT: u64 = 1 << 31;
/// GICR_PENDBASER.PTZ.
const PTZ: u64 = 1 << 62;

/// The guest's memory: the queue, the LPIs' configuration, the device table, and the ITT.
const QUEUE: u64 = 0x4000_0000;
const CONFIGURATION: u64 = QUEUE + 0x1000;
const DEVICES: u64 = QUEUE + 0x2000;
const ITT: u64 = QUEUE + 0x3000;
const MEMORY_SIZE: usize = 0x4000;

/// The size of the queue in bytes.
const QUEUE_SIZE: u64 = 0x1000;
/// The size of a command in bytes.
const COMMAND: u64 = 32;

/// The only device.
pub const DEVICE: DeviceId = DeviceId(0);

/// The `n`th LPI of the machine, from 0 up.
pub const fn lpi(n: u32) -> Intid {
    Intid(LPI_BASE + n)
}

struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn with<T>(
        &self,
        address: u64,
        len: usize,
        f: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, MemoryError> {
        let error = MemoryError { address };
        let start = address.checked_sub(QUEUE).ok_or(error)? as usize;
        let mut bytes = self.0.lock().unwrap();
        bytes.get_mut(start..start + len).map(f).ok_or(error)
    }
}

impl GuestMemory for Memory {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.with(address, data.len(), |bytes| data.copy_from_slice(bytes))
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.with(address, data.len(), |bytes| bytes.copy_from_slice(data))
    }
}

/// The commands that have been performed, in their order.
#[derive(Default)]
pub struct Log(Mutex<Vec<Option<Command>>>);

impl Log {
    /// The number of commands performed.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The commands after the first `n`.
    pub fn after(&self, n: usize) -> Vec<Command> {
        self.0.lock().unwrap()[n..].iter().map(|command| command.unwrap()).collect()
    }
}

impl ItsTrace for Log {
    fn command(&self, _its: usize, command: Option<Command>, result: Result<(), Fault>) {
        assert_eq!(result, Ok(()), "{command:?}");
        self.0.lock().unwrap().push(command);
    }
}

/// A trace for models that do not check the results of commands: some commands are invalid at the
/// moment at which they are performed.
pub struct Unwatched;

impl ItsTrace for Unwatched {}

/// MAPTI to an LPI, from 0 up.
pub fn mapti(event: u32, n: u32, collection: u16) -> Command {
    let (event, collection) = (EventId(event), CollectionId(collection));
    Command::Mapti { device: DEVICE, event, intid: lpi(n), collection }
}

/// DISCARD.
pub fn discard(event: u32) -> Command {
    Command::Discard(DEVICE, EventId(event))
}

/// INT.
pub fn int(event: u32) -> Command {
    Command::Int(DEVICE, EventId(event))
}

/// CLEAR.
pub fn clear(event: u32) -> Command {
    Command::Clear(DEVICE, EventId(event))
}

/// MOVI.
pub fn movi(event: u32, collection: u16) -> Command {
    Command::Movi { device: DEVICE, event: EventId(event), collection: CollectionId(collection) }
}

/// INVALL.
pub fn invall(collection: u16) -> Command {
    Command::Invall(CollectionId(collection))
}

/// MOVALL from one vCPU's redistributor to another's.
pub fn movall(from: u64, to: u64) -> Command {
    Command::Movall { from: RdBase(from), to: RdBase(to) }
}

/// MAPC to a vCPU's redistributor.
pub fn mapc(collection: u16, vcpu: u64) -> Command {
    Command::Mapc { collection: CollectionId(collection), valid: true, rdbase: RdBase(vcpu) }
}

/// MAPC with V = 0.
pub fn unmapc(collection: u16) -> Command {
    Command::Mapc { collection: CollectionId(collection), valid: false, rdbase: RdBase(0) }
}

/// A machine with an ITS. The guest has set everything up: all LPIs are enabled in the
/// configuration table, LPIs are enabled at all redistributors, collection n is at vCPU n, and the
/// device is mapped. Its events are not mapped.
pub struct Machine {
    gic: Gic<Vgic>,
    its: Its<Vgic>,
    memory: Arc<Memory>,
    guest: Guest,
    /// The offset in the queue of the next command.
    end: u64,
}

impl Machine {
    /// Creates a machine with `vcpus` vCPUs, two events, and a host that does not continue
    /// commands.
    pub fn new(vcpus: u16) -> (Self, Arc<Log>) {
        let log = Arc::new(Log::default());
        (Self::with(vcpus, log.clone(), Arc::new(NoKick)), log)
    }

    /// Creates a machine with `vcpus` vCPUs, two events, the given host, and a trace that receives
    /// the commands of the ITS.
    pub fn with(vcpus: u16, trace: Arc<dyn ItsTrace>, host: Arc<dyn Kick>) -> Self {
        Self::of(vcpus, 1, trace, host)
    }

    /// Creates a machine with an event for each value of `bits` bits, and as many LPIs.
    pub fn of(vcpus: u16, bits: u8, trace: Arc<dyn ItsTrace>, host: Arc<dyn Kick>) -> Self {
        let memory = Arc::new(Memory(Mutex::new(vec![0; MEMORY_SIZE])));
        memory.write(CONFIGURATION, &[0xa1; 8]).unwrap();
        let mut setup = Setup::new(40);
        setup.create(Model::V3).unwrap();
        setup.set_spis(0).unwrap();
        setup.set_lrs(2).unwrap();
        for n in 0..vcpus {
            setup.add_vcpu(Affinity(n.into())).unwrap();
        }
        setup.set_bounds(Config {
            lpis: 1 << bits,
            device_bits: 1,
            event_bits: bits,
            // Few, because the collecting thread looks at each of them.
            participants: 2 * vcpus + if cfg!(loom) { 7 } else { 20 },
            ..Config::default()
        });
        setup.set_distributor(GICD).unwrap();
        setup.add_redistributors(GICR, vcpus.into()).unwrap();
        setup.set_memory(memory.clone()).unwrap();
        let shape = ItsConfig { device_bits: 1, event_bits: bits, ..ItsConfig::at(GITS) };
        setup.add_its(ItsConfig { hardware_collections: 4, slice: 1, ..shape }).unwrap();
        setup.set_its_trace(trace);
        let gic: Gic<Vgic> = setup.init(host).unwrap();
        let (its, guest) = (gic.its(0).unwrap(), Guest(gic.bus().unwrap()));
        let mut machine = Self { gic, its, memory, guest, end: 0 };
        machine.start(vcpus, bits);
        machine
    }

    fn start(&mut self, vcpus: u16, bits: u8) {
        let guest = &self.guest;
        guest.write32(GICD, 3);
        for n in 0..vcpus {
            let base = redist(n);
            guest.write32(base + 0x14, 0);
            guest.write64(base + 0x70, CONFIGURATION | 13);
            guest.write64(base + 0x78, PTZ);
            guest.enable_lpis(n, true);
        }
        guest.write64(CBASER, VALID | QUEUE);
        guest.write64(BASER0, VALID | DEVICES);
        guest.enable_its(true);
        (0..vcpus).for_each(|n| self.run(mapc(n, n.into())));
        self.run(Command::Mapd { device: DEVICE, valid: true, size: bits - 1, itt: ITT });
        self.wait();
    }

    /// Polls until all commands are done: a slice may be less than a command, and the host may
    /// leave the remaining commands.
    fn wait(&self) {
        while !self.guest.is_done(End(self.end)) {}
    }

    /// Writes commands into the queue, without a write to GITS_CWRITER. Returns the new end of the
    /// queue.
    pub fn put(&mut self, commands: &[Command]) -> End {
        for command in commands {
            self.memory.write(QUEUE + self.end, &command.encode()).unwrap();
            self.end = (self.end + COMMAND) % QUEUE_SIZE;
        }
        End(self.end)
    }

    /// Writes an LPI's byte of the configuration table: its priority and its enable bit.
    pub fn configure(&self, n: u32, byte: u8) {
        self.memory.write(CONFIGURATION + u64::from(n), &[byte]).unwrap();
    }

    /// Gives one command and writes GITS_CWRITER.
    pub fn run(&mut self, command: Command) {
        let end = self.put(&[command]);
        self.guest.ring(end);
    }

    /// Creates the handle of a thread of the guest.
    pub fn guest(&self) -> Guest {
        Guest(self.gic.bus().unwrap())
    }

    /// The ITS.
    pub fn its(&self) -> &Its<Vgic> {
        &self.its
    }

    /// Creates a handle with which a device sends the MSI of one event by looking it up.
    pub fn source(&self, event: u32) -> Source {
        let injector = self.gic.engine().injector().unwrap();
        Source { injector, way: Way::Port(self.its.port(), EventId(event)) }
    }

    /// Creates a handle with which a device sends the MSI of one event through a resolved route.
    pub fn route(&self, event: u32) -> Source {
        let route = self.its.route(DEVICE, EventId(event)).unwrap();
        Source { injector: self.gic.engine().injector().unwrap(), way: Way::Route(route) }
    }

    /// Creates a vCPU that is powered on, with two list registers.
    pub fn cpu(&self, n: u16) -> Cpu {
        let mut cpu = Cpu(self.gic.cpu(VcpuId(n)).unwrap());
        cpu.power_on();
        assert_eq!(cpu.run(), []);
        cpu
    }

    /// Collects, and returns the number of LPIs that exist after that.
    pub fn lpis(&self) -> usize {
        self.gic.engine().msi().unwrap().collect();
        self.gic.engine().usage().lpis
    }

    /// Ends the model, when every source and guest is gone. The guest unmaps the device: after
    /// that, no vCPU may have an LPI. Then drops the vCPUs: after that, no object may be left.
    pub fn end<T>(mut self, cpus: T) {
        self.run(Command::Mapd { device: DEVICE, valid: false, size: 0, itt: 0 });
        self.wait();
        let engine = self.gic.engine().clone();
        assert_eq!(self.lpis(), 0, "someone has an LPI that nobody needs");
        drop((cpus, self));
        end(engine);
    }
}

fn redist(vcpu: u16) -> u64 {
    GICR + 0x2_0000 * u64::from(vcpu)
}

/// The end of the queue after some commands.
#[derive(Clone, Copy)]
pub struct End(u64);

/// A thread of the guest: a vCPU that accesses registers.
pub struct Guest(GicBus<Vgic>);

impl Guest {
    fn write32(&self, address: u64, value: u32) {
        self.0.write(VcpuId(0), address, &value.to_le_bytes()).unwrap();
    }

    fn write64(&self, address: u64, value: u64) {
        self.0.write(VcpuId(0), address, &value.to_le_bytes()).unwrap();
    }

    /// Writes GITS_CWRITER.
    pub fn ring(&self, end: End) {
        self.write64(CWRITER, end.0);
    }

    /// Reads GITS_CREADR. Returns whether all commands up to `end` are done.
    pub fn is_done(&self, end: End) -> bool {
        let mut value = [0; 8];
        self.0.read(VcpuId(0), CREADR, &mut value).unwrap();
        u64::from_le_bytes(value) >= end.0
    }

    /// Writes GITS_CTLR.
    pub fn enable_its(&self, enable: bool) {
        self.write32(CTLR, enable.into());
    }

    /// Reads GITS_CTLR.Quiescent.
    pub fn is_quiescent(&self) -> bool {
        let mut value = [0; 4];
        self.0.read(VcpuId(0), CTLR, &mut value).unwrap();
        u64::from(u32::from_le_bytes(value)) & QUIESCENT != 0
    }

    /// Writes GICR_INVALLR of a vCPU.
    pub fn invalidate_all(&self, vcpu: u16) {
        self.write64(redist(vcpu) + 0xb0, 0);
    }

    /// Writes GICD_CTLR to enable or disable both groups.
    pub fn enable_groups(&self, enable: bool) {
        self.write32(GICD, if enable { 3 } else { 0 });
    }

    /// Reads GICD_CTLR. Returns whether a group is enabled.
    pub fn has_groups(&self) -> bool {
        let mut value = [0; 4];
        self.0.read(VcpuId(0), GICD, &mut value).unwrap();
        u32::from_le_bytes(value) & 3 != 0
    }

    /// Writes GICR_CTLR.EnableLPIs of a vCPU.
    pub fn enable_lpis(&self, vcpu: u16, enable: bool) {
        self.write32(redist(vcpu), enable.into());
    }
}

enum Way {
    Port(ItsPort<Vgic>, EventId),
    Route(ItsRoute<Vgic>),
}

/// A device's thread, which sends the MSI of one event.
pub struct Source {
    injector: <Vgic as Engine>::Injector,
    way: Way,
}

impl Source {
    /// Sends the MSI.
    pub fn send(&self) -> Injected {
        match &self.way {
            Way::Port(port, event) => port.inject(&self.injector, DEVICE, *event),
            Way::Route(route) => route.inject(&self.injector),
        }
    }
}

/// A vCPU.
pub struct Cpu(GicCpu<Vgic>);

impl Cpu {
    /// Powers the vCPU on. The guest takes LPIs of any priority.
    pub fn power_on(&mut self) {
        self.0.power_on();
        let interface = self.0.cpu_interface();
        interface.set_pmr(0xff);
        interface.set_igrpen1(1);
    }

    /// Powers the vCPU off. Pending interrupts stay pending.
    pub fn power_off(&mut self) {
        self.0.power_off();
    }

    /// Enters, lets the guest acknowledge and end every interrupt that IAR returns, and exits.
    /// Returns these interrupts.
    pub fn run(&mut self) -> Vec<Intid> {
        let mut taken = Vec::new();
        self.0.enter();
        loop {
            let interface = self.0.cpu_interface();
            let intid = interface.iar1();
            if intid == Intid(SPURIOUS) {
                break;
            }
            let _ = interface.eoir1(intid);
            taken.push(intid);
        }
        self.0.exit();
        taken
    }

    /// Enters and exits. The guest does not acknowledge anything.
    pub fn look(&mut self) {
        self.0.enter();
        self.0.exit();
    }

    /// Runs until no interrupt and no mail is left. Returns the interrupts that the guest took.
    pub fn settle(&mut self) -> Vec<Intid> {
        let mut all = Vec::new();
        // Bounded, so that a seeded bug ends in a failure.
        for _ in 0..8 {
            let taken = self.run();
            let quiet = taken.is_empty() && !self.0.has_mail();
            all.extend(taken);
            if quiet {
                return all;
            }
        }
        panic!("a vCPU without an end to its mail");
    }
}

/// Runs all vCPUs until no interrupt comes to any of them, or is handed over from one to another.
/// Returns the interrupts that each took.
pub fn settle<const N: usize>(cpus: &mut [Cpu; N]) -> [Vec<Intid>; N] {
    let mut all = [const { Vec::new() }; N];
    for _ in 0..=N {
        for (cpu, all) in cpus.iter_mut().zip(&mut all) {
            all.extend(cpu.settle());
        }
    }
    all
}
