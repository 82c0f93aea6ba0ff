//! Device tree nodes of interrupt controllers and timers.
//!
//! ```
//! use vgic_core::gic::MsiFrame;
//! use vgic_kvm::GicV2Map;
//! use vgic_kvm::fdt::{LEVEL_HIGH, Phandles, gicv2, spi, timer};
//! use vgic_kvm::timer::Ppis;
//!
//! let phandles = Phandles { gic: 1, msi: 2 };
//! let msi = Some(MsiFrame { base: 0x0802_0000, first: 80, count: 64 });
//! let map = GicV2Map { distributor: 0x0800_0000, cpu_interface: 0x0801_0000, msi };
//! let mut fdt = vm_fdt::FdtWriter::new()?;
//! let root = fdt.begin_node("")?;
//! gicv2(&mut fdt, &map, phandles)?; // or `KvmGic::write_fdt`, for both
//! timer(&mut fdt, Ppis::default(), 2, phandles.gic)?;
//! let uart = fdt.begin_node("pl011@9000000")?;
//! fdt.property_u32("interrupt-parent", phandles.gic)?;
//! fdt.property_array_u32("interrupts", &spi(33, LEVEL_HIGH))?;
//! fdt.end_node(uart)?;
//! fdt.end_node(root)?;
//! assert!(!fdt.finish()?.is_empty());
//! # Ok::<(), vm_fdt::Error>(())
//! ```

use vgic_core::gic::MsiFrame;
use vm_fdt::{Error, FdtWriter};

use crate::GicV2Map;
use crate::timer::Ppis;

/// First cell of an interrupt specifier: an SPI.
pub const SPI: u32 = 0;
/// First cell of an interrupt specifier: a PPI.
pub const PPI: u32 = 1;
/// First cell of an interrupt specifier: an extended SPI of a GICv3.
pub const ESPI: u32 = 2;
/// Third cell of an interrupt specifier: rising edge.
pub const EDGE_RISING: u32 = 1;
/// Third cell of an interrupt specifier: high level.
pub const LEVEL_HIGH: u32 = 4;

/// The phandles by which other nodes refer to the nodes written here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Phandles {
    /// The interrupt controller's phandle.
    pub gic: u32,
    /// The phandle of the node that receives MSIs.
    pub msi: u32,
}

/// Returns the specifier of the SPI with INTID `intid`: 32 to 1019, or 4096 to 5119 for an extended
/// SPI.
///
/// # Panics
/// If `intid` is not an SPI.
pub const fn spi(intid: u32, flags: u32) -> [u32; 3] {
    match intid {
        32..=1019 => [SPI, intid - 32, flags],
        4096..=5119 => [ESPI, intid - 4096, flags],
        _ => panic!("no SPI has this INTID"),
    }
}

/// Writes the node of a GICv2, with its GICv2m frame if there is one.
///
/// # Errors
/// Those of the writer.
pub fn gicv2(fdt: &mut FdtWriter, map: &GicV2Map, phandles: Phandles) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("intc@{:x}", map.distributor))?;
    fdt.property_string("compatible", "arm,cortex-a15-gic")?;
    controller(fdt, phandles.gic)?;
    fdt.property_array_u64("reg", &[map.distributor, 0x1000, map.cpu_interface, 0x2000])?;
    if let Some(MsiFrame { base, first, count }) = map.msi {
        let frame = fdt.begin_node(&format!("v2m@{base:x}"))?;
        fdt.property_string("compatible", "arm,gic-v2m-frame")?;
        fdt.property_null("msi-controller")?;
        fdt.property_phandle(phandles.msi)?;
        fdt.property_array_u64("reg", &[base, 0x1000])?;
        // The frame itself reports the same values in MSI_TYPER.
        fdt.property_u32("arm,msi-base-spi", first.into())?;
        fdt.property_u32("arm,msi-num-spis", count.into())?;
        fdt.end_node(frame)?;
    }
    fdt.end_node(node)
}

