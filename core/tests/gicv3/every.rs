//! Every offset with every width, and every encoding: nothing panics, and only the architected
//! effects occur.

use crate::world::*;
use vgic_core::MmioError;
use vgic_core::gic::{Affinity, Gic, Model, Setup, SetupError, SysReg};
use vgic_core::ids::VcpuId;

const VALUES: [u64; 4] = [0, u64::MAX, 0x5555_5555_5555_5555, 0x8000_0020_8000_0020];

/// Reads and writes everywhere in `size` bytes from `base` up, in every width.
fn sweep(world: &mut World, base: u64, size: u64) {
    for offset in 0..size {
        for len in [1, 2, 4, 8] {
            let address = base + offset;
            let before = world.read_from(0, address, len);
            let aligned = offset.is_multiple_of(len as u64);
            assert_eq!(before == Err(MmioError::Unaligned(address)), !aligned, "{offset:#x}");
            for value in VALUES {
                let written = world.write_from(1, address, len, value);
                assert_eq!(written.is_ok(), before.is_ok(), "{offset:#x} in {len}");
            }
        }
    }
}

/// Returns whether an offset is in one of some ranges, each a first offset and a length in bytes.
fn within(ranges: &[(u64, u64)], offset: u64) -> bool {
    ranges.iter().any(|&(first, len)| (first..first + len).contains(&offset))
}

/// Checks a frame outside `registers`. Those are the readable registers (IHI 0069, 12.8 and 12.10)
/// of the interrupts that exist. All other offsets read as zero after any write, and no write to
/// them changes any of `registers`.
fn nothing_else(world: &mut World, base: u64, size: u64, registers: &[(u64, u64)]) {
    // STATUSR is left out, as it reports such accesses.
    let words = (0..size).step_by(4).filter(|&o| o != 0x10 && within(registers, o));
    let words: Vec<u64> = words.collect();
    let snapshot = |world: &mut World| -> Vec<u32> {
        words.iter().map(|offset| world.r32(base + offset)).collect()
    };
    let before = snapshot(world);
    for offset in (0..size).filter(|&offset| !within(registers, offset)) {
        for len in [1, 2, 4, 8] {
            // A wider access may reach a register.
            if (offset..offset + len as u64).any(|offset| within(registers, offset)) {
                continue;
            }
            for value in VALUES {
                let written = world.write_from(1, base + offset, len, value);
                let read = world.read_from(0, base + offset, len);
                assert_eq!(read, written.map(|()| 0), "{offset:#x} in {len}");
            }
        }
    }
    assert_eq!(snapshot(world), before);
}

/// The readable registers of a distributor with SPIs 32 to 95 and 4096 to 4159; and SETSPI_NSR and
/// CLRSPI_NSR, which have an effect.
const DISTRIBUTOR: &[(u64, u64)] = &[
    (0x0, 0xc),
    (0x10, 4),
    (0x40, 4),
    (0x48, 4),
    (0x84, 8),
    (0x104, 8),
    (0x184, 8),
    (0x204, 8),
    (0x284, 8),
    (0x304, 8),
    (0x384, 8),
    (0x420, 64),
    (0xc08, 16),
    (0x1000, 8),
    (0x1200, 8),
    (0x1400, 8),
    (0x1600, 8),
    (0x1800, 8),
    (0x1a00, 8),
    (0x1c00, 8),
    (0x2000, 64),
    (0x3000, 16),
    (0x6100, 8 * 64),
    (0x8000, 8 * 64),
    (0xffd0, 0x30),
];

/// The readable registers of a redistributor with 32 extended PPIs.
const REDISTRIBUTOR: &[(u64, u64)] = &[
    (0x0, 0x18),
    (0x70, 0x10),
    (0xffd0, 0x30),
    (SGI + 0x80, 8),
    (SGI + 0x100, 8),
    (SGI + 0x180, 8),
    (SGI + 0x200, 8),
    (SGI + 0x280, 8),
    (SGI + 0x300, 8),
    (SGI + 0x380, 8),
    (SGI + 0x400, 64),
    (SGI + 0xc00, 16),
];

#[test]
fn t24_t29_every_offset_of_the_distributor() {
    let mut world = World::running(2);
    let typer = world.r32(GICD + 4);
    sweep(&mut world, GICD, 0x1_0000);
    nothing_else(&mut world, GICD, 0x1_0000, DISTRIBUTOR);
    assert_eq!(world.r32(GICD + 4), typer);
    assert_eq!(world.r32(GICD + 0xffe8) >> 4 & 0xf, 3);
}

#[test]
fn t24_t29_every_offset_of_a_redistributor() {
    let mut world = World::running(2);
    let typer = world.r64(rd(1) + 8);
    sweep(&mut world, rd(1), 0x2_0000);
    world.w32(rd(1), 0);
    nothing_else(&mut world, rd(1), 0x2_0000, REDISTRIBUTOR);
    assert_eq!(world.r64(rd(1) + 8), typer);
    // The other vCPU's redistributor is not affected.
    assert_eq!(world.r32(rd(0)), 6, "no LPIs enabled, though vCPU 0 accessed vCPU 1's");
    assert_eq!(world.r32(sgi(0) + 0x100), 0);
}

