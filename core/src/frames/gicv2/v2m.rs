//! A GICv2m frame: MSIs as SPIs (Server Base System Architecture, ARM-DEN-0029, appendix E).

use super::layout::{self, Msi};
use crate::arch::ids::Intid;
use crate::engine::{Engine, Injector, Wired};
use crate::frames::machine::{Cx, MsiFrame};
use crate::frames::mmio::{Frame, Reg};

/// The INTID of an SPI in MSI_SETSPI_NS: bits 9:0.
const SPI_MASK: u64 = 0x3ff;

/// MSI_IIDR: implementer Arm, no product number, architecture version 0.
const IIDR: u64 = 0x43b;

/// A frame and the range of SPIs that it may raise.
pub(crate) struct V2m {
    first: u32,
    count: u32,
}

impl V2m {
    pub(crate) fn new(frame: &MsiFrame) -> Self {
        Self { first: frame.first.into(), count: frame.count.into() }
    }

    /// The INTIDs of the SPIs.
    pub(crate) fn spis(&self) -> impl Iterator<Item = Intid> + use<> {
        (self.first..self.first + self.count).map(Intid)
    }
}

impl<E: Engine> Frame<Cx<'_, E>> for &V2m {
    type Kind = Msi;
    const LAYOUT: &'static [Reg<Msi>] = layout::MSI;

    fn read(&mut self, _cx: &Cx<'_, E>, kind: Msi, _index: u32) -> u64 {
        match kind {
            Msi::Typer => (self.first << 16 | self.count).into(),
            Msi::Iidr => IIDR,
            Msi::SetSpi => 0,
        }
    }

    fn write(&mut self, cx: &Cx<'_, E>, kind: Msi, _index: u32, value: u64, _mask: u64) {
        if kind == Msi::SetSpi {
            // A write of the upper half alone gives INTID 0, which no frame has.
            let spi = (value & SPI_MASK) as u32;
            // The frame does not raise SPIs that belong to another frame or to a wire.
            if spi >= self.first && spi - self.first < self.count {
                let _ = cx.injector.pulse(Wired::Spi(Intid(spi)));
            }
        }
    }
}
