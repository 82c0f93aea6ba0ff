//! The end of interrupts, and the maintenance that it causes.

use super::*;

const ALL: Maintenance = Maintenance {
    underflow: true,
    no_pending: true,
    not_present: true,
    group_enabled: [false; 2],
    trap_dir: false,
};

// 12.3, ICV_EOIR1_EL1: the bits above the INTID are RES0; a special INTID has no effect.
#[test]
fn eoir_intid_field() {
    for special in 1020..=1023 {
        let mut cpu = with(&[(40, 0x80, G1)]);
        cpu.iar1();
        assert_eq!(cpu.eoir1(Intid(special)), None);
        assert_eq!((cpu.rpr(), cpu.take_eoi_count()), (0x80, 0));
    }
    let mut cpu = with(&[(0x0028, 0x80, G1)]);
    cpu.iar1();
    assert_eq!(cpu.eoir1(Intid(0xff00_0028)), Some(done(0x0028)));
    let mut cpu = with(&[(0x01_0028, 0x80, G1), (0x0028, 0x40, G1)]);
    assert_eq!((cpu.iar1(), cpu.eoir1(Intid(0x01_0028))), (Intid(0x0028), None));
    assert_eq!(cpu.read(1).state(), LrState::Active);
}

// 12.3, ICV_CTLR_EL1.EOImode: 1 leaves deactivation to DIR.
#[test]
fn split_end() {
    let mut cpu = with(&[(40, 0x80, G1), (41, 0x80, G1)]);
    split(&mut cpu);
    assert_eq!(cpu.iar1(), Intid(40));
    assert_eq!(cpu.eoir1(Intid(40)), None);
    assert_eq!((cpu.read(0).state(), cpu.rpr()), (LrState::Active, 0xff));
    assert_eq!(cpu.iar1(), Intid(41));
    assert_eq!(cpu.dir(Intid(0x5500_0028)), DirOutcome::Deactivated(done(40)));
    assert_eq!((cpu.read(0).state(), cpu.rpr()), (LrState::Invalid, 0x80));
    assert_eq!(cpu.take_eoi_count(), 0);
}

// 12.3, ICV_DIR_EL1: a write is ignored while EOImode is 0, and for special INTIDs and LPIs
// (VirtualWriteDIR in 6.4).
#[test]
fn dir_ignored() {
    for trap_dir in [false, true] {
        let mut cpu = with(&[(40, 0x80, G1)]);
        cpu.set_maintenance(Maintenance { trap_dir, ..ALL });
        cpu.iar1();
        assert_eq!(cpu.dir(Intid(40)), DirOutcome::Ignored);
        split(&mut cpu);
        for intid in [1020, 1021, 1022, 1023, 8192, 0xff_ffff, u32::MAX] {
            assert_eq!(cpu.dir(Intid(intid)), DirOutcome::Ignored);
        }
        assert_eq!((cpu.read(0).state(), cpu.take_eoi_count()), (LrState::Active, 0));
    }
}

// 12.4, ICH_HCR_EL2.TDIR: a write to DIR is reported instead of being performed; the host performs
// it.
#[test]
fn dir_trapped() {
    let mut cpu = with(&[(40, 0x80, G1)]);
    split(&mut cpu);
    cpu.iar1();
    assert_eq!(cpu.eoir1(Intid(40)), None);
    cpu.set_maintenance(Maintenance { trap_dir: true, ..Maintenance::default() });
    assert_eq!(cpu.dir(Intid(0xaa00_0028)), DirOutcome::Trapped(Intid(40)));
    assert_eq!(cpu.dir(Intid(50)), DirOutcome::Trapped(Intid(50)));
    assert_eq!((cpu.read(0).state(), cpu.take_eoi_count()), (LrState::Active, 0));
    assert_eq!(cpu.deactivate(Intid(50)), None);
    assert_eq!(cpu.deactivate(Intid(40)), Some(done(40)));
    assert_eq!(cpu.deactivate(Intid(40)), None);
    assert_eq!((cpu.read(0).state(), cpu.take_eoi_count()), (LrState::Invalid, 0));
}

