//! Fetch of the instruction at a guest's virtual address.
//!
//! # Trust in cached registers
//!
//! A walk costs up to five reads of the guest's memory, and no call into KVM. The expensive part is
//! to ask KVM for the registers that the walk depends on. So every fetch walks the tables and reads
//! the word, but reuses registers that were read earlier. The caller decides how far they are
//! trusted, from the exits that it has seen:
//!
//! * [`Trust::Accesses`]: since the registers were read, the guest's only exits were accesses to
//!   its CPU interface. All registers are taken to be unchanged. A guest that switches to other
//!   tables, as another kernel does, has caused another exit: it has turned off interrupts in a
//!   frame, or another vCPU, or has written to its console.
//! * [`Trust::Little`]: the guest has caused another exit. The TTBR is read, and the MMU's state.
//!   TCR_EL1 is trusted: a guest that changes granules or sizes under its running code does so with
//!   other tables or with the MMU off. For the upper half, SCTLR_EL1 is trusted as well: with the
//!   MMU off there is no upper half. (Linux has its text there; its TTBR1_EL1 is another one after
//!   kexec.)
//! * [`Trust::Nothing`]: all registers are read.

use super::cpu::{Cpu, Reg};
use super::walk::{Physical, Regime, walk};

/// How far the registers that were read earlier are trusted to be unchanged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Trust {
    Nothing,
    Little,
    Accesses,
}

/// Fetches the instructions of one vCPU.
#[derive(Debug)]
pub(super) struct Fetcher {
    regime: Regime,
    /// The trust in `regime`, for the lower and the upper half.
    trust: [Trust; 2],
}

impl Default for Fetcher {
    fn default() -> Self {
        Self { regime: Regime::default(), trust: [Trust::Nothing; 2] }
    }
}

impl Fetcher {
    /// Returns the instruction at `va`. `None`: the guest could not have fetched it.
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
        // Instructions are little-endian, even if data are not.
        Ok(word.map(u32::from_le_bytes))
    }

    /// Records that the guest has caused an exit that is not an access.
    pub(super) fn exited(&mut self) {
        self.trust = self.trust.map(|trust| trust.min(Trust::Little));
    }

    /// Forgets all registers that were read.
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
