//! GICv2m frames (Server Base System Architecture, appendix E).

use crate::world::*;

const MSI_TYPER: u64 = V2M + 0x008;
const MSI_SETSPI: u64 = V2M + 0x040;
const MSI_IIDR: u64 = V2M + 0xfcc;

#[test]
fn identification() {
    let mut w = World::new(1, 64);
    assert_eq!(w.get(0, MSI_TYPER), 80 << 16 | 16);
    assert_eq!((w.get(0, MSI_IIDR), w.get(0, MSI_SETSPI)), (0x43b, 0));
    for n in (0xfd0..0x1000).step_by(4) {
        assert_eq!(w.get(0, V2M + n), 0);
    }
    w.set(0, MSI_TYPER, 0);
    w.set(0, MSI_IIDR, 0);
    assert_eq!((w.get(0, MSI_TYPER), w.get(0, MSI_IIDR)), (80 << 16 | 16, 0x43b));
}

#[test]
fn spis_of_a_frame_are_edge_triggered() {
    let mut w = World::new(1, 64);
    // SPIs 80 to 95 belong to the frame.
    assert_eq!((w.get(0, ICFGR + 16), w.get(0, ICFGR + 20)), (0, 0xaaaa_aaaa));
}

#[test]
fn a_write_raises_an_spi_of_the_frame_once() {
    let mut w = World::ready(2, 64);
    for spi in 32..96 {
        w.enable(spi, 1);
    }
    for spi in [0, 32, 79, 96, 63, 64, 1023] {
        w.set(0, MSI_SETSPI, spi);
    }
    assert!(w.serve(1).is_empty());
    w.set(0, MSI_SETSPI, 80);
    w.set(1, MSI_SETSPI, 95);
    w.set(1, MSI_SETSPI, 95);
    assert_eq!(w.serve(1), [80, 95]);
    assert!(w.serve(0).is_empty() && w.serve(1).is_empty());
}

#[test]
fn widths() {
    let mut w = World::ready(1, 64);
    for spi in 32..96 {
        w.enable(spi, 0);
    }
    w.set8(0, MSI_SETSPI, 80);
    w.set16(0, MSI_SETSPI + 2, 81);
    w.set(0, MSI_SETSPI + 4, 82);
    assert!(w.serve(0).is_empty());
    w.set16(0, MSI_SETSPI, 83);
    assert_eq!(w.serve(0), [83]);
    assert!(w.try_set(0, MSI_SETSPI, &[84, 0, 0, 0, 0, 0, 0, 0]).is_err());
}

/// A device writes through the bus while the vCPU is in the guest.
#[test]
fn devices_write_through_the_bus() {
    use vgic_core::ids::VcpuId;
    let mut w = World::ready(1, 64);
    w.enable(87, 0);
    let bus = w.gic.bus().unwrap();
    w.cpus[0].enter();
    bus.write(VcpuId(0), MSI_SETSPI, &87_u32.to_le_bytes()).unwrap();
    assert!(w.cpus[0].has_mail());
    w.cpus[0].exit();
    assert_eq!(w.serve(0), [87]);
}
