//! A GICv2m frame (Arm Server Base System Architecture, appendix E).

use crate::engine::Engine;
use crate::gic::Cx;
use crate::mmio::{Frame, Reg};

/// What is not the engine's.
pub(crate) struct V2m {}

impl V2m {
    pub(crate) fn new(_frame: &crate::gic::MsiFrame) -> Self {
        Self {}
    }
}

impl<E: Engine> Frame<Cx<'_, E>> for &V2m {
    type Kind = ();
    const LAYOUT: &'static [Reg<()>] = &[];
    fn read(&mut self, _cx: &Cx<'_, E>, _kind: (), _index: u32) -> u64 {
        0
    }
    fn write(&mut self, _cx: &Cx<'_, E>, _kind: (), _index: u32, _value: u64, _mask: u64) {}
}