/// Writes the node of a GICv3 with one region of redistributors, and of the ITS if there is one.
/// `redistributors` is the region's address and size.
///
/// # Errors
/// Those of the writer.
pub fn gicv3(
    fdt: &mut FdtWriter,
    distributor: u64,
    redistributors: (u64, u64),
    its: Option<u64>,
    phandles: Phandles,
) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("intc@{distributor:x}"))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    controller(fdt, phandles.gic)?;
    let (base, size) = redistributors;
    fdt.property_array_u64("reg", &[distributor, 0x1_0000, base, size])?;
    fdt.property_u32("#redistributor-regions", 1)?;
    if let Some(base) = its {
        let its = fdt.begin_node(&format!("its@{base:x}"))?;
        fdt.property_string("compatible", "arm,gic-v3-its")?;
        fdt.property_null("msi-controller")?;
        fdt.property_u32("#msi-cells", 1)?;
        fdt.property_phandle(phandles.msi)?;
        fdt.property_array_u64("reg", &[base, 0x2_0000])?;
        fdt.end_node(its)?;
    }
    fdt.end_node(node)
}

fn controller(fdt: &mut FdtWriter, phandle: u32) -> Result<(), Error> {
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_phandle(phandle)
}

/// Writes the node of the timers, for `vcpus` vCPUs.
///
/// # Errors
/// Those of the writer.
pub fn timer(fdt: &mut FdtWriter, ppis: Ppis, vcpus: u16, gic: u32) -> Result<(), Error> {
    // Bits 15:8 of a PPI's flags are a mask of CPUs in GICv2; GICv3 ignores them.
    let flags = ((1u32 << vcpus.min(8)) - 1) << 8 | LEVEL_HIGH;
    // The node also lists the secure and the hypervisor timer, which the guest cannot use, as
    // QEMU's `virt` does.
    let ppis = [29, ppis.ptimer.0, ppis.vtimer.0, 26];
    let cells: Vec<u32> = ppis.iter().flat_map(|n| [PPI, n - 16, flags]).collect();
    let node = fdt.begin_node("timer")?;
    fdt.property_string_list(
        "compatible",
        vec!["arm,armv8-timer".into(), "arm,armv7-timer".into()],
    )?;
    fdt.property_u32("interrupt-parent", gic)?;
    fdt.property_array_u32("interrupts", &cells)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(blob: &[u8], what: &[u8]) -> bool {
        blob.windows(what.len()).any(|w| w == what)
    }

    #[test]
    fn nodes_have_what_linux_looks_for() {
        let phandles = Phandles { gic: 1, msi: 2 };
        let msi = Some(MsiFrame { base: 0x0802_0000, first: 80, count: 64 });
        let map = GicV2Map { distributor: 0x0800_0000, cpu_interface: 0x0801_0000, msi };
        let mut fdt = FdtWriter::new().unwrap();
        let root = fdt.begin_node("").unwrap();
        gicv2(&mut fdt, &map, phandles).unwrap();
        timer(&mut fdt, Ppis::default(), 2, 1).unwrap();
        fdt.end_node(root).unwrap();
        let blob = fdt.finish().unwrap();
        for what in [&b"arm,cortex-a15-gic\0"[..], b"arm,gic-v2m-frame\0", b"arm,armv8-timer\0"] {
            assert!(contains(&blob, what));
        }
        // The virtual timer, PPI 27: number 11, high level, for both vCPUs.
        assert!(contains(&blob, &[0, 0, 0, 1, 0, 0, 0, 11, 0, 0, 3, 4]));
        let mut fdt = FdtWriter::new().unwrap();
        let root = fdt.begin_node("").unwrap();
        gicv3(&mut fdt, 0x0800_0000, (0x080a_0000, 0x4_0000), Some(0x0808_0000), phandles).unwrap();
        fdt.end_node(root).unwrap();
        let blob = fdt.finish().unwrap();
        assert!(contains(&blob, b"arm,gic-v3\0") && contains(&blob, b"arm,gic-v3-its\0"));
    }

    #[test]
    fn specifiers() {
        assert_eq!(spi(33, LEVEL_HIGH), [0, 1, 4]);
        assert_eq!(spi(1019, EDGE_RISING), [0, 987, 1]);
        assert_eq!(spi(4097, EDGE_RISING), [2, 1, 1]);
        assert!(std::panic::catch_unwind(|| spi(27, LEVEL_HIGH)).is_err());
    }
}
