//! The registers of the distributor.

use crate::world::*;
use vgic_core::engine::{Injected, Injector, Wired};
use vgic_core::gic::SysReg;
use vgic_core::ids::{Intid, VcpuId};

#[test]
fn control() {
    let mut world = World::reset(&[0]);
    assert_eq!(world.r32(GICD), 0x50, "ARE and DS; nothing enabled");
    world.w32(GICD, u32::MAX);
    assert_eq!(world.r32(GICD), 0x53);
    world.w32(GICD, 2);
    assert_eq!(world.r32(GICD), 0x52);
}

#[test]
fn t25_type() {
    for (spis, lines) in [(0, 0), (32, 1), (64, 2), (960, 30), (988, 31)] {
        let mut setup = setup(&[0]);
        setup.set_spis(spis).unwrap();
        setup.set_distributor(GICD).unwrap();
        setup.add_redistributors(GICR, 1).unwrap();
        let mut world = World::init(&setup, 1);
        let typer = world.r32(GICD + 4);
        assert_eq!(typer & 0x1f, lines, "INTIDs / 32 - 1 of {spis} SPIs");
    }
    // RSS, A3V, 16 bits of INTID, LPIS, MBIS, ESPI; 64 extended SPIs.
    let mut world = World::reset(&[0]);
    assert_eq!(world.r32(GICD + 4), 1 << 27 | 0x0500_0000 | 15 << 19 | 0x3_0100 | 2);
    let mut world = World::without_lpis(&[0]);
    assert_eq!(world.r32(GICD + 4), 1 << 27 | 0x0500_0000 | 12 << 19 | 0x1_0100 | 2);
}

