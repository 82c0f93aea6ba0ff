//! Accesses to the registers of a redistributor with as many LPIs as possible, and entries of its
//! vCPU.

use vgic_core::gic::SysReg;
use vgic_core::ids::{LPI_BASE, VcpuId};
use vgic_core::memory::GuestMemory;

use super::guest::{Guest, Has, mapc, rd};
use super::{Size, access};
use crate::its::layout::GICD;

const RWP: u32 = 1 << 3;
const WAKER: u64 = 0x14;
const SLEEP: u32 = 1 << 1;

/// LPIs without an ITS.
pub(super) fn tables(size: Size) {
    let guest = Guest::new(size, Has::DirectLpis);
    guest.enable_all();
    let (rd, vcpu) = (rd(0), VcpuId(0));
    let full = |guest: &Guest| {
        let (at, bytes) = (guest.layout.pending(vcpu), size.lpis as usize / 8);
        let first = u64::from(LPI_BASE / 8);
        guest.ram.write(at + first, &vec![0xff; bytes]).expect("it is memory");
    };
    let rest = |name: &str| while access(name, || guest.bus.work(vcpu)) {};
    full(&guest);
    let enable = "GICR_CTLR.EnableLPIs := 1, pending table full";
    access(enable, || guest.w32(rd, 1));
    for _ in 0..3 {
        access(enable, || guest.r32(rd));
    }
    rest("a piece of the pending table, by the host");
    let invall = "GICR_INVALLR";
    access(invall, || guest.w64(rd + 0xb0, 0));
    while access(invall, || guest.r32(rd + 0xc0)) != 0 {}
    access("GICR_INVLPIR", || guest.w64(rd + 0xa0, (LPI_BASE + 5).into()));
    access("GICR_CLRLPIR", || guest.w64(rd + 0x48, (LPI_BASE + 5).into()));
    access("GICR_SETLPIR", || guest.w64(rd + 0x40, (LPI_BASE + 5).into()));
    let mut guest = guest;
    guest.enter(0, "entry with a full mailbox, of direct LPIs");
    let disable = "GICR_CTLR.EnableLPIs := 0, all pending";
    access(disable, || guest.w32(rd, 0));
    while access(disable, || guest.r32(rd)) & RWP != 0 {}
    guest.enter(0, "entry after EnableLPIs := 0");
    access("GICR_CTLR after all have died", || guest.r32(rd));
    // A table without a set bit is also read to its end.
    let empty = "GICR_CTLR.EnableLPIs := 1, pending table empty";
    access(empty, || guest.w32(rd, 1));
    while access(empty, || guest.bus.work(vcpu)) {}
}

/// LPIs of an ITS, all pending at one vCPU.
pub(super) fn pending(size: Size) {
    let mut guest = Guest::new(size, Has::Its);
    guest.enable_all();
    guest.run((0..size.vcpus).map(|n| mapc(n, n)));
    guest.map_all(0);
    guest.inject_all();
    guest.enter(0, "entry with a full mailbox");
    for (name, reg, on) in
        [("PMR", SysReg::ICC_PMR_EL1, 0xff), ("IGRPEN1", SysReg::ICC_IGRPEN1_EL1, 1)]
    {
        guest.icc(0, &format!("ICC_{name} := 0"), reg, 0);
        guest.icc(0, &format!("ICC_{name} := {on:#x}"), reg, on);
    }
    take_one(&mut guest);
    let rd = rd(0);
    for (name, at, off, on) in
        [("GICR_WAKER", rd + WAKER, SLEEP, 0), ("GICD_CTLR", GICD, 0, 2), ("GICD_CTLR", GICD, 0, 3)]
    {
        for (what, value) in [("off", off), ("on", on)] {
            let name = format!("{name}, {what}");
            access(&name, || guest.w32(at, value));
            guest.enter(0, &format!("{name}: entry"));
        }
    }
    let on = "power on";
    power_off(&mut guest, ", all waiting at the vCPU");
    access(on, || guest.cpus[0].power_on());
    guest.icc(0, "after power on: ICC_PMR := 0xff", SysReg::ICC_PMR_EL1, 0xff);
    guest.icc(0, "after power on: ICC_IGRPEN1 := 1", SysReg::ICC_IGRPEN1_EL1, 1);
    power_off(&mut guest, ", all waiting at the vCPU");
    access(on, || guest.cpus[0].power_on());
    power_off(&mut guest, ", in the midst");
    // All LPIs are queued in the mailbox.
    access("GICR_CTLR.EnableLPIs := 0, powered off", || guest.w32(rd, 0));
    while access("GICR_CTLR.EnableLPIs := 0, powered off", || guest.r32(rd)) & RWP != 0 {}
    guest.cpus[0].power_on();
    guest.w32(rd, 1);
    while guest.bus.work(VcpuId(0)) {}
    guest.inject_all();
    power_off(&mut guest, ", full mailbox");
    guest.cpus[0].power_on();
}

fn power_off(guest: &mut Guest, how: &str) {
    while !access(&format!("power off{how}"), || guest.cpus[0].power_off_some()) {}
}

fn take_one(guest: &mut Guest) {
    let cpu = &mut guest.cpus[0];
    cpu.enter();
    let taken = access("ICC_IAR1", || cpu.icc_read(SysReg::ICC_IAR1_EL1));
    let intid = taken.expect("it can be read");
    let ended = access("ICC_EOIR1", || cpu.icc_write(SysReg::ICC_EOIR1_EL1, intid));
    ended.expect("it can be written");
    cpu.exit();
    guest.enter(0, "entry after an EOI");
}
