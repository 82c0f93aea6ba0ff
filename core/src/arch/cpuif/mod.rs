//! The virtual CPU interface in software: the registers that a guest accesses as `ICC_*`,
//! implemented on top of list registers.
//!
//! [`CpuInterface`] replaces the hardware. The engine fills it through
//! [`ListRegisters`](crate::arch::lr::ListRegisters); the host routes each register access of the
//! guest to the method of that name. It follows the architecture's rules for virtual interrupts
//! (IHI 0069, chapter 6; pseudo-code in 6.4). Registers are cited by name and section, 12.3 for
//! `ICV_*` and 12.4 for `ICH_*`, because their order within the section differs between issues of
//! the specification.
//!
//! # Supported features
//!
//! * 5 bits of priority and 5 of preemption, so one active-priorities register per group.
//! * 24-bit INTIDs. LPIs in list registers; no directly injected LPIs (GICv4), no NMIs.
//! * `ICH_HCR_EL2.En` is treated as set. The SGI registers are left to the engine's users.
//!
//! # Choices
//!
//! A guest can reach the following cases, in which the architecture leaves the outcome open:
//!
//! * An EOIR write of a valid INTID drops the highest active priority, and then deactivates that
//!   INTID in any group and at any priority. The architecture compares the group and the priority
//!   with the dropped ones, and leaves the outcome of a mismatch open. A mismatch occurs when the
//!   guest has ended its interrupts in another order, or has changed a binary point or a group in
//!   between. Without the deactivation, the interrupt would remain active forever.
//! * An LPI has no active state: when it is acknowledged, it leaves its list register. So the end
//!   of an LPI only drops a priority, and the LPI can become pending again before its end.
//!   (Hardware may keep the list register active until the end; the engine removes the active
//!   state.)
//! * An EOIR write that finds no active priority to drop has no effect.
//! * When both groups are active at one priority, which requires a write to the active-priorities
//!   registers, the drop takes Group 0 first.
//! * When two list registers hold one INTID, the lower-numbered one is used.
//!
//! # Cost
//!
//! Acknowledging does not search: pending entries are indexed by priority. Ending an interrupt
//! searches only the active entries. There is only one of them unless interrupts nest.

#![forbid(unsafe_code)]

mod host;
mod pending;
mod regs;
#[cfg(test)]
mod tests;

pub use host::Misr;
use pending::Pending;

use crate::arch::ids::{Group, Intid, LPI_BASE, Priority, SPI_END, SPURIOUS};
use crate::arch::lr::{Lr, LrState, MAX_LRS, Maintenance};

/// Mask of the INTID bits of EOIR and DIR: 24, as `ICV_CTLR_EL1.IDbits` states. The bits above are
/// RES0.
const INTID_MASK: u32 = crate::arch::ids::INTID_END - 1;

/// An interrupt that has left the active state in its list register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deactivation {
    /// The virtual INTID.
    pub intid: Intid,
    /// The physical interrupt (pINTID, 13 bits) that the host must deactivate with it: the entry's
    /// HW bit was set (IHI 0069, 12.4, `ICH_LR<n>_EL2`).
    pub hw: Option<u16>,
}

/// The outcome of a write to DIR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum DirOutcome {
    /// The write had no effect: EOImode is 0, or the INTID is special or an LPI.
    Ignored,
    /// The interrupt was active in a list register and has been deactivated.
    Deactivated(Deactivation),
    /// No list register holds the interrupt as active: EOIcount has been incremented.
    NotPresent,
    /// The write would have deactivated this interrupt, but [`Maintenance::trap_dir`] is set and
    /// nothing has changed. The host does it instead: [`CpuInterface::deactivate`] if the interrupt
    /// is in a list register, otherwise [`crate::engine::Vcpu::deactivate`].
    Trapped(Intid),
}

/// One vCPU's virtual CPU interface, with its list registers.
///
/// Register values are passed as the low 32 bits of the guest's register; the upper bits of every
/// register here are RES0. No value makes a guest operation panic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuInterface {
    lrs: [Lr; MAX_LRS],
    count: usize,
    /// The entries in state Pending, by group and priority.
    pending: Pending,
    /// Bit n: entry n is active, or pending and active.
    // Wider than `valid`, so that the compiler does not merge the updates of both into one wide
    // access, which would wait for the narrow store of an acknowledge.
    active: u32,
    /// Bit n: entry n is not invalid.
    valid: u16,
    /// ICH_EISR_EL2.
    eisr: u16,
    /// ICV_AP0R0_EL1 and ICV_AP1R0_EL1: bit n stands for group priority 8n.
    apr: [u32; 2],
    pmr: u8,
    /// ICV_BPR0_EL1, and ICV_BPR1_EL1 as last written, regardless of CBPR.
    bpr: [u8; 2],
    /// The group-priority bits of a priority, for interrupts of each group.
    group_mask: [u8; 2],
    enabled: [bool; 2],
    eoi_mode: bool,
    cbpr: bool,
    /// ICH_HCR_EL2.EOIcount.
    eoi_count: u8,
    wanted: Maintenance,
}

