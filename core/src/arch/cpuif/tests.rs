//! One test for each rule, named after the rule and citing its section of IHI 0069. [`model`]
//! checks all rules together against a naive model.

mod model;

use super::*;
use crate::arch::lr::ListRegisters;

const G0: Group = Group::Group0;
const G1: Group = Group::Group1;

/// Creates an interface with both groups enabled and the least restrictive priority mask.
fn open(lrs: usize) -> CpuInterface {
    let mut cpu = CpuInterface::new(lrs).unwrap();
    cpu.set_pmr(0xff);
    cpu.set_igrpen0(1);
    cpu.set_igrpen1(1);
    cpu
}

fn lr(intid: u32, priority: u8, group: Group) -> Lr {
    Lr::pending(Intid(intid), Priority::new(priority), group)
}

/// Creates `open(4)` with these pending entries.
fn with(entries: &[(u32, u8, Group)]) -> CpuInterface {
    let mut cpu = open(4);
    for (n, &(intid, priority, group)) in entries.iter().enumerate() {
        cpu.write(n, lr(intid, priority, group));
    }
    cpu
}

fn split(cpu: &mut CpuInterface) {
    cpu.set_ctlr(1 << 1);
}

const NONE: Intid = Intid(1023);

fn done(intid: u32) -> Deactivation {
    Deactivation { intid: Intid(intid), hw: None }
}

// ICH_VTR_EL2.ListRegs (12.4) allows 1 to 16.
#[test]
fn list_register_counts() {
    assert!(CpuInterface::new(0).is_none());
    assert!(CpuInterface::new(17).is_none());
    for lrs in 1..=16 {
        let cpu = CpuInterface::new(lrs).unwrap();
        assert_eq!(cpu.count(), lrs);
        assert_eq!(cpu.read(lrs - 1), Lr::EMPTY);
    }
}

#[test]
#[should_panic = "list register 4 of 4"]
fn list_register_beyond_count_is_a_host_error() {
    open(4).write(4, Lr::EMPTY);
}

// Reset values: 12.3.
#[test]
fn reset_state() {
    let mut cpu = CpuInterface::new(16).unwrap();
    assert_eq!((cpu.pmr(), cpu.igrpen0(), cpu.igrpen1()), (0, 0, 0));
    assert_eq!((cpu.bpr0(), cpu.bpr1()), (2, 3));
    assert_eq!(cpu.ctlr() & 3, 0);
    assert_eq!((cpu.ap0r(0), cpu.ap1r(0), cpu.rpr()), (Some(0), Some(0), 0xff));
    assert_eq!((cpu.eisr(), cpu.misr(), cpu.take_eoi_count()), (0, Misr::default(), 0));
    assert!(!cpu.irq_line() && !cpu.fiq_line());
    assert_eq!((cpu.iar0(), cpu.iar1(), cpu.hppir0(), cpu.hppir1()), (NONE, NONE, NONE, NONE));
}

// 12.4, ICH_LR<n>_EL2: 24 bits of vINTID, priority bits 7:3.
#[test]
fn list_registers_hold_the_implemented_bits() {
    let mut cpu = open(4);
    cpu.write(1, Lr::from_bits(u64::MAX));
    assert_eq!(cpu.read(1).bits(), 0xf0f8_1fff_00ff_ffff);
    let lr = lr(9000, 0xa0, G1).with_hw(77);
    cpu.write(1, lr);
    assert_eq!(cpu.read(1), lr);
    assert_eq!(cpu.read(0), Lr::EMPTY);
}

