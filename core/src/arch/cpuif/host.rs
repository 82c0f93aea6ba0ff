//! The hypervisor's side: the list registers, and the maintenance that they request.

use super::{CpuInterface, Deactivation, INTID_MASK};
use crate::arch::ids::Intid;
use crate::arch::lr::{ListRegisters, Lr, MAX_LRS, Maintenance};

/// The implemented bits of a list register: all but the vINTID bits above the low 24 and the
/// priority bits below the top 5. The unimplemented bits read as zero (IHI 0069, 12.4,
/// `ICH_LR<n>_EL2`).
const LR_MASK: u64 = !(!(INTID_MASK as u64) & 0xffff_ffff | 7 << 48);

/// The maintenance conditions that hold (`ICH_MISR_EL2`, IHI 0069, 12.4).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Misr {
    /// EOI: [`CpuInterface::eisr`] is not 0. Each entry requests this condition with its own EOI
    /// bit.
    pub eoi: bool,
    /// U: underflow is wanted, and at most one entry is not invalid.
    pub underflow: bool,
    /// LRENP: not-present is wanted, and EOIcount is not 0.
    pub not_present: bool,
    /// NP: no-pending is wanted, and no entry's state is Pending.
    pub no_pending: bool,
    /// VGrp0E and VGrp1E: the group's condition is wanted, and the guest has enabled the group.
    pub group_enabled: [bool; 2],
}

impl Misr {
    /// Returns the register's bits.
    pub const fn bits(self) -> u32 {
        self.eoi as u32
            | (self.underflow as u32) << 1
            | (self.not_present as u32) << 2
            | (self.no_pending as u32) << 3
            | (self.group_enabled[0] as u32) << 4
            | (self.group_enabled[1] as u32) << 6
    }
}

impl CpuInterface {
    /// Deactivates an interrupt that is active in a list register, as an untrapped DIR would. The
    /// host calls this in response to [`super::DirOutcome::Trapped`]. `None` if there is no such
    /// entry; EOIcount then remains unchanged.
    pub fn deactivate(&mut self, intid: Intid) -> Option<Deactivation> {
        let n = self.active_entry(intid)?;
        Some(self.deactivate_entry(n))
    }

    /// ICH_EISR_EL2: bit n is set while entry n is invalid, its EOI bit is set, and HW is clear.
    /// This means that the guest has deactivated an interrupt that requested maintenance (IHI 0069,
    /// 12.4). Rewriting the entry clears the bit.
    #[inline]
    pub fn eisr(&self) -> u16 {
        self.eisr
    }

    /// ICH_MISR_EL2: the conditions that hold now. Conditions other than EOI are reported only if
    /// they were requested with [`ListRegisters::set_maintenance`] (IHI 0069, 12.4).
    #[inline]
    pub fn misr(&self) -> Misr {
        Misr {
            eoi: self.eisr != 0,
            // True if at most one bit of `valid` is set.
            underflow: self.wanted.underflow && self.valid & self.valid.wrapping_sub(1) == 0,
            not_present: self.wanted.not_present && self.eoi_count != 0,
            no_pending: self.wanted.no_pending && self.pending.is_empty(),
            group_enabled: [0, 1].map(|g| self.wanted.group_enabled[g] && self.enabled[g]),
        }
    }

    /// Whether the maintenance interrupt is asserted: some bit of ICH_MISR_EL2 is set
    /// (IHI 0069, 12.4).
    #[inline]
    pub fn maintenance_pending(&self) -> bool {
        self.misr().bits() != 0
    }
}

/// [`ListRegisters::read`] and [`ListRegisters::write`] panic if there is no such entry.
impl ListRegisters for CpuInterface {
    #[inline]
    fn count(&self) -> usize {
        self.count
    }

    #[inline]
    fn read(&self, n: usize) -> Lr {
        self.lrs[self.index(n)]
    }

    #[inline]
    fn write(&mut self, n: usize, lr: Lr) {
        self.put(self.index(n), Lr::from_bits(lr.bits() & LR_MASK));
    }

    #[inline]
    fn take_eoi_count(&mut self) -> u32 {
        core::mem::take(&mut self.eoi_count).into()
    }

    #[inline]
    fn groups_enabled(&self) -> [bool; 2] {
        self.enabled
    }

    #[inline]
    fn set_maintenance(&mut self, wanted: Maintenance) {
        self.wanted = wanted;
    }
}

impl CpuInterface {
    #[inline]
    fn index(&self, n: usize) -> usize {
        assert!(n < self.count, "list register {n} of {}", self.count);
        n & (MAX_LRS - 1)
    }
}