// 4.1.2: an LPI has no active state. When it is acknowledged, it leaves its list register, and it
// can become pending there again whether or not it has been ended.
#[test]
fn lpi_is_never_active() {
    for mode in [0, 2] {
        let mut cpu = with(&[(8192, 0x80, G1)]);
        cpu.set_ctlr(mode);
        cpu.set_maintenance(ALL);
        assert_eq!(cpu.iar1(), Intid(8192));
        assert_eq!((cpu.read(0).state(), cpu.rpr(), cpu.eisr()), (LrState::Invalid, 0x80, 0));
        assert_eq!(cpu.misr().bits(), 0b1010, "underflow, and none is pending");
        // Only the running priority blocks the interrupt.
        cpu.write(0, lr(8192, 0x80, G1));
        assert_eq!(cpu.iar1(), NONE);
        cpu.write(1, lr(8193, 0x40, G1));
        assert_eq!(cpu.iar1(), Intid(8193));
        cpu.set_ap1r(0, 0);
        assert_eq!(cpu.iar1(), Intid(8192));
        assert_eq!((cpu.eoir1(Intid(8192)), cpu.rpr(), cpu.take_eoi_count()), (None, 0xff, 0));
    }
    let mut cpu = open(1);
    cpu.write(0, lr(8192, 0x80, G1).with_eoi_maintenance());
    assert_eq!((cpu.iar1(), cpu.eisr()), (Intid(8192), 1));
}

// VirtualWriteEOIR1 in 6.4: an LPI that the host has made active is deactivated in either mode.
#[test]
fn lpi_is_deactivated_by_eoir() {
    for mode in [0, 2] {
        let mut cpu = with(&[(8192, 0x80, G1)]);
        cpu.set_ctlr(mode);
        cpu.iar1();
        cpu.write(0, lr(8192, 0x80, G1).with_state(LrState::Active));
        assert_eq!(cpu.eoir1(Intid(8192)), Some(done(8192)));
        assert_eq!((cpu.read(0).state(), cpu.rpr()), (LrState::Invalid, 0xff));
    }
    let mut cpu = with(&[(8191, 0x80, G1)]);
    split(&mut cpu);
    cpu.iar1();
    assert_eq!(cpu.eoir1(Intid(8191)), None);
    assert_eq!(cpu.read(0).state(), LrState::Active);
}

// 12.4, ICH_HCR_EL2.EOIcount: EOIR counts with EOImode 0, and DIR with EOImode 1. LPIs are never
// counted.
#[test]
fn eoi_count() {
    let mut cpu = open(4);
    let mut count = |eoi_mode: bool, intid| {
        cpu.set_ctlr(u32::from(eoi_mode) << 1);
        cpu.set_ap1r(0, 1 << 16);
        assert_eq!(cpu.eoir1(Intid(intid)), None);
        assert_eq!(cpu.rpr(), 0xff, "the priority is dropped anyway");
        cpu.take_eoi_count()
    };
    assert_eq!([count(false, 40), count(false, 8191), count(false, 8192)], [1, 1, 0]);
    assert_eq!([count(true, 40), count(true, 8192)], [0, 0]);
    split(&mut cpu);
    assert_eq!(cpu.dir(Intid(40)), DirOutcome::NotPresent);
    assert_eq!([cpu.take_eoi_count(), cpu.take_eoi_count()], [1, 0]);
}

// 12.4, ICH_HCR_EL2.EOIcount: the search skips an interrupt that is only pending in its list
// register.
#[test]
fn eoi_of_a_pending_interrupt_counts() {
    let mut cpu = with(&[(40, 0x80, G1)]);
    cpu.set_ap1r(0, 1);
    assert_eq!(cpu.eoir1(Intid(40)), None);
    assert_eq!((cpu.read(0).state(), cpu.take_eoi_count()), (LrState::Pending, 1));
}

// 12.4, ICH_HCR_EL2.EOIcount: the field has five bits and wraps.
#[test]
fn eoi_count_wraps() {
    let mut cpu = open(1);
    split(&mut cpu);
    for _ in 0..31 {
        assert_eq!(cpu.dir(Intid(40)), DirOutcome::NotPresent);
    }
    assert_eq!(cpu.clone().take_eoi_count(), 31);
    assert_eq!(cpu.dir(Intid(40)), DirOutcome::NotPresent);
    assert_eq!(cpu.take_eoi_count(), 0);
}

// 12.4, ICH_HCR_EL2.EOIcount: the architecture does not say whether an EOIR write that drops no
// priority is counted. Here the write has no effect.
#[test]
fn eoir_without_active_priority() {
    let mut cpu = with(&[(40, 0x80, G1)]);
    cpu.iar1();
    cpu.set_ap1r(0, 0);
    assert_eq!((cpu.eoir1(Intid(40)), cpu.eoir1(Intid(50))), (None, None));
    assert_eq!((cpu.read(0).state(), cpu.take_eoi_count()), (LrState::Active, 0));
}

