//! The instruction at an address of the guest's.
//!
//! # What may be out of date
//!
//! A walk costs up to five reads of the guest's memory and none of KVM; what costs is to ask KVM for the registers that it depends on. So they
//! are kept, and with them the pages that were found. How far that is trusted is the caller's choice, by what
//! it knows otherwise:
//!
//! * [`Trust::Cached`]: the guest has had an UNDEF at that address. If the word that is found there is an access to the CPU interface, it is what the
//!   guest has executed: were the page another one by now, it would hold such an access at the same offset by accident, and the
//!   instruction that was executed would have to be another undefined one. The word itself is read each time, so that code which was patched is seen. If
//!   the word is anything else, the caller asks again with [`Trust::Nothing`].
//! * [`Trust::Tables`]: the guest is about to execute what is there, and it need not be what was there last. The tables are walked again, from the
//!   TTBR that there is now. TCR_EL1 is trusted: a guest that changes granules or sizes under its running code
//!   does so with other tables or with the MMU off. So, for the upper half, is SCTLR_EL1: with the MMU off there is none. (Linux has its
//!   text there; its TTBR1_EL1 is another one after kexec.)
//! * [`Trust::Nothing`]: all of it is read.

use super::cpu::{Cpu, Reg};
use super::walk::{Physical, Regime, walk};

/// How much of what was found earlier is taken to hold still.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Trust {
    Nothing,
    Tables,
    Cached,
}

/// Pages that are remembered: the text that a guest accesses its CPU interface from is in a few.
const PAGES: usize = 8;
/// The smallest page, so that it fits into all mappings.
const PAGE: u64 = 0xfff;
/// The table's address in a TTBR, without ASID and CnP: those change with each process.
const TABLE: u64 = 0xffff_ffff_fffe;

/// Fetches instructions of one vCPU.
#[derive(Debug, Default)]
pub(super) struct Fetcher {
    regime: Regime,
    /// Whether `regime` holds what is needed for the lower and the upper half.
    known: [bool; 2],
    /// Guest virtual to physical.
    pages: [Option<(u64, u64)>; PAGES],
    next: usize,
}

impl Fetcher {
    /// The instruction at `va`; `None` if the guest could not have fetched it.
    pub(super) fn fetch<C: Cpu>(
        &mut self,
        cpu: &mut C,
        memory: &(impl Physical + ?Sized),
        va: u64,
        trust: Trust,
    ) -> Result<Option<u32>, C::Error> {
        if va & 3 != 0 {
            return Ok(None);
        }
        self.refresh(cpu, va >> 55 & 1 != 0, trust)?;
        let word = self.translate(memory, va, trust).and_then(|pa| memory.word(pa));
        // Instructions are little-endian, whatever data are.
        Ok(word.map(u32::from_le_bytes))
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn translate(
        &mut self,
        memory: &(impl Physical + ?Sized),
        va: u64,
        trust: Trust,
    ) -> Option<u64> {
        let page = va & !PAGE;
        let found = self.pages.iter().position(|entry| entry.is_some_and(|(from, _)| from == page));
        if trust == Trust::Cached
            && let Some((_, to)) = found.and_then(|index| self.pages[index])
        {
            return Some(to | va & PAGE);
        }
        let pa = walk(memory, &self.regime, va).ok()?.address;
        let index = found.unwrap_or_else(|| {
            self.next = (self.next + 1) % PAGES;
            self.next
        });
        self.pages[index] = Some((page, pa & !PAGE));
        Some(pa)
    }

    /// Reads the registers that are not trusted, and drops the pages if they have changed.
    fn refresh<C: Cpu>(&mut self, cpu: &mut C, upper: bool, trust: Trust) -> Result<(), C::Error> {
        let half = usize::from(upper);
        let trust = if self.known[half] { trust } else { Trust::Nothing };
        let mut new = self.regime;
        if trust <= Trust::Tables {
            new.ttbr[half] = cpu.get([Reg::Ttbr0, Reg::Ttbr1][half])?;
        }
        if trust == Trust::Nothing || (trust == Trust::Tables && !upper) {
            new.sctlr = cpu.get(Reg::Sctlr)?;
        }
        if trust == Trust::Nothing {
            new.tcr = cpu.get(Reg::Tcr)?;
        }
        let tables = |regime: &Regime| regime.ttbr.map(|ttbr| ttbr & TABLE);
        if (new.sctlr, new.tcr, tables(&new))
            != (self.regime.sctlr, self.regime.tcr, tables(&self.regime))
            || trust == Trust::Nothing
        {
            self.pages = Default::default();
        }
        self.regime = new;
        self.known[half] = true;
        Ok(())
    }
}