impl CpuInterface {
    /// Creates an interface with `lrs` empty list registers, in its reset state: every interrupt
    /// masked (PMR 0) and both groups disabled, binary points at their minimum, EOImode and CBPR 0,
    /// no active priorities (IHI 0069, 12.3).
    ///
    /// `None` unless `lrs` is 1 to [`MAX_LRS`].
    pub fn new(lrs: usize) -> Option<Self> {
        if lrs == 0 || lrs > MAX_LRS {
            return None;
        }
        let mut new = Self {
            lrs: [Lr::EMPTY; MAX_LRS],
            count: lrs,
            pending: Pending::default(),
            active: 0,
            valid: 0,
            eisr: 0,
            apr: [0; 2],
            pmr: 0,
            bpr: [regs::MIN_BPR0, regs::MIN_BPR1],
            group_mask: [0; 2],
            enabled: [false; 2],
            eoi_mode: false,
            cbpr: false,
            eoi_count: 0,
            wanted: Maintenance::default(),
        };
        new.update_group_masks();
        Some(new)
    }

    /// ICV_IAR0_EL1, read: acknowledges the interrupt that is signaled as virtual FIQ, and returns
    /// its INTID; 1023 if there is none (IHI 0069, 12.3, and VirtualReadIAR0 in 6.4).
    #[inline]
    pub fn iar0(&mut self) -> Intid {
        self.acknowledge(Group::Group0)
    }

    /// ICV_IAR1_EL1, read: acknowledges the interrupt that is signaled as virtual IRQ, and returns
    /// its INTID; 1023 if there is none, or if the highest priority pending interrupt is in Group 0
    /// (IHI 0069, 12.3, and VirtualReadIAR1 in 6.4).
    #[inline]
    pub fn iar1(&mut self) -> Intid {
        self.acknowledge(Group::Group1)
    }

    /// ICV_EOIR0_EL1, write: drops the running priority and, if EOImode is 0, deactivates the
    /// Group 0 interrupt (IHI 0069, 12.3, and VirtualWriteEOIR0 in 6.4).
    ///
    /// Returns the interrupt if a list register was deactivated. See [`CpuInterface::eoir1`].
    #[inline]
    #[must_use = "the host deactivates the physical side of a HW interrupt"]
    pub fn eoir0(&mut self, value: Intid) -> Option<Deactivation> {
        self.end(value)
    }

    /// ICV_EOIR1_EL1, write: drops the running priority and, if EOImode is 0, deactivates the
    /// Group 1 interrupt (IHI 0069, 12.3, and VirtualWriteEOIR1 in 6.4).
    ///
    /// An LPI that a list register holds as active is deactivated even if EOImode is 1, because an
    /// LPI has no active state that DIR could end. A special INTID is ignored. The write drops the
    /// highest active priority of either group, even if this interrupt has another one. If EOImode
    /// is 0 and no list register holds the interrupt as active, EOIcount is incremented, except for
    /// an LPI.
    ///
    /// Returns the interrupt if a list register was deactivated.
    #[inline]
    #[must_use = "the host deactivates the physical side of a HW interrupt"]
    pub fn eoir1(&mut self, value: Intid) -> Option<Deactivation> {
        self.end(value)
    }

    /// ICV_DIR_EL1, write: deactivates an interrupt after EOIR has dropped its priority (IHI 0069,
    /// 12.3, and VirtualWriteDIR in 6.4).
    pub fn dir(&mut self, value: Intid) -> DirOutcome {
        let intid = Intid(value.0 & INTID_MASK);
        // ICH_HCR_EL2.TDIR traps every write. A write without effect does not justify an exit: the
        // guest cannot tell whether it is ignored here or by the host.
        if !self.eoi_mode || is_special(intid) || intid.0 >= LPI_BASE {
            return DirOutcome::Ignored;
        }
        if self.wanted.trap_dir {
            return DirOutcome::Trapped(intid);
        }
        match self.deactivate(intid) {
            Some(deactivation) => DirOutcome::Deactivated(deactivation),
            None => {
                self.count_eoi();
                DirOutcome::NotPresent
            }
        }
    }

