//! A guest that does anything with its ITS: commands of all sorts, tables that change while they
//! are read, and memory that comes and goes.
//!
//! After each step the bounds must hold. At the end of a run the guest becomes sensible, resets the
//! ITS, and must get the results that a sensible guest gets. When the machine is dropped, none of
//! its objects may remain.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arbitrary::{Arbitrary, Unstructured};
use vgic_core::Vgic;
use vgic_core::engine::*;
use vgic_core::gic::*;
use vgic_core::ids::*;
use vgic_core::its::*;
use vgic_core::lr::{ListRegisters, LrState};
use vgic_core::memory::{GuestMemory, MemoryError};

use crate::Report;

const VCPUS: u16 = 3;
const LRS: usize = 3;
const GICD: u64 = 0x0800_0000;
const GITS: u64 = 0x0808_0000;
const GICR: u64 = 0x080a_0000;

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x8_0000;
const PAGE: usize = 0x1000;
const PAGES: usize = RAM_SIZE / PAGE;

/// Addresses of a sensible guest's tables.
const PROPERTIES: u64 = RAM;
const PENDING: u64 = RAM + 0x1_0000;
const QUEUE: u64 = RAM + 0x4_0000;
const DEVICES: u64 = RAM + 0x5_0000;
const COLLECTIONS: u64 = RAM + 0x5_1000;
const ITTS: u64 = RAM + 0x6_0000;

const CTLR: u64 = GITS;
const CBASER: u64 = GITS + 0x80;
const CWRITER: u64 = GITS + 0x88;
const CREADR: u64 = GITS + 0x90;
const BASER: [u64; 2] = [GITS + 0x100, GITS + 0x108];
const TRANSLATER: u64 = GITS + 0x1_0040;
const VALID: u64 = 1 << 63;

const MAX_DEVICES: u32 = 4;
const MAX_EVENTS: u32 = 16;
const MAX_LPIS: u32 = 24;
const MAX_GARBAGE: u32 = 64;
const MOST_ROUTES: usize = 4;
/// The number of commands after which one access performs no further slice.
const MOST: u32 = 300;
const SLICE: u32 = 7;

/// One step of an input.
#[derive(Arbitrary, Debug)]
enum Op {
    /// Queues a command that may be valid.
    Command {
        kind: u8,
        device: u8,
        event: u8,
        collection: u8,
        rdbase: u8,
        intid: u8,
        tell: bool,
    },
    /// Queues a command of arbitrary contents.
    Raw([u64; 4]),
    /// Writes GITS_CWRITER with the end of the last command.
    Tell,
    /// Writes a register of the ITS with a value that may make sense.
    Register {
        which: u8,
        value: u64,
        wide: bool,
    },
    /// Accesses any address in the two frames of the ITS or in the redistributors' frames.
    Frame {
        vcpu: u8,
        offset: u32,
        width: u8,
        value: u64,
        write: bool,
    },
    /// Initializes the ITS as a driver does.
    Start(u8),
    Message {
        how: u8,
        device: u8,
        event: u8,
    },
    Route {
        device: u8,
        event: u8,
    },
    Serve(u8),
    Enter(u8),
    Exit(u8),
    Take(u8),
    End(u8),
    Power {
        vcpu: u8,
        on: bool,
    },
    EnableLpis {
        vcpu: u8,
        on: bool,
    },
    /// Writes GICR_PROPBASER or GICR_PENDBASER.
    Table {
        vcpu: u8,
        pending: bool,
        value: u64,
    },
    /// Writes GICR_SETLPIR, GICR_CLRLPIR, GICR_INVLPIR or GICR_INVALLR.
    Direct {
        vcpu: u8,
        which: u8,
        intid: u8,
    },
    Dump(u8),
    SaveTables,
    SavePending,
    /// The guest writes its memory.
    Store {
        at: u16,
        value: u64,
    },
    /// A page of memory disappears or comes back.
    Hole {
        page: u8,
        there: bool,
    },
    /// Sets how many of 256 reads change memory.
    Mutate(u8),
    /// Whether the host continues commands that an access left.
    HostGoesOn(bool),
    Work,
}

/// Returns the address of a page of RAM: one where a table or the queue may be, or one near it.
fn place(value: u64) -> u64 {
    RAM + (value >> 8 & 0x7f) * 0x1000
}

/// Memory that has holes, and that changes while it is read.
struct Memory(Mutex<Cells>);

struct Cells {
    bytes: Vec<u8>,
    holes: u128,
    /// The number of reads, of 256, that change memory.
    rate: u8,
    random: u64,
}

