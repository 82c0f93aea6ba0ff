//! LPIs at a redistributor: what it reads of the guest's LPI configuration and pending tables (IHI 0069, 5.1), and LPIs that the
//! guest makes pending without an ITS (GICR_SETLPIR and so on; IHI 0069, 12.11).
//!
//! The engine knows the LPIs that are mapped. One that the guest makes pending directly, or in a pending table, is mapped then, as an
//! event of a domain of its own, which nobody injects into; it stays mapped. An LPI has one target: made pending at another
//! redistributor, it moves there.
//!
//! Whoever reads an LPI's configuration and gives it to the engine does both holding `configuring`, for a few LPIs at a time: so what the
//! engine has last is what was read last.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use crate::engine::{Config, Engine, Error, LpiConfig, MsiControl, Part};
use crate::ids::{DeviceId, EventId, Intid, LPI_BASE, Priority, VcpuId};
use crate::memory::{GuestMemory, MemoryError};
use crate::sync::{Mutex, MutexGuard, Tally};

/// GICR_PROPBASER: IDbits, one less than the number of INTID bits (IHI 0069, 12.11).
const IDBITS: u64 = 0x1f;
/// GICR_PROPBASER: Physical_Address, bits 51:12.
const PROP_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// GICR_PENDBASER: Physical_Address, bits 51:16.
const PEND_ADDRESS: u64 = 0x000f_ffff_ffff_0000;
/// GICR_PENDBASER: PTZ: the pending table is all zero.
pub(super) const PTZ: u64 = 1 << 62;

/// The tables of one redistributor, as its registers say.
#[derive(Clone, Copy)]
pub(crate) struct Tables {
    pub(crate) vcpu: VcpuId,
    pub(crate) propbaser: u64,
    pub(crate) pendbaser: u64,
}

/// How many LPIs have their configuration read at a time.
const BATCH: usize = 256;

/// The control side of a machine's LPIs, as far as it is the redistributors'.
pub(crate) struct LpiControl<E: Engine> {
    direct: Mutex<E::Msi>,
    configuring: Mutex<()>,
    refused: Tally,
    memory: Arc<dyn GuestMemory>,
    /// First INTID that is not an LPI of the machine.
    end: u32,
    event_bits: u8,
    /// Last: `direct` is a part of it.
    _engine: E,
}

impl<E: Engine> LpiControl<E> {
    pub(crate) fn new(
        engine: &E,
        config: &Config,
        memory: Arc<dyn GuestMemory>,
    ) -> Result<Self, Error> {
        let (end, event_bits) = (LPI_BASE + config.lpis, config.event_bits);
        let (direct, configuring) = (Mutex::new(engine.msi()?), Mutex::new(()));
        let (refused, _engine) = (Tally::default(), engine.clone());
        Ok(Self { direct, configuring, refused, memory, end, event_bits, _engine })
    }

    /// Looks at LPIs through a handle of the engine.
    pub(crate) fn with_msi(&self, f: impl FnOnce(&E::Msi)) {
        f(&self.direct.lock());
    }

    pub(crate) fn memory(&self) -> &dyn GuestMemory {
        &*self.memory
    }

    /// Whether the machine has this LPI.
    pub(crate) fn is_lpi(&self, intid: Intid) -> bool {
        intid.is_lpi() && intid.0 < self.end
    }

    /// The mapping of an LPI that was found in a pending table before an ITS had it.
    pub(crate) fn forget_direct(&self, intid: Intid) {
        let (device, event) = self.event(intid);
        // Usually there is none.
        let _ = self.direct.lock().detach(device, event);
    }