    /// ICV_HPPIR0_EL1, read: the INTID of the highest priority pending interrupt of the enabled
    /// groups, if that is in Group 0, otherwise 1023 (IHI 0069, 12.3). PMR and the running priority
    /// have no influence.
    pub fn hppir0(&self) -> Intid {
        self.highest_pending_in(Group::Group0)
    }

    /// ICV_HPPIR1_EL1, read: the INTID of the highest priority pending interrupt of the enabled
    /// groups, if that is in Group 1, otherwise 1023 (IHI 0069, 12.3). See
    /// [`CpuInterface::hppir0`].
    pub fn hppir1(&self) -> Intid {
        self.highest_pending_in(Group::Group1)
    }

    /// Whether the virtual IRQ is asserted: a Group 1 interrupt can be acknowledged
    /// (IHI 0069, 6.1, and CanSignalVirtualInterrupt in 6.4).
    #[inline]
    pub fn irq_line(&self) -> bool {
        matches!(self.signaled(), Some((_, lr)) if lr.group() == Group::Group1)
    }

    /// Whether the virtual FIQ is asserted: a Group 0 interrupt can be acknowledged
    /// (IHI 0069, 6.1, and CanSignalVirtualInterrupt in 6.4).
    #[inline]
    pub fn fiq_line(&self) -> bool {
        matches!(self.signaled(), Some((_, lr)) if lr.group() == Group::Group0)
    }

    /// Returns the threshold that PMR, the running priority and the group's enable set: the highest
    /// priority pending interrupt is signaled if it is in this group and its priority is
    /// numerically below the threshold (`can_signal`). 0 if no priority can be signaled.
    pub fn threshold(&self, group: Group) -> u8 {
        if !self.enabled[group as usize] {
            return 0;
        }
        let running = self.running_level().map_or(u8::MAX, |level| {
            // An interrupt preempts if its group priority is less than the running priority cut to
            // the same bits. As the cut value has no lower bits, that holds exactly if its full
            // priority is less.
            level_priority(level) & self.group_mask[group as usize]
        });
        self.pmr.min(running)
    }

    /// Returns the highest priority pending entry of the enabled groups. An entry that is pending
    /// and active is no candidate until it has been deactivated (HighestPriorityVirtualInterrupt in
    /// 6.4).
    #[inline]
    fn highest_pending(&self) -> Option<(usize, Lr)> {
        let n = self.pending.highest(self.enabled)?;
        Some((n, self.lrs[n]))
    }

    /// Returns the entry that an acknowledge of its group would take. Only the highest priority
    /// pending entry is eligible, even if the group priority of another entry would suffice.
    #[inline]
    fn signaled(&self) -> Option<(usize, Lr)> {
        self.highest_pending().filter(|&(_, lr)| self.can_signal(lr))
    }

    /// Whether a pending interrupt passes the priority mask and preempts the running priority.
    #[inline]
    fn can_signal(&self, lr: Lr) -> bool {
        let priority = lr.priority().byte();
        if priority >= self.pmr {
            return false;
        }
        match self.running_level() {
            None => true,
            Some(level) => {
                // Both sides are cut to the pending interrupt's group-priority bits (6.4): the
                // running interrupt may have been acknowledged under a finer binary point.
                let mask = self.group_mask[lr.group() as usize];
                priority & mask < level_priority(level) & mask
            }
        }
    }

    /// Returns the highest active priority of both groups, as a level.
    #[inline]
    fn running_level(&self) -> Option<u32> {
        match self.apr[0] | self.apr[1] {
            0 => None,
            active => Some(active.trailing_zeros()),
        }
    }

    #[inline]
    fn acknowledge(&mut self, group: Group) -> Intid {
        let Some((n, lr)) = self.signaled().filter(|(_, lr)| lr.group() == group) else {
            return Intid(SPURIOUS);
        };
        if is_special(lr.intid()) {
            // The entry becomes free, but no interrupt becomes active.
            self.put(n, lr.with_state(LrState::Invalid));
            return lr.intid();
        }
        self.pending.remove(group, lr.priority(), n);
        if lr.intid().0 >= LPI_BASE {
            self.lrs[n] = lr.with_state(LrState::Invalid);
            self.valid &= !(1 << n);
            if lr.eoi_maintenance() {
                self.eisr |= 1 << n;
            }
        } else {
            self.active |= 1 << n;
            self.lrs[n] = lr.with_state(LrState::Active);
        }
        let group_priority = lr.priority().byte() & self.group_mask[group as usize];
        self.apr[group as usize] |= 1 << Priority::new(group_priority).level();
        lr.intid()
    }

