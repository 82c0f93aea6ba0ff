//! The ITS: tables, the command queue, and LPI configuration.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::gicv3::{self, redistributor};
use crate::mmio::{dsb, read32, read64, write32, write64};
use crate::smp::MAX_CPUS;
use crate::{smp, timer};

const GITS: u64 = 0x0808_0000;
/// The address for devices' MSIs.
pub const TRANSLATER: u64 = GITS + 0x1_0040;
const CTLR: u64 = GITS;
const TYPER: u64 = GITS + 0x08;
const CBASER: u64 = GITS + 0x80;
const CWRITER: u64 = GITS + 0x88;
const CREADR: u64 = GITS + 0x90;
const BASER: u64 = GITS + 0x100;

/// The first LPI.
pub const LPI: u32 = 8192;
/// INTIDs have 14 bits, which gives 8192 LPIs.
const ID_BITS: u64 = 14;
const LPIS: usize = 8192;
pub const DEVICES: usize = 2;
/// The maximum number of events of a device.
pub const EVENTS: usize = 1024;
const QUEUE: u64 = 0x1_0000;

/// Memory for the ITS or a redistributor. 64 KiB is the largest alignment that one requires.
#[repr(C, align(65536))]
struct Shared<const N: usize>(UnsafeCell<[u8; N]>);

// SAFETY: only CPU 0, with volatile accesses, and the ITS and the redistributors access it.
unsafe impl<const N: usize> Sync for Shared<N> {}

impl<const N: usize> Shared<N> {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; N]))
    }
    fn address(&self) -> u64 {
        self.0.get() as u64
    }
}

static COMMANDS: Shared<0x1_0000> = Shared::new();
static DEVICE_TABLE: Shared<0x1_0000> = Shared::new();
static COLLECTION_TABLE: Shared<0x1_0000> = Shared::new();
static PROPERTIES: Shared<LPIS> = Shared::new();
static PENDING: [Shared<0x1_0000>; MAX_CPUS] = [const { Shared::new() }; MAX_CPUS];
/// 16 bytes for each event, more than any ITS needs.
static EVENT_TABLES: [Shared<{ EVENTS * 16 }>; DEVICES] = [const { Shared::new() }; DEVICES];
static REDISTRIBUTORS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Sets up the ITS once: LPIs enabled at each CPU, collection n mapped to CPU n, and all LPIs
/// configured as enabled.
pub fn init() {
    assert!(gicv3::has_lpis(), "this GIC has no LPIs");
    for lpi in 0..LPIS {
        configure(LPI + lpi as u32, 0xa0, true);
    }
    dsb();
    smp::on_each(|cpu| {
        gicv3::enable_lpis(PROPERTIES.address(), ID_BITS, PENDING[cpu as usize].address());
        // The target is an address or a number, as the ITS requires.
        let by_address = read64(TYPER) & 1 << 19 != 0;
        let number = gicv3::typer() >> 8 & 0xffff;
        let target = if by_address { redistributor() } else { number << 16 };
        REDISTRIBUTORS[cpu as usize].store(target, SeqCst);
    });
    write32(CTLR, 0);
    for n in 0..8 {
        let register = BASER + n * 8;
        let table = match read64(register) >> 56 & 7 {
            1 => DEVICE_TABLE.address(),
            4 => COLLECTION_TABLE.address(),
            _ => continue,
        };
        // Valid, write-back, inner shareable, one page of 64 KiB.
        write64(register, 1 << 63 | 7 << 59 | table | 1 << 10 | 2 << 8);
    }
    write64(CBASER, 1 << 63 | 7 << 59 | COMMANDS.address() | 1 << 10 | (QUEUE / 4096 - 1));
    write64(CWRITER, 0);
    write32(CTLR, 1);
    for cpu in 0..smp::cpus() {
        Command::map_collection(cpu as u16, Some(cpu)).run();
    }
}

