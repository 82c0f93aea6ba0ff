//! The registers of the redistributors.

use crate::world::*;
use vgic_core::MmioError;

#[test]
fn resets() {
    let mut world = World::reset(&[0, 1]);
    assert_eq!(world.r32(rd(0)), 6, "CES and IR");
    assert_eq!(world.r32(rd(0) + 4) & 0xfff, 0x43b);
    for offset in [0x10, 0x18, 0x1c, 0x40, 0x44, 0x48, 0x70, 0x78, 0xa0, 0xb0, 0xc0] {
        assert_eq!(world.r32(rd(0) + offset), 0, "{offset:#x}");
    }
    let id: Vec<u32> = (0..12).map(|n| world.r32(rd(0) + 0xffd0 + 4 * n)).collect();
    assert_eq!(id, [0x44, 0, 0, 0, 0x93, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1]);
    for offset in [0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x400, 0x420, 0xd00, 0xe00] {
        assert_eq!(world.r32(sgi(0) + offset), 0, "{offset:#x}");
    }
    assert_eq!(world.r32(sgi(0) + 0xc00), 0xaaaa_aaaa, "SGIs are edge-triggered");
    assert_eq!(world.r32(sgi(0) + 0xc04), 0);
}

#[test]
fn t33_type_tells_which_vcpu_whoever_reads() {
    let affinities = [0x0000_0000, 0x0102_0304, 0x0000_0001];
    let mut world = World::reset(&affinities);
    for (n, affinity) in affinities.into_iter().enumerate() {
        for reader in 0..3 {
            let typer = world.read_from(reader, rd(n) + 8, 8).unwrap();
            assert_eq!(typer >> 32, affinity.into());
            assert_eq!(typer >> 27 & 0x1f, 1, "32 extended PPIs");
            assert_eq!(typer >> 8 & 0xffff, n as u64);
            assert_eq!(typer >> 4 & 1, u64::from(n == 2), "Last");
            assert_eq!(typer & 0xf, 9, "LPIs, direct ones too; nothing of GICv4");
            let (low, high) = (rd(n) + 8, rd(n) + 12);
            assert_eq!(world.read_from(reader, low, 4), Ok(typer & 0xffff_ffff));
            assert_eq!(world.read_from(reader, high, 4), Ok(typer >> 32));
        }
    }
    let mut world = World::without_lpis(&[0]);
    assert_eq!(world.r64(rd(0) + 8) & 0xf, 0);
    world.w32(rd(0), 1);
    assert_eq!(world.r32(rd(0)), 0);
    world.w64(rd(0) + 0x70, u64::MAX);
    assert_eq!(world.r64(rd(0) + 0x70), 0);
}

#[test]
fn the_last_of_each_region_says_so() {
    let mut setup = setup(&[0, 1, 2, 3, 4]);
    setup.set_distributor(GICD).unwrap();
    let far = 0x40_0000_0000;
    setup.add_redistributors(GICR, 2).unwrap();
    setup.add_redistributors(far, 2).unwrap();
    // This region has one more frame than there are vCPUs left.
    setup.add_redistributors(0x2000_0000, 2).unwrap();
    let mut world = World::init(&setup, 5);
    let frames = [rd(0), rd(1), far, far + 0x2_0000, 0x2000_0000];
    let nobodys = 0x2002_0000;
    for address in [nobodys, nobodys + 8, nobodys + SGI + 0x100] {
        assert_eq!(world.read_from(0, address, 4), Err(MmioError::Unmapped(address)));
        assert_eq!(world.write_from(0, address, 4, 1), Err(MmioError::Unmapped(address)));
    }
    let typers = frames.map(|base| world.r64(base + 8));
    assert_eq!(typers.map(|t| t >> 4 & 1), [0, 1, 0, 1, 1]);
    assert_eq!(typers.map(|t| t >> 8 & 0xffff), [0, 1, 2, 3, 4]);
    assert_eq!(typers.map(|t| t >> 32), [0, 1, 2, 3, 4]);
}

#[test]
fn t33_a_frame_belongs_to_its_own_vcpu() {
    let mut world = World::running(3);
    // vCPU 0 sets up vCPU 2's SGI 3 and PPI 27.
    for (offset, value) in [(0x100, 1 << 27 | 1 << 3), (0x200, 1 << 27)] {
        world.w32(sgi(2) + offset, value);
    }
    assert_eq!([0, 1, 2].map(|v| world.r32(sgi(v) + 0x100)), [0, 0, 1 << 27 | 1 << 3]);
    assert_eq!([0, 1, 2].map(|v| world.r32(sgi(v) + 0x200)), [0, 0, 1 << 27]);
    assert_eq!([0, 1, 2].map(|v| world.take(v)), [vec![], vec![], vec![27]]);
    world.w32(rd(1) + 0x14, 2);
    assert_eq!([0, 1, 2].map(|v| world.r32(rd(v) + 0x14)), [0, 6, 0]);
}

