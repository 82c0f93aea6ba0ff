//! Every offset, every width and a few values, on every frame: nothing panics, and accesses return
//! no errors but those of the architecture.

use crate::world::*;
use vgic_core::MmioError;
use vgic_core::ids::VcpuId;

/// The last value names an SPI of the GICv2m frame in each half-word.
const VALUES: [u64; 5] =
    [0, u64::MAX, 0x0102_0408_1020_4080, 0xffff_0000_8000_0001, 0x0052_0052_0052_0052];

fn expected(address: u64, bytes: u64, wider: bool) -> Result<(), MmioError> {
    if !address.is_multiple_of(bytes) {
        return Err(MmioError::Unaligned(address));
    }
    // Registers refuse doublewords. Offsets without a register refuse no width.
    if wider { Err(MmioError::Width(address, bytes as usize)) } else { Ok(()) }
}

fn sweep(w: &mut World, base: u64, size: u64) {
    let cpus = w.cpus.len();
    for offset in 0..size {
        let address = base + offset;
        for (n, value) in VALUES.iter().enumerate() {
            let cpu = (offset as usize + n) % cpus;
            for bytes in [1, 2, 4] {
                let data = &value.to_le_bytes()[..bytes];
                let allowed = expected(address, bytes as u64, false);
                assert_eq!(w.try_set(cpu, address, data), allowed, "{address:#x}");
                let read = match bytes {
                    1 => w.try_get::<1>(cpu, address).map(drop),
                    2 => w.try_get::<2>(cpu, address).map(drop),
                    _ => w.try_get::<4>(cpu, address).map(drop),
                };
                assert_eq!(read, allowed, "{address:#x}");
            }
            let double = w.try_set(cpu, address, &value.to_le_bytes());
            assert!(
                double == expected(address, 8, false) || double == expected(address, 8, true),
                "{address:#x}: {double:?}"
            );
            assert_eq!(w.try_get::<8>(cpu, address).map(drop), double);
        }
        assert_eq!(w.try_get::<3>(0, address), Err(MmioError::Width(address, 3)));
        assert_eq!(w.try_set(0, address, &[]), Err(MmioError::Width(address, 0)));
    }
}

/// Checks a frame outside `registers`, a list of offsets and lengths in bytes. Those are the
/// readable registers (IHI 0048B, tables 4-1 and 4-2) of the interrupts that exist. All other
/// offsets read as zero after any write, and no write to them changes `others`.
fn nothing_else(w: &mut World, base: u64, size: u64, registers: &[(u64, u64)], others: &[u64]) {
    let is_register =
        |offset| registers.iter().any(|&(first, len)| (first..first + len).contains(&offset));
    let cpus = w.cpus.len();
    let snapshot = |w: &mut World| -> Vec<u32> {
        others
            .iter()
            .flat_map(|&a| (0..cpus).map(move |n| (n, a)))
            .map(|(n, a)| w.get(n, a))
            .collect()
    };
    let before = snapshot(w);
    for offset in (0..size).filter(|&offset| !is_register(offset)) {
        let address = base + offset;
        for (n, value) in VALUES.iter().enumerate() {
            let cpu = (offset as usize + n) % cpus;
            for bytes in [1, 2, 4] {
                let written = w.try_set(cpu, address, &value.to_le_bytes()[..bytes]);
                let read = match bytes {
                    1 => w.try_get::<1>(cpu, address).map(|data| data == [0; 1]),
                    2 => w.try_get::<2>(cpu, address).map(|data| data == [0; 2]),
                    _ => w.try_get::<4>(cpu, address).map(|data| data == [0; 4]),
                };
                assert_eq!(read, written.map(|()| true), "{address:#x} in {bytes}");
            }
        }
    }
    assert_eq!(snapshot(w), before);
}

/// The readable registers of a distributor with SPIs 32 to 95: offsets and lengths in bytes.
const DISTRIBUTOR: &[(u64, u64)] = &[
    (0x0, 0xc),
    (0x80, 12),
    (0x100, 12),
    (0x180, 12),
    (0x200, 12),
    (0x280, 12),
    (0x300, 12),
    (0x380, 12),
    (0x400, 96),
    (0x800, 96),
    (0xc00, 24),
    (0xf10, 0x20),
    (0xfd0, 0x30),
];
/// The readable registers of a CPU interface, with one active-priorities register of each group.
const CPU_INTERFACE: &[(u64, u64)] =
    &[(0x0, 0x10), (0x14, 0x10), (0x28, 4), (0xd0, 4), (0xe0, 4), (0xfc, 4)];