/// Writes an LPI's configuration. Redistributors that have cached the old one need INV or INVALL.
pub fn configure(lpi: u32, priority: u8, enabled: bool) {
    let byte = (PROPERTIES.address() + u64::from(lpi - LPI)) as *mut u8;
    // SAFETY: the byte is in the table, which only CPU 0 writes.
    unsafe { byte.write_volatile(priority & 0xfc | 2 | u8::from(enabled)) };
    dsb();
}

/// A command of 32 bytes.
#[derive(Clone, Copy)]
pub struct Command([u64; 4]);

impl Command {
    fn new(code: u64, device: u32, event: u32) -> Self {
        Self([code | u64::from(device) << 32, u64::from(event), 0, 0])
    }
    /// MAPD of one of our devices, with its table's index and `bits` bits of events.
    pub fn map_device(table: usize, device: u32, bits: u64, valid: bool) -> Self {
        let to = EVENT_TABLES[table].address() | u64::from(valid) << 63;
        Self([0x08 | u64::from(device) << 32, bits - 1, to, 0])
    }
    /// MAPC. Without a CPU, the collection is unmapped.
    pub fn map_collection(collection: u16, cpu: Option<usize>) -> Self {
        let to = cpu.map_or(0, |cpu| REDISTRIBUTORS[cpu].load(SeqCst) | 1 << 63);
        Self([0x09, 0, to | u64::from(collection), 0])
    }
    /// MAPTI: maps an event to an LPI, in a collection.
    pub fn map_event(device: u32, event: u32, lpi: u32, collection: u16) -> Self {
        let mut command = Self::new(0x0a, device, event);
        command.0[1] |= u64::from(lpi) << 32;
        command.0[2] = collection.into();
        command
    }
    /// MAPI: the event's number is also the LPI's.
    pub fn map_same(device: u32, event: u32, collection: u16) -> Self {
        let mut command = Self::new(0x0b, device, event);
        command.0[2] = collection.into();
        command
    }
    /// MOVI: moves an event to another collection.
    pub fn move_event(device: u32, event: u32, collection: u16) -> Self {
        let mut command = Self::new(0x01, device, event);
        command.0[2] = collection.into();
        command
    }
    /// MOVALL: moves the pending LPIs of one CPU to another.
    pub fn move_all(from: usize, to: usize) -> Self {
        let target = |cpu: usize| REDISTRIBUTORS[cpu].load(SeqCst);
        Self([0x0e, 0, target(from), target(to)])
    }
    pub fn int(device: u32, event: u32) -> Self {
        Self::new(0x03, device, event)
    }
    pub fn clear(device: u32, event: u32) -> Self {
        Self::new(0x04, device, event)
    }
    pub fn discard(device: u32, event: u32) -> Self {
        Self::new(0x0f, device, event)
    }
    pub fn inv(device: u32, event: u32) -> Self {
        Self::new(0x0c, device, event)
    }
    pub fn inv_all(collection: u16) -> Self {
        Self([0x0d, 0, collection.into(), 0])
    }
    pub fn sync(cpu: usize) -> Self {
        Self([0x05, 0, REDISTRIBUTORS[cpu].load(SeqCst), 0])
    }

    /// Puts the command into the queue, and waits until it is done.
    pub fn run(self) {
        run(&[self]);
    }
}

/// Puts commands into the queue, hands all of them to the ITS at once, and waits until they are
/// done.
pub fn run(commands: &[Command]) {
    let mut at = read64(CWRITER) & 0xf_ffe0;
    for command in commands {
        for (n, word) in command.0.into_iter().enumerate() {
            let address = (COMMANDS.address() + at + n as u64 * 8) as *mut u64;
            // SAFETY: the address is in the free part of the queue, which belongs to CPU 0.
            unsafe { address.write_volatile(word.to_le()) };
        }
        at = (at + 32) % QUEUE;
    }
    dsb();
    write64(CWRITER, at);
    let done = timer::within(5000, || read64(CREADR) & 0xf_ffe1 == at);
    assert!(done, "the ITS does not go on: CREADR {:#x}, CWRITER {at:#x}", read64(CREADR));
}

/// Returns whether the ITS is enabled.
pub fn enabled() -> bool {
    read32(CTLR) & 1 != 0
}
