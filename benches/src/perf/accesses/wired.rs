//! SPIs that any vCPU may take, all enabled and pending, with as many vCPUs as possible.

use std::sync::Arc;

use vgic_core::gic::{Affinity, Gic, GicCpu, Model, Setup, SysReg};

use super::guest::{Guest, Has, rd};
use super::{Size, access};
use crate::cost::NoKick;
use crate::its::layout::GICD;
use crate::perf::paths::Shipped;

/// GICD_IROUTER.Interrupt_Routing_Mode.
const IRM: u64 = 1 << 31;
/// ICC_SGI1R_EL1.IRM.
const ALL_OTHERS: u64 = 1 << 40;

/// (name, offset) of the GICD registers that a scene reads and writes.
const WORDS: &[(&str, u64)] = &[
    ("ISENABLER", 0x100),
    ("ISPENDR", 0x200),
    ("ICPENDR", 0x280),
    ("ISACTIVER", 0x300),
    ("ICACTIVER", 0x380),
    ("ICENABLER", 0x180),
    ("ISENABLER", 0x100),
    ("IGROUPR", 0x80),
    ("IPRIORITYR", 0x400),
    ("ICFGR", 0xc00),
    ("ISPENDR", 0x200),
];

pub(super) fn v3(size: Size) {
    let mut guest = Guest::new(size, Has::Spis);
    let (spis, extended) = size.spis;
    // INTIDs from 32, and from 4096.
    let routers = [(0x6000 + 8 * 32, spis), (0x8000, extended)];
    for (base, count) in routers {
        for n in 0..u64::from(count) {
            access("GICD_IROUTER := any", || guest.w64(GICD + base + 8 * n, IRM));
        }
    }
    for (base, count) in [(0x100 + 4, spis), (0x1200, extended)] {
        for n in 0..u64::from(count.div_ceil(32)) {
            guest.w32(GICD + base + 4 * n, u32::MAX);
            guest.w32(GICD + base + 0x100 + 4 * n, u32::MAX);
        }
    }
    turns(&mut guest, "");
    // Only the last vCPU takes interrupts from here on.
    let last = guest.cpus.len() - 1;
    for cpu in &mut guest.cpus[..last] {
        cpu.icc_write(SysReg::ICC_IGRPEN1_EL1, 0).expect("it can be written");
    }
    turns(&mut guest, ", others closed");
    registers(&guest);
    let send = |guest: &mut Guest| guest.cpus[0].icc_write(SysReg::ICC_SGI1R_EL1, ALL_OTHERS);
    access("ICC_SGI1R_EL1.IRM = 1", || send(&mut guest)).expect("it can be written");
    access("ICC_SGI1R_EL1, 16 targets", || {
        guest.cpus[0].icc_write(SysReg::ICC_SGI1R_EL1, 1 << 16 | 0xffff)
    });
    access("GICD_CTLR := 0", || guest.w32(GICD, 0));
    access("GICD_CTLR := 3", || guest.w32(GICD, 3));
    guest.w32(GICD + 0x6000 + 8 * 32, 0);
    access("has_wake_request", || guest.cpus[0].has_wake_request());
}

/// The last vCPU stops taking interrupts, and starts again.
fn turns(guest: &mut Guest, how: &str) {
    let last = guest.cpus.len() - 1;
    for (name, reg, on) in
        [("PMR", SysReg::ICC_PMR_EL1, 0xff), ("IGRPEN1", SysReg::ICC_IGRPEN1_EL1, 1)]
    {
        guest.icc(last, &format!("ICC_{name} := 0{how}"), reg, 0);
        guest.icc(last, &format!("ICC_{name} := {on:#x}{how}"), reg, on);
    }
    let waker = rd(last as u16) + 0x14;
    access(&format!("GICR_WAKER, asleep{how}"), || guest.w32(waker, 2));
    access(&format!("GICR_WAKER, awake{how}"), || guest.w32(waker, 0));
    guest.enter(last, &format!("GICR_WAKER, awake{how}: entry"));
    access(&format!("power off{how}"), || guest.cpus[last].power_off());
    access(&format!("power on{how}"), || guest.cpus[last].power_on());
    guest.icc(last, &format!("ICC_PMR := 0xff{how}"), SysReg::ICC_PMR_EL1, 0xff);
    guest.icc(last, &format!("ICC_IGRPEN1 := 0x1{how}"), SysReg::ICC_IGRPEN1_EL1, 1);
}

