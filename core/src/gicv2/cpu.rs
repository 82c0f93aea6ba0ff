//! The CPU interface, GICC (IHI 0048B, 4.4).

use crate::cpuif::CpuInterface;
use crate::engine::Engine;
use crate::gic::GicCpu;
use crate::mmio::{Frame, Reg};

/// What GICC has beyond the virtual CPU interface.
#[derive(Default)]
pub(crate) struct CpuV2 {}

impl CpuV2 {
    pub(crate) fn irq_line(&self, cpu: &CpuInterface) -> bool {
        cpu.irq_line()
    }

    pub(crate) fn fiq_line(&self, cpu: &CpuInterface) -> bool {
        cpu.fiq_line()
    }
}

impl<E: Engine> Frame<()> for GicCpu<E> {
    type Kind = ();
    const LAYOUT: &'static [Reg<()>] = &[];
    fn read(&mut self, (): &(), _kind: (), _index: u32) -> u64 {
        0
    }
    fn write(&mut self, (): &(), _kind: (), _index: u32, _value: u64, _mask: u64) {}
}
