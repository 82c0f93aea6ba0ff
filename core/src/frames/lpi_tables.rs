//! LPIs at a redistributor: the guest's LPI configuration and pending tables (IHI 0069, 5.1), and
//! LPIs that the guest makes pending without an ITS (GICR_SETLPIR and related registers; IHI 0069,
//! 12.11).
//!
//! The engine knows the LPIs that are mapped. An unmapped LPI that the guest makes pending,
//! directly or in a pending table, is mapped at that moment, as an event of a separate domain into
//! which nothing is injected. The mapping ends when LPIs are disabled at its target, or when a
//! sweep finds it idle. Each new mapping sweeps a few old ones ([`SWEPT`]). An LPI has one target.
//! If no ITS has mapped it, it moves to the redistributor at which it is made pending, and takes
//! its configuration from that redistributor's table.
//!
//! A thread that reads an LPI's configuration and passes it to the engine holds `configuring` for
//! both steps, for a few LPIs at a time. So the configuration that reaches the engine last is also
//! the one that was read last.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::arch::ids::{DeviceId, EventId, Intid, LPI_BASE, Priority, VcpuId};
use crate::engine::{Config, Engine, Error, LpiConfig, LpiPlace, MsiControl, Part};
use crate::host::memory::{GuestMemory, MemoryError};
use crate::lockfree::cost::btree_entry;
use crate::sync::{Mutex, MutexGuard, Tally};

/// GICR_PROPBASER: IDbits, one less than the number of INTID bits (IHI 0069, 12.11).
const IDBITS: u64 = 0x1f;
/// GICR_PROPBASER: Physical_Address, bits 51:12.
const PROP_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// GICR_PENDBASER: Physical_Address, bits 51:16.
const PEND_ADDRESS: u64 = 0x000f_ffff_ffff_0000;
/// GICR_PENDBASER: PTZ: the pending table is all zero.
pub(super) const PTZ: u64 = 1 << 62;

/// The tables of one redistributor, as given by its registers.
#[derive(Clone, Copy)]
pub(crate) struct Tables {
    pub(crate) vcpu: VcpuId,
    pub(crate) propbaser: u64,
    pub(crate) pendbaser: u64,
    /// The first INTID that has not yet been read in the pending table. LPIs with a bit set from
    /// there on are pending, too.
    pub(crate) unread: u32,
}

/// The most LPIs that can wait at a time to be made pending. While so many wait, further LPIs that
/// the guest sets and that would have to wait are refused.
const LATE: usize = 1024;

/// The number of LPIs that are examined while `direct` is locked.
const BATCH: usize = 256;

/// The number of direct mappings that are examined when another LPI is mapped. Idle ones are
/// removed.
const SWEPT: usize = 4;

/// The number of bytes of a pending table that are read at a time.
const CHUNK: usize = 64;

/// Units of work. A redistributor does a limited number of them in one access. A unit is some
/// hundred instructions.
pub(super) mod work {
    /// Examining an LPI.
    pub(in crate::frames) const LOOK: u32 = 1;
    /// Reading a chunk of a pending table.
    pub(super) const READ: u32 = 5;
    /// Configuring or clearing an LPI.
    pub(super) const CHANGE: u32 = 8;
    /// Mapping an LPI and making it pending.
    pub(super) const MAP: u32 = 48;
    /// The limit for one access: less than a millisecond of work.
    pub(in crate::frames) const MOST: u32 = 8192;
}

/// Heap bytes of an LPI's entry in [`Direct::known`].
const KNOWN: usize = btree_entry::<u32, ()>();

/// The domain of LPIs that no ITS has mapped.
struct Direct<M: MsiControl> {
    msi: M,
    /// The LPIs that are mapped in this domain.
    known: BTreeSet<u32>,
    /// The INTID at which the sweep continues.
    swept: u32,
    /// LPIs that are to become pending at a redistributor, but wait until retired objects have been
    /// freed. At most [`LATE`].
    late: BTreeMap<u32, VcpuId>,
}

