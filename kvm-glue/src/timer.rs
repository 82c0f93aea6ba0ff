//! Forwards the outputs of a vCPU's timers and PMU, which KVM reports at exits, to PPI lines.

use vgic_core::engine::{Error, Injector, Wired};
use vgic_core::ids::{Intid, VcpuId};

/// The bits of `device_irq_level`: `KVM_ARM_DEV_EL1_VTIMER`, `KVM_ARM_DEV_EL1_PTIMER` and
/// `KVM_ARM_DEV_PMU`.
const BITS: [u64; 3] = [1, 2, 4];

/// The PPI of each output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ppis {
    /// The virtual timer.
    pub vtimer: Intid,
    /// The physical timer.
    pub ptimer: Intid,
    /// The overflow interrupt of the performance monitors.
    pub pmu: Intid,
}

impl Default for Ppis {
    /// Returns the numbers of the Base System Architecture: 27, 30 and 23.
    fn default() -> Self {
        Self { vtimer: Intid(27), ptimer: Intid(30), pmu: Intid(23) }
    }
}

impl Ppis {
    /// Checks that all of them are PPIs.
    pub(crate) fn check(self) -> Result<(), crate::Error> {
        let all = [self.vtimer, self.ptimer, self.pmu];
        match all.into_iter().find(|intid| !(16..=31).contains(&intid.0)) {
            Some(intid) => Err(crate::Error::NotPpi(intid)),
            None => Ok(()),
        }
    }
}

/// Forwards the outputs of one vCPU to its PPI lines.
#[derive(Clone, Debug)]
pub struct TimerBridge {
    ppis: [Intid; 3],
    last: u64,
}

impl TimerBridge {
    /// Creates a bridge that assumes all outputs and lines to be low. If that may be wrong, call
    /// [`TimerBridge::set`] next.
    pub fn new(ppis: Ppis) -> Self {
        Self { ppis: [ppis.vtimer, ppis.ptimer, ppis.pmu], last: 0 }
    }

    /// Sets all lines to the outputs' levels. Unlike [`TimerBridge::update`], this does not rely on
    /// the lines' previous levels, which an earlier runner of the vCPU may have left in any state.
    ///
    /// # Errors
    /// Those of [`Injector::set_level`].
    pub fn set<I: Injector>(
        &mut self,
        vcpu: VcpuId,
        levels: u64,
        injector: &I,
    ) -> Result<(), Error> {
        self.last = !levels;
        self.update(vcpu, levels, injector)?;
        Ok(())
    }

    /// Takes the value of `kvm_run.s.regs.device_irq_level` after an exit, and sets the lines of
    /// the outputs that changed. Returns the number of changed outputs.
    ///
    /// # Errors
    /// Those of [`Injector::set_level`].
    pub fn update<I: Injector>(
        &mut self,
        vcpu: VcpuId,
        levels: u64,
        injector: &I,
    ) -> Result<u32, Error> {
        let mut changed = 0;
        for (bit, ppi) in BITS.into_iter().zip(self.ppis) {
            if (levels ^ self.last) & bit != 0 {
                injector.set_level(Wired::Private(vcpu, ppi), levels & bit != 0)?;
                changed += 1;
            }
        }
        self.last = levels;
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vgic_core::Vgic;
    use vgic_core::engine::{Config, Engine, Kick};

    use super::*;

    struct NoKick;
    impl Kick for NoKick {
        fn kick(&self, _: VcpuId) {}
    }

    #[test]
    fn outputs_become_lines() {
        let vgic: Vgic = Vgic::new(&Config::with_vcpus(2), Arc::new(NoKick)).unwrap();
        let injector = vgic.injector().unwrap();
        let line = |n| injector.line(Wired::Private(VcpuId(1), Intid(n))).unwrap();
        let mut bridge = TimerBridge::new(Ppis::default());
        assert_eq!(bridge.update(VcpuId(1), 5, &injector), Ok(2));
        assert_eq!([line(27), line(30), line(23)], [true, false, true]);
        assert_eq!(bridge.update(VcpuId(1), 5, &injector), Ok(0));
        assert_eq!(bridge.update(VcpuId(1), 2, &injector), Ok(3));
        assert_eq!([line(27), line(30), line(23)], [false, true, false]);
        assert!(!injector.line(Wired::Private(VcpuId(0), Intid(30))).unwrap());
        // A second bridge, which has not seen the updates of the first.
        let mut next = TimerBridge::new(Ppis::default());
        next.set(VcpuId(1), 1, &injector).unwrap();
        assert_eq!([line(27), line(30), line(23)], [true, false, false]);
        assert_eq!(next.update(VcpuId(1), 1, &injector), Ok(0));
    }

    #[test]
    fn only_ppis_are_outputs() {
        assert!(Ppis::default().check().is_ok());
        let pmu = Ppis { pmu: Intid(32), ..Ppis::default() };
        assert!(matches!(pmu.check(), Err(crate::Error::NotPpi(Intid(32)))));
        let vtimer = Ppis { vtimer: Intid(15), ..Ppis::default() };
        assert!(matches!(vtimer.check(), Err(crate::Error::NotPpi(Intid(15)))));
    }
}
