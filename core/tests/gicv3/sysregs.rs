//! The system registers of the CPU interface.

use crate::world::*;
use vgic_core::engine::{Injector, Wired};
use vgic_core::gic::SysReg;
use vgic_core::ids::{Intid, VcpuId};

/// Returns a value for an SGI register from the affinity of the target's cluster and range, the
/// list and the INTID.
fn sgi_value(affinity: u32, list: u64, intid: u64) -> u64 {
    let field = |shift: u32| u64::from(affinity >> shift & 0xff);
    let range = u64::from(affinity >> 4 & 0xf);
    field(24) << 48 | range << 44 | field(16) << 32 | intid << 24 | field(8) << 16 | list
}

const IRM: u64 = 1 << 40;

#[test]
fn resets() {
    let mut world = World::reset(&[0]);
    for (reg, value) in [
        (SysReg::ICC_PMR_EL1, 0),
        (SysReg::ICC_IAR0_EL1, 1023),
        (SysReg::ICC_IAR1_EL1, 1023),
        (SysReg::ICC_HPPIR0_EL1, 1023),
        (SysReg::ICC_HPPIR1_EL1, 1023),
        (SysReg::ICC_BPR0_EL1, 2),
        (SysReg::ICC_BPR1_EL1, 3),
        (SysReg::ICC_AP0R0_EL1, 0),
        (SysReg::ICC_AP1R0_EL1, 0),
        (SysReg::ICC_RPR_EL1, 0xff),
        // ExtRange, RSS, A3V, 24 bits of INTID, 5 bits of priority.
        (SysReg::ICC_CTLR_EL1, 0xc_8c00),
        (SysReg::ICC_SRE_EL1, 7),
        (SysReg::ICC_IGRPEN0_EL1, 0),
        (SysReg::ICC_IGRPEN1_EL1, 0),
    ] {
        assert_eq!(world.icc_of(0, reg), value, "{reg:?}");
    }
}

#[test]
fn registers_hold_what_is_written() {
    let mut world = World::reset(&[0]);
    for (reg, written, read) in [
        (SysReg::ICC_PMR_EL1, u64::MAX, 0xf8),
        (SysReg::ICC_BPR0_EL1, 5, 5),
        (SysReg::ICC_BPR1_EL1, u64::MAX, 7),
        (SysReg::ICC_AP0R0_EL1, 1 << 4, 1 << 4),
        (SysReg::ICC_AP1R0_EL1, 1 << 3, 1 << 3),
        (SysReg::ICC_CTLR_EL1, u64::MAX, 0xc_8c03),
        (SysReg::ICC_SRE_EL1, 0, 7),
        (SysReg::ICC_IGRPEN0_EL1, u64::MAX, 1),
        (SysReg::ICC_IGRPEN1_EL1, 1, 1),
    ] {
        world.icc(0, reg, written);
        assert_eq!(world.icc_of(0, reg), read, "{reg:?}");
    }
    assert_eq!(world.icc_of(0, SysReg::ICC_RPR_EL1), 3 << 3);
    world.cpus[0].power_off();
    assert_eq!(world.icc_of(0, SysReg::ICC_PMR_EL1), 0, "reset by power");
}

#[test]
fn acknowledge_and_end() {
    let mut world = World::running(1);
    world.enable_spi(40);
    world.edge(40);
    world.cpus[0].enter();
    assert!(world.cpus[0].irq_line() && !world.cpus[0].fiq_line());
    assert_eq!(world.icc_of(0, SysReg::ICC_HPPIR1_EL1), 40);
    assert_eq!(world.icc_of(0, SysReg::ICC_IAR0_EL1), 1023);
    assert_eq!(world.icc_of(0, SysReg::ICC_IAR1_EL1), 40);
    assert_eq!(world.icc_of(0, SysReg::ICC_RPR_EL1), 0x80);
    assert!(!world.cpus[0].irq_line());
    world.icc(0, SysReg::ICC_EOIR1_EL1, 40);
    assert_eq!(world.icc_of(0, SysReg::ICC_RPR_EL1), 0xff);
    // An interrupt in Group 0 is signaled as an FIQ.
    world.w32(GICD + 0x84, 0);
    world.edge(40);
    world.cpus[0].enter();
    assert!(!world.cpus[0].irq_line() && world.cpus[0].fiq_line());
    assert_eq!(world.icc_of(0, SysReg::ICC_IAR0_EL1), 40);
    world.icc(0, SysReg::ICC_EOIR0_EL1, 40);
    assert_eq!(world.take0(0), []);
}