impl Cells {
    fn number(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Returns the range of `bytes` that an access covers. Asserts that the access is small: the
    /// engine bounds each of its accesses.
    fn range(&self, address: u64, len: usize) -> Result<std::ops::Range<usize>, MemoryError> {
        let error = MemoryError { address };
        assert!(len > 0 && len <= 64, "an access of {len} bytes");
        let start = address.checked_sub(RAM).ok_or(error)?;
        let start = usize::try_from(start).map_err(|_| error)?;
        let end = start.checked_add(len).filter(|&end| end <= RAM_SIZE).ok_or(error)?;
        let hole = (start / PAGE..=(end - 1) / PAGE).any(|page| self.holes >> page & 1 != 0);
        if hole { Err(error) } else { Ok(start..end) }
    }

    /// Changes memory as another vCPU of the guest, or the host, may do concurrently.
    fn mutate(&mut self, near: usize) {
        let n = self.number();
        if n as u8 >= self.rate {
            return;
        }
        match n >> 8 & 7 {
            0 => self.holes ^= 1 << ((n >> 16) % PAGES as u64),
            // Changes a byte that has just been read.
            1..=3 => self.bytes[near] ^= (n >> 16) as u8,
            _ => {
                let at = (n >> 24) as usize % RAM_SIZE;
                self.bytes[at] = (n >> 16) as u8;
            }
        }
    }
}

impl Memory {
    fn new() -> Self {
        let bytes = vec![0; RAM_SIZE];
        Self(Mutex::new(Cells { bytes, holes: 0, rate: 0, random: 0x9e37_79b9_7f4a_7c15 }))
    }

    fn with<T>(&self, f: impl FnOnce(&mut Cells) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A store by the guest. A store to missing memory has no effect.
    fn store(&self, address: u64, data: &[u8]) {
        let _ = self.write(address, data);
    }
}

impl GuestMemory for Memory {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        self.with(|cells| {
            let range = cells.range(address, data.len())?;
            data.copy_from_slice(&cells.bytes[range.clone()]);
            cells.mutate(range.start);
            Ok(())
        })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.with(|cells| {
            let range = cells.range(address, data.len())?;
            cells.bytes[range].copy_from_slice(data);
            Ok(())
        })
    }
}

#[derive(Default)]
struct Host {
    /// Whether the host continues commands that are left: 0 or 1.
    goes_on: AtomicU64,
    /// One bit per vCPU, set while its redistributor has work left.
    lpis_left: AtomicU64,
    /// The number of times that a redistributor reported work left.
    times_left: AtomicU64,
}

impl Kick for Host {
    fn kick(&self, _: VcpuId) {}

    fn commands_left(&self, _: usize) -> bool {
        self.goes_on.load(Ordering::Relaxed) != 0
    }