// 12.3, ICV_IAR1_EL1: pending becomes active, the group priority becomes the running one.
#[test]
fn acknowledge_activates() {
    let mut cpu = with(&[(40, 0xa0, G1)]);
    assert!(cpu.irq_line() && !cpu.fiq_line());
    assert_eq!(cpu.iar1(), Intid(40));
    assert_eq!(cpu.read(0).state(), LrState::Active);
    assert_eq!((cpu.ap0r(0), cpu.ap1r(0), cpu.rpr()), (Some(0), Some(1 << 20), 0xa0));
    assert!(!cpu.irq_line());
    assert_eq!(cpu.iar1(), NONE);
    assert_eq!(cpu.eoir1(Intid(40)), Some(done(40)));
    assert_eq!(cpu.read(0).state(), LrState::Invalid);
    assert_eq!((cpu.ap1r(0), cpu.rpr(), cpu.take_eoi_count()), (Some(0), 0xff, 0));
}

// 12.3, ICV_IAR0_EL1: a Group 0 interrupt is signaled as FIQ (6.1) and uses Group 0's registers.
#[test]
fn group_0_is_fiq_and_has_its_own_registers() {
    let mut cpu = with(&[(41, 0x50, G0)]);
    assert!(cpu.fiq_line() && !cpu.irq_line());
    assert_eq!((cpu.hppir0(), cpu.hppir1()), (Intid(41), NONE));
    assert_eq!(cpu.iar1(), NONE);
    assert_eq!(cpu.iar0(), Intid(41));
    assert_eq!((cpu.ap0r(0), cpu.ap1r(0), cpu.rpr()), (Some(1 << 10), Some(0), 0x50));
    assert_eq!(cpu.eoir0(Intid(41)), Some(done(41)));
    assert_eq!(cpu.ap0r(0), Some(0));
}

// HighestPriorityVirtualInterrupt in 6.4: a group that is disabled does not count.
#[test]
fn disabled_groups_are_not_candidates() {
    let mut cpu = with(&[(40, 0x10, G1), (41, 0x50, G0)]);
    cpu.set_igrpen1(0);
    assert!(cpu.fiq_line() && !cpu.irq_line());
    assert_eq!((cpu.hppir0(), cpu.hppir1()), (Intid(41), NONE));
    assert_eq!(cpu.iar1(), NONE);
    cpu.set_igrpen0(0);
    assert!(!cpu.fiq_line());
    assert_eq!((cpu.iar0(), cpu.hppir0()), (NONE, NONE));
    cpu.set_igrpen1(u32::MAX - 1);
    cpu.set_igrpen0(u32::MAX - 1);
    assert_eq!((cpu.igrpen0(), cpu.igrpen1()), (0, 0));
    cpu.set_igrpen1(u32::MAX);
    assert_eq!((cpu.igrpen0(), cpu.igrpen1()), (0, 1));
    assert_eq!(cpu.iar1(), Intid(40));
    // A disabled group does not hide an entry of the same priority either.
    let mut cpu = with(&[(40, 0x50, G1), (41, 0x50, G0)]);
    cpu.set_igrpen1(0);
    assert_eq!(cpu.iar0(), Intid(41));
}

// VirtualReadIAR1 in 6.4: only the highest priority pending interrupt of both groups can be taken.
#[test]
fn acknowledge_of_the_other_group_is_spurious() {
    let mut cpu = with(&[(40, 0x50, G1), (41, 0x48, G0)]);
    assert!(cpu.fiq_line() && !cpu.irq_line());
    assert_eq!((cpu.iar1(), cpu.hppir1()), (NONE, NONE));
    assert_eq!(cpu.iar0(), Intid(41));
    // Now the highest priority pending interrupt is in Group 1, but it does not preempt.
    assert_eq!((cpu.hppir0(), cpu.hppir1()), (NONE, Intid(40)));
    assert_eq!((cpu.iar0(), cpu.iar1()), (NONE, NONE));
}

// HighestPriorityVirtualInterrupt in 6.4: priority first, then the lowest list register.
#[test]
fn selection_order() {
    let mut cpu = with(&[(40, 0x80, G1), (41, 0x40, G1), (42, 0x40, G1), (43, 0x40, G0)]);
    let mut order = [0; 4];
    for slot in &mut order {
        let intid = match cpu.iar1() {
            NONE => cpu.iar0(),
            intid => intid,
        };
        *slot = intid.0;
        assert!(cpu.end(intid).is_some());
    }
    assert_eq!(order, [41, 42, 43, 40]);
    assert_eq!((cpu.iar0(), cpu.iar1()), (NONE, NONE));
    assert_eq!(with(&[(40, 0x40, G0), (41, 0x40, G1)]).iar0(), Intid(40));
    assert_eq!(with(&[(40, 0x40, G1), (41, 0x40, G0)]).iar1(), Intid(40));
}