    #[inline]
    fn end(&mut self, value: Intid) -> Option<Deactivation> {
        let intid = Intid(value.0 & INTID_MASK);
        if is_special(intid) {
            return None;
        }
        self.drop_priority()?;
        let lpi = intid.0 >= LPI_BASE;
        let Some(n) = self.active_entry(intid) else {
            // Count only if the write requested a deactivation. With EOImode 1, DIR requests it and
            // counts (12.4, ICH_HCR_EL2.EOIcount). QEMU and Linux count here in both modes.
            if !lpi && !self.eoi_mode {
                self.count_eoi();
            }
            return None;
        };
        if self.eoi_mode && !lpi {
            return None;
        }
        Some(self.deactivate_entry(n))
    }

    /// Clears the highest active priority of both groups. `None` if there is none.
    #[inline]
    fn drop_priority(&mut self) -> Option<()> {
        let level = self.running_level()?;
        let group = self.running_group()?;
        self.apr[group as usize] &= !(1 << level);
        Some(())
    }

    /// Returns the entry that holds `intid` as active, pending or not (FindActiveVirtualInterrupt
    /// in 6.4).
    #[inline]
    fn active_entry(&self, intid: Intid) -> Option<usize> {
        let mut left = self.active;
        while left != 0 {
            let n = lowest(left);
            if self.lrs[n].intid() == intid {
                return Some(n);
            }
            left &= left - 1;
        }
        None
    }

    #[inline]
    fn deactivate_entry(&mut self, n: usize) -> Deactivation {
        let lr = self.lrs[n];
        if lr.is_pending() {
            self.put(n, lr.with_state(LrState::Pending));
        } else {
            // A specialized `put`: the entry is known to be active.
            self.lrs[n] = lr.with_state(LrState::Invalid);
            self.valid &= !(1 << n);
            self.active &= !(1 << n);
            if lr.eoi_maintenance() {
                self.eisr |= 1 << n;
            }
        }
        Deactivation { intid: lr.intid(), hw: lr.hw() }
    }

    fn highest_pending_in(&self, group: Group) -> Intid {
        match self.highest_pending() {
            Some((_, lr)) if lr.group() == group => lr.intid(),
            _ => Intid(SPURIOUS),
        }
    }

    fn count_eoi(&mut self) {
        // A field of 5 bits, which wraps (12.4, ICH_HCR_EL2.EOIcount).
        self.eoi_count = (self.eoi_count + 1) & 0x1f;
    }

    /// Replaces an entry, and updates the masks and the pending index to match.
    #[inline]
    fn put(&mut self, n: usize, lr: Lr) {
        let (old, bit) = (self.lrs[n], 1_u16 << n);
        if old.state() == LrState::Pending {
            self.pending.remove(old.group(), old.priority(), n);
        }
        self.lrs[n] = lr;
        if self.eisr & bit != 0 {
            self.eisr &= !bit;
        }
        match lr.state() {
            LrState::Invalid => {
                self.valid &= !bit;
                self.active &= !u32::from(bit);
                if lr.eoi_maintenance() {
                    self.eisr |= bit;
                }
            }
            LrState::Pending => {
                self.pending.insert(lr.group(), lr.priority(), n);
                self.valid |= bit;
                self.active &= !u32::from(bit);
            }
            LrState::Active | LrState::PendingActive => {
                self.valid |= bit;
                self.active |= u32::from(bit);
            }
        }
    }
}

/// The INTIDs that stand for no interrupt: 1020 to 1023 (IHI 0069, 2.2.1).
#[inline]
const fn is_special(intid: Intid) -> bool {
    intid.0 >= SPI_END && intid.0 <= SPURIOUS
}

/// Returns the priority that bit `level` of an active-priorities register stands for.
#[inline]
const fn level_priority(level: u32) -> u8 {
    (level << (8 - Priority::BITS)) as u8
}

/// Returns the lowest entry of a non-empty mask.
#[inline]
const fn lowest(entries: u32) -> usize {
    // The mask does not change the result; it removes the bounds check from the array access.
    entries.trailing_zeros() as usize & (MAX_LRS - 1)
}
