//! LPIs at a redistributor: what it reads of the guest's LPI configuration and pending tables (IHI 0069, 5.1), and LPIs that the
//! guest makes pending without an ITS (GICR_SETLPIR and so on; IHI 0069, 12.11).
//!
//! The engine knows the LPIs that are mapped. One that the guest makes pending directly, or in a pending table, is mapped then, as an
//! event of a domain of its own, which nobody injects into. That mapping goes when LPIs are disabled at its target, or when it is looked at and found idle; each new
//! mapping looks at some old ones ([`SWEPT`]). An LPI has one target: one that no ITS has mapped moves to the redistributor at which it is made pending, and is
//! configured as that one's table says.
//!
//! Whoever reads an LPI's configuration and gives it to the engine does both holding `configuring`, for a few LPIs at a time: so what the
//! engine has last is what was read last.

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

/// The tables of one redistributor, as its registers say.
#[derive(Clone, Copy)]
pub(crate) struct Tables {
    pub(crate) vcpu: VcpuId,
    pub(crate) propbaser: u64,
    pub(crate) pendbaser: u64,
    /// First INTID whose bit of the pending table has not been read yet. What is there is pending, too.
    pub(crate) unread: u32,
}

/// How many LPIs wait at a time to be made pending. Those that a guest sets beyond that, before something is freed, are refused.
const LATE: usize = 1024;

/// How many LPIs are looked at while `direct` is locked.
const BATCH: usize = 256;

/// How many direct mappings are looked at, and taken away if they are idle, when another LPI is mapped.
const SWEPT: usize = 4;

/// Bytes of a pending table that are read at a time.
const CHUNK: usize = 64;

/// Work of which a redistributor does so much in one access. A unit is some hundred instructions.
pub(super) mod work {
    /// An LPI is looked at.
    pub(in crate::frames) const LOOK: u32 = 1;
    /// A chunk of a pending table is read.
    pub(super) const READ: u32 = 5;
    /// An LPI is configured, or cleared.
    pub(super) const CHANGE: u32 = 8;
    /// An LPI is mapped to be made pending.
    pub(super) const MAP: u32 = 48;
    /// All of one access: less than a millisecond.
    pub(in crate::frames) const MOST: u32 = 8192;
}

/// Heap bytes of an LPI's place in [`Direct::known`].
const KNOWN: usize = btree_entry::<u32, ()>();

/// The domain of LPIs that are mapped by no ITS.
struct Direct<M: MsiControl> {
    msi: M,
    /// What is mapped there.
    known: BTreeSet<u32>,
    /// Where the sweep is.
    swept: u32,
    /// LPIs that are to be pending at a redistributor, but wait for the memory of the dead. At most [`LATE`].
    late: BTreeMap<u32, VcpuId>,
}

impl<M: MsiControl> Direct<M> {
    fn add(&mut self, intid: Intid) {
        if self.known.insert(intid.0) {
            self.msi.count_bytes(KNOWN, 0);
        }
    }

    /// Returns whether it was known.
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

/// The control side of a machine's LPIs, as far as it is the redistributors'.
pub(crate) struct LpiControl<E: Engine> {
    direct: Mutex<Direct<E::Msi>>,
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
        let direct =
            Direct { msi: engine.msi()?, known: BTreeSet::new(), swept: 0, late: BTreeMap::new() };
        let (direct, configuring) = (Mutex::new(direct), Mutex::new(()));
        let (refused, _engine) = (Tally::default(), engine.clone());
        Ok(Self { direct, configuring, refused, memory, end, event_bits, _engine })
    }

    /// Looks at LPIs through a handle of the engine.
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

    /// The mapping of an LPI that was found in a pending table before an ITS had it.
    pub(crate) fn forget_direct(&self, intid: Intid) {
        self.detach(&mut self.direct.lock(), intid);
    }

    fn detach(&self, direct: &mut Direct<E::Msi>, intid: Intid) {
        // Usually there is none.
        if direct.remove(intid) {
            let (device, event) = self.event(intid);
            let _ = direct.msi.detach(device, event);
        }
    }

    /// Looks at some direct mappings, and takes away those that are idle: they are not pending, and no vCPU has them.
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

