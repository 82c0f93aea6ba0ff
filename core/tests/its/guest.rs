//! A guest's ITS driver: tables and a command queue in its memory.

use std::sync::Arc;

use vgic_core::engine::{Config, Injected};
use vgic_core::gic::{Affinity, Model, Setup};
use vgic_core::ids::{DeviceId, EventId, Intid};
use vgic_core::its::{CollectionId, Command, Fault, Its, ItsConfig, ItsTrace, RdBase};
use vgic_core::memory::GuestMemory;

use super::Engine;
use super::world::{GICD, GICR, RAM, World, rd};

/// The registers of the ITS.
pub(crate) const GITS: u64 = 0x0808_0000;

pub(crate) const CTLR: u64 = GITS;
pub(crate) const TYPER: u64 = GITS + 0x8;
pub(crate) const CBASER: u64 = GITS + 0x80;
pub(crate) const CWRITER: u64 = GITS + 0x88;
pub(crate) const CREADR: u64 = GITS + 0x90;
pub(crate) const BASER0: u64 = GITS + 0x100;
pub(crate) const BASER1: u64 = GITS + 0x108;
pub(crate) const TRANSLATER: u64 = GITS + 0x1_0040;

pub(crate) const VALID: u64 = 1 << 63;

/// The addresses of the driver's tables.
pub(crate) const QUEUE: u64 = RAM + 0x10_0000;
/// 4 KiB, for 128 commands.
pub(crate) const QUEUE_SIZE: u64 = 0x1000;
pub(crate) const DEVICES: u64 = RAM + 0x11_0000;
pub(crate) const COLLECTIONS: u64 = RAM + 0x12_0000;
/// The address of a device's ITT: 64 KiB for each device, for 8,192 events.
pub(crate) fn itt(device: u32) -> u64 {
    RAM + 0x20_0000 + 0x1_0000 * u64::from(device % 32)
}

/// A command that was performed, and its result.
type Performed = (Option<Command>, Result<(), Fault>);

#[allow(clippy::disallowed_types)] // a test's own
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) results: std::sync::Mutex<Vec<Performed>>,
    pub(crate) untranslated: std::sync::Mutex<Vec<(DeviceId, EventId)>>,
}

impl ItsTrace for Log {
    fn command(&self, _its: usize, command: Option<Command>, result: Result<(), Fault>) {
        self.results.lock().unwrap().push((command, result));
    }

    fn untranslated(&self, _its: usize, device: DeviceId, event: EventId) {
        self.untranslated.lock().unwrap().push((device, event));
    }
}

pub(crate) struct Guest {
    pub(crate) world: World,
    pub(crate) its: Its<Engine>,
    pub(crate) log: Arc<Log>,
    /// The offset of the next command in the queue.
    pub(crate) end: u64,
}

/// A machine with an ITS that is not initialized and that logs its commands.
pub(crate) fn setup(vcpus: u32, config: ItsConfig, bounds: Config, log: &Arc<Log>) -> Setup {
    let mut setup = silent_setup(vcpus, config, bounds);
    setup.set_its_trace(log.clone());
    setup
}

/// A machine with an ITS that is not initialized and logs nothing.
pub(crate) fn silent_setup(vcpus: u32, config: ItsConfig, bounds: Config) -> Setup {
    let mut setup = Setup::new(40);
    setup.create(Model::V3).unwrap();
    for n in 0..vcpus {
        setup.add_vcpu(Affinity(n)).unwrap();
    }
    setup.set_bounds(bounds);
    setup.set_distributor(GICD).unwrap();
    setup.add_redistributors(GICR, vcpus).unwrap();
    setup.add_its(config).unwrap();
    setup
}

pub(crate) fn device(n: u32) -> DeviceId {
    DeviceId(n)
}

pub(crate) fn mapd(device: u32, bits: u8) -> Command {
    Command::Mapd { device: DeviceId(device), valid: true, size: bits - 1, itt: itt(device) }
}

pub(crate) fn unmapd(device: u32) -> Command {
    Command::Mapd { device: DeviceId(device), valid: false, size: 0, itt: 0 }
}

pub(crate) fn mapc(collection: u16, target: u64) -> Command {
    let (collection, rdbase) = (CollectionId(collection), RdBase(target));
    Command::Mapc { collection, valid: true, rdbase }
}

pub(crate) fn unmapc(collection: u16) -> Command {
    Command::Mapc { collection: CollectionId(collection), valid: false, rdbase: RdBase(0) }
}

pub(crate) fn mapti(device: u32, event: u32, intid: u32, collection: u16) -> Command {
    let (device, event, collection) = (DeviceId(device), EventId(event), CollectionId(collection));
    Command::Mapti { device, event, intid: Intid(intid), collection }
}

pub(crate) fn movi(device: u32, event: u32, collection: u16) -> Command {
    let (device, event, collection) = (DeviceId(device), EventId(event), CollectionId(collection));
    Command::Movi { device, event, collection }
}

pub(crate) fn movall(from: u64, to: u64) -> Command {
    Command::Movall { from: RdBase(from), to: RdBase(to) }
}

