//! The CPU interface, GICC (IHI 0048B, 4.4), as a guest without the Security Extensions sees it:
//! one security state, both groups (2.3, 3.4).
//!
//! The virtual CPU interface ([`CpuInterface`]) implements the list registers and the priority
//! rules. This module adds the memory-mapped registers: one acknowledge register for both groups,
//! and its alias for Group 1.
//!
//! Choices that the architecture leaves open:
//!
//! * GICC_EOIR ends the interrupt of the highest active priority in either group, even if AckCtl is
//!   0 (4.4.5: UNPREDICTABLE). GICC_AEOIR is ignored while that is a Group 0 interrupt (4.4.10).
//! * GICC_DIR is ignored while EOImode is 0 (4.4.15: UNPREDICTABLE).
//! * The source in bits 12:10 of GICC_EOIR and GICC_DIR has a meaning for SGIs only. It is ignored
//!   for other interrupts.
//! * GICC_ABPR holds its own value while CBPR is 1, and can be written (4.4.8).

use super::layout::{self, Cpu};
use crate::arch::cpuif::CpuInterface;
use crate::arch::ids::{Group, Intid, SPI_END, SPURIOUS};
use crate::frames::cpu_host::CpuHost;
use crate::frames::mmio::{Frame, Reg};

/// The interrupt to be acknowledged is in Group 1, and this register does not show it (3.4.2 and
/// 4.4.4).
const IS_GROUP_1: u32 = 1022;

const ENABLE_GRP0: u32 = 1 << 0;
const ENABLE_GRP1: u32 = 1 << 1;
const ACK_CTL: u32 = 1 << 2;
const FIQ_EN: u32 = 1 << 3;
const CBPR: u32 = 1 << 4;
const EOI_MODE: u32 = 1 << 9;
/// CBPR and EOImode in the virtual CPU interface's control register.
const VIRTUAL_CBPR: u32 = 1 << 0;
const VIRTUAL_EOI_MODE: u32 = 1 << 1;

/// GICC_IIDR: architecture version 2, implementer Arm, no product number.
const IIDR: u32 = 0x0002_043b;

/// The state of GICC that the virtual CPU interface does not have.
#[derive(Default)]
pub(crate) struct CpuV2 {
    /// Whether GICC_IAR acknowledges Group 1 interrupts as well.
    ack_ctl: bool,
    /// Whether Group 0 interrupts are signaled as FIQs instead of IRQs.
    fiq_en: bool,
}

impl CpuV2 {
    /// Whether the IRQ output is asserted: by Group 1, and by Group 0 unless FIQEn is set (2.3).
    pub(crate) fn irq_line(&self, cpu: &CpuInterface) -> bool {
        // The virtual CPU interface signals Group 1 as IRQs and Group 0 as FIQs.
        cpu.irq_line() || (!self.fiq_en && cpu.fiq_line())
    }

    /// Whether the FIQ output is asserted.
    pub(crate) fn fiq_line(&self, cpu: &CpuInterface) -> bool {
        self.fiq_en && cpu.fiq_line()
    }

    /// Whether Group 0 is signaled as FIQs.
    pub(crate) fn fiqs(&self) -> bool {
        self.fiq_en
    }

    /// Reads GICC_CTLR as it is without the Security Extensions. Nothing bypasses the GIC, so there
    /// are no bypass bits.
    fn ctlr(&self, cpu: &CpuInterface) -> u32 {
        let virtual_ctlr = cpu.ctlr();
        let bits = [
            (ENABLE_GRP0, cpu.igrpen0() != 0),
            (ENABLE_GRP1, cpu.igrpen1() != 0),
            (ACK_CTL, self.ack_ctl),
            (FIQ_EN, self.fiq_en),
            (CBPR, virtual_ctlr & VIRTUAL_CBPR != 0),
            (EOI_MODE, virtual_ctlr & VIRTUAL_EOI_MODE != 0),
        ];
        bits.iter().fold(0, |value, &(bit, set)| if set { value | bit } else { value })
    }

    fn set_ctlr(&mut self, cpu: &mut CpuInterface, value: u32) {
        let is = |bit| value & bit != 0;
        cpu.set_igrpen0(is(ENABLE_GRP0).into());
        cpu.set_igrpen1(is(ENABLE_GRP1).into());
        let cbpr = if is(CBPR) { VIRTUAL_CBPR } else { 0 };
        let eoi_mode = if is(EOI_MODE) { VIRTUAL_EOI_MODE } else { 0 };
        cpu.set_ctlr(cbpr | eoi_mode);
        (self.ack_ctl, self.fiq_en) = (is(ACK_CTL), is(FIQ_EN));
    }

