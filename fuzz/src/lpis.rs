//! A model of the redistributors' LPI registers. It derives the required state of the machine's
//! LPIs from the guest's writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};

use vgic_core::ids::{LPI_BASE, Priority};
use vgic_core::memory::{GuestMemory, MemoryError};

use crate::VCPUS;

/// The number of LPIs of the machine.
pub(crate) const LPIS: u32 = 64;
/// The address of the LPI configuration table.
pub(crate) const PROPERTIES: u64 = 0x4000_0000;
/// The address of the pending tables, one for each vCPU.
pub(crate) const PENDING: u64 = 0x4001_0000;
const PENDING_SIZE: u64 = 0x1_0000;
/// The offset of the LPIs' bits in a pending table, in bytes.
const PENDING_SKIP: u64 = LPI_BASE as u64 / 8;

/// The parts of the guest's memory that hold tables. No other address can be accessed.
#[derive(Default)]
pub(crate) struct Tables {
    /// Two halves, since larger arrays do not implement `Default`.
    properties: [[AtomicU8; LPIS as usize / 2]; 2],
    pending: [[AtomicU8; LPIS as usize / 8]; VCPUS as usize],
}

impl Tables {
    fn byte(&self, address: u64) -> Result<&AtomicU8, MemoryError> {
        let at = |base: u64| address.checked_sub(base).and_then(|n| usize::try_from(n).ok());
        let property = |n| self.properties.as_flattened().get(n);
        let pending = |vcpu: usize| {
            let base = PENDING + vcpu as u64 * PENDING_SIZE + PENDING_SKIP;
            at(base).and_then(|n| self.pending[vcpu].get(n))
        };
        let found = at(PROPERTIES).and_then(property);
        found.or_else(|| (0..self.pending.len()).find_map(pending)).ok_or(MemoryError { address })
    }

    /// Writes an LPI's byte of the configuration table.
    pub(crate) fn set_property(&self, n: u8, value: u8) {
        if let Ok(byte) = self.byte(PROPERTIES + u64::from(n)) {
            byte.store(value, Ordering::Relaxed);
        }
    }

    /// Writes the pending table of a vCPU.
    pub(crate) fn set_pending(&self, vcpu: usize, value: u64) {
        for (byte, value) in self.pending[vcpu].iter().zip(value.to_le_bytes()) {
            byte.store(value, Ordering::Relaxed);
        }
    }
}

/// The address of a vCPU's pending table.
pub(crate) fn pending_table(vcpu: usize) -> u64 {
    PENDING + vcpu as u64 * PENDING_SIZE
}