    /// GICR_CTLR.EnableLPIs has been cleared: LPIs of this vCPU are not pending any more, nor mapped if no ITS has mapped them. Looks at some from `first` up: at as
    /// many as `most` units of work are enough for, and one more. Returns the work, and where to go on.
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
            // Whether it looks pending or not: see `vgic::Shared::is_enabled_meanwhile`. It may have been unmapped meanwhile, or have moved to where LPIs are enabled,
            // and is not this redistributor's any more.
            if direct.msi.silence(intid) {
                self.detach(direct, intid);
            }
        }
        (done, part.next)
    }

    /// GICR_CTLR.EnableLPIs has been set: what the pending table has is pending. Reads it from INTID `first` up, a multiple of 64, until `most` units of work are done. What
    /// is read there is no longer in the table, so that it is not pending again when LPIs are enabled the next time. Returns the work, and where to go on.
    ///
    /// Ends where the table ends or cannot be read, and at the first LPI that meets a bound of the VM.
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
            // What cannot be written is the guest's own loss.
            let _ = self.memory.write(address, &bits.to_le_bytes());
            match result {
                Ok(()) => {}
                // That passes.
                Err(Error::TooMuchGarbage) => return (most, Some(base)),
                Err(_) => {
                    self.refused.add_one();
                    return (done, None);
                }
            }
        }
        (done, Some(base))
    }

    /// Makes the LPIs of a word of the pending table pending, and takes their bits away.
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

    /// GICR_INVALLR: the configuration of the LPIs of a redistributor is read anew. Looks at some from `first` up, as [`LpiControl::clear_some`] does.
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
        let msi = &mut self.direct.lock().msi;
        if msi.target_of(intid) == Some(tables.vcpu) {
            self.reconfigure_one(msi, tables, intid);
        }
    }

    /// GICR_SETLPIR: an LPI becomes pending. Returns whether it has to wait for the memory of the dead: see [`LpiControl::set_late`].
    pub(crate) fn set(&self, tables: Tables, intid: Intid) -> bool {
        if !self.exists(tables, intid) {
            return false;
        }
        let direct = &mut *self.direct.lock();
        // Set anew: it goes to this redistributor.
        direct.late.remove(&intid.0);
        match self.make_pending(direct, tables, intid) {
            Ok(_) => false,
            // That passes.
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

    /// Makes LPIs of a redistributor pending that have waited, until `most` units of work are done. Returns the work, and whether any still wait.
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
                // That still passes.
                Err(Error::TooMuchGarbage) => return (most, true),
                Err(_) => self.refused.add_one(),
            }
            direct.late.remove(&intid);
        }
        (done, false)
    }

    /// GICR_CLRLPIR: an LPI is no longer pending.
    pub(crate) fn clear(&self, tables: Tables, intid: Intid) {
        let direct = &mut *self.direct.lock();
        if direct.late.get(&intid.0) == Some(&tables.vcpu) {
            direct.late.remove(&intid.0);
        }
        if direct.msi.target_of(intid) == Some(tables.vcpu) {
            let _ = direct.msi.set_pending(intid, false);
        }
    }

    /// Makes an LPI pending, and maps it if it is not; returns whether it was not. One of an ITS that is elsewhere is not meant.
    ///
    /// # Errors
    /// A bound of the VM: the LPI does not exist.
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
            // First, so that the mapping is refused if there is no room for both.
            direct.add(intid);
            let mapped = direct.msi.map(device, event, intid, tables.vcpu, config);
            if mapped.is_err() {
                let _ = direct.remove(intid);
            }
            mapped?;
        } else if target != Some(tables.vcpu) {
            // It is an ITS's, which says where it goes.
            return Ok(false);
        }
        let _ = direct.msi.set_pending(intid, true);
        Ok(target.is_none())
    }

    /// Writes the pending bits of all LPIs into the pending tables of these redistributors, whose LPIs are enabled. Such a table is the
    /// redistributor's own (IHI 0069, 5.1.2): nothing else is pending in it, whatever was when it was written before.
    ///
    /// # Errors
    /// [`MemoryError`]: a table is not there; the others have been written.
    pub(crate) fn save_pending(&self, redists: &[Tables]) -> Result<(), MemoryError> {
        // By vCPU, and by INTID / 64.
        let mut pending: BTreeMap<(VcpuId, u32), u64> = BTreeMap::new();
        // Before the others: one that is made pending meanwhile is seen there, or twice.
        for (&intid, &at) in &self.direct.lock().late {
            *pending.entry((at, intid / 64)).or_default() |= 1 << (intid % 64);
        }
        let mut next = Some(Intid(LPI_BASE));
        while let Some(first) = next {
            // Others come in between.
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
            // What has not been read yet is pending there only.
            let unread = if base >= tables.unread { u64::from_le_bytes(old) } else { 0 };
            let new = (bits(base / 64) | unread).to_le_bytes();
            // What stays as it is, is not dirty.
            if old != new {
                self.memory.write(address, &new)?;
            }
        }
        Ok(())
    }
}