// 12.3, ICV_PMR_EL1: only priorities higher than the mask are signaled; HPPIR ignores the mask.
#[test]
fn priority_mask() {
    let mut cpu = with(&[(40, 0x80, G1)]);
    cpu.set_pmr(0x80);
    assert!(!cpu.irq_line());
    assert_eq!((cpu.iar1(), cpu.hppir1()), (NONE, Intid(40)));
    cpu.set_pmr(0xffff_ff88);
    assert_eq!(cpu.pmr(), 0x88);
    assert!(cpu.irq_line());
    assert_eq!(cpu.iar1(), Intid(40));
    // Five bits: the lowest priority equals the lowest mask, and is never signaled.
    let mut cpu = with(&[(40, 0xff, G1)]);
    assert_eq!((cpu.pmr(), cpu.hppir1(), cpu.iar1()), (0xf8, Intid(40), NONE));
}

// 4.8, preemption: by group priority, and only by a higher one.
#[test]
fn preemption_and_nesting() {
    let mut cpu = with(&[(40, 0x80, G1), (41, 0x80, G1)]);
    assert_eq!(cpu.iar1(), Intid(40));
    assert_eq!((cpu.iar1(), cpu.hppir1()), (NONE, Intid(41)));
    cpu.write(2, lr(42, 0x78, G1));
    assert_eq!(cpu.iar1(), Intid(42));
    cpu.write(3, lr(43, 0x00, G0));
    assert_eq!(cpu.iar0(), Intid(43));
    assert_eq!((cpu.ap0r(0), cpu.ap1r(0), cpu.rpr()), (Some(1), Some(1 << 15 | 1 << 16), 0));
    assert_eq!(cpu.eoir0(Intid(43)), Some(done(43)));
    assert_eq!(cpu.rpr(), 0x78);
    assert_eq!(cpu.eoir1(Intid(42)), Some(done(42)));
    assert_eq!(cpu.rpr(), 0x80);
    assert!(!cpu.irq_line());
    assert_eq!(cpu.eoir1(Intid(40)), Some(done(40)));
    assert_eq!((cpu.rpr(), cpu.iar1()), (0xff, Intid(41)));
}

// 12.3, ICV_BPR1_EL1, and 4.8: at 6 the group priority is bits 7:6.
#[test]
fn binary_point_1_groups_priorities() {
    let mut cpu = with(&[(40, 0x78, G1), (41, 0x40, G1), (42, 0x38, G1)]);
    cpu.set_bpr1(6);
    cpu.write(2, Lr::EMPTY);
    assert_eq!(cpu.iar1(), Intid(41));
    cpu.write(1, cpu.read(1).with_state(LrState::Pending).with_priority(Priority::new(0x48)));
    cpu.set_ap1r(0, 0);
    assert_eq!(cpu.iar1(), Intid(41));
    assert_eq!((cpu.ap1r(0), cpu.rpr()), (Some(1 << 8), 0x40));
    assert_eq!(cpu.iar1(), NONE);
    cpu.write(2, lr(42, 0x38, G1));
    assert_eq!((cpu.iar1(), cpu.ap1r(0)), (Intid(42), Some(1 << 8 | 1)));
    assert_eq!(cpu.eoir1(Intid(42)), Some(done(42)));
    assert_eq!(cpu.eoir1(Intid(41)), Some(done(41)));
}