    /// Reads GICC_IAR. Only a signaled interrupt can be acknowledged.
    fn acknowledge(&self, cpu: &mut CpuInterface) -> Intid {
        if cpu.fiq_line() {
            cpu.iar0()
        } else if !cpu.irq_line() {
            Intid(SPURIOUS)
        } else if self.ack_ctl {
            cpu.iar1()
        } else {
            Intid(IS_GROUP_1)
        }
    }

    /// Reads GICC_HPPIR.
    fn highest_pending(&self, cpu: &CpuInterface) -> Intid {
        match (cpu.hppir0(), cpu.hppir1()) {
            (Intid(SPURIOUS), Intid(SPURIOUS)) => Intid(SPURIOUS),
            (Intid(SPURIOUS), group1) if self.ack_ctl => group1,
            (Intid(SPURIOUS), _) => Intid(IS_GROUP_1),
            (group0, _) => group0,
        }
    }
}

/// Extracts the INTID in the form of the list register from a value that was read from an
/// acknowledge register. An SGI has its source in bits 12:10.
fn listed(value: u32) -> Intid {
    let intid = intid(value);
    if intid.is_sgi() { Intid(value & 0x1fff) } else { intid }
}

/// Extracts the INTID without the source.
fn intid(value: u32) -> Intid {
    Intid(value & 0x3ff)
}

/// A host that has GICC as its CPU interface.
pub(crate) trait CpuHostV2: CpuHost {
    /// Returns GICC's own state, and the virtual CPU interface.
    fn parts(&mut self) -> (&mut CpuV2, &mut CpuInterface);
}

/// The CPU interface frame of one vCPU.
pub(crate) struct CpuFrame<'h, H>(pub(crate) &'h mut H);

impl<H: CpuHostV2> CpuFrame<'_, H> {
    /// Writes GICC_EOIR or, if `alias` is set, GICC_AEOIR, which ends Group 1 interrupts only.
    fn end_v2(&mut self, value: u32, alias: bool) {
        let cpu = self.0.cpu_interface();
        let done = match cpu.running_group() {
            Some(Group::Group0) if !alias => cpu.eoir0(listed(value)),
            Some(Group::Group1) => cpu.eoir1(listed(value)),
            _ => None,
        };
        self.0.ended(intid(value), done);
    }

    /// Writes GICC_DIR.
    fn deactivate_v2(&mut self, value: u32) {
        let split = self.0.cpu_interface().ctlr() & VIRTUAL_EOI_MODE != 0;
        if split && intid(value).0 < SPI_END {
            self.0.deactivate(listed(value), intid(value));
        }
    }
}

impl<H: CpuHostV2> Frame<()> for CpuFrame<'_, H> {
    type Kind = Cpu;
    const LAYOUT: &'static [Reg<Cpu>] = layout::CPU;

    fn read(&mut self, (): &(), kind: Cpu, index: u32) -> u64 {
        let (v2, cpu) = self.0.parts();
        // Active priorities: one register for each group, as there are 32 group priorities
        // (4.4.12).
        let value = match kind {
            Cpu::Ctlr => v2.ctlr(cpu),
            Cpu::Pmr => cpu.pmr(),
            Cpu::Bpr => cpu.bpr0(),
            Cpu::Abpr => cpu.own_bpr1(),
            Cpu::Iar => v2.acknowledge(cpu).0,
            Cpu::Aiar => cpu.iar1().0,
            Cpu::Rpr => cpu.rpr(),
            Cpu::Hppir => v2.highest_pending(cpu).0,
            Cpu::Ahppir => cpu.hppir1().0,
            Cpu::Apr => cpu.ap0r(index as usize).unwrap_or(0),
            Cpu::Nsapr => cpu.ap1r(index as usize).unwrap_or(0),
            Cpu::Iidr => IIDR,
            Cpu::Eoir | Cpu::Aeoir | Cpu::Dir => 0,
        };
        value.into()
    }

    fn write(&mut self, (): &(), kind: Cpu, index: u32, value: u64, _mask: u64) {
        let value = value as u32;
        let (v2, cpu) = self.0.parts();
        match kind {
            Cpu::Ctlr => v2.set_ctlr(cpu, value),
            Cpu::Pmr => cpu.set_pmr(value),
            Cpu::Bpr => cpu.set_bpr0(value),
            Cpu::Abpr => cpu.set_own_bpr1(value),
            Cpu::Eoir => self.end_v2(value, false),
            Cpu::Aeoir => self.end_v2(value, true),
            Cpu::Dir => self.deactivate_v2(value),
            // Registers that do not exist are RAZ/WI.
            Cpu::Apr => _ = cpu.set_ap0r(index as usize, value),
            Cpu::Nsapr => _ = cpu.set_ap1r(index as usize, value),
            Cpu::Iar | Cpu::Rpr | Cpu::Hppir | Cpu::Aiar | Cpu::Ahppir | Cpu::Iidr => {}
        }
    }
}
