//! Every offset, every width, a few values, on every frame: nothing panics, and nothing but the architecture's errors comes out.

use crate::world::*;
use vgic_core::MmioError;
use vgic_core::ids::VcpuId;

const VALUES: [u64; 4] = [0, u64::MAX, 0x0102_0408_1020_4080, 0xffff_0000_8000_0001];

fn expected(address: u64, bytes: u64, wider: bool) -> Result<(), MmioError> {
    if !address.is_multiple_of(bytes) {
        return Err(MmioError::Unaligned(address));
    }
    // No register takes doublewords; where nothing is, nothing is refused.
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

// T24, T26.
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

/// With interrupts of all kinds about, and nobody who ends them.
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
    // The CPU interface is a vCPU's own.
    let bus = w.gic.bus().unwrap();
    assert_eq!(bus.read(VcpuId(0), GICC, &mut [0; 4]), Err(MmioError::Unmapped(GICC)));
    assert_eq!(bus.read(VcpuId(1), GICD, &mut [0; 4]), Err(MmioError::Unmapped(GICD)));
    assert_eq!(bus.read(VcpuId(0), GICD, &mut [0; 4]), Ok(()));
}