// 12.3, ICV_BPR0_EL1, and 4.8: at 6 the group priority is bit 7; at 7 nothing preempts.
#[test]
fn binary_point_0_groups_priorities() {
    let mut cpu = with(&[(40, 0xc8, G0)]);
    cpu.set_bpr0(6);
    assert_eq!((cpu.iar0(), cpu.rpr()), (Intid(40), 0x80));
    cpu.write(1, lr(41, 0x80, G0));
    assert_eq!(cpu.iar0(), NONE);
    cpu.write(1, lr(41, 0x78, G0));
    assert!(cpu.fiq_line());
    cpu.set_bpr0(7);
    assert!(!cpu.fiq_line());
    cpu.set_ap0r(0, 0);
    assert_eq!((cpu.iar0(), cpu.rpr()), (Intid(41), 0));
}

// CanSignalVirtualInt in 6.4: the running priority is also cut to the group-priority bits of the
// pending interrupt.
#[test]
fn preemption_compares_at_the_pending_interrupts_binary_point() {
    let mut cpu = with(&[(40, 0x28, G0)]);
    assert_eq!((cpu.iar0(), cpu.rpr()), (Intid(40), 0x28));
    cpu.set_bpr1(5);
    cpu.write(1, lr(41, 0x20, G1));
    assert_eq!(cpu.iar1(), NONE);
    cpu.write(1, lr(41, 0x18, G1));
    assert_eq!(cpu.iar1(), Intid(41));
}

// 12.3, ICV_BPR<n>_EL1 and ICV_CTLR_EL1.CBPR.
#[test]
fn binary_point_registers() {
    let mut cpu = open(1);
    for value in 0..=8 {
        cpu.set_bpr0(value);
        cpu.set_bpr1(value | 0xffff_ff00);
        let field = value & 7;
        assert_eq!((cpu.bpr0(), cpu.bpr1()), (field.max(2), field.max(3)), "{value}");
    }
    cpu.set_bpr1(5);
    cpu.set_ctlr(1);
    for (bpr0, bpr1) in [(2, 3), (5, 6), (6, 7), (7, 7)] {
        cpu.set_bpr0(bpr0);
        cpu.set_bpr1(4);
        assert_eq!(cpu.bpr1(), bpr1);
    }
    cpu.set_ctlr(0);
    assert_eq!(cpu.bpr1(), 5);
}

// 12.3, ICV_CTLR_EL1.CBPR: BPR0 also determines the group priority of Group 1, as for Group 0.
#[test]
fn common_binary_point() {
    let mut cpu = with(&[(40, 0xc8, G1)]);
    cpu.set_ctlr(1);
    cpu.set_bpr0(6);
    assert_eq!((cpu.iar1(), cpu.rpr()), (Intid(40), 0x80));
    cpu.write(1, lr(41, 0x80, G1));
    assert_eq!(cpu.iar1(), NONE);
    assert_eq!(cpu.eoir1(Intid(40)), Some(done(40)));
    cpu.set_bpr0(7);
    assert_eq!((cpu.iar1(), cpu.rpr()), (Intid(41), 0));
    // BPR1 takes effect again as soon as CBPR is cleared.
    cpu.write(0, lr(40, 0x80, G1));
    cpu.set_ap1r(0, 1 << 17);
    assert_eq!((cpu.rpr(), cpu.iar1()), (0x88, NONE));
    cpu.set_ctlr(0);
    assert_eq!(cpu.iar1(), Intid(40));
}

