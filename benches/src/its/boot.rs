//! Register writes of firmware and of a guest's kernel before the first ITS command.

use vgic_core::engine::Engine;
use vgic_core::gic::GicBus;
use vgic_core::ids::VcpuId;

use super::driver::CWRITER;
use super::layout::{GICD, GITS, Layout, QUEUE_SIZE, TABLE_PAGE};

/// GICD_CTLR.EnableGrp1.
const ENABLE_GROUP1: u32 = 1 << 1;
/// Offset of GICR_WAKER in RD_base; the next two are GICR_PROPBASER and GICR_PENDBASER.
const WAKER: u64 = 0x14;
const PROPBASER: u64 = 0x70;
const PENDBASER: u64 = 0x78;
/// GICR_PENDBASER.PTZ: the table is all zero.
const PTZ: u64 = 1 << 62;
/// GICR_CTLR.EnableLPIs and GITS_CTLR.Enabled.
const ENABLED: u32 = 1;

const CBASER: u64 = GITS + 0x80;
/// GITS_BASER registers of the device table and of the collection table.
const BASERS: [u64; 2] = [GITS + 0x100, GITS + 0x108];
const VALID: u64 = 1 << 63;
const INDIRECT: u64 = 1 << 62;
/// GITS_BASER.Page_Size for pages of 64 KiB. 0 means 4 KiB.
const PAGES_64K: u64 = 2 << 8;
/// GITS_CBASER.Size: the number of 4 KiB pages, minus one.
const QUEUE_PAGES: u64 = QUEUE_SIZE / 0x1000 - 1;

/// Enables Group 1, LPIs at every redistributor, and the ITS.
pub(crate) fn boot<E: Engine>(bus: &GicBus<E>, layout: &Layout, vcpus: u16) {
    let word = |address, value: u32| write(bus, address, &value.to_le_bytes());
    let double = |address, value: u64| write(bus, address, &value.to_le_bytes());
    word(GICD, ENABLE_GROUP1);
    for vcpu in (0..vcpus).map(VcpuId) {
        let redist = Layout::redist(vcpu);
        word(redist + WAKER, 0);
        double(redist + PROPBASER, layout.properties() | u64::from(layout.id_bits - 1));
        double(redist + PENDBASER, layout.pending(vcpu) | PTZ);
        word(redist, ENABLED);
    }
    double(CBASER, VALID | layout.queue | QUEUE_PAGES);
    double(CWRITER, 0);
    let indirect = if layout.is_indirect() { INDIRECT } else { 0 };
    debug_assert_eq!(TABLE_PAGE, 0x1000, "Page_Size is 0");
    double(BASERS[0], VALID | indirect | layout.devices | (layout.device_pages - 1));
    double(BASERS[1], VALID | layout.collections | PAGES_64K);
    word(GITS, ENABLED);
    let mut ctlr = [0; 4];
    bus.read(VcpuId(0), GITS, &mut ctlr).expect("a register");
    assert_eq!(u32::from_le_bytes(ctlr), ENABLED, "the ITS has all that it wants");
}

fn write<E: Engine>(bus: &GicBus<E>, address: u64, data: &[u8]) {
    bus.write(VcpuId(0), address, data).expect("a register");
}
