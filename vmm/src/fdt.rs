//! The machine's device tree.

use anyhow::Result;
use vgic_kvm::fdt::{LEVEL_HIGH, Phandles, spi};
use vm_fdt::FdtWriter;

use crate::args::Run;
use crate::boot::Layout;
use crate::irq::Irqs;
use crate::map;

const GIC: u32 = 1;
const MSI: u32 = 2;
const CLOCK: u32 = 3;

/// The affinity fields that KVM gives vCPU `n`.
pub(crate) fn mpidr(n: u16) -> u64 {
    u64::from(n & 0xf) | u64::from(n >> 4) << 8
}

/// Writes the device tree.
pub(crate) fn write(run: &Run, layout: &Layout, irqs: &Irqs) -> Result<Vec<u8>> {
    let phandles = Phandles { gic: GIC, msi: MSI };
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    fdt.property_null("dma-coherent")?;

    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", &run.cmdline)?;
    fdt.property_string("stdout-path", &format!("/pl011@{:x}", map::PL011))?;
    if let Some((start, end)) = layout.initrd {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    fdt.end_node(chosen)?;

    let memory = fdt.begin_node(&format!("memory@{:x}", map::RAM))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[map::RAM, run.memory << 20])?;
    fdt.end_node(memory)?;

    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for n in 0..run.smp {
        let cpu = fdt.begin_node(&format!("cpu@{:x}", mpidr(n)))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,arm-v8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", mpidr(n))?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)?;

    let psci = fdt.begin_node("psci")?;
    let compatible = ["arm,psci-1.0", "arm,psci-0.2"].map(String::from).to_vec();
    fdt.property_string_list("compatible", compatible)?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;

    irqs.write_fdt(&mut fdt, run.smp, phandles)?;
    console(&mut fdt)?;
    pci(&mut fdt, irqs)?;
    fdt.end_node(root)?;
    Ok(fdt.finish()?)
}

fn console(fdt: &mut FdtWriter) -> Result<()> {
    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", 24_000_000)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(CLOCK)?;
    fdt.end_node(clock)?;

    let node = fdt.begin_node(&format!("pl011@{:x}", map::PL011))?;
    let compatible = ["arm,pl011", "arm,primecell"].map(String::from).to_vec();
    fdt.property_string_list("compatible", compatible)?;
    fdt.property_array_u64("reg", &[map::PL011, 0x1000])?;
    fdt.property_array_u32("interrupts", &spi(map::PL011_INTID, LEVEL_HIGH))?;
    fdt.property_array_u32("clocks", &[CLOCK, CLOCK])?;
    let names = ["uartclk", "apb_pclk"].map(String::from).to_vec();
    fdt.property_string_list("clock-names", names)?;
    fdt.end_node(node)?;
    Ok(())
}

fn pci(fdt: &mut FdtWriter, irqs: &Irqs) -> Result<()> {
    /// The code of a range of 32-bit memory space.
    const MEM32: u32 = 0x0200_0000;
    let node = fdt.begin_node(&format!("pcie@{:x}", map::ECAM))?;
    fdt.property_string("compatible", "pci-host-ecam-generic")?;
    fdt.property_string("device_type", "pci")?;
    fdt.property_u32("#address-cells", 3)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("linux,pci-domain", 0)?;
    fdt.property_array_u32("bus-range", &[0, (map::ECAM_SIZE >> 20) as u32 - 1])?;
    fdt.property_array_u64("reg", &[map::ECAM, map::ECAM_SIZE])?;
    let (at, size) = (map::PCI_MMIO as u32, map::PCI_MMIO_SIZE as u32);
    fdt.property_array_u32("ranges", &[MEM32, 0, at, 0, at, 0, size])?;
    fdt.property_null("dma-coherent")?;
    if irqs.has_its() {
        // RequesterIDs are used as DeviceIDs.
        fdt.property_array_u32("msi-map", &[0, MSI, 0, 0x1_0000])?;
    } else {
        fdt.property_u32("msi-parent", MSI)?;
    }
    fdt.end_node(node)?;
    Ok(())
}