impl GuestMemory for Tables {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), MemoryError> {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = self.byte(address.wrapping_add(n as u64))?.load(Ordering::Relaxed);
        }
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        // The engine writes only to clear pending bits that it has read.
        let pending = address % PENDING_SIZE >= PENDING_SKIP;
        assert!(pending && data == [0; 8], "{data:?} is written at {address:#x}");
        for n in 0..data.len() as u64 {
            self.byte(address + n)?.store(0, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// An LPI that has been made pending at least once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lpi {
    pub(crate) target: usize,
    pub(crate) enabled: bool,
    pub(crate) priority: Priority,
    /// The LPI is pending and has not been acknowledged: it must be given to its target.
    pub(crate) must: bool,
    /// The LPI may be given to its target. An acknowledge leaves this set if the vCPU may have
    /// missed that the LPI was made pending while a list register held it.
    pub(crate) may: bool,
}

/// A redistributor's registers before a write.
pub(crate) struct Registers {
    pub(crate) enabled: bool,
    pub(crate) propbaser: u64,
    pub(crate) pendbaser: u64,
}

/// All LPIs that have been made pending.
#[derive(Default)]
pub(crate) struct Lpis {
    pub(crate) by_intid: BTreeMap<u32, Lpi>,
    /// GICR_PENDBASER.PTZ, which cannot be read.
    ptz: [bool; VCPUS as usize],
}

impl Lpis {
    /// Follows a write to a redistributor. The write is about to be performed.
    pub(crate) fn write(
        &mut self,
        tables: &Tables,
        regs: &Registers,
        (vcpu, offset): (usize, u64),
        (width, value): (usize, u64),
    ) {
        let intid = value as u32;
        match (offset, width) {
            (0, 4) if value & 1 != 0 && !regs.enabled => self.enable(tables, regs, vcpu),
            (0, 4) if value & 1 == 0 && regs.enabled => self.disable(vcpu),
            (0x40, 4 | 8) if regs.enabled => self.make_pending(tables, regs, vcpu, intid),
            (0x48, 4 | 8) if regs.enabled => {
                if let Some(lpi) = self.of(vcpu, intid) {
                    (lpi.must, lpi.may) = (false, false);
                }
            }
            (0xa0, 4 | 8) if regs.enabled => {
                if let Some(lpi) = self.of(vcpu, intid) {
                    (lpi.enabled, lpi.priority) = config(tables, regs, intid);
                }
            }
            (0xb0, 4 | 8) | (0xb4, 4) if regs.enabled => self.reconfigure(tables, regs, vcpu),
            (0x78, 8) if !regs.enabled => self.ptz[vcpu] = value >> 62 & 1 != 0,
            (0x7c, 4) if !regs.enabled => self.ptz[vcpu] = value >> 30 & 1 != 0,
            _ => {}
        }
    }

    fn of(&mut self, vcpu: usize, intid: u32) -> Option<&mut Lpi> {
        self.by_intid.get_mut(&intid).filter(|lpi| lpi.target == vcpu)
    }

    fn reconfigure(&mut self, tables: &Tables, regs: &Registers, vcpu: usize) {
        for (&intid, lpi) in self.by_intid.iter_mut().filter(|(_, lpi)| lpi.target == vcpu) {
            (lpi.enabled, lpi.priority) = config(tables, regs, intid);
        }
    }

    /// Disabling LPIs clears all pending bits of the redistributor.
    fn disable(&mut self, vcpu: usize) {
        for lpi in self.by_intid.values_mut().filter(|lpi| lpi.target == vcpu) {
            (lpi.must, lpi.may) = (false, false);
        }
    }

    fn enable(&mut self, tables: &Tables, regs: &Registers, vcpu: usize) {
        self.reconfigure(tables, regs, vcpu);
        if self.ptz[vcpu] {
            return;
        }
        let mut bits = [0; LPIS as usize / 8];
        let address = (regs.pendbaser & 0x000f_ffff_ffff_0000) + PENDING_SKIP;
        if !exists(regs, LPI_BASE) || tables.read(address, &mut bits).is_err() {
            return;
        }
        let bits = u64::from_le_bytes(bits);
        for n in (0..LPIS).filter(|n| bits >> n & 1 != 0) {
            self.make_pending(tables, regs, vcpu, LPI_BASE + n);
        }
    }

    fn make_pending(&mut self, tables: &Tables, regs: &Registers, vcpu: usize, intid: u32) {
        if !exists(regs, intid) {
            return;
        }
        // The LPI is mapped again, or belongs to no ITS and moves here. Its configuration comes
        // from the table.
        let (enabled, priority) = config(tables, regs, intid);
        let lpi = Lpi { target: vcpu, enabled, priority, must: true, may: true };
        self.by_intid.insert(intid, lpi);
    }

    /// Follows an acknowledge of an LPI. If `stale`, the vCPU may have missed changes to the LPI
    /// since its entry.
    pub(crate) fn taken(&mut self, intid: u32, stale: bool) {
        let lpi = self.by_intid.get_mut(&intid).expect("an LPI that was never made pending");
        lpi.must = false;
        lpi.may &= stale;
    }
}

fn exists(regs: &Registers, intid: u32) -> bool {
    (LPI_BASE..LPI_BASE + LPIS).contains(&intid)
        && u64::from(intid) < 2u64 << (regs.propbaser & 0x1f)
}

fn config(tables: &Tables, regs: &Registers, intid: u32) -> (bool, Priority) {
    let mut byte = [0];
    let address = (regs.propbaser & 0x000f_ffff_ffff_f000) + u64::from(intid - LPI_BASE);
    if !exists(regs, intid) || tables.read(address, &mut byte).is_err() {
        byte = [0];
    }
    (byte[0] & 1 != 0, Priority::new(byte[0] & 0xfc))
}