/// The readable registers of a GICv2m frame.
const MSI_FRAME: &[(u64, u64)] = &[(0x8, 4), (0xfcc, 4)];

// T24: an offset without a register stores nothing, and is no alias of a register.
#[test]
fn t24_nothing_is_where_no_register_is() {
    let mut w = World::ready(3, 64);
    let all = DISTRIBUTOR.iter().flat_map(|&(first, len)| (first..first + len).step_by(4));
    let mut state: Vec<u64> = all.map(|offset| GICD + offset).collect();
    // These registers of the CPU interface do not change when they are read.
    state.extend([0, 4, 8, 0x14, 0x18, 0x1c, 0x28, 0xd0, 0xe0, 0xfc].map(|offset| GICC + offset));
    for word in 1..3 {
        w.set(0, ISENABLER + 4 * word, 0x0f0f_0f0f);
        w.set(0, ISPENDR + 4 * word, 0x3333_3333);
        w.set(0, ICFGR + 8 * word, 0x8888_8888);
    }
    // SGIR is excluded, because a write sends an SGI.
    let distributor = &[DISTRIBUTOR, &[(0xf00, 4)]].concat();
    nothing_else(&mut w, GICD, 0x1000, distributor, &state);
    // EOIR, AEOIR and DIR are excluded, because they end active interrupts.
    for cpu in 0..3 {
        w.set(cpu, GICC + 0xd0, 0x10);
        w.set(cpu, GICC + 0xe0, 0x20);
    }
    let cpu_interface = &[CPU_INTERFACE, &[(0x10, 4), (0x24, 4), (0x1000, 4)]].concat();
    nothing_else(&mut w, GICC, 0x2000, cpu_interface, &state);
    // SETSPI is excluded, because a write raises an SPI.
    let msi = &[MSI_FRAME, &[(0x40, 4)]].concat();
    nothing_else(&mut w, V2M, 0x1000, msi, &state);
    w.set(0, V2M + 0x40, 0);
    assert_eq!(w.get(0, V2M + 0x40), 0);
}

// T24 and T26.
#[test]
fn t24_every_offset_width_and_value_distributor() {
    for (vcpus, spis) in [(1, 0), (8, 988)] {
        sweep(&mut World::ready(vcpus, spis), GICD, 0x1000);
    }
}

#[test]
fn t24_every_offset_width_and_value_cpu_interface_and_msi_frame() {
    for (vcpus, spis) in [(1, 64), (8, 988)] {
        let mut w = World::ready(vcpus, spis);
        sweep(&mut w, GICC, 0x2000);
        sweep(&mut w, V2M, 0x1000);
    }
}

/// Interrupts of all kinds are pending, and no guest ends them.
#[test]
fn t24_writes_while_everything_is_pending() {
    let mut w = World::ready(3, 64);
    for word in 0..3 {
        w.set(0, ISENABLER + 4 * word, u32::MAX);
    }
    for n in (32..96).step_by(4) {
        w.set(0, ITARGETSR + n, 0x0102_0407);
    }
    for spi in 32..96 {
        w.line(spi, true);
    }
    for cpu in 0..3 {
        w.set(cpu, SGIR, 0xff << 16 | 1);
        let _ = w.get(cpu, IAR);
    }
    sweep(&mut w, GICC, 0x40);
    sweep(&mut w, GICC + 0x1000, 4);
    sweep(&mut w, GICD, 0x1000);
}

#[test]
fn outside_of_all_frames() {
    let mut w = World::new(1, 64);
    for address in [0, GICD - 4, GICD + 0x1000, GICC + 0x2000, V2M + 0x1000, u64::MAX - 3] {
        assert_eq!(w.try_get::<4>(0, address), Err(MmioError::Unmapped(address)));
        assert_eq!(w.try_set(0, address, &[0; 4]), Err(MmioError::Unmapped(address)));
    }
    // Each vCPU has its own CPU interface, which the bus does not reach.
    let bus = w.gic.bus().unwrap();
    assert_eq!(bus.read(VcpuId(0), GICC, &mut [0; 4]), Err(MmioError::Unmapped(GICC)));
    assert_eq!(bus.read(VcpuId(1), GICD, &mut [0; 4]), Err(MmioError::Unmapped(GICD)));
    assert_eq!(bus.read(VcpuId(0), GICD, &mut [0; 4]), Ok(()));
}
