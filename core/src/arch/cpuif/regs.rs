//! The registers that only hold state: priority mask, binary points, control, group enables, active
//! priorities.

use super::{CpuInterface, level_priority};
use crate::arch::ids::{Group, Priority};

/// The minimum binary point of Group 0: 7 minus the number of preemption bits (IHI 0069, 12.3,
/// ICV_BPR0_EL1).
pub(super) const MIN_BPR0: u8 = 7 - Priority::BITS as u8;
/// The minimum binary point of Group 1 (IHI 0069, 12.3, ICV_BPR1_EL1).
pub(super) const MIN_BPR1: u8 = MIN_BPR0 + 1;
const MAX_BPR: u8 = 7;

/// The value of RPR when no priority is active.
const IDLE_PRIORITY: u32 = 0xff;

const CTLR_CBPR: u32 = 1 << 0;
const CTLR_EOIMODE: u32 = 1 << 1;
/// PRIbits, bits 10:8: the number of priority bits, minus one.
const CTLR_PRIBITS: u32 = (Priority::BITS - 1) << 8;
/// IDbits, bits 13:11: 24 bits of INTID.
const CTLR_IDBITS: u32 = 1 << 11;
/// A3V, bit 15: SGIs can specify an affinity level 3 value other than 0.
const CTLR_A3V: u32 = 1 << 15;

impl CpuInterface {
    /// ICV_RPR_EL1, read: the highest active group priority, of either group; 0xff if there is none
    /// (IHI 0069, 12.3).
    #[inline]
    pub fn rpr(&self) -> u32 {
        match self.running_level() {
            Some(level) => level_priority(level).into(),
            None => IDLE_PRIORITY,
        }
    }

    /// The group of the highest active priority, which an EOIR write of either group drops. `None`
    /// if no priority is active. A memory-mapped interface has one EOIR for both groups (GICV_EOIR;
    /// IHI 0048B, 5.5.5).
    #[inline]
    pub fn running_group(&self) -> Option<Group> {
        let bit = 1 << self.running_level()?;
        Some(if self.apr[0] & bit != 0 { Group::Group0 } else { Group::Group1 })
    }

    /// ICV_PMR_EL1, read: only interrupts of a higher priority, that is, of a lower value, are
    /// signaled (IHI 0069, 12.3).
    #[inline]
    pub fn pmr(&self) -> u32 {
        self.pmr.into()
    }

    /// ICV_PMR_EL1, write. Bits 7:3 are implemented.
    #[inline]
    pub fn set_pmr(&mut self, value: u32) {
        self.pmr = Priority::new(value as u8).byte();
    }

    /// ICV_BPR0_EL1, read: 2 to 7. The group priority of a Group 0 interrupt consists of the
    /// priority bits above this bit (IHI 0069, 12.3, and 4.8 on priority grouping).
    pub fn bpr0(&self) -> u32 {
        self.bpr[0].into()
    }

    /// ICV_BPR0_EL1, write. A value below the minimum of 2 sets the minimum.
    pub fn set_bpr0(&mut self, value: u32) {
        self.bpr[0] = (value as u8 & MAX_BPR).max(MIN_BPR0);
        self.update_group_masks();
    }

    /// ICV_BPR1_EL1, read: 3 to 7. The group priority of a Group 1 interrupt consists of this
    /// priority bit and the bits above it. While CBPR is 1, the value read is BPR0 plus one, at
    /// most 7 (IHI 0069, 12.3, and 4.8 on priority grouping).
    pub fn bpr1(&self) -> u32 {
        if self.cbpr { (self.bpr[0] + 1).min(MAX_BPR).into() } else { self.bpr[1].into() }
    }

    /// ICV_BPR1_EL1, write. A value below the minimum of 3 sets the minimum. The write is ignored
    /// while CBPR is 1.
    pub fn set_bpr1(&mut self, value: u32) {
        if !self.cbpr {
            self.set_own_bpr1(value);
        }
    }

    /// GICV_ABPR, read: Group 1's own binary point, regardless of CBPR (IHI 0048B, 5.5.8).
    pub fn own_bpr1(&self) -> u32 {
        self.bpr[1].into()
    }

    /// GICV_ABPR, write: sets Group 1's own binary point, regardless of CBPR. A value below the
    /// minimum of 3 sets the minimum. See [`CpuInterface::set_bpr1`].
    pub fn set_own_bpr1(&mut self, value: u32) {
        self.bpr[1] = (value as u8 & MAX_BPR).max(MIN_BPR1);
        self.update_group_masks();
    }