// IHI 0048B, 5.5: GICV_ABPR is Group 1's own binary point, and the single GICV_EOIR drops the
// priority of either group.
#[test]
fn memory_mapped_view() {
    let mut cpu = with(&[(40, 0x80, G1), (41, 0x40, G0)]);
    cpu.set_ctlr(1);
    cpu.set_bpr0(5);
    cpu.set_own_bpr1(0xffff_ff04);
    assert_eq!((cpu.bpr1(), cpu.own_bpr1()), (6, 4));
    cpu.set_ctlr(0);
    assert_eq!((cpu.bpr1(), cpu.own_bpr1()), (4, 4));
    cpu.set_own_bpr1(0);
    assert_eq!((cpu.bpr1(), cpu.own_bpr1()), (3, 3));
    cpu.set_bpr0(2);
    cpu.write(1, Lr::EMPTY);
    assert_eq!(cpu.running_group(), None);
    assert_eq!((cpu.iar1(), cpu.running_group()), (Intid(40), Some(G1)));
    cpu.write(1, lr(41, 0x40, G0));
    assert_eq!((cpu.iar0(), cpu.running_group()), (Intid(41), Some(G0)));
    assert_eq!(cpu.eoir0(Intid(41)), Some(done(41)));
    assert_eq!(cpu.running_group(), Some(G1));
}

// 12.3, ICV_CTLR_EL1.
#[test]
fn control_register() {
    let mut cpu = open(1);
    assert_eq!(cpu.ctlr(), 0x8c00);
    cpu.set_ctlr(u32::MAX);
    assert_eq!(cpu.ctlr(), 0x8c03);
    cpu.set_ctlr(!3);
    assert_eq!(cpu.ctlr(), 0x8c00);
}

// 12.3, ICV_AP<g>R<n>_EL1: one register for each group, because there are 5 bits of preemption.
#[test]
fn active_priorities_registers() {
    let mut cpu = with(&[(40, 0x80, G1)]);
    assert_eq!((cpu.set_ap0r(0, 0x8000_0000), cpu.set_ap1r(0, 0x10)), (Some(()), Some(())));
    assert_eq!((cpu.ap0r(0), cpu.ap1r(0), cpu.rpr()), (Some(0x8000_0000), Some(0x10), 0x20));
    assert!(!cpu.irq_line());
    for n in [1, 2, 3, usize::MAX] {
        assert_eq!((cpu.ap0r(n), cpu.ap1r(n)), (None, None));
        assert_eq!((cpu.set_ap0r(n, 1), cpu.set_ap1r(n, 1)), (None, None));
    }
    assert_eq!((cpu.ap0r(0), cpu.ap1r(0)), (Some(0x8000_0000), Some(0x10)));
    cpu.set_ap1r(0, 0);
    assert_eq!(cpu.rpr(), 0xf8);
    assert!(cpu.irq_line());
}

// 6.4: a pending and active interrupt is no candidate; deactivation leaves it pending.
#[test]
fn pending_and_active() {
    let mut cpu = with(&[(40, 0x80, G1)]);
    assert_eq!(cpu.iar1(), Intid(40));
    cpu.write(0, cpu.read(0).with_state(LrState::PendingActive));
    cpu.set_ap1r(0, 0);
    assert!(!cpu.irq_line());
    assert_eq!((cpu.iar1(), cpu.hppir1()), (NONE, NONE));
    cpu.set_ap1r(0, 1 << 16);
    assert_eq!(cpu.eoir1(Intid(40)), Some(done(40)));
    assert_eq!(cpu.read(0).state(), LrState::Pending);
    assert_eq!(cpu.iar1(), Intid(40));
}

// VirtualReadIAR1 in 6.4: a special INTID is returned without becoming active.
#[test]
fn special_intid_in_a_list_register() {
    for intid in 1020..=1023 {
        let mut cpu = with(&[(intid, 0x80, G1), (40, 0xa0, G1)]);
        assert_eq!(cpu.iar1(), Intid(intid));
        assert_eq!((cpu.read(0).state(), cpu.rpr()), (LrState::Invalid, 0xff));
        assert_eq!(cpu.iar1(), Intid(40));
    }
    for intid in [0, 1019, 1024, 8191, 8192, 0xff_ffff] {
        let mut cpu = with(&[(intid, 0x80, G1)]);
        assert_eq!((cpu.iar1(), cpu.rpr()), (Intid(intid), 0x80));
        let deactivated = (intid < 8192).then_some(done(intid));
        assert_eq!((cpu.eoir1(Intid(intid)), cpu.rpr()), (deactivated, 0xff));
    }
}

mod end;
