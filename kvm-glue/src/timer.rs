//! The outputs of a vCPU's timers and PMU, which KVM reports at exits, as lines of its PPIs.

use vgic_core::engine::{Error, Injector, Wired};
use vgic_core::ids::{Intid, VcpuId};

/// Bits of `device_irq_level`: `KVM_ARM_DEV_EL1_VTIMER`, `_PTIMER`, `KVM_ARM_DEV_PMU`.
const BITS: [u64; 3] = [1, 2, 4];

/// Which PPI is which output's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ppis {
    /// The virtual timer's.
    pub vtimer: Intid,
    /// The physical timer's.
    pub ptimer: Intid,
    /// The performance monitors' overflow.
    pub pmu: Intid,
}

impl Default for Ppis {
    /// As the Base System Architecture has them: 27, 30, 23.
    fn default() -> Self {
        Self { vtimer: Intid(27), ptimer: Intid(30), pmu: Intid(23) }
    }
}

impl Ppis {
    /// All of them are PPIs.
    pub(crate) fn check(self) -> Result<(), crate::Error> {
        let all = [self.vtimer, self.ptimer, self.pmu];
        match all.into_iter().find(|intid| !(16..=31).contains(&intid.0)) {
            Some(intid) => Err(crate::Error::NotPpi(intid)),
            None => Ok(()),
        }
    }
}

/// Follows the outputs of one vCPU.
#[derive(Clone, Debug)]
pub struct TimerBridge {
    ppis: [Intid; 3],
    last: u64,
}

impl TimerBridge {
    /// All outputs are low, and so are the lines; if that is not known, [`TimerBridge::set`] comes next.
    pub fn new(ppis: Ppis) -> Self {
        Self { ppis: [ppis.vtimer, ppis.ptimer, ppis.pmu], last: 0 }
    }

    /// Sets the lines to what the outputs are, whatever they were: as a vCPU that was run before by another may have left them.
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

    /// Takes over `kvm_run.s.regs.device_irq_level` after an exit, and returns how many outputs have changed.
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
        // Another one, which has not seen what this one did.
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