    /// ICV_CTLR_EL1, read (IHI 0069, 12.3).
    ///
    /// * CBPR, bit 0, read-write: BPR0 determines the group priority of both groups.
    /// * EOImode, bit 1, read-write: EOIR drops the priority only, and DIR deactivates.
    /// * PRIbits, bits 10:8, read-only: 4, for 5 bits of priority.
    /// * IDbits, bits 13:11, read-only: 1, for 24-bit INTIDs.
    /// * SEIS, bit 14, read-only: 0, no system errors are generated for wrong use.
    /// * A3V, bit 15, read-only: 1, SGIs can go to any affinity level 3.
    /// * RSS, bit 18, read-only: 0, SGIs can go to affinity level 0 values 0 to 15.
    /// * ExtRange, bit 19, read-only: 0, there are no extended SPIs and PPIs.
    pub fn ctlr(&self) -> u32 {
        let mut value = CTLR_PRIBITS | CTLR_IDBITS | CTLR_A3V;
        if self.cbpr {
            value |= CTLR_CBPR;
        }
        if self.eoi_mode {
            value |= CTLR_EOIMODE;
        }
        value
    }

    /// ICV_CTLR_EL1, write: CBPR and EOImode; the other bits are ignored.
    pub fn set_ctlr(&mut self, value: u32) {
        self.cbpr = value & CTLR_CBPR != 0;
        self.eoi_mode = value & CTLR_EOIMODE != 0;
        self.update_group_masks();
    }

    /// ICV_IGRPEN0_EL1, read: 1 if Group 0 is enabled (IHI 0069, 12.3).
    pub fn igrpen0(&self) -> u32 {
        self.enabled[0].into()
    }

    /// ICV_IGRPEN0_EL1, write: bit 0.
    pub fn set_igrpen0(&mut self, value: u32) {
        self.enabled[0] = value & 1 != 0;
    }

    /// ICV_IGRPEN1_EL1, read: 1 if Group 1 is enabled (IHI 0069, 12.3).
    pub fn igrpen1(&self) -> u32 {
        self.enabled[1].into()
    }

    /// ICV_IGRPEN1_EL1, write: bit 0.
    pub fn set_igrpen1(&mut self, value: u32) {
        self.enabled[1] = value & 1 != 0;
    }

    /// `ICV_AP0R<n>_EL1`, read: bit m is set while a Group 0 interrupt of group priority 8m is
    /// active and its priority has not been dropped. With 5 bits of preemption only n = 0 exists.
    /// For any other n the result is `None`, and the guest's access is UNDEFINED (IHI 0069, 12.3).
    pub fn ap0r(&self, n: usize) -> Option<u32> {
        (n == 0).then_some(self.apr[0])
    }

    /// `ICV_AP0R<n>_EL1`, write. Returns `None` and has no effect unless n = 0.
    pub fn set_ap0r(&mut self, n: usize, value: u32) -> Option<()> {
        (n == 0).then(|| self.apr[0] = value)
    }

    /// `ICV_AP1R<n>_EL1`, read: the Group 1 counterpart of [`CpuInterface::ap0r`] (IHI 0069, 12.3).
    pub fn ap1r(&self, n: usize) -> Option<u32> {
        (n == 0).then_some(self.apr[1])
    }

    /// `ICV_AP1R<n>_EL1`, write. Returns `None` and has no effect unless n = 0.
    pub fn set_ap1r(&mut self, n: usize, value: u32) -> Option<()> {
        (n == 0).then(|| self.apr[1] = value)
    }

    /// Recomputes the masks that depend on the binary points and on CBPR (VGroupBits in IHI 0069,
    /// 6.4).
    pub(super) fn update_group_masks(&mut self) {
        // The group priority field of Group 0 begins one bit above its binary point. At 7 the field
        // is empty, and no Group 0 interrupt preempts another.
        let group0 = (0xff_u32 << (self.bpr[0] + 1)) as u8;
        // With CBPR, Group 1 uses the mask of Group 0. At BPR0 = 7 that differs from the mask for
        // the value 7 that BPR1 then reads as.
        let group1 = if self.cbpr { group0 } else { 0xff << self.bpr[1] };
        self.group_mask = [group0, group1];
    }
}