    /// LPIs that were to be made pending, but met a bound of the VM.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// While this is held, the configuration of no LPI is read by others.
    pub(crate) fn configuring(&self) -> MutexGuard<'_, ()> {
        self.configuring.lock()
    }

    /// The device and event that stand for an LPI of no ITS.
    fn event(&self, intid: Intid) -> (DeviceId, EventId) {
        let n = intid.0 - LPI_BASE;
        let high = n.checked_shr(self.event_bits.into()).unwrap_or(0);
        let low = 1u32.checked_shl(self.event_bits.into()).map_or(n, |end| n & (end - 1));
        (DeviceId(high), EventId(low))
    }

    /// Whether the machine has this LPI, and the tables have room for it.
    fn exists(&self, tables: Tables, intid: Intid) -> bool {
        let end = 2u64 << (tables.propbaser & IDBITS);
        self.is_lpi(intid) && u64::from(intid.0) < end
    }

    /// The LPI's byte of the configuration table. What cannot be read is disabled.
    pub(crate) fn config(&self, tables: Tables, intid: Intid) -> LpiConfig {
        let mut byte = [0];
        let address = (tables.propbaser & PROP_ADDRESS) + u64::from(intid.0 - LPI_BASE);
        if !self.exists(tables, intid) || self.memory.read(address, &mut byte).is_err() {
            byte = [0];
        }
        // Bits 7:2 are the priority, bit 0 enables (IHI 0069, 5.1.1).
        LpiConfig { enabled: byte[0] & 1 != 0, priority: Priority::new(byte[0] & 0xfc) }
    }

    /// GICR_CTLR.EnableLPIs has been set: the tables are read, except that PTZ spares the pending table. What is read there is no longer
    /// in the table, so that it is not pending again when LPIs are enabled the next time.
    pub(crate) fn enable(&self, tables: Tables) {
        self.invalidate_all(tables);
        if tables.pendbaser & PTZ != 0 {
            return;
        }
        for base in (LPI_BASE..self.end).step_by(64) {
            let mut bits = [0; 8];
            let address = (tables.pendbaser & PEND_ADDRESS) + u64::from(base / 8);
            if !self.exists(tables, Intid(base)) || self.memory.read(address, &mut bits).is_err() {
                return;
            }
            let bits = u64::from_le_bytes(bits);
            if bits == 0 {
                continue;
            }
            // What cannot be written is the guest's own loss.
            let _ = self.memory.write(address, &[0; 8]);
            for intid in (0..64).filter(|i| bits & 1 << i != 0).map(|i| Intid(base + i)) {
                self.make_pending(&mut self.direct.lock(), tables, intid, false);
            }
        }
    }

    /// GICR_INVALLR: the configuration of all LPIs of this redistributor is read anew.
    pub(crate) fn invalidate_all(&self, tables: Tables) {
        let mut from = Some(Intid(LPI_BASE));
        while let Some(first) = from {
            // Others come in between.
            from = self.reconfigure_some(&mut self.direct.lock(), tables, first, u32::MAX).next;
        }
    }

    /// The configuration of some LPIs of a redistributor, of those from `first` up, is read anew: of as many as are found among `most`.
    pub(crate) fn reconfigure_some(
        &self,
        msi: &mut E::Msi,
        tables: Tables,
        first: Intid,
        most: u32,
    ) -> Part {
        let mut mine = Vec::with_capacity(BATCH);
        let part = msi.some_lpis(first, most.min(BATCH as u32), &mut |lpi| {
            if lpi.target == tables.vcpu {
                mine.push(lpi.intid);
            }
        });
        let changed = mine.len() as u32;
        let _configuring = self.configuring();
        for intid in mine {
            // Unmapped meanwhile: nothing to configure.
            let _ = msi.set_config(intid, self.config(tables, intid));
        }
        Part { changed, ..part }
    }

    /// The configuration of one LPI is read anew.
    pub(crate) fn reconfigure_one(&self, msi: &mut E::Msi, tables: Tables, intid: Intid) {
        let _configuring = self.configuring();
        let _ = msi.set_config(intid, self.config(tables, intid));
    }

    /// GICR_INVLPIR: the configuration of one LPI is read anew.
    pub(crate) fn invalidate(&self, tables: Tables, intid: Intid) {
        let mut msi = self.direct.lock();
        if msi.target_of(intid) == Some(tables.vcpu) {
            self.reconfigure_one(&mut msi, tables, intid);
        }
    }

    /// GICR_SETLPIR: an LPI becomes pending.
    pub(crate) fn set(&self, tables: Tables, intid: Intid) {
        self.make_pending(&mut self.direct.lock(), tables, intid, true);
    }

    /// GICR_CLRLPIR: an LPI is no longer pending.
    pub(crate) fn clear(&self, tables: Tables, intid: Intid) {
        let mut msi = self.direct.lock();
        if msi.target_of(intid) == Some(tables.vcpu) {
            let _ = msi.set_pending(intid, false);
        }
    }

    /// Makes an LPI pending, and maps it if it is not. If it is elsewhere, it moves here if `moves`, and otherwise is not meant.
    fn make_pending(&self, msi: &mut E::Msi, tables: Tables, intid: Intid, moves: bool) {
        if !self.exists(tables, intid) {
            return;
        }
        let (device, event) = self.event(intid);
        match msi.target_of(intid) {
            Some(target) if target == tables.vcpu => {}
            // It may be an ITS's, which says where it goes.
            Some(_) if !moves || msi.retarget(device, event, tables.vcpu).is_err() => return,
            Some(_) => {}
            None => {
                let _configuring = self.configuring();
                let config = self.config(tables, intid);
                // The VM's bounds are reached: the LPI does not exist.
                if msi.map(device, event, intid, tables.vcpu, config).is_err() {
                    self.refused.add_one();
                    return;
                }
            }
        }
        let _ = msi.set_pending(intid, true);
    }

    /// Writes the pending bits of all LPIs into the pending tables of these redistributors, whose LPIs are enabled. Such a table is the
    /// redistributor's own (IHI 0069, 5.1.2): nothing else is pending in it, whatever was when it was written before.
    ///
    /// # Errors
    /// [`MemoryError`]: a table is not there; the others have been written.
    pub(crate) fn save_pending(&self, redists: &[Tables]) -> Result<(), MemoryError> {
        // By vCPU, and by INTID / 64.
        let mut pending: BTreeMap<(VcpuId, u32), u64> = BTreeMap::new();
        self.direct.lock().lpis_from(Intid(LPI_BASE), &mut |lpi| {
            if lpi.pending {
                let word = pending.entry((lpi.target, lpi.intid.0 / 64)).or_default();
                *word |= 1 << (lpi.intid.0 % 64);
            }
            ControlFlow::Continue(())
        });
        let save = |tables: &Tables| {
            let bits = |word| pending.get(&(tables.vcpu, word)).copied().unwrap_or(0);
            self.save_all(*tables, bits)
        };
        let mut result = Ok(());
        for tables in redists {
            result = result.and(save(tables));
        }
        result
    }

    /// Writes a pending table, 64 LPIs at a time.
    fn save_all(&self, tables: Tables, bits: impl Fn(u32) -> u64) -> Result<(), MemoryError> {
        for base in (LPI_BASE..self.end).step_by(64) {
            if !self.exists(tables, Intid(base)) {
                break;
            }
            let address = (tables.pendbaser & PEND_ADDRESS) + u64::from(base / 8);
            let (mut old, new) = ([0; 8], bits(base / 64).to_le_bytes());
            self.memory.read(address, &mut old)?;
            // What stays as it is, is not dirty.
            if old != new {
                self.memory.write(address, &new)?;
            }
        }
        Ok(())
    }
}
