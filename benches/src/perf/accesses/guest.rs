//! A machine on one thread, with a guest that can use every part of it.

use std::sync::Arc;

use vgic_core::engine::Config;
use vgic_core::gic::{Affinity, Gic, GicBus, GicCpu, Model, Setup, SysReg};
use vgic_core::ids::{DeviceId, EventId, Intid, LPI_BASE, VcpuId};
use vgic_core::its::{CollectionId, Command, Its, ItsConfig, RdBase};
use vgic_core::memory::GuestMemory;

use super::{Size, access};
use crate::cost::NoKick;
use crate::its::boot::boot;
use crate::its::layout::{GICD, GICR, GITS, Layout, QUEUE_SIZE, RAM, REDIST_SIZE};
use crate::its::ram::Ram;
use crate::perf::paths::Shipped;

pub(super) const GITS_CTLR: u64 = GITS;
const CWRITER: u64 = GITS + 0x88;
pub(super) const CREADR: u64 = GITS + 0x90;
pub(super) const BASER0: u64 = GITS + 0x100;
pub(super) const BASER1: u64 = GITS + 0x108;
const COMMAND_SIZE: u64 = 32;
/// Bounds on bytes and events that no scene reaches.
const BYTES: u64 = 8 << 30;
const EVENTS: u32 = 1 << 24;

/// A machine, with or without an ITS.
pub(super) struct Guest {
    pub(super) gic: Gic<Shipped>,
    pub(super) bus: GicBus<Shipped>,
    pub(super) cpus: Vec<GicCpu<Shipped>>,
    pub(super) ram: Arc<Ram>,
    pub(super) layout: Layout,
    size: Size,
    /// Offset in the queue of the next command.
    end: u64,
}

/// The parts of a machine in addition to its vCPUs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Has {
    Its,
    DirectLpis,
    Spis,
}

impl Guest {
    /// Boots a machine: everything is on, awake and enabled.
    pub(super) fn new(size: Size, has: Has) -> Self {
        // `max_lpis` is this number, and there are two more INTIDs, so mapping one more LPI meets
        // the bound.
        let lpis = if has == Has::Spis { 1 } else { size.lpis };
        let config = Config {
            vcpus: size.vcpus,
            lpis: lpis + 2,
            max_lpis: lpis,
            device_bits: 10,
            event_bits: 16,
            max_bytes: BYTES,
            max_events: EVENTS,
            participants: 8,
            ..Config::default()
        };
        let layout = Layout::new(&config);
        let ram = Arc::new(Ram::new(RAM, layout.bytes));
        let mut setup = Setup::new(40);
        setup.create(Model::V3).expect("once");
        for n in 0..u32::from(size.vcpus) {
            setup.add_vcpu(Affinity(((n / 16) << 8) | (n % 16))).expect("few enough");
        }
        setup.set_bounds(config);
        let (spis, extended) = if has == Has::Spis { size.spis } else { (32, 0) };
        setup.set_spis(spis).expect("few enough");
        setup.set_extended(0, extended).expect("few enough");
        setup.set_distributor(GICD).expect("an address");
        setup.add_redistributors(GICR, size.vcpus.into()).expect("addresses");
        setup.set_memory(Arc::<Ram>::clone(&ram)).expect("once");
        let its = ItsConfig { device_bits: 10, max_events: EVENTS, ..ItsConfig::at(GITS) };
        if has != Has::DirectLpis {
            setup.add_its(its).expect("once");
        }
        let gic: Gic<Shipped> = setup.init(Arc::new(NoKick)).expect("all is there");
        let bus = gic.bus().expect("a participant");
        let vcpus = (0..size.vcpus).map(VcpuId);
        let cpus = vcpus.map(|id| gic.cpu(id).expect("it is there")).collect();
        let mut guest = Self { gic, bus, cpus, ram, layout, size, end: 0 };
        if has == Has::DirectLpis {
            guest.boot_redistributors();
        } else {
            boot(&guest.bus, &guest.layout, size.vcpus);
        }
        for cpu in &mut guest.cpus {
            cpu.power_on();
            for (reg, value) in [(SysReg::ICC_PMR_EL1, 0xff), (SysReg::ICC_IGRPEN1_EL1, 1)] {
                cpu.icc_write(reg, value).expect("it can be written");
            }
        }
        guest
    }

    fn boot_redistributors(&self) {
        self.w32(GICD, 2);
        for vcpu in (0..self.size.vcpus).map(VcpuId) {
            let (rd, bits) = (Layout::redist(vcpu), u64::from(self.layout.id_bits - 1));
            self.w64(rd + 0x70, self.layout.properties() | bits);
            self.w64(rd + 0x78, self.layout.pending(vcpu));
        }
    }

    pub(super) fn w32(&self, address: u64, value: u32) {
        self.bus.write(VcpuId(0), address, &value.to_le_bytes()).expect("a register");
    }

    pub(super) fn w64(&self, address: u64, value: u64) {
        self.bus.write(VcpuId(0), address, &value.to_le_bytes()).expect("a register");
    }