#[test]
fn private_interrupts_hold_what_is_written() {
    let mut world = World::reset(&[0]);
    let base = sgi(0);
    for (set, clear) in [(0x100, 0x180), (0x104, 0x184), (0x200, 0x280), (0x204, 0x284)] {
        world.w32(base + set, 0x8001_0001);
        assert_eq!(world.r32(base + set), 0x8001_0001);
        world.w32(base + clear, 1);
        assert_eq!(world.r32(base + set), 0x8001_0000);
        assert_eq!(world.r32(base + clear), 0x8001_0000);
        world.w32(base + clear, u32::MAX);
        assert_eq!(world.r32(base + set), 0);
    }
    for group in [0x80, 0x84] {
        world.w32(base + group, 0xff00_00ff);
        assert_eq!(world.r32(base + group), 0xff00_00ff);
    }
    for n in (0..64).step_by(4) {
        world.w32(base + 0x400 + n, 0x1234_5678);
        assert_eq!(world.r32(base + 0x400 + n), 0x1030_5078);
        world.w8(base + 0x400 + n + 3, 0xff);
        assert_eq!(world.r32(base + 0x400 + n), 0xf830_5078);
    }
    world.w32(base + 0xc00, 0);
    assert_eq!(world.r32(base + 0xc00), 0xaaaa_aaaa);
    for n in [1, 2, 3] {
        world.w32(base + 0xc00 + 4 * n, 0xffff_0000);
        assert_eq!(world.r32(base + 0xc00 + 4 * n), 0xaaaa_0000);
    }
    // 32 extended PPIs exist; there are registers for 64.
    for offset in [0x88, 0x108, 0x188, 0x208, 0x288, 0x308, 0x388, 0x440, 0xc10, 0xc14] {
        world.w32(base + offset, u32::MAX);
        assert_eq!(world.r32(base + offset), 0, "{offset:#x}");
    }
    for offset in [0xd00, 0xd04, 0xe00] {
        world.w32(base + offset, u32::MAX);
        assert_eq!(world.r32(base + offset), 0, "{offset:#x}");
    }
}

#[test]
fn active_registers_of_private_interrupts() {
    let mut world = World::running(2);
    for (set, clear) in [(0x300, 0x380), (0x304, 0x384)] {
        world.w32(sgi(1) + set, 0x8001_0001);
        assert_eq!(world.r32(sgi(1) + set), 0x8001_0001);
        assert_eq!(world.r32(sgi(0) + set), 0);
        world.w32(sgi(1) + clear, 0x8000_0001);
        assert_eq!(world.r32(sgi(1) + clear), 0x0001_0000);
    }
}

#[test]
fn extended_ppis_are_delivered() {
    let mut world = World::running(2);
    world.w32(sgi(1) + 0x104, 0x8000_0000);
    world.w32(sgi(1) + 0x204, 0x8000_0000);
    assert_eq!([world.take(0), world.take(1)], [vec![], vec![1056 + 31]]);
}

#[test]
fn tables_of_lpis() {
    let mut world = World::reset(&[0]);
    let (prop, pend) = (rd(0) + 0x70, rd(0) + 0x78);
    world.w64(prop, u64::MAX);
    world.w64(pend, u64::MAX);
    assert_eq!(world.r64(prop), 0x070f_ffff_ffff_f39f, "shareability 3 is reserved");
    assert_eq!(world.r64(pend), 0x070f_ffff_ffff_0380, "PTZ is write-only");
    world.w64(prop, 0);
    world.w32(prop, 0x8000_040f);
    world.w32(prop + 4, 0x0701_2345);
    assert_eq!(world.r64(prop), 0x0701_2345_8000_040f);
    world.w32(rd(0), u32::MAX);
    assert_eq!(world.r32(rd(0)), 7, "EnableLPIs, and what is constant");
    world.w64(prop, 0);
    world.w32(pend, 0);
    assert_eq!(world.r64(prop), 0x0701_2345_8000_040f, "not while LPIs are enabled");
    assert_eq!(world.r64(pend), 0x070f_ffff_ffff_0380);
    world.w32(rd(0), 0);
    world.w64(prop, 0);
    assert_eq!(world.r64(prop), 0);
}

#[test]
fn t24_lpi_registers_with_any_intid() {
    let mut world = World::running(1);
    for offset in [0x40, 0x48, 0xa0, 0xb0] {
        for value in [0, 31, 8191, 8192, 0xffff, 1 << 24, 0xffff_ffff, u64::MAX] {
            world.w64(rd(0) + offset, value);
            world.w32(rd(0) + offset + 4, value as u32);
        }
    }
    assert_eq!(world.take(0), []);
}

#[test]
fn status() {
    let mut world = World::reset(&[0, 1]);
    world.r32(rd(1) + 0x20);
    world.w32(sgi(1) + 0xc00, 0);
    assert_eq!([world.r32(rd(0) + 0x10), world.r32(rd(1) + 0x10)], [0, 9]);
    world.r32(rd(1) + 0x40);
    world.w32(sgi(1) + 0xffe8, 0);
    assert_eq!(world.r32(rd(1) + 0x10), 0xf);
    world.w32(rd(1) + 0x10, 0xf);
    assert_eq!(world.r32(rd(1) + 0x10), 0);
}