fn registers(guest: &Guest) {
    for (name, base) in WORDS {
        let at = GICD + base + if *base == 0x400 { 32 } else { 4 };
        access(&format!("GICD_{name}, read"), || guest.r32(at));
        let value = if *base == 0x80 { 0 } else { u32::MAX };
        access(&format!("GICD_{name}, written"), || guest.w32(at, value));
    }
}

const GICC: u64 = 0x0801_0000;
/// The largest number of vCPUs of a GICv2.
const V2_VCPUS: u32 = 8;

pub(super) fn v2(size: Size) {
    let mut setup = Setup::new(40);
    setup.create(Model::V2).expect("once");
    setup.set_spis(size.spis.0).expect("few enough");
    for n in 0..V2_VCPUS {
        setup.add_vcpu(Affinity(n)).expect("few enough");
    }
    setup.set_distributor(GICD).expect("an address");
    setup.set_cpu_interface(GICC).expect("an address");
    let gic: Gic<Shipped> = setup.init(Arc::new(NoKick)).expect("all is there");
    let ids = (0..V2_VCPUS as u16).map(vgic_core::ids::VcpuId);
    let mut cpus: Vec<_> = ids.map(|id| gic.cpu(id).expect("it is there")).collect();
    for cpu in &mut cpus {
        cpu.power_on();
        write(cpu, GICD, 3);
        write(cpu, GICC + 4, 0xff);
        write(cpu, GICC, 7);
    }
    let spis = u64::from(size.spis.0);
    for n in 0..spis / 4 {
        let targets = "GICD_ITARGETSR := all";
        access(targets, || write(&mut cpus[0], GICD + 0x820 + 4 * n, u32::MAX));
    }
    for n in 0..spis.div_ceil(32) {
        write(&mut cpus[0], GICD + 0x104 + 4 * n, u32::MAX);
        write(&mut cpus[0], GICD + 0x204 + 4 * n, u32::MAX);
    }
    for n in [7, 0] {
        for (name, at, off, on) in [("GICC_PMR", GICC + 4, 0, 0xff), ("GICC_CTLR", GICC, 0, 7)] {
            access(&format!("{name} := 0"), || write(&mut cpus[n], at, off));
            access(&format!("{name} := {on:#x}"), || write(&mut cpus[n], at, on));
        }
        access("power off", || cpus[n].power_off());
        access("power on", || cpus[n].power_on());
        access("GICC_PMR := 0xff", || write(&mut cpus[n], GICC + 4, 0xff));
        access("GICC_CTLR := 0x7", || write(&mut cpus[n], GICC, 7));
    }
    for (name, base) in WORDS {
        let at = GICD + base + if *base == 0x400 { 32 } else { 4 };
        let value = if *base == 0x80 { 0 } else { u32::MAX };
        access(&format!("GICD_{name}, written"), || write(&mut cpus[0], at, value));
    }
    access("GICD_SGIR, all others", || write(&mut cpus[0], GICD + 0xf00, 1 << 24));
    access("GICD_CTLR := 0", || write(&mut cpus[0], GICD, 0));
    access("GICD_CTLR := 3", || write(&mut cpus[0], GICD, 3));
}

fn write(cpu: &mut GicCpu<Shipped>, address: u64, value: u32) {
    cpu.write(address, &value.to_le_bytes()).expect("a word");
}