// VirtualWriteEOIR0 in 6.4 leaves the outcome for an interrupt of the other group open. Here the
// interrupt is ended.
#[test]
fn eoir_of_the_other_group() {
    let mut cpu = with(&[(40, 0x80, G1), (41, 0x40, G0)]);
    assert_eq!((cpu.iar0(), cpu.eoir1(Intid(41))), (Intid(41), Some(done(41))));
    assert_eq!((cpu.read(1).state(), cpu.rpr()), (LrState::Invalid, 0xff));
    assert_eq!((cpu.iar1(), cpu.eoir0(Intid(40))), (Intid(40), Some(done(40))));
    assert_eq!((cpu.read(0).state(), cpu.rpr()), (LrState::Invalid, 0xff));
    assert_eq!(cpu.take_eoi_count(), 0);
}

// VirtualWriteEOIR1 in 6.4 leaves the outcome open for an interrupt with a priority other than the
// dropped one. Here the interrupt is ended.
#[test]
fn eoir_out_of_order() {
    let mut cpu = with(&[(40, 0x80, G1)]);
    cpu.iar1();
    cpu.write(1, lr(41, 0x40, G1));
    cpu.iar1();
    assert_eq!(cpu.eoir1(Intid(40)), Some(done(40)));
    assert_eq!((cpu.read(0).state(), cpu.rpr()), (LrState::Invalid, 0x80));
    assert_eq!(cpu.eoir1(Intid(41)), Some(done(41)));
    assert_eq!((cpu.read(1).state(), cpu.rpr()), (LrState::Invalid, 0xff));
    assert_eq!(cpu.take_eoi_count(), 0);
}

// VirtualWriteEOIR1 in 6.4 leaves the outcome open for an interrupt if the binary point has changed
// since its acknowledge. Here the interrupt is ended.
#[test]
fn eoir_after_another_binary_point() {
    for (before, after) in [(3, 7), (7, 3)] {
        let mut cpu = with(&[(40, 0xa8, G1)]);
        cpu.set_bpr1(before);
        cpu.iar1();
        cpu.set_bpr1(after);
        assert_eq!(cpu.eoir1(Intid(40)), Some(done(40)));
        assert_eq!((cpu.read(0).state(), cpu.rpr()), (LrState::Invalid, 0xff));
    }
}

// VirtualWriteEOIR1 in 6.4: the highest active priority of both groups is dropped. If both are
// equal, this implementation drops Group 0 first.
#[test]
fn priority_drop_order() {
    let mut cpu = open(1);
    cpu.set_ap0r(0, 0b1010);
    cpu.set_ap1r(0, 0b0110);
    let mut steps = [(0, 0); 4];
    for step in &mut steps {
        assert_eq!(cpu.eoir1(Intid(8192)), None);
        *step = (cpu.ap0r(0).unwrap(), cpu.ap1r(0).unwrap());
    }
    assert_eq!(steps, [(0b1000, 0b0110), (0b1000, 0b0100), (0b1000, 0), (0, 0)]);
}

// 12.4, ICH_LR<n>_EL2.HW: EOIR and DIR deactivate the physical interrupt together with the virtual
// one.
#[test]
fn hardware_interrupts() {
    let expected = Deactivation { intid: Intid(30), hw: Some(27) };
    let mut cpu = open(2);
    let entry = lr(30, 0x80, G1).with_hw(27);
    cpu.write(1, entry);
    assert_eq!((cpu.iar1(), cpu.eoir1(Intid(30))), (Intid(30), Some(expected)));
    assert_eq!(cpu.read(1), entry.with_state(LrState::Invalid));
    split(&mut cpu);
    cpu.write(1, entry);
    assert_eq!((cpu.iar1(), cpu.eoir1(Intid(30))), (Intid(30), None));
    assert_eq!(cpu.dir(Intid(30)), DirOutcome::Deactivated(expected));
}