#[test]
fn deactivation_apart_from_the_priority_drop() {
    let mut world = World::running(1);
    world.icc(0, SysReg::ICC_CTLR_EL1, 2);
    world.enable_spi(40);
    world.edge(40);
    world.cpus[0].enter();
    assert_eq!(world.icc_of(0, SysReg::ICC_IAR1_EL1), 40);
    world.icc(0, SysReg::ICC_EOIR1_EL1, 40);
    world.edge(40);
    world.cpus[0].enter();
    assert_eq!(world.icc_of(0, SysReg::ICC_IAR1_EL1), 1023, "active");
    for special in [1020, 1023, 8192, 0xff_ffff, u64::MAX, 4000, 41] {
        world.icc(0, SysReg::ICC_DIR_EL1, special);
        world.cpus[0].enter();
        assert_eq!(world.icc_of(0, SysReg::ICC_IAR1_EL1), 1023, "still active");
    }
    world.icc(0, SysReg::ICC_DIR_EL1, 40);
    world.cpus[0].enter();
    assert_eq!(world.icc_of(0, SysReg::ICC_IAR1_EL1), 40);
    // With EOImode 0, DIR does nothing.
    world.icc(0, SysReg::ICC_CTLR_EL1, 0);
    world.icc(0, SysReg::ICC_DIR_EL1, 40);
    assert_eq!(world.icc_of(0, SysReg::ICC_RPR_EL1), 0x80);
    world.edge(40);
    world.cpus[0].enter();
    world.icc(0, SysReg::ICC_EOIR1_EL1, 40);
    assert_eq!(world.take(0), [40]);
}

#[test]
fn deactivation_at_another_vcpu() {
    let mut world = World::running(2);
    for n in [0, 1] {
        world.icc(n, SysReg::ICC_CTLR_EL1, 2);
    }
    world.enable_spi(40);
    world.edge(40);
    world.cpus[0].enter();
    assert_eq!(world.icc_of(0, SysReg::ICC_IAR1_EL1), 40);
    world.icc(0, SysReg::ICC_EOIR1_EL1, 40);
    world.cpus[0].exit();
    world.edge(40);
    world.icc(1, SysReg::ICC_DIR_EL1, 40);
    world.cpus[0].enter();
    assert_eq!(world.icc_of(0, SysReg::ICC_IAR1_EL1), 40, "no longer active, and pending again");
}

#[test]
fn t29_sgis_to_a_list() {
    // Two clusters are far apart, and one vCPU is in the upper range of affinity level 0.
    let affinities = [0x00, 0x01, 0x0f, 0x25, 0x0102_0300, 0x0102_0301, 0x0002_0301, 0x0102_0201];
    let mut world = World::reset(&affinities);
    world.start();
    for n in 0..8 {
        world.w32(sgi(n) + 0x100, 0xffff);
    }
    let mut send = |from: usize, value: u64| -> Vec<usize> {
        world.icc(from, SysReg::ICC_SGI1R_EL1, value);
        (0..8).filter(|&n| world.take(n) == [value >> 24 & 0xf]).collect()
    };
    assert_eq!(send(0, sgi_value(0x00, 0b10, 7)), [1]);
    assert_eq!(send(0, sgi_value(0x00, 0b01, 7)), [0], "itself");
    assert_eq!(send(3, sgi_value(0x00, 0xffff, 15)), [0, 1, 2]);
    assert_eq!(send(3, sgi_value(0x20, 1 << 5, 0)), [3]);
    assert_eq!(send(0, sgi_value(0x20, 0xffff, 0)), [3]);
    assert_eq!(send(0, sgi_value(0x0102_0300, 0b11, 3)), [4, 5]);
    assert_eq!(send(0, sgi_value(0x0102_0300, 0b10, 3)), [5]);
    assert_eq!(send(5, sgi_value(0x0002_0300, 0xffff, 3)), [6]);
    assert_eq!(send(5, sgi_value(0x0102_0200, 0xffff, 3)), [7]);
    // No vCPU has these affinities.
    assert_eq!(send(0, sgi_value(0x0900_0000, 0xffff, 1)), []);
    assert_eq!(send(0, sgi_value(0x10, 0xffff, 1)), []);
    assert_eq!(send(0, sgi_value(0x00, 0, 1)), []);
}

#[test]
fn t29_sgis_to_all_but_the_sender() {
    let mut world = World::reset(&[0, 1, 0x0100_0000, 0x0102_0304]);
    world.start();
    for n in 0..4 {
        world.w32(sgi(n) + 0x100, 0xffff);
    }
    // With IRM, the affinities and the list are ignored.
    for rest in [0, sgi_value(0x0a0b_0c0d, 0xffff, 0)] {
        world.icc(2, SysReg::ICC_SGI1R_EL1, IRM | 9 << 24 | rest);
        assert_eq!([0, 1, 2, 3].map(|n| world.take(n)), [vec![9], vec![9], vec![], vec![9]]);
    }
}

