//! The instruction at an address of the guest's.
//!
//! # What may be out of date
//!
//! A walk costs up to five reads of the guest's memory and none of KVM; what costs is to ask KVM for the registers that it depends on. So the
//! tables are walked and the word is read each time, and of the registers it is the caller who says how far they are trusted, by what it knows
//! otherwise:
//!
//! * [`Trust::Accesses`]: since they were read, the guest has caused no exit but by accesses to its CPU interface. They are taken to be what they were then. A guest
//!   that goes over to other tables, as another kernel does, has turned interrupts off in a frame, or another vCPU, or has written to its
//!   console: it has caused one.
//! * [`Trust::Little`]: it has caused another one. The TTBR is read, and the MMU's state. TCR_EL1 is trusted: a guest that changes granules or
//!   sizes under its running code does so with other tables or with the MMU off. So, for the upper half, is SCTLR_EL1: with the MMU off there is none. (Linux
//!   has its text there; its TTBR1_EL1 is another one after kexec.)
//! * [`Trust::Nothing`]: all of them are read.

use super::cpu::{Cpu, Reg};
use super::walk::{Physical, Regime, walk};

/// How much of what was read earlier is taken to hold still.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Trust {
    Nothing,
    Little,
    Accesses,
}

/// Fetches instructions of one vCPU.
#[derive(Debug)]
pub(super) struct Fetcher {
    regime: Regime,
    /// How far `regime` is to be trusted, for the lower and the upper half.
    trust: [Trust; 2],
}

impl Default for Fetcher {
    fn default() -> Self {
        Self { regime: Regime::default(), trust: [Trust::Nothing; 2] }
    }
}

impl Fetcher {
    /// The instruction at `va`; `None` if the guest could not have fetched it.
    pub(super) fn fetch<C: Cpu>(
        &mut self,
        cpu: &mut C,
        memory: &(impl Physical + ?Sized),
        va: u64,
    ) -> Result<Option<u32>, C::Error> {
        if va & 3 != 0 {
            return Ok(None);
        }
        self.refresh(cpu, va >> 55 & 1 != 0)?;
        let word = walk(memory, &self.regime, va).ok().and_then(|at| memory.word(at.address));
        // Instructions are little-endian, whatever data are.
        Ok(word.map(u32::from_le_bytes))
    }

    /// The guest has caused an exit that is no access.
    pub(super) fn exited(&mut self) {
        self.trust = self.trust.map(|trust| trust.min(Trust::Little));
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Reads the registers that are not trusted.
    fn refresh<C: Cpu>(&mut self, cpu: &mut C, upper: bool) -> Result<(), C::Error> {
        let half = usize::from(upper);
        let trust = self.trust[half];
        if trust <= Trust::Little {
            self.regime.ttbr[half] = cpu.get([Reg::Ttbr0, Reg::Ttbr1][half])?;
        }
        if trust == Trust::Nothing || (trust == Trust::Little && !upper) {
            self.regime.sctlr = cpu.get(Reg::Sctlr)?;
        }
        if trust == Trust::Nothing {
            self.regime.tcr = cpu.get(Reg::Tcr)?;
        }
        self.trust[half] = Trust::Accesses;
        Ok(())
    }
}