// 12.4, ICH_EISR_EL2 and ICH_MISR_EL2.EOI: ICH_HCR_EL2 does not gate the condition, and HW entries
// do not cause it.
#[test]
fn eoi_maintenance() {
    let mut cpu = open(4);
    cpu.write(2, lr(40, 0x80, G1).with_eoi_maintenance());
    cpu.write(3, lr(41, 0x80, G1).with_eoi_maintenance().with_hw(0x0200));
    cpu.iar1();
    assert_eq!((cpu.eisr(), cpu.maintenance_pending()), (0, false));
    // The state changes from pending and active to pending: the interrupt has not ended.
    cpu.write(2, cpu.read(2).with_state(LrState::PendingActive));
    assert_eq!((cpu.eoir1(Intid(40)), cpu.eisr()), (Some(done(40)), 0));
    cpu.iar1();
    assert_eq!(cpu.eoir1(Intid(40)), Some(done(40)));
    assert_eq!((cpu.eisr(), cpu.misr().bits()), (1 << 2, 1));
    assert_eq!(cpu.iar1(), Intid(41));
    assert!(cpu.eoir1(Intid(41)).is_some());
    assert_eq!(cpu.eisr(), 1 << 2);
    assert!(cpu.maintenance_pending());
    cpu.write(2, Lr::EMPTY);
    assert_eq!((cpu.eisr(), cpu.maintenance_pending()), (0, false));
}

// 12.4, ICH_MISR_EL2.U: at most one entry is valid, in any state.
#[test]
fn underflow() {
    let mut cpu = open(16);
    cpu.write(0, lr(40, 0x80, G1));
    assert!(!cpu.maintenance_pending());
    cpu.set_maintenance(Maintenance { underflow: true, ..Maintenance::default() });
    assert_eq!(cpu.misr(), Misr { underflow: true, ..Misr::default() });
    cpu.write(15, lr(41, 0x80, G0).with_state(LrState::PendingActive));
    assert!(!cpu.maintenance_pending());
    cpu.iar1();
    assert!(!cpu.maintenance_pending());
    assert!(cpu.eoir1(Intid(40)).is_some());
    assert_eq!(cpu.misr().bits(), 1 << 1);
    cpu.write(14, lr(42, 0x80, G1).with_state(LrState::Active));
    assert!(!cpu.maintenance_pending());
    cpu.write(14, Lr::EMPTY);
    cpu.write(15, Lr::EMPTY);
    assert_eq!(cpu.misr().bits(), 1 << 1);
}

// 12.4, ICH_MISR_EL2.LRENP: set while EOIcount is not 0.
#[test]
fn not_present() {
    let mut cpu = open(1);
    split(&mut cpu);
    assert_eq!(cpu.dir(Intid(40)), DirOutcome::NotPresent);
    assert!(!cpu.maintenance_pending());
    cpu.set_maintenance(Maintenance { not_present: true, ..Maintenance::default() });
    assert_eq!(cpu.misr(), Misr { not_present: true, ..Misr::default() });
    assert_eq!(cpu.misr().bits(), 1 << 2);
    assert_eq!(cpu.take_eoi_count(), 1);
    assert!(!cpu.maintenance_pending());
}

// 12.4, ICH_MISR_EL2.NP: no entry of either group is pending; active entries do not count.
#[test]
fn no_pending() {
    let mut cpu = open(2);
    assert!(!cpu.maintenance_pending());
    cpu.set_maintenance(Maintenance { no_pending: true, ..Maintenance::default() });
    assert_eq!(cpu.misr(), Misr { no_pending: true, ..Misr::default() });
    assert_eq!(cpu.misr().bits(), 1 << 3);
    cpu.write(0, lr(40, 0x80, G1));
    assert!(!cpu.maintenance_pending());
    cpu.write(0, lr(40, 0x80, G0));
    assert!(!cpu.maintenance_pending());
    cpu.iar0();
    assert_eq!(cpu.misr().bits(), 1 << 3);
    cpu.write(0, cpu.read(0).with_state(LrState::PendingActive));
    assert_eq!(cpu.misr().bits(), 1 << 3);
}

// 12.4, ICH_LR<n>_EL2: two entries with one INTID are UNPREDICTABLE; here the lower-numbered one is
// used.
#[test]
fn duplicate_intids() {
    let mut cpu = open(4);
    for n in [1, 3] {
        cpu.write(n, lr(40, 0x80, G1).with_state(LrState::Active));
    }
    assert_eq!(cpu.deactivate(Intid(40)), Some(done(40)));
    assert_eq!((cpu.read(1).state(), cpu.read(3).state()), (LrState::Invalid, LrState::Active));
}