#[test]
fn t24_sgi_values_of_all_ones() {
    let mut world = World::running(2);
    for reg in [SysReg::ICC_SGI0R_EL1, SysReg::ICC_SGI1R_EL1, SysReg::ICC_ASGI1R_EL1] {
        for value in [u64::MAX, !IRM, 0xf0f0_0000, 1 << 63] {
            world.icc(0, reg, value);
        }
    }
    world.w32(sgi(1) + 0x100, u32::MAX);
    assert_eq!(world.take(1), [15], "INTID has four bits; the rest is no part of it");
}

#[test]
fn group_1s_register_sends_sgis_of_either_group_and_the_others_those_of_group_0() {
    let mut world = World::running(2);
    world.w32(sgi(1) + 0x100, 0xffff);
    // SGI 1 is in Group 1, SGI 0 in Group 0.
    world.w32(sgi(1) + 0x80, 0b10);
    for (reg, intid, taken) in [
        (SysReg::ICC_SGI1R_EL1, 1, true),
        (SysReg::ICC_SGI1R_EL1, 0, true),
        (SysReg::ICC_SGI0R_EL1, 1, false),
        (SysReg::ICC_SGI0R_EL1, 0, true),
        (SysReg::ICC_ASGI1R_EL1, 1, false),
        (SysReg::ICC_ASGI1R_EL1, 0, true),
    ] {
        for to in [IRM, 0b10] {
            world.icc(0, reg, to | intid << 24);
            let expected = if taken { vec![intid] } else { vec![] };
            let got = if intid == 1 { world.take(1) } else { world.take0(1) };
            assert_eq!(got, expected, "{reg:?} {intid}");
        }
    }
}

/// Makes SPIs 40 to 42 edge-triggered, and enables them.
fn edges(world: &mut World) {
    world.w32(GICD + 0xc08, 0xaaaa_aaaa);
    world.w32(GICD + 0x104, 7 << 8);
}

#[test]
fn an_end_without_a_list_register_ends_what_it_names() {
    let mut setup = setup(&[0]);
    setup.set_lrs(1).unwrap();
    setup.set_distributor(GICD).unwrap();
    setup.add_redistributors(GICR, 1).unwrap();
    let mut world = World::init(&setup, 1);
    world.start();
    edges(&mut world);
    for (n, priority) in [(40u32, 0xa0), (41, 0x40), (42, 0)] {
        world.w8(GICD + 0x400 + u64::from(n), priority);
    }
    // SPI 40 is taken. Then SPI 41 is made active, and SPI 42 has the list register.
    world.edge(40);
    world.cpus[0].enter();
    assert_eq!(world.cpus[0].icc_read(SysReg::ICC_IAR1_EL1), Some(40));
    world.w32(GICD + 0x304, 1 << 9);
    world.w32(GICD + 0x204, 1 << 10);
    world.icc(0, SysReg::ICC_PMR_EL1, 0);
    assert_eq!(world.r32(GICD + 0x304), 3 << 8);
    world.icc(0, SysReg::ICC_EOIR1_EL1, 40);
    assert_eq!(world.r32(GICD + 0x304), 1 << 9, "41 stays active");
}

#[test]
fn accesses_without_an_entry_in_between() {
    let mut world = World::running(1);
    edges(&mut world);
    world.edge(40);
    world.edge(41);
    world.cpus[0].enter();
    let taken = world.cpus[0].icc_read(SysReg::ICC_IAR1_EL1).unwrap();
    world.cpus[0].icc_write(SysReg::ICC_EOIR1_EL1, taken).unwrap();
    world.r32(GICD + 0x204);
    let other = world.cpus[0].icc_read(SysReg::ICC_IAR1_EL1).unwrap();
    assert_eq!([taken.min(other), taken.max(other)], [40, 41]);
    assert_eq!(world.r32(GICD + 0x304), 1 << (other - 32));
    world.cpus[0].enter();
    assert_eq!(world.cpus[0].icc_read(SysReg::ICC_IAR1_EL1), Some(1023));
}

#[test]
fn a_redistributor_that_sleeps_asks_to_be_woken() {
    let mut world = World::running(1);
    world.w32(sgi(0) + 0x100, 1 << 27);
    world.w32(rd(0) + 0x14, 2);
    assert!(!world.cpus[0].has_wake_request());
    let ppi = Wired::Private(VcpuId(0), Intid(27));
    world.cpus[0].bus().injector().set_level(ppi, true).unwrap();
    assert_eq!(world.cpus[0].enter().pending, 0, "asleep");
    world.cpus[0].exit();
    assert!(world.cpus[0].has_wake_request());
    world.w32(sgi(0) + 0x180, 1 << 27);
    assert!(!world.cpus[0].has_wake_request(), "disabled");
}