#[test]
fn identification() {
    let mut world = World::reset(&[0]);
    assert_eq!(world.r32(GICD + 8) & 0xfff, 0x43b);
    assert_eq!(world.r32(GICD + 0xc), 0);
    let id: Vec<u32> = (0..12).map(|n| world.r32(GICD + 0xffd0 + 4 * n)).collect();
    assert_eq!(id, [0x44, 0, 0, 0, 0x92, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn status() {
    let mut world = World::reset(&[0]);
    let status = GICD + 0x10;
    assert_eq!(world.r32(status), 0);
    world.r32(GICD + 0x20);
    assert_eq!(world.r32(status), 1, "read of nothing");
    world.w32(GICD + 0x20, 0);
    assert_eq!(world.r32(status), 3, "write to nothing");
    world.r32(GICD + 0x40);
    assert_eq!(world.r32(status), 7, "read of GICD_SETSPI_NSR");
    world.w32(GICD + 4, 0);
    assert_eq!(world.r32(status), 0xf, "write to GICD_TYPER");
    world.w32(status, 0b0101);
    assert_eq!(world.r32(status), 0b1010);
    world.r8(GICD);
    assert_eq!(world.r32(status), 0b1010, "that a width is not allowed is not recorded");
}

#[test]
fn one_bit_registers_hold_what_is_written_for_spis_that_exist() {
    // SPIs 32 to 95 and extended SPIs 4096 to 4159 exist.
    for (set, clear, words, exist) in
        [(0x100, 0x180, 32, 1..3), (0x1200, 0x1400, 32, 0..2), (0x200, 0x280, 32, 1..3)]
    {
        let mut world = World::reset(&[0]);
        for n in 0..words {
            let (set, clear) = (GICD + set + 4 * n, GICD + clear + 4 * n);
            assert_eq!(world.r32(set), 0, "reset");
            let there = if exist.contains(&n) { u32::MAX } else { 0 };
            world.w32(set, 0x8000_0101);
            world.w32(set, 0x0000_0010);
            assert_eq!(world.r32(set), there & 0x8000_0111);
            assert_eq!(world.r32(clear), there & 0x8000_0111);
            world.w32(clear, 0x0000_0101);
            assert_eq!(world.r32(set), there & 0x8000_0010);
            world.w32(set, u32::MAX);
            world.w32(clear, u32::MAX);
            assert_eq!(world.r32(clear), 0);
        }
    }
}

#[test]
fn active_registers_hold_what_is_written() {
    let mut world = World::running(1);
    for (set, clear) in [(0x304, 0x384), (0x1a00, 0x1c00)] {
        world.w32(GICD + set, 0x8000_0011);
        assert_eq!(world.r32(GICD + set), 0x8000_0011);
        assert_eq!(world.r32(GICD + clear), 0x8000_0011);
        world.w32(GICD + clear, 0x0000_0001);
        assert_eq!(world.r32(GICD + set), 0x8000_0010);
        world.w32(GICD + clear, u32::MAX);
        assert_eq!(world.r32(GICD + set), 0);
    }
    world.w32(GICD + 0x300, u32::MAX);
    assert_eq!(world.r32(GICD + 0x300), 0, "INTIDs 0 to 31");
}

#[test]
fn groups_priorities_and_triggers() {
    let mut world = World::reset(&[0]);
    for base in [0x80, 0x1000] {
        let first = if base == 0x80 { 1 } else { 0 };
        for n in 0..32 {
            let there = if (first..first + 2).contains(&n) { 0xa5a5_5a5a } else { 0 };
            world.w32(GICD + base + 4 * n, 0xa5a5_5a5a);
            assert_eq!(world.r32(GICD + base + 4 * n), there);
        }
    }
    // Five bits of priority; T28: a byte write changes that byte only.
    for (base, exist) in [(0x400, 32..96), (0x2000, 0..64)] {
        for n in (0..1020).step_by(4) {
            let there = if exist.contains(&n) { u32::MAX } else { 0 };
            world.w32(GICD + base + n, 0xffff_1234);
            assert_eq!(world.r32(GICD + base + n), there & 0xf8f8_1030, "{n}");
            world.w8(GICD + base + n + 1, 0xa7);
            assert_eq!(world.r32(GICD + base + n), there & 0xf8f8_a030, "{n}");
            assert_eq!(world.r8(GICD + base + n + 1), there as u8 & 0xa0);
        }
    }
    for (base, exist) in [(0xc00, 2..6), (0x3000, 0..4)] {
        for n in 0..64 {
            let there = if exist.contains(&n) { u32::MAX } else { 0 };
            assert_eq!(world.r32(GICD + base + 4 * n), 0, "level-sensitive");
            world.w32(GICD + base + 4 * n, 0xdead_beef);
            assert_eq!(world.r32(GICD + base + 4 * n), there & 0xdead_beef & 0xaaaa_aaaa);
        }
    }
}

#[test]
fn t28_the_last_partial_register_is_in_range() {
    let mut setup = setup(&[0]);
    setup.set_spis(988).unwrap();
    setup.set_distributor(GICD).unwrap();
    setup.add_redistributors(GICR, 1).unwrap();
    let mut world = World::init(&setup, 1);
    world.start();
    world.w32(GICD + 0x100 + 4 * 31, u32::MAX);
    assert_eq!(world.r32(GICD + 0x100 + 4 * 31), 0x0fff_ffff);
    world.w8(GICD + 0x400 + 1019, 0xf0);
    assert_eq!(world.r8(GICD + 0x400 + 1019), 0xf0);
    world.w64(GICD + 0x6000 + 8 * 1019, 0);
    world.w32(GICD + 0x200 + 4 * 31, u32::MAX);
    let mut taken = world.take(0);
    taken.sort();
    assert_eq!(taken, (992..1020).collect::<Vec<u64>>());
}

#[test]
fn what_has_no_meaning_with_one_security_state_or_affinity_routing() {
    let mut world = World::running(2);
    for offset in [0x800, 0x820, 0xd04, 0xe08, 0xf10, 0xf20, 0x3400, 0x3600] {
        world.w32(GICD + offset, u32::MAX);
        assert_eq!(world.r32(GICD + offset), 0, "{offset:#x}");
    }
    world.w32(GICD + 0xf00, 0x0203_0001);
    assert_eq!([world.take(0), world.take(1)], [[], []], "no SGI");
}

#[test]
fn t33_routes_in_halves() {
    let affinities = [0x0000_0000, 0x0700_0102, 0x0000_0102];
    let mut world = World::reset(&affinities);
    world.start();
    let route = GICD + 0x6000 + 8 * 40;
    assert_eq!(world.r64(route), 0, "vCPU 0");
    world.w32(route + 4, 7);
    assert_eq!(world.r64(route), 7 << 32);
    world.w32(route, 0x0102);
    assert_eq!(world.r64(route), 0x07_0000_0102);
    assert_eq!(world.r32(route), 0x0102);
    assert_eq!(world.r32(route + 4), 7);
    world.enable_spi(40);
    world.edge(40);
    assert_eq!([0, 1, 2].map(|v| world.take(v)), [vec![], vec![40], vec![]]);
    world.w32(route + 4, 0);
    world.edge(40);
    assert_eq!([0, 1, 2].map(|v| world.take(v)), [vec![], vec![], vec![40]]);
    // Only fields that exist are kept, and only for interrupts that exist.
    world.w64(route, u64::MAX);
    assert_eq!(world.r64(route), 0xff_80ff_ffff);
    world.w64(GICD + 0x6000 + 8 * 96, u64::MAX);
    assert_eq!(world.r64(GICD + 0x6000 + 8 * 96), 0);
    for n in [0, 31] {
        world.w64(GICD + 0x6000 + 8 * n, u64::MAX);
        assert_eq!(world.r64(GICD + 0x6000 + 8 * n), 0);
    }
}

#[test]
fn routes_of_extended_spis() {
    let mut world = World::running(2);
    let spi = 4096 + 33;
    let route = GICD + 0x8000 + 8 * 33;
    world.w64(route, 1);
    assert_eq!(world.r64(route), 1);
    world.w32(GICD + 0x1204, 2);
    assert_eq!(world.r32(GICD + 0x1204), 2);
    world.w32(GICD + 0x1604, 2);
    assert_eq!([world.take(0), world.take(1)], [vec![], vec![spi]]);
}

#[test]
fn a_route_to_nobody_keeps_the_interrupt_pending() {
    let mut world = World::running(2);
    let route = GICD + 0x6000 + 8 * 50;
    world.enable_spi(50);
    world.w64(route, 0x0900);
    world.edge(50);
    assert_eq!([world.take(0), world.take(1)], [[], []]);
    assert_eq!(world.r64(route), 0x0900, "as written");
    assert_eq!(world.r32(GICD + 0x104), 1 << 18, "enabled, as the guest wrote");
    assert_eq!(world.r32(GICD + 0x204), 1 << 18, "pending");
    world.w64(route, 1);
    assert_eq!([world.take(0), world.take(1)], [vec![], vec![50]]);
    // When the route is valid again, the guest's own enable counts.
    world.w64(route, 0x0900);
    world.w32(GICD + 0x184, 1 << 18);
    world.w64(route, 0);
    world.edge(50);
    assert_eq!([world.take(0), world.take(1)], [[], []]);
    world.w32(GICD + 0x104, 1 << 18);
    assert_eq!(world.take(0), [50]);
}

#[test]
fn message_based_spis() {
    let mut world = World::running(1);
    let (set, clear) = (GICD + 0x40, GICD + 0x48);
    // An edge-triggered SPI comes once for each message.
    world.enable_spi(60);
    world.w32(set, 60);
    assert_eq!(world.take(0), [60]);
    assert_eq!(world.take(0), []);
    world.write_from(0, set, 2, 60).unwrap();
    assert_eq!(world.take(0), [60]);
    world.w32(set, 60);
    world.w32(clear, 60);
    assert_eq!(world.take(0), []);
    // A level-sensitive SPI comes until it is cleared.
    world.enable_spi(61);
    world.w32(GICD + 0xc00 + 12, 2 << 24);
    world.w32(set, 61);
    world.cpus[0].enter();
    for _ in 0..3 {
        assert_eq!(world.icc_of(0, SysReg::ICC_IAR1_EL1), 61);
        world.icc(0, SysReg::ICC_EOIR1_EL1, 61);
        world.cpus[0].exit();
        world.cpus[0].enter();
    }
    world.w32(clear, 61);
    assert_eq!(world.take(0), []);
    // Messages also reach extended SPIs.
    world.w32(GICD + 0x1200, 1);
    world.w32(GICD + 0x3000, 2);
    world.w32(set, 4096);
    assert_eq!(world.take(0), [4096]);
    // The register of the other security state, which does not exist, does nothing.
    world.w32(GICD + 0x50, 60);
    assert_eq!(world.take(0), []);
}

#[test]
fn t24_messages_with_an_intid_out_of_range() {
    let mut world = World::running(1);
    world.w32(sgi(0) + 0x100, u32::MAX);
    for offset in [0x104, 0x108, 0x1200, 0x1204] {
        world.w32(GICD + offset, u32::MAX);
    }
    for n in 0..64 {
        world.w32(GICD + 0xc00 + 4 * n, u32::MAX);
        world.w32(GICD + 0x3000 + 4 * n, u32::MAX);
    }
    for intid in [0, 1, 15, 16, 31, 96, 97, 1019, 1020, 1023, 1024, 1056, 4160, 5120, 8191, 8192] {
        for value in [intid, intid | 0xffff_e000] {
            world.w32(GICD + 0x40, value);
            assert_eq!(world.take(0), [], "{value:#x}");
            world.w32(GICD + 0x48, value);
        }
    }
    world.w32(GICD + 0x40, u32::MAX);
    world.write_from(0, GICD + 0x48, 2, u64::MAX).unwrap();
}

#[test]
fn t35_raised_before_the_guest_has_set_anything_up() {
    let mut world = World::reset(&[0, 1]);
    let injector = world.cpus[0].bus().injector();
    for irq in [Wired::Spi(Intid(33)), Wired::Private(VcpuId(1), Intid(20))] {
        assert_eq!(injector.pulse(irq), Ok(Injected::Pending));
    }
    world.line(34, true);
    world.w32(GICD + 0x204, 1 << 3);
    assert_eq!([world.take(0), world.take(1)], [[], []], "off");
    world.start();
    assert_eq!([world.take(0), world.take(1)], [[], []], "disabled");
    assert_eq!(world.r32(GICD + 0x204), 0b1110, "pending");
    assert_eq!(world.r32(sgi(1) + 0x200), 1 << 20);
    world.w32(GICD + 0x104, 0b110);
    world.w32(sgi(1) + 0x100, 1 << 20);
    world.cpus[0].enter();
    assert_eq!(world.icc_of(0, SysReg::ICC_IAR1_EL1), 33);
    world.icc(0, SysReg::ICC_EOIR1_EL1, 33);
    world.line(34, false);
    world.cpus[0].exit();
    assert_eq!(world.take(0), [], "what was no longer pending is not taken");
    assert_eq!(world.take(1), [20]);
    world.w32(GICD + 0x104, 1 << 3);
    assert_eq!(world.take(0), [35]);
}