#[test]
fn t29_wrong_directions_and_widths() {
    let mut world = World::running(1);
    for (address, len) in [
        (GICD, 8),
        (GICD + 0x40, 8),
        (GICD + 0x400, 8),
        (GICD + 0x100, 8),
        (rd(0) + 0x10, 8),
        (sgi(0) + 0x400, 8),
    ] {
        let refused = Err(MmioError::Width(address, len));
        assert_eq!(world.read_from(0, address, len), refused);
        assert_eq!(world.write_from(0, address, len, 1).err(), refused.err());
    }
    // Writes to read-only registers, accesses narrower than the register and reads of write-only
    // registers do nothing.
    for address in [GICD + 4, GICD + 8, rd(0) + 4, GICD + 0xffe8] {
        let before = world.r32(address);
        world.w32(address, !before);
        assert_eq!(world.r32(address), before);
    }
    world.w8(GICD, 0);
    assert_eq!(world.r32(GICD), 0x53);
    assert_eq!(world.r8(GICD), 0);
    assert_eq!(world.r32(GICD + 0x40), 0);
    assert_eq!(world.read_from(0, GICD + 0x1_0000, 4), Err(MmioError::Unmapped(GICD + 0x1_0000)));
}

#[test]
fn every_encoding_of_a_system_register() {
    let known = [
        (4, 6, 0, "rw"),
        (12, 8, 0, "r"),
        (12, 8, 1, "w"),
        (12, 8, 2, "r"),
        (12, 8, 3, "rw"),
        (12, 8, 4, "rw"),
        (12, 9, 0, "rw"),
        (12, 11, 1, "w"),
        (12, 11, 3, "r"),
        (12, 11, 5, "w"),
        (12, 11, 6, "w"),
        (12, 11, 7, "w"),
        (12, 12, 0, "r"),
        (12, 12, 1, "w"),
        (12, 12, 2, "r"),
        (12, 12, 3, "rw"),
        (12, 12, 4, "rw"),
        (12, 12, 5, "rw"),
        (12, 12, 6, "rw"),
        (12, 12, 7, "rw"),
    ];
    let mut world = World::running(2);
    let mut seen = 0;
    for op0 in [0, 1, 2, 3, 7, 255] {
        for (op1, crn) in (0..8).flat_map(|op1| (0..16).map(move |crn| (op1, crn))) {
            for (crm, op2) in (0..16).flat_map(|crm| (0..8).map(move |op2| (crm, op2))) {
                let reg = SysReg::new(op0, op1, crn, crm, op2);
                let rights = known.iter().find(|k| (k.0, k.1, k.2) == (crn, crm, op2));
                let rights = rights.filter(|_| op0 == 3 && op1 == 0).map_or("", |k| k.3);
                seen += usize::from(!rights.is_empty());
                let cpu = &mut world.cpus[0];
                assert_eq!(cpu.icc_read(reg).is_some(), rights.contains('r'), "{reg:?}");
                for value in VALUES {
                    let written = cpu.icc_write(reg, value);
                    assert_eq!(written.is_some(), rights.contains('w'), "{reg:?}");
                    cpu.enter();
                }
            }
        }
    }
    assert_eq!(seen, known.len());
}

#[test]
fn t11_nothing_of_another_version() {
    let mut setup = setup(&[0]);
    assert_eq!(setup.set_cpu_interface(0x0801_0000), Err(SetupError::WrongModel));
    let frame = vgic_core::gic::MsiFrame { base: 0x0802_0000, first: 64, count: 8 };
    assert_eq!(setup.add_msi_frame(frame), Err(SetupError::WrongModel));
    let mut world = World::running(1);
    for address in [0x0801_0000, 0x0801_1000, 0x0802_0008] {
        assert_eq!(world.read_from(0, address, 4), Err(MmioError::Unmapped(address)));
        assert_eq!(world.write_from(0, address, 4, 1), Err(MmioError::Unmapped(address)));
    }

    let mut setup = Setup::new(40);
    setup.create(Model::V2).unwrap();
    setup.add_vcpu(Affinity(0)).unwrap();
    setup.set_distributor(GICD).unwrap();
    setup.set_cpu_interface(0x0801_0000).unwrap();
    assert_eq!(setup.add_redistributors(GICR, 1), Err(SetupError::WrongModel));
    assert_eq!(setup.set_extended(32, 32), Err(SetupError::WrongModel));
    let gic: Gic<crate::Engine> = setup.init(no_kick()).unwrap();
    let mut cpu = gic.cpu(VcpuId(0)).unwrap();
    cpu.power_on();
    assert_eq!(cpu.icc_read(SysReg::ICC_IAR1_EL1), None);
    assert_eq!(cpu.icc_read(SysReg::ICC_SRE_EL1), None);
    assert_eq!(cpu.icc_write(SysReg::ICC_PMR_EL1, 0xff), None);
    assert_eq!(cpu.icc_write(SysReg::ICC_SGI1R_EL1, 1), None);
    let mut data = [0; 4];
    assert_eq!(cpu.read(GICR, &mut data), Err(MmioError::Unmapped(GICR)));
}