impl<M: MsiControl> Direct<M> {
    fn add(&mut self, intid: Intid) {
        if self.known.insert(intid.0) {
            self.msi.count_bytes(KNOWN, 0);
        }
    }

    /// Returns whether the LPI was known.
    fn remove(&mut self, intid: Intid) -> bool {
        let was = self.known.remove(&intid.0);
        if was {
            self.msi.count_bytes(0, KNOWN);
        }
        was
    }
}

impl<M: MsiControl> Drop for Direct<M> {
    fn drop(&mut self) {
        self.msi.count_bytes(0, self.known.len() * KNOWN);
    }
}

/// The redistributors' part of the control side of a machine's LPIs.
pub(crate) struct LpiControl<E: Engine> {
    direct: Mutex<Direct<E::Msi>>,
    configuring: Mutex<()>,
    refused: Tally,
    memory: Arc<dyn GuestMemory>,
    /// The first INTID that is not an LPI of the machine.
    end: u32,
    event_bits: u8,
    /// The last field, so that `direct`, a part of the engine, is dropped first.
    _engine: E,
}

impl<E: Engine> LpiControl<E> {
    pub(crate) fn new(
        engine: &E,
        config: &Config,
        memory: Arc<dyn GuestMemory>,
    ) -> Result<Self, Error> {
        let (end, event_bits) = (LPI_BASE + config.lpis, config.event_bits);
        let direct =
            Direct { msi: engine.msi()?, known: BTreeSet::new(), swept: 0, late: BTreeMap::new() };
        let (direct, configuring) = (Mutex::new(direct), Mutex::new(()));
        let (refused, _engine) = (Tally::default(), engine.clone());
        Ok(Self { direct, configuring, refused, memory, end, event_bits, _engine })
    }

    /// Calls `f` with a handle of the engine for examining LPIs.
    pub(crate) fn with_msi(&self, f: impl FnOnce(&E::Msi)) {
        f(&self.direct.lock().msi);
    }

    pub(crate) fn memory(&self) -> &dyn GuestMemory {
        &*self.memory
    }

    /// Whether the machine has this LPI.
    pub(crate) fn is_lpi(&self, intid: Intid) -> bool {
        intid.is_lpi() && intid.0 < self.end
    }

    /// Removes the direct mapping of an LPI that was made pending before an ITS mapped it.
    pub(crate) fn forget_direct(&self, intid: Intid) {
        self.detach(&mut self.direct.lock(), intid);
    }

    fn detach(&self, direct: &mut Direct<E::Msi>, intid: Intid) {
        // Usually there is no direct mapping.
        if direct.remove(intid) {
            let (device, event) = self.event(intid);
            let _ = direct.msi.detach(device, event);
        }
    }

    /// Examines some direct mappings, and removes those that are idle: not pending, not queued, and
    /// not at a vCPU.
    pub(crate) fn sweep(&self) {
        self.sweep_some(&mut self.direct.lock());
    }

    fn sweep_some(&self, direct: &mut Direct<E::Msi>) {
        for _ in 0..SWEPT.min(direct.known.len()) {
            let after = direct.known.range(direct.swept..).next();
            let Some(&intid) = after.or(direct.known.first()) else { return };
            direct.swept = intid + 1;
            let mut idle = true;
            direct.msi.some_lpis(Intid(intid), 1, &mut |lpi| {
                idle = lpi.intid.0 != intid || (!lpi.pending && lpi.place == LpiPlace::Idle);
            });
            if idle {
                self.detach(direct, Intid(intid));
            }
        }
    }

