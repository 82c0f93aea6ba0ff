//! The lab doorbell: see DOORBELL.md.

use crate::fdt;
use crate::mmio::{dsb, read32, write32};

const BASE: u64 = 0x0a10_0000;
const ID: u64 = BASE;
const LINE: u64 = BASE + 0x04;
const STATUS: u64 = BASE + 0x08;
const THREADS: u64 = BASE + 0x10;
const EVENTS: u64 = BASE + 0x14;
const COUNT: u64 = BASE + 0x18;
const FLAGS: u64 = BASE + 0x1c;
const DEVICE: u64 = BASE + 0x20;
const DATA: u64 = BASE + 0x24;
const ADDRESS: u64 = BASE + 0x28;
const COUNTERS: u64 = BASE + 0x30;
const SEEN: u64 = BASE + 0x38;
const GO: u64 = BASE + 0x40;
const DELIVERED: u64 = BASE + 0x44;

/// The values of `STATUS`.
pub const RUNNING: u32 = 0;
pub const IDLE: u32 = 1;

/// Returns whether the command line says that there is a doorbell.
pub fn present() -> bool {
    fdt::word("doorbell")
}

pub fn id() -> u32 {
    read32(ID)
}

/// Sets the input line of an SPI.
pub fn line(spi: u32, level: bool) {
    write32(LINE, spi | u32::from(level) << 31);
}

/// A storm of MSIs from threads of the VMM.
pub struct Storm {
    pub threads: u32,
    pub events: u32,
    pub count: u32,
    pub paced: bool,
    pub device: u32,
    pub data: u32,
    pub address: u64,
    pub counters: u64,
    pub seen: u64,
}

impl Storm {
    pub fn start(&self) {
        let wide = |register: u64, value: u64| {
            write32(register, value as u32);
            write32(register + 4, (value >> 32) as u32);
        };
        write32(THREADS, self.threads);
        write32(EVENTS, self.events);
        write32(COUNT, self.count);
        write32(FLAGS, self.paced.into());
        write32(DEVICE, self.device);
        write32(DATA, self.data);
        wide(ADDRESS, self.address);
        wide(COUNTERS, self.counters);
        wide(SEEN, self.seen);
        dsb();
        write32(GO, 1);
    }
}

/// Reports the number of interrupts that a storm's MSIs have become. The guest counts all of them.
pub fn delivered(interrupts: u32) {
    write32(DELIVERED, interrupts);
}

pub fn status() -> u32 {
    read32(STATUS)
}
