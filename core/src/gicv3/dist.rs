//! The distributor, GICD (IHI 0069, 12.9).

use crate::engine::Engine;
use crate::gic::{Cx, Machine};
use crate::mmio::{Frame, Reg};

/// What is not the engine's.
pub(crate) struct DistV3 {}

impl DistV3 {
    pub(crate) fn new(_machine: &Machine) -> Self {
        Self {}
    }
}

impl<E: Engine> Frame<Cx<'_, E>> for &DistV3 {
    type Kind = ();
    const LAYOUT: &'static [Reg<()>] = &[];
    fn read(&mut self, _cx: &Cx<'_, E>, _kind: (), _index: u32) -> u64 {
        0
    }
    fn write(&mut self, _cx: &Cx<'_, E>, _kind: (), _index: u32, _value: u64, _mask: u64) {}
}