    /// The number of LPIs that were to be made pending, but met a bound of the VM.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// While this guard is held, no other thread reads the configuration of an LPI.
    pub(crate) fn configuring(&self) -> MutexGuard<'_, ()> {
        self.configuring.lock()
    }

    /// The device and the event that stand for an LPI that no ITS has mapped.
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

    /// Reads the LPI's byte of the configuration table. If it cannot be read, the LPI is disabled.
    pub(crate) fn config(&self, tables: Tables, intid: Intid) -> LpiConfig {
        let mut byte = [0];
        let address = (tables.propbaser & PROP_ADDRESS) + u64::from(intid.0 - LPI_BASE);
        if !self.exists(tables, intid) || self.memory.read(address, &mut byte).is_err() {
            byte = [0];
        }
        // Bits 7:2 are the priority, bit 0 is the enable bit (IHI 0069, 5.1.1).
        LpiConfig { enabled: byte[0] & 1 != 0, priority: Priority::new(byte[0] & 0xfc) }
    }

    /// GICR_CTLR.EnableLPIs has been cleared: LPIs of this vCPU are no longer pending, and LPIs
    /// that no ITS has mapped are unmapped. Examines LPIs from `first` up, `most / work::CHANGE` of
    /// them, but at least one and at most [`BATCH`]. Returns the work done, and the LPI to continue
    /// with.
    pub(super) fn clear_some(&self, vcpu: VcpuId, first: Intid, most: u32) -> (u32, Option<Intid>) {
        let direct = &mut *self.direct.lock();
        direct.late.retain(|_, at| *at != vcpu);
        let mut mine = Vec::with_capacity(BATCH);
        let batch = (most / work::CHANGE).clamp(1, BATCH as u32);
        let part = direct.msi.some_lpis(first, batch, &mut |lpi| {
            if lpi.target == vcpu {
                mine.push(lpi.intid);
            }
        });
        let done = work::LOOK * part.looked + work::CHANGE * mine.len() as u32;
        for intid in mine {
            // Silence the LPI whether or not it looks pending: see
            // `lockfree::vm::Shared::is_enabled_meanwhile`. The LPI may have been unmapped since,
            // or have moved to a vCPU at which LPIs are enabled. Then it no longer belongs to this
            // redistributor.
            if direct.msi.silence(intid) {
                self.detach(direct, intid);
            }
        }
        (done, part.next)
    }

    /// GICR_CTLR.EnableLPIs has been set: LPIs with a bit set in the pending table become pending.
    /// Reads the table from INTID `first` up, a multiple of 64, until `most` units of work are
    /// done. Clears the bits that it has read, so that these LPIs are not pending again when LPIs
    /// are enabled the next time. Returns the work done, and the INTID to continue with.
    ///
    /// Ends at the end of the table, at memory that cannot be read, and at the first LPI that meets
    /// a bound of the VM. A lack of room for retired objects does not end it: the read continues
    /// later at the same place.
    pub(super) fn read_some(&self, tables: Tables, first: u32, most: u32) -> (u32, Option<u32>) {
        let (mut done, mut base) = (0, first);
        let end = u64::from(self.end).min(2 << (tables.propbaser & IDBITS)) as u32;
        while done < most {
            let Some(words) = end.checked_sub(base).filter(|&n| n > 0).map(|n| n.div_ceil(64))
            else {
                return (done, None);
            };
            done += work::READ;
            let mut bytes = [0; CHUNK];
            let bytes = &mut bytes[..CHUNK.min(words as usize * 8)];
            let address = (tables.pendbaser & PEND_ADDRESS) + u64::from(base / 8);
            if self.memory.read(address, bytes).is_err() {
                return (done, None);
            }
            let found = bytes.iter().position(|&byte| byte != 0);
            let Some(word) = found.map(|n| n / 8) else {
                base += bytes.len() as u32 * 8;
                continue;
            };
            base += word as u32 * 64;
            let (address, bytes) = (address + word as u64 * 8, &bytes[word * 8..][..8]);
            let mut bits = bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte));
            let result = self.read_word(tables, base, &mut bits, &mut done, most);
            // A failed write harms only the guest.
            let _ = self.memory.write(address, &bits.to_le_bytes());
            match result {
                Ok(()) => {}
                // This error is temporary.
                Err(Error::TooMuchGarbage) => return (most, Some(base)),
                Err(_) => {
                    self.refused.add_one();
                    return (done, None);
                }
            }
        }
        (done, Some(base))
    }

    /// Makes the LPIs of a word of the pending table pending, and clears their bits in `bits`.
    fn read_word(
        &self,
        tables: Tables,
        base: u32,
        bits: &mut u64,
        done: &mut u32,
        most: u32,
    ) -> Result<(), Error> {
        let direct = &mut *self.direct.lock();
        while *bits != 0 && *done < most {
            let bit = bits.trailing_zeros();
            let mapped = self.make_pending(direct, tables, Intid(base + bit));
            *done += if mapped == Ok(false) { work::CHANGE } else { work::MAP };
            mapped?;
            *bits &= *bits - 1;
        }
        Ok(())
    }

    /// GICR_INVALLR: reads the configuration of a redistributor's LPIs again. Examines LPIs from
    /// `first` up, as many as [`LpiControl::clear_some`] does.
    pub(super) fn configure_some(
        &self,
        tables: Tables,
        first: Intid,
        most: u32,
    ) -> (u32, Option<Intid>) {
        let batch = (most / work::CHANGE).max(1);
        let part = self.reconfigure_some(&mut self.direct.lock().msi, tables, first, batch);
        (work::LOOK * part.looked + work::CHANGE * part.changed, part.next)
    }

    /// Reads again the configuration of a redistributor's LPIs among the first `most` LPIs from
    /// `first` up, and at most [`BATCH`].
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
            // If the LPI has been unmapped since, there is nothing to configure.
            let _ = msi.set_config(intid, self.config(tables, intid));
        }
        Part { changed, ..part }
    }

    /// Reads the configuration of one LPI again.
    pub(crate) fn reconfigure_one(&self, msi: &mut E::Msi, tables: Tables, intid: Intid) {
        let _configuring = self.configuring();
        let _ = msi.set_config(intid, self.config(tables, intid));
    }

    /// GICR_INVLPIR: reads the configuration of one LPI again, if it is this redistributor's.
    pub(crate) fn invalidate(&self, tables: Tables, intid: Intid) {
        let msi = &mut self.direct.lock().msi;
        if msi.target_of(intid) == Some(tables.vcpu) {
            self.reconfigure_one(msi, tables, intid);
        }
    }

    /// GICR_SETLPIR: makes an LPI pending. Returns whether the LPI has to wait until retired
    /// objects have been freed: see [`LpiControl::set_late`].
    pub(crate) fn set(&self, tables: Tables, intid: Intid) -> bool {
        if !self.exists(tables, intid) {
            return false;
        }
        let direct = &mut *self.direct.lock();
        // If the LPI waits for another redistributor, it now goes to this one.
        direct.late.remove(&intid.0);
        match self.make_pending(direct, tables, intid) {
            Ok(_) => false,
            // This error is temporary.
            Err(Error::TooMuchGarbage) if direct.late.len() < LATE => {
                direct.late.insert(intid.0, tables.vcpu);
                true
            }
            Err(_) => {
                self.refused.add_one();
                false
            }
        }
    }

    /// Makes waiting LPIs of a redistributor pending, until `most` units of work are done. Returns
    /// the work done, and whether any LPIs still wait.
    pub(super) fn set_late(&self, tables: Tables, most: u32) -> (u32, bool) {
        let direct = &mut *self.direct.lock();
        let mine = direct.late.iter().filter(|&(_, &at)| at == tables.vcpu);
        let mine: Vec<u32> = mine.map(|(&intid, _)| intid).collect();
        let mut done = work::LOOK;
        for intid in mine {
            if done >= most {
                return (done, true);
            }
            done += work::MAP;
            match self.make_pending(direct, tables, Intid(intid)) {
                Ok(_) => {}
                // Still no room for retired objects: retry later.
                Err(Error::TooMuchGarbage) => return (most, true),
                Err(_) => self.refused.add_one(),
            }
            direct.late.remove(&intid);
        }
        (done, false)
    }

    /// GICR_CLRLPIR: makes an LPI not pending, if it is this redistributor's.
    pub(crate) fn clear(&self, tables: Tables, intid: Intid) {
        let direct = &mut *self.direct.lock();
        if direct.late.get(&intid.0) == Some(&tables.vcpu) {
            direct.late.remove(&intid.0);
        }
        if direct.msi.target_of(intid) == Some(tables.vcpu) {
            let _ = direct.msi.set_pending(intid, false);
        }
    }

    /// Makes an LPI pending, and maps it if it is unmapped. Returns whether it was unmapped. Leaves
    /// an LPI alone that an ITS has mapped to another vCPU.
    ///
    /// # Errors
    /// The LPI meets a bound of the VM. It has not been mapped.
    fn make_pending(
        &self,
        direct: &mut Direct<E::Msi>,
        tables: Tables,
        intid: Intid,
    ) -> Result<bool, Error> {
        if !self.exists(tables, intid) {
            return Ok(false);
        }
        let (device, event) = self.event(intid);
        let target = direct.msi.target_of(intid);
        if direct.known.contains(&intid.0) {
            let _ = direct.msi.retarget(device, event, tables.vcpu);
            self.reconfigure_one(&mut direct.msi, tables, intid);
        } else if target.is_none() {
            self.sweep_some(direct);
            let _configuring = self.configuring();
            let config = self.config(tables, intid);
            // Add the entry first, so that the mapping is refused if there is no room for both.
            direct.add(intid);
            let mapped = direct.msi.map(device, event, intid, tables.vcpu, config);
            if mapped.is_err() {
                let _ = direct.remove(intid);
            }
            mapped?;
        } else if target != Some(tables.vcpu) {
            // An ITS has mapped the LPI, and decides its target.
            return Ok(false);
        }
        let _ = direct.msi.set_pending(intid, true);
        Ok(target.is_none())
    }

    /// Writes the pending bits of all LPIs into the pending tables of these redistributors, at
    /// which LPIs are enabled. Such a table is the redistributor's own (IHI 0069, 5.1.2): bits that
    /// remain from an earlier save are cleared.
    ///
    /// # Errors
    /// [`MemoryError`]: a table is not in memory. The other tables have been written.
    pub(crate) fn save_pending(&self, redists: &[Tables]) -> Result<(), MemoryError> {
        // By vCPU and INTID / 64.
        let mut pending: BTreeMap<(VcpuId, u32), u64> = BTreeMap::new();
        // Waiting LPIs are collected first. One that becomes pending before this is found in the
        // walk below; one that becomes pending afterward is found here, and possibly there as well.
        for (&intid, &at) in &self.direct.lock().late {
            *pending.entry((at, intid / 64)).or_default() |= 1 << (intid % 64);
        }
        let mut next = Some(Intid(LPI_BASE));
        while let Some(first) = next {
            // The lock is released between batches, so that other threads can take it.
            let part = self.direct.lock().msi.some_lpis(first, BATCH as u32, &mut |lpi| {
                if lpi.pending {
                    let word = pending.entry((lpi.target, lpi.intid.0 / 64)).or_default();
                    *word |= 1 << (lpi.intid.0 % 64);
                }
            });
            next = part.next;
        }
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
            let mut old = [0; 8];
            self.memory.read(address, &mut old)?;
            // LPIs of the unread part are pending only in the table.
            let unread = if base >= tables.unread { u64::from_le_bytes(old) } else { 0 };
            let new = (bits(base / 64) | unread).to_le_bytes();
            // Words that do not change are not written, so that their memory does not become dirty.
            if old != new {
                self.memory.write(address, &new)?;
            }
        }
        Ok(())
    }
}