    pub(super) fn r32(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.read(VcpuId(0), address, &mut data).expect("a register");
        u32::from_le_bytes(data)
    }

    pub(super) fn r64(&self, address: u64) -> u64 {
        let mut data = [0; 8];
        self.bus.read(VcpuId(0), address, &mut data).expect("a register");
        u64::from_le_bytes(data)
    }

    pub(super) fn its(&self) -> Its<Shipped> {
        self.gic.its(0).expect("it was set up")
    }

    /// Enables all LPIs in the configuration table.
    pub(super) fn enable_all(&self) {
        let bytes = vec![0xa1; self.size.lpis as usize];
        self.ram.write(self.layout.properties(), &bytes).expect("it is memory");
    }

    fn put(&mut self, command: Command) {
        let place = self.layout.queue + self.end;
        self.ram.write(place, &command.encode()).expect("the queue is in memory");
        self.end = (self.end + COMMAND_SIZE) % QUEUE_SIZE;
    }

    /// Queues commands, as many as the queue has room for, and polls until the ITS has performed
    /// them.
    pub(super) fn run(&mut self, commands: impl IntoIterator<Item = Command>) {
        commands.into_iter().for_each(|command| self.put(command));
        self.w64(CWRITER, self.end);
        while self.r64(CREADR) != self.end {}
    }

    /// Queues commands like [`Guest::run`], and counts each access.
    pub(super) fn count(&mut self, name: &str, commands: impl IntoIterator<Item = Command>) {
        commands.into_iter().for_each(|command| self.put(command));
        access(name, || self.w64(CWRITER, self.end));
        while access(name, || self.r64(CREADR)) != self.end {}
    }

    /// Maps all LPIs to one collection by MAPD and MAPTI: 65,536 events per device.
    pub(super) fn map_all(&mut self, collection: u16) {
        let (size, itt) = (15, self.layout.itt(DeviceId(0)));
        // Writes the table first, so that its memory is allocated before the ITS writes to it.
        (0..8 << 16).step_by(0x1_0000).for_each(|at| self.ram.store(itt + at, 0));
        for table in [self.layout.devices, self.layout.collections] {
            self.ram.store(table, 0);
        }
        let devices = self.size.lpis.div_ceil(1 << 16);
        let mapd = |device| Command::Mapd { device, valid: true, size, itt };
        self.run((0..devices).map(DeviceId).map(mapd));
        let all = (0..self.size.lpis).map(|n| mapti(n, collection)).collect::<Vec<_>>();
        for some in all.chunks(2000) {
            self.run(some.iter().copied());
        }
    }

    /// Enters and leaves a vCPU's guest until there is no reason to enter again.
    pub(super) fn enter(&mut self, vcpu: usize, name: &str) {
        let cpu = &mut self.cpus[vcpu];
        loop {
            access(name, || {
                cpu.enter();
                cpu.exit();
            });
            if !cpu.has_mail() {
                return;
            }
        }
    }

    /// Writes a system register, and performs the entries that follow from it.
    pub(super) fn icc(&mut self, vcpu: usize, name: &str, reg: SysReg, value: u64) {
        let cpu = &mut self.cpus[vcpu];
        access(name, || cpu.icc_write(reg, value)).expect("it can be written");
        self.enter(vcpu, &format!("{name}: entry"));
    }

    /// Injects all LPIs by their devices' MSIs.
    pub(super) fn inject_all(&self) {
        let (port, injector) = (self.its().port(), self.bus.injector());
        for n in 0..self.size.lpis {
            let (device, event) = event(n);
            let _ = port.inject(injector, device, event);
        }
    }
}

/// Returns the event of LPI number `n`.
fn event(n: u32) -> (DeviceId, EventId) {
    (DeviceId(n >> 16), EventId(n & 0xffff))
}

pub(super) fn mapti(n: u32, collection: u16) -> Command {
    let (device, event) = event(n);
    let collection = CollectionId(collection);
    Command::Mapti { device, event, intid: Intid(LPI_BASE + n), collection }
}

pub(super) fn discard(n: u32) -> Command {
    let (device, event) = event(n);
    Command::Discard(device, event)
}

pub(super) fn movi(n: u32, collection: u16) -> Command {
    let (device, event) = event(n);
    Command::Movi { device, event, collection: CollectionId(collection) }
}

/// Returns a MAPC of a collection to a vCPU.
pub(super) fn mapc(collection: u16, vcpu: u16) -> Command {
    let (collection, rdbase) = (CollectionId(collection), RdBase(vcpu.into()));
    Command::Mapc { collection, valid: true, rdbase }
}

pub(super) fn unmapc(collection: u16) -> Command {
    Command::Mapc { collection: CollectionId(collection), valid: false, rdbase: RdBase(0) }
}

pub(super) fn rd(vcpu: u16) -> u64 {
    GICR + REDIST_SIZE * u64::from(vcpu)
}