pub(crate) fn discard(device: u32, event: u32) -> Command {
    Command::Discard(DeviceId(device), EventId(event))
}

pub(crate) fn int(device: u32, event: u32) -> Command {
    Command::Int(DeviceId(device), EventId(event))
}

pub(crate) fn clear(device: u32, event: u32) -> Command {
    Command::Clear(DeviceId(device), EventId(event))
}

pub(crate) fn inv(device: u32, event: u32) -> Command {
    Command::Inv(DeviceId(device), EventId(event))
}

pub(crate) fn invall(collection: u16) -> Command {
    Command::Invall(CollectionId(collection))
}

impl Guest {
    /// A machine that the guest has not set up.
    pub(crate) fn reset(vcpus: u32, config: ItsConfig, bounds: Config) -> Self {
        let log = Arc::new(Log::default());
        let world = World::init(&setup(vcpus, config, bounds, &log), vcpus as usize);
        let its = world.gic.its(0).unwrap();
        Self { world, its, log, end: 0 }
    }

    pub(crate) fn with(vcpus: u32, config: ItsConfig, bounds: Config) -> Self {
        let mut guest = Self::reset(vcpus, config, bounds);
        guest.start();
        guest
    }

    /// A machine with everything enabled, every LPI configured at priority 0xa0, and collection n
    /// at vCPU n.
    pub(crate) fn new(vcpus: u32) -> Self {
        let mut guest = Self::with(vcpus, ItsConfig::at(GITS), Config::default());
        for n in 0..vcpus {
            guest.ok(mapc(n as u16, n.into()));
        }
        guest
    }

    pub(crate) fn start(&mut self) {
        let world = &mut self.world;
        world.start();
        world.ram.write(RAM, &[0xa1; 0x1_0000]).unwrap();
        for n in 0..world.cpus.len() {
            world.w64(rd(n) + 0x70, RAM | 15);
            world.w64(rd(n) + 0x78, (RAM + 0x1_0000 * (1 + n as u64)) | 1 << 62);
            world.w32(rd(n), 1);
        }
        world.w64(CBASER, VALID | QUEUE | (QUEUE_SIZE / 0x1000 - 1));
        world.w64(BASER0, VALID | DEVICES | 0xf);
        world.w64(BASER1, VALID | COLLECTIONS | 0xf);
        world.w32(CTLR, 1);
        assert_eq!(world.r32(CTLR), 1);
    }

    /// Writes a command into the queue, without telling the ITS.
    pub(crate) fn put(&mut self, raw: &[u8; 32]) {
        self.world.ram.write(QUEUE + self.end, raw).unwrap();
        self.end = (self.end + 32) % QUEUE_SIZE;
    }

    pub(crate) fn ring(&mut self) {
        let end = self.end;
        self.world.w64(CWRITER, end);
    }

    /// Reads GITS_CREADR until it is `end`, as a driver does. Returns the number of reads.
    #[track_caller]
    pub(crate) fn poll(&mut self, end: u64) -> u32 {
        const MOST: u32 = 100_000;
        let done = (1..MOST).find(|_| self.world.r64(CREADR) == end);
        done.unwrap_or_else(|| panic!("the queue stands at {:#x}", self.world.r64(CREADR)))
    }

    /// Gives a command, and returns its result.
    #[track_caller]
    pub(crate) fn run(&mut self, command: Command) -> Result<(), Fault> {
        self.put(&command.encode());
        self.ring();
        self.poll(self.end);
        let (last, result) = *self.log.results.lock().unwrap().last().unwrap();
        assert_eq!(last, Some(command));
        result
    }

    #[track_caller]
    pub(crate) fn ok(&mut self, command: Command) {
        assert_eq!(self.run(command), Ok(()), "{command:?}");
    }

    #[track_caller]
    pub(crate) fn fails(&mut self, command: Command, fault: Fault) {
        assert_eq!(self.run(command), Err(fault), "{command:?}");
    }

    /// Sends an MSI from a device.
    pub(crate) fn msi(&mut self, device: u32, event: u32) -> Injected {
        let injector = self.world.cpus[0].bus().injector();
        self.its.port().inject(injector, DeviceId(device), EventId(event))
    }

    /// Takes the interrupts of a vCPU, and returns their INTIDs.
    pub(crate) fn take(&mut self, vcpu: usize) -> Vec<u64> {
        self.world.look();
        self.world.take(vcpu)
    }

    /// Writes an LPI's byte of the configuration table.
    pub(crate) fn property(&self, intid: u32, byte: u8) {
        self.world.ram.write(RAM + u64::from(intid - 8192), &[byte]).unwrap();
    }

    /// Reads GITS_CTLR until the ITS is quiescent. Returns the number of reads.
    #[track_caller]
    pub(crate) fn quiet(&mut self) -> u32 {
        let done = (1..100_000).find(|_| self.world.r32(CTLR) == 1 << 31);
        done.expect("it becomes quiescent")
    }

    pub(crate) fn entry(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.world.ram.read(address, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Returns the number of mapped LPIs.
    pub(crate) fn lpis(&self) -> usize {
        self.world.gic.dump().lpis.len()
    }
}