    fn lpis_left(&self, vcpu: VcpuId) {
        self.lpis_left.fetch_or(1 << vcpu.0, Ordering::Relaxed);
        self.times_left.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts the commands that the ITS performed.
#[derive(Default)]
struct Trace(AtomicU64);

impl ItsTrace for Trace {
    fn command(&self, _: usize, _: Option<Command>, _: Result<(), Fault>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Machine {
    // Declared first, and so dropped first: routes are parts of the objects below.
    routes: Vec<(DeviceId, EventId, ItsRoute<Vgic>)>,
    port: ItsPort<Vgic>,
    its: Its<Vgic>,
    bus: GicBus<Vgic>,
    cpus: Vec<GicCpu<Vgic>>,
    gic: Gic<Vgic>,
    config: ItsConfig,
    /// The number of LPIs.
    lpis: u32,
    memory: Arc<Memory>,
    host: Arc<Host>,
    trace: Arc<Trace>,
    /// The offset in the queue of the next command.
    tail: u64,
    /// The INTIDs that each vCPU has acknowledged and not ended.
    taken: [Vec<u32>; VCPUS as usize],
    report: Report,
}

impl Machine {
    fn new(shape: u16) -> Self {
        let bit = |n: u16| shape >> n & 1 != 0;
        // A pending table for this many LPIs takes up a quarter of memory, and more than one access
        // to read.
        let many = 2 * RAM_SIZE as u32;
        let lpis = if bit(10) { many } else { [2048, 1000, 63, 1][usize::from(shape >> 8 & 3)] };
        let config = ItsConfig {
            device_bits: if bit(0) { 16 } else { 10 },
            event_bits: if bit(1) { 16 } else { 5 },
            collection_bits: if bit(2) { 16 } else { 4 },
            hardware_collections: if bit(3) { 2 } else { 0 },
            pta: bit(4),
            stall: bit(5),
            cpu_device: bit(6).then_some(DeviceId(1)),
            max_devices: MAX_DEVICES,
            max_events: MAX_EVENTS,
            slice: if bit(7) { 1 } else { SLICE },
            most: MOST,
            ..ItsConfig::at(GITS)
        };
        let bounds = Config {
            lpis,
            max_lpis: MAX_LPIS,
            max_events: MAX_LPIS + 2 * MAX_EVENTS,
            max_devices: 32,
            max_garbage: MAX_GARBAGE,
            ..Config::default()
        };
        let (memory, host) = (Arc::new(Memory::new()), Arc::new(Host::default()));
        let trace = Arc::new(Trace::default());
        let mut setup = Setup::new(40);
        setup.create(Model::V3).unwrap();
        setup.set_lrs(LRS).unwrap();
        setup.set_bounds(bounds);
        setup.set_memory(memory.clone()).unwrap();
        for n in 0..VCPUS {
            setup.add_vcpu(Affinity(n.into())).unwrap();
        }
        setup.set_distributor(GICD).unwrap();
        setup.add_redistributors(GICR, VCPUS.into()).unwrap();
        setup.add_its(config).unwrap();
        setup.set_its_trace(trace.clone());
        let gic: Gic<Vgic> = setup.init(host.clone()).unwrap();
        let its = gic.its(0).unwrap();
        Self {
            routes: Vec::new(),
            port: its.port(),
            its,
            bus: gic.bus().unwrap(),
            cpus: (0..VCPUS).map(|n| gic.cpu(VcpuId(n)).unwrap()).collect(),
            gic,
            config,
            lpis,
            memory,
            host,
            trace,
            tail: 0,
            taken: Default::default(),
            report: Report::default(),
        }
    }

    fn cpu(&mut self, vcpu: u8) -> &mut GicCpu<Vgic> {
        &mut self.cpus[usize::from(vcpu) % usize::from(VCPUS)]
    }

    fn rd(vcpu: u8) -> u64 {
        GICR + 0x2_0000 * (u64::from(vcpu) % u64::from(VCPUS))
    }

    /// An access by one of the vCPUs, as an exit of its own. The other vCPUs have left the guest,
    /// since there is only one thread.
    fn access(&mut self, vcpu: u8, address: u64, data: &mut [u8], write: bool) -> bool {
        self.cpus.iter_mut().for_each(GicCpu::exit);
        let before = self.trace.0.load(Ordering::Relaxed);
        let cpu = self.cpu(vcpu);
        let done = if write { cpu.write(address, data) } else { cpu.read(address, data) }.is_ok();
        let commands = self.trace.0.load(Ordering::Relaxed) - before;
        assert!(commands <= u64::from(MOST + SLICE), "{commands} commands in one access");
        done
    }

    fn write(&mut self, address: u64, value: u64, bytes: usize) {
        let mut data = value.to_le_bytes();
        assert!(self.access(0, address, &mut data[..bytes], true), "{address:#x} can be written");
    }

    fn read(&mut self, address: u64, bytes: usize) -> u64 {
        let mut data = [0; 8];
        assert!(self.access(0, address, &mut data[..bytes], false), "{address:#x} can be read");
        u64::from_le_bytes(data)
    }

    fn rdbase(&self, n: u8) -> RdBase {
        let exists = u16::from(n) < VCPUS;
        RdBase(if self.config.pta && exists { Self::rd(n) >> 16 } else { n.into() })
    }

    fn put(&mut self, raw: &[u8; 32]) {
        let cbaser = self.read(CBASER, 8);
        let size = 0x1000 * ((cbaser & 0xff) + 1);
        self.memory.store((cbaser & 0xf_ffff_ffff_0000) + self.tail % size, raw);
        self.tail = (self.tail + 32) % size;
    }

    fn tell(&mut self) {
        let tail = self.tail;
        self.write(CWRITER, tail, 8);
    }

    fn command(&self, kind: u8, ids: [u8; 5]) -> Command {
        let [device, event, collection, rdbase, intid] = ids;
        let odd = |n: u8| u32::from(n >> 3) << (n & 31);
        let number = |n: u8| if n < 0xf0 { u32::from(n & 7) } else { odd(n) };
        let (device, event) = (DeviceId(number(device)), EventId(number(event)));
        let collection =
            CollectionId(if collection < 0xf0 { collection & 3 } else { collection }.into());
        let to = self.rdbase(if rdbase < 0xf0 { rdbase % VCPUS as u8 } else { rdbase });
        let intid = Intid(if intid < 0xf0 { LPI_BASE + u32::from(intid % 32) } else { odd(intid) });
        let valid = rdbase & 0x30 != 0x30;
        match kind % 16 {
            0 | 1 => {
                let size = if rdbase < 0xf0 { rdbase & 3 } else { rdbase & 0x1f };
                let itt = ITTS + 0x1000 * u64::from(device.0 % 8);
                Command::Mapd { device, valid, size, itt }
            }
            2 | 3 => Command::Mapc { collection, valid, rdbase: to },
            4..=7 => Command::Mapti { device, event, intid, collection },
            8 => Command::Movi { device, event, collection },
            9 => Command::Movall { from: to, to: self.rdbase((intid.0 % 3) as u8) },
            10 => Command::Discard(device, event),
            11 | 12 => Command::Int(device, event),
            13 => Command::Clear(device, event),
            14 if valid => Command::Inv(device, event),
            14 => Command::Sync(to),
            _ => Command::Invall(collection),
        }
    }

    fn perform(&mut self, op: Op) {
        match op {
            Op::Command { kind, device, event, collection, rdbase, intid, tell } => {
                let command = self.command(kind, [device, event, collection, rdbase, intid]);
                self.put(&command.encode());
                if tell {
                    self.tell();
                }
            }
            Op::Raw(words) => {
                let mut raw = [0; 32];
                for (bytes, word) in raw.chunks_exact_mut(8).zip(words) {
                    bytes.copy_from_slice(&word.to_le_bytes());
                }
                self.put(&raw);
            }
            Op::Tell => self.tell(),
            Op::Register { which, value, wide } => {
                let table = value & !0xf_ffff_ffff_f000 | place(value);
                let (address, value) = match which % 8 {
                    0 | 1 => (CTLR, value),
                    2 => (CBASER, table),
                    3 | 4 => (BASER[usize::from(which % 2)], table),
                    5 => (BASER[0], value),
                    6 => (CWRITER, value % 0x4000),
                    _ => (CWRITER, value),
                };
                self.write(address, value, if wide && address != CTLR { 8 } else { 4 });
            }
            Op::Frame { vcpu, offset, width, value, write } => {
                let address = GITS + u64::from(offset % (0x2_0000 * (1 + u32::from(VCPUS))));
                let mut data = value.to_le_bytes();
                self.access(vcpu, address, &mut data[..usize::from(width) % 9], write);
            }
            Op::Start(how) => self.start(how),
            Op::Message { how, device, event } => self.message(how, device, event),
            Op::Route { device, event } => {
                let (device, event) = (DeviceId((device & 7).into()), EventId((event & 7).into()));
                if self.routes.len() >= MOST_ROUTES {
                    self.routes.remove(0);
                }
                // `route` is refused when a bound is reached.
                let route = self.its.route(device, event);
                self.routes.extend(route.map(|route| (device, event, route)));
            }
            Op::Serve(vcpu) => {
                self.cpu(vcpu).enter();
                let intid = self.take(vcpu);
                self.end(vcpu, intid);
                self.cpu(vcpu).exit();
            }
            Op::Enter(vcpu) => {
                self.cpu(vcpu).enter();
            }
            Op::Exit(vcpu) => self.cpu(vcpu).exit(),
            Op::Take(vcpu) => {
                let intid = self.take(vcpu);
                if intid != SPURIOUS {
                    self.taken[usize::from(vcpu) % usize::from(VCPUS)].push(intid);
                }
            }
            Op::End(vcpu) => {
                let last = self.taken[usize::from(vcpu) % usize::from(VCPUS)].pop();
                self.end(vcpu, last.unwrap_or(SPURIOUS));
            }
            Op::Power { vcpu, on: true } => self.cpu(vcpu).power_on(),
            Op::Power { vcpu, on: false } => self.cpu(vcpu).power_off(),
            Op::EnableLpis { vcpu, on } => self.write(Self::rd(vcpu), on.into(), 4),
            Op::Table { vcpu, pending, value } => {
                let value = value & !0xf_ffff_ffff_f000 | place(value);
                self.write(Self::rd(vcpu) + if pending { 0x78 } else { 0x70 }, value, 8);
            }
            Op::Direct { vcpu, which, intid } => {
                let offset = [0x40, 0x48, 0xa0, 0xb0][usize::from(which % 4)];
                let intid = if intid < 0xf0 { LPI_BASE + u32::from(intid % 32) } else { 1 << 16 };
                self.write(Self::rd(vcpu) + offset, intid.into(), 8);
            }
            Op::Dump(after) => self.dump(after),
            // Saving fails where the guest's memory is missing.
            Op::SaveTables => _ = self.its.save_tables(),
            Op::SavePending => {
                self.cpus.iter_mut().for_each(GicCpu::exit);
                let _ = self.gic.save_pending_tables();
            }
            Op::Store { at, value } => {
                self.memory.store(RAM + 8 * u64::from(at), &value.to_le_bytes());
            }
            Op::Hole { page, there } => self.memory.with(|cells| {
                let bit = 1 << (usize::from(page) % PAGES);
                cells.holes = if there { cells.holes & !bit } else { cells.holes | bit };
            }),
            Op::Mutate(rate) => self.memory.with(|cells| cells.rate = rate),
            Op::HostGoesOn(on) => self.host.goes_on.store(on.into(), Ordering::Relaxed),
            Op::Work => self.work(),
        }
    }

    /// The host performs a part of the work that is left.
    fn work(&mut self) {
        self.its.work();
        let left = self.host.lpis_left.swap(0, Ordering::Relaxed);
        for of in (0..VCPUS).filter(|of| left >> of & 1 != 0) {
            if self.bus.work(VcpuId(of)) {
                self.host.lpis_left.fetch_or(1 << of, Ordering::Relaxed);
            }
        }
    }

    fn take(&mut self, vcpu: u8) -> u32 {
        let intid = self.cpu(vcpu).icc_read(SysReg::ICC_IAR1_EL1).expect("it can be read") as u32;
        if intid >= LPI_BASE {
            self.report.lpis += 1;
        }
        intid
    }

    fn end(&mut self, vcpu: u8, intid: u32) {
        let done = self.cpu(vcpu).icc_write(SysReg::ICC_EOIR1_EL1, intid.into());
        done.expect("it can be written");
    }

    fn message(&mut self, how: u8, device: u8, event: u8) {
        let number = |n: u8| u32::from(if n < 0xf0 { n & 7 } else { n });
        let (device, event) = (DeviceId(number(device)), EventId(number(event)));
        match how % 4 {
            0 => {
                let injected = self.port.inject(self.bus.injector(), device, event);
                self.check_translation(device, event, injected);
            }
            1 => {
                let sent = self.gic.send_msi(self.bus.injector(), device, TRANSLATER, event.0);
                sent.expect("there is an ITS");
            }
            2 => self.write(TRANSLATER, event.0.into(), 4),
            _ => {
                if let Some((device, event, route)) = self.routes.get(event.0 as usize % 4) {
                    let injected = route.inject(self.bus.injector());
                    self.check_translation(*device, *event, injected);
                }
            }
        }
    }

    /// Checks that an MSI has an effect if and only if the dump has a live mapping for it and LPIs
    /// are enabled at the target.
    fn check_translation(&self, device: DeviceId, event: EventId, injected: Injected) {
        let dump = self.gic.dump();
        let its = &dump.its[0];
        let live = its.events.iter().find(|e| (e.device, e.event, e.live) == (device, event, true));
        let lpi = live.and_then(|e| dump.lpis.iter().find(|lpi| lpi.intid == e.intid));
        let enabled = lpi.is_some_and(|lpi| {
            let mut ctlr = [0; 4];
            let read = self.bus.read(VcpuId(0), Self::rd(lpi.target.0 as u8), &mut ctlr);
            read.expect("it can be read");
            ctlr[0] & 1 != 0
        });
        let expected = its.enabled && enabled;
        assert_eq!(injected != Injected::Unmapped, expected, "{device:?}, {event:?}: {injected:?}");
    }

    /// Powers on a vCPU and lets its CPU interface take every interrupt that the distributor
    /// forwards.
    fn open(&mut self, n: u8) {
        self.cpu(n).power_on();
        // The entry releases retired objects. Mapping waits for that when a bound is reached.
        self.cpu(n).enter();
        self.write(Self::rd(n) + 0x14, 0, 4);
        let regs = [(SysReg::ICC_PMR_EL1, 0xff), (SysReg::ICC_IGRPEN1_EL1, 1)];
        for (reg, value) in regs {
            self.cpu(n).icc_write(reg, value).expect("it can be written");
        }
    }

    /// Polls a register, as a guest does, until the bits of `mask` are `value`.
    fn becomes(&mut self, address: u64, mask: u64, value: u64) {
        let read = (0..1000).find(|_| self.read(address, 4) & mask == value);
        read.unwrap_or_else(|| panic!("{address:#x} never becomes {value:#x} in {mask:#x}"));
    }

    /// Initializes the ITS as a driver does. Earlier state is discarded.
    fn start(&mut self, how: u8) {
        for n in 0..VCPUS as u8 {
            self.open(n);
            self.write(Self::rd(n), 0, 4);
            // RWP is set while pending LPIs are being cleared.
            self.becomes(Self::rd(n), 1 << 3, 0);
            self.write(Self::rd(n) + 0x70, PROPERTIES | 15, 8);
            self.write(Self::rd(n) + 0x78, PENDING + 0x1_0000 * u64::from(n), 8);
        }
        self.memory.with(|cells| cells.bytes[..0x1_0000].fill(0xa1));
        for n in 0..VCPUS as u8 {
            self.write(Self::rd(n), 1, 4);
        }
        self.write(GICD, 3, 4);
        self.write(CTLR, 0, 4);
        for baser in BASER {
            self.write(baser, 0, 8);
        }
        let indirect = how & 3 == 0;
        let flags = VALID | u64::from(indirect) << 62;
        if indirect {
            let level2 = |n: u64| (VALID | (DEVICES + 0x8000 + 0x1000 * n)).to_le_bytes();
            self.memory.store(DEVICES, &level2(0));
            self.memory.store(COLLECTIONS, &level2(1));
        }
        self.write(BASER[0], flags | DEVICES, 8);
        self.write(BASER[1], flags | COLLECTIONS, 8);
        self.write(CBASER, VALID | QUEUE | u64::from(how >> 2 & 1), 8);
        self.tail = 0;
        self.write(CWRITER, 0, 8);
        self.write(CTLR, 1, 4);
        assert_eq!(self.read(CTLR, 4), 1, "it is enabled");
        if how & 0x10 == 0 {
            self.map_some(how >> 5);
        }
    }

    /// Maps events of two devices for each vCPU. If memory is missing, they are not mapped.
    fn map_some(&mut self, shift: u8) {
        for n in 0..VCPUS as u8 {
            let collection = CollectionId(n.into());
            let rdbase = self.rdbase(n);
            self.put(&Command::Mapc { collection, valid: true, rdbase }.encode());
            let device = DeviceId(u32::from(n & 1));
            if n < 2 {
                let itt = ITTS + 0x1000 * u64::from(device.0);
                self.put(&Command::Mapd { device, valid: true, size: 2, itt }.encode());
            }
            for event in 0..3 {
                let event = event + u32::from(n & 2);
                let intid = Intid(LPI_BASE + u32::from(shift) + 3 * u32::from(n) + event % 3);
                let event = EventId(event);
                self.put(&Command::Mapti { device, event, intid, collection }.encode());
            }
        }
        self.tell();
    }

    /// Checks that a dump is consistent, regardless of the guest's earlier steps.
    fn dump(&mut self, after: u8) {
        let mut left = after;
        let mut few = |_: ItsEntry| {
            left = left.saturating_sub(1);
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let _ = self.its.visit(&mut few);
        let _ = self.gic.visit_lpis(|_| ControlFlow::Break(()));
        let dump = self.gic.dump();
        assert!(!dump.to_string().is_empty());
        let its = &dump.its[0];
        assert!(its.devices.len() <= MAX_DEVICES as usize, "{} devices", its.devices.len());
        assert!(its.events.len() <= MAX_EVENTS as usize, "{} events", its.events.len());
        let lpis: BTreeSet<u32> = dump.lpis.iter().map(|lpi| lpi.intid.0).collect();
        assert_eq!(lpis.len(), dump.lpis.len(), "an LPI is there twice");
        assert!(lpis.len() <= MAX_LPIS as usize, "{} LPIs", lpis.len());
        for event in &its.events {
            let device = its.devices.iter().find(|device| device.device == event.device);
            let bits = device.expect("its device is mapped").event_bits;
            assert!(bits <= self.config.event_bits && event.event.0 >> bits == 0, "{event:?}");
            let mapped = its.collections.iter().any(|c| c.collection == event.collection);
            // An event of a mapped collection is not live only if a bound left no room for it.
            assert!(!event.live || mapped, "{event:?}");
            assert!(!event.live || lpis.contains(&event.intid.0), "{event:?} has no LPI");
        }
        for device in &its.devices {
            assert_eq!(u64::from(device.device.0) >> self.config.device_bits, 0, "{device:?}");
        }
        for collection in &its.collections {
            assert!(collection.target.0 < VCPUS, "{collection:?}");
        }
    }

    fn check(&mut self) {
        let usage = self.gic.engine().usage();
        // Each route keeps one LPI.
        assert!(usage.lpis <= MAX_LPIS as usize + MOST_ROUTES, "{usage:?}");
        assert!(usage.garbage <= (MAX_GARBAGE + MAX_LPIS) as usize * 4, "{usage:?}");
        let creadr = self.read(CREADR, 8);
        let size = 0x1000 * ((self.read(CBASER, 8) & 0xff) + 1);
        assert!(creadr & !1 < size && creadr & !0xf_ffe1 == 0, "GITS_CREADR {creadr:#x}");
        let mut seen = Vec::new();
        for cpu in &mut self.cpus {
            let lrs = cpu.cpu_interface();
            for lr in (0..LRS).map(|i| lrs.read(i)).filter(|lr| lr.state() != LrState::Invalid) {
                let intid = lr.intid();
                assert!(!intid.is_lpi() || !seen.contains(&intid), "{intid} is in two places");
                seen.push(intid);
            }
        }
    }

    /// Gives a command that a sensible guest gives, and checks that it is performed.
    fn good(&mut self, command: Command) {
        let stats = |its: &Its<Vgic>| its.stats().commands_of(command.kind());
        let before = stats(&self.its);
        self.put(&command.encode());
        self.tell();
        while self.read(CREADR, 8) & !1 != self.tail {
            assert_eq!(self.read(CREADR, 8) & 1, 0, "{command:?} stalls");
        }
        assert_eq!(stats(&self.its), before + 1, "{command:?}");
    }

    /// Takes and ends all interrupts that a vCPU is given.
    fn take_all(&mut self, vcpu: u8) -> Vec<u32> {
        // The vCPUs were kicked. Each entry passes on the interrupts that no longer target that
        // vCPU.
        for cpu in &mut self.cpus {
            cpu.enter();
            cpu.exit();
        }
        let mut all = Vec::new();
        loop {
            self.cpu(vcpu).enter();
            let intid = self.cpu(vcpu).icc_read(SysReg::ICC_IAR1_EL1).expect("it can be read");
            if intid == u64::from(SPURIOUS) {
                self.cpu(vcpu).exit();
                return all;
            }
            self.end(vcpu, intid as u32);
            self.cpu(vcpu).exit();
            all.push(intid as u32);
            assert!(all.len() < 1000, "it does not end");
        }
    }

    /// Checks that the queue empties, or stalls if the ITS is configured so, regardless of its
    /// contents and of the bounds that it reaches, as long as the vCPUs run and end the interrupts
    /// they have acknowledged. Work in progress at an ITS that is not enabled completes.
    fn empties(&mut self) {
        for _ in 0..1_000_000 {
            for vcpu in 0..VCPUS as u8 {
                let cpu = self.cpu(vcpu);
                cpu.power_on();
                cpu.enter();
                // The vCPU ends the interrupts it has acknowledged.
                let lrs = cpu.cpu_interface();
                let lrs: Vec<_> = (0..LRS).map(|n| lrs.read(n)).collect();
                for lr in lrs.iter().filter(|lr| lr.state() == LrState::Active) {
                    self.end(vcpu, lr.intid().0);
                }
                self.cpu(vcpu).exit();
            }
            let [creadr, cwriter, cbaser] = [CREADR, CWRITER, CBASER].map(|at| self.read(at, 8));
            let ctlr = self.read(CTLR, 4);
            let size = 0x1000 * ((cbaser & 0xff) + 1);
            if ctlr == 1 << 31 {
                return;
            }
            if ctlr & 1 != 0 && (creadr & 1 != 0 || creadr == cwriter || cwriter >= size) {
                return;
            }
        }
        panic!("the queue does not empty: {:?}", self.gic.engine().usage());
    }

    /// Takes all pending interrupts before anything is reset. Exactly the pending LPIs are taken,
    /// no more and no fewer.
    fn drain(&mut self) {
        self.write(GICD, 3, 4);
        for n in 0.. {
            if self.host.lpis_left.load(Ordering::Relaxed) == 0 {
                break;
            }
            assert!(n < 1000, "work is left for ever: {:?}", self.gic.engine().usage());
            self.work();
            // A vCPU that is due for an entry may hold memory.
            for cpu in &mut self.cpus {
                cpu.enter();
                cpu.exit();
            }
        }
        // Enables all LPIs, wherever the LPI configuration tables are in memory.
        self.memory.with(|cells| cells.bytes.fill(0xa1));
        let mut expected: Vec<BTreeSet<u32>> = Vec::new();
        for n in 0..VCPUS as u8 {
            self.write(Self::rd(n) + 0xb0, 0, 8);
            self.becomes(Self::rd(n) + 0xc0, 1, 0);
        }
        // Powering off gives back the interrupts in the list registers, so that the dump reports
        // them.
        self.cpus.iter_mut().for_each(GicCpu::power_off);
        let lpis = self.gic.dump().lpis;
        (0..VCPUS as u8).for_each(|n| self.open(n));
        for n in 0..VCPUS {
            let passes = self.read(Self::rd(n as u8), 4) & 1 != 0;
            let here = lpis.iter().filter(|lpi| lpi.target == VcpuId(n) && lpi.pending);
            // While LPIs are disabled, none is pending.
            let here: BTreeSet<u32> = here
                .inspect(|lpi| assert!(passes, "{lpi:?} is pending"))
                .filter(|lpi| lpi.config.enabled)
                .map(|lpi| lpi.intid.0)
                .collect();
            expected.push(here);
        }
        for n in 0..VCPUS as u8 {
            let taken = self.take_all(n);
            let set: BTreeSet<u32> = taken.iter().copied().collect();
            assert_eq!((&set, set.len()), (&expected[usize::from(n)], taken.len()), "vCPU {n}");
            self.report.drained += taken.len();
        }
    }

    /// The guest becomes sensible, and finds the ITS as after a reset.
    fn finish(mut self) -> Report {
        self.memory.with(|cells| (cells.holes, cells.rate) = (0, 0));
        self.host.goes_on.store(0, Ordering::Relaxed);
        self.empties();
        self.drain();
        self.memory.with(|cells| cells.bytes.fill(0));
        self.routes.clear();
        self.cpus.iter_mut().for_each(GicCpu::power_off);
        self.start(0x11);
        // Mappings in the old tables are removed in slices, as accesses are made.
        (0..1000).for_each(|_| _ = self.read(CREADR, 8));
        let dump = self.its.dump();
        assert_eq!((dump.devices.len(), dump.events.len()), (0, 0));
        // Only hardware collections remain: they need no table, so they are in no table that was
        // given up.
        let hardware = u16::from(self.config.hardware_collections);
        assert!(dump.collections.iter().all(|c| c.collection < hardware));
        // LPIs that the guest made pending without an ITS stay for good, and count toward the
        // bound.
        let mut direct = BTreeSet::new();
        let _ = self.gic.visit_lpis(|lpi| {
            direct.insert(lpi.intid.0);
            ControlFlow::Continue(())
        });
        let lpis = LPI_BASE..LPI_BASE + self.lpis;
        let free = lpis.clone().find(|n| !direct.contains(n) && direct.len() < MAX_LPIS as usize);
        let intid = free.or(direct.first().copied()).expect("there is one");
        for vcpu in 0..VCPUS as u8 {
            let left = self.take_all(vcpu);
            assert!(left.is_empty(), "LPIs were disabled, and are pending: {left:?}");
            let (device, event) = (DeviceId(vcpu.into()), EventId(3));
            let collection = CollectionId(vcpu.into());
            let rdbase = self.rdbase(vcpu);
            self.good(Command::Mapc { collection, valid: true, rdbase });
            let itt = ITTS + 0x1000 * u64::from(vcpu);
            self.good(Command::Mapd { device, valid: true, size: 2, itt });
            self.good(Command::Mapti { device, event, intid: Intid(intid), collection });
            self.good(Command::Int(device, event));
            assert!(self.take_all(vcpu).contains(&intid), "INT is lost");
            let injected = self.port.inject(self.bus.injector(), device, event);
            assert_eq!(injected, Injected::Pending);
            assert_eq!(self.take_all(vcpu), [intid], "an MSI is lost");
            self.good(Command::Discard(device, event));
            self.good(Command::Mapd { device, valid: false, size: 0, itt: 0 });
            self.good(Command::Mapc { collection, valid: false, rdbase });
        }
        self.dump(3);
        let dump = self.gic.dump();
        for lpi in &dump.lpis {
            assert!(direct.contains(&lpi.intid.0), "{lpi:?} is left of what is unmapped");
        }
        self.check();
        self.report.left = self.host.times_left.load(Ordering::Relaxed) as usize;
        let (engine, report) = (self.gic.engine().clone(), self.report);
        drop(self);
        engine.msi().expect("there is room for a handle").collect();
        let usage = engine.usage();
        assert_eq!((usage.lpis, usage.garbage), (0, 0), "{usage:?}");
        report
    }
}

fn steps(data: &[u8]) -> (u16, impl Iterator<Item = Op>) {
    let mut input = Unstructured::new(data);
    let shape = input.arbitrary().unwrap_or(0);
    let ops = std::iter::from_fn(move || {
        if input.is_empty() {
            return None;
        }
        Op::arbitrary(&mut input).ok()
    });
    (shape, ops)
}

/// Formats the steps of an input for a reader.
pub(crate) fn explain(data: &[u8]) -> impl Iterator<Item = String> {
    let (shape, ops) = steps(data);
    std::iter::once(format!("shape {shape:#x}")).chain(ops.map(|op| format!("{op:x?}")))
}

/// Runs one input.
pub(crate) fn run(data: &[u8]) -> Report {
    let (shape, ops) = steps(data);
    let mut machine = Machine::new(shape);
    for op in ops {
        machine.perform(op);
        machine.check();
        machine.report.steps += 1;
    }
    machine.dump(7);
    machine.finish()
}
