//! The system registers of the CPU interface, `ICC_*_EL1` (IHI 0069, 12.2).

use crate::engine::Engine;
use crate::gic::GicCpu;

/// A system register by its encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SysReg {
    /// Op0.
    pub op0: u8,
    /// Op1.
    pub op1: u8,
    /// CRn.
    pub crn: u8,
    /// CRm.
    pub crm: u8,
    /// Op2.
    pub op2: u8,
}

pub(crate) fn read<E: Engine>(_cpu: &mut GicCpu<E>, _reg: SysReg) -> Option<u64> {
    None
}

pub(crate) fn write<E: Engine>(_cpu: &mut GicCpu<E>, _reg: SysReg, _value: u64) -> Option<()> {
    None
}
