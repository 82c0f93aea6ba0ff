//! Bugs of other GICs, with their numbers in the list of known bugs.

use crate::world::*;
use std::sync::Arc;
use vgic_core::engine::*;
use vgic_core::gic::SysReg;
use vgic_core::ids::*;

// GICD_TYPER.ITLinesNumber is the number of INTIDs divided by 32, minus one.
#[test]
fn t25_itlinesnumber() {
    for (spis, lines) in [(0, 0), (32, 1), (64, 2), (256, 8), (960, 30), (988, 31)] {
        let mut w = World::new(1, spis);
        assert_eq!(w.get(0, TYPER) & 0x1f, lines, "{spis} SPIs");
    }
}

#[test]
fn t28_a_byte_write_changes_one_priority() {
    let mut w = World::new(2, 64);
    for (n, neighbours) in [(0, 0), (30, 28), (32, 32), (45, 44), (95, 92)] {
        w.set(0, IPRIORITYR + neighbours, 0x8070_6050);
        w.set8(0, IPRIORITYR + n, 0xd8);
        let shift = 8 * (n - neighbours);
        let expected = 0x8070_6050 & !(0xff << shift) | 0xd8 << shift;
        assert_eq!(w.get(0, IPRIORITYR + neighbours), expected);
        assert_eq!(w.get8(0, IPRIORITYR + n), 0xd8);
    }
}

#[test]
fn t28_a_disabled_interrupt_is_never_acknowledged() {
    let mut w = World::ready(2, 64);
    w.enable(40, 0);
    w.enable(41, 0);
    w.line(40, true);
    w.line(41, true);
    w.cpus[0].enter();
    // SPI 40 is in a list register, and then disabled before the guest takes it.
    w.cpus[0].exit();
    w.set_bit(1, ICENABLER, 40);
    assert_eq!(w.get(0, IAR), 41);
    assert_eq!(w.get(0, IAR), NONE);
    assert!(w.bit(0, ISPENDR, 40));
    w.set(0, EOIR, 41);
    w.line(41, false);
    assert!(!w.irq(0));
    // An interrupt of another CPU is not signaled either.
    w.enable(40, 1);
    assert!(!w.irq(0) && w.irq(1));
}

#[test]
fn t28_a_level_still_asserted_is_pending_again_after_the_end() {
    let mut w = World::ready(1, 64);
    w.enable(40, 0);
    w.line(40, true);
    for _ in 0..3 {
        assert_eq!(w.get(0, IAR), 40);
        assert_eq!(w.get(0, IAR), NONE);
        assert!(w.bit(0, ISPENDR, 40));
        w.set(0, EOIR, 40);
    }
    assert_eq!(w.get(0, IAR), 40);
    w.line(40, false);
    w.set(0, EOIR, 40);
    assert_eq!(w.get(0, IAR), NONE);
    assert!(!w.irq(0) && !w.bit(0, ISPENDR, 40));
}

#[test]
fn t28_priority_and_target_decide() {
    let mut w = World::ready(2, 64);
    for (intid, priority, target) in [(40, 0x80, 0), (41, 0x20, 0), (42, 0x10, 1), (43, 0x40, 0)] {
        w.edge(intid);
        w.set8(0, IPRIORITYR + u64::from(intid), priority);
        w.enable(intid, target);
        w.set_bit(0, ISPENDR, intid);
    }
    assert_eq!((w.serve(0), w.serve(1)), (vec![41, 43, 40], vec![42]));
}

// More interrupts than list registers are pending at once. The least urgent comes first.
#[test]
fn t28_priority_decides_who_gets_a_list_register() {
    let mut w = World::ready(2, 64);
    let spis = 32..60;
    for intid in spis.clone() {
        w.edge(intid);
        w.set8(0, IPRIORITYR + u64::from(intid), (60 - intid) as u8 * 8);
        w.enable(intid, 1);
    }
    for intid in spis.clone() {
        let _ = w.injector.pulse(Wired::Spi(Intid(intid))).unwrap();
    }
    assert_eq!(w.serve(1), spis.rev().collect::<Vec<u32>>());
}

// INTID 1019 is in the last, partial register.
#[test]
fn t28_an_intid_in_the_last_partial_register() {
    let mut w = World::ready(2, 988);
    for intid in [992, 1018, 1019] {
        w.edge(intid);
        w.set8(0, IPRIORITYR + u64::from(intid), 0x40);
        assert_eq!(w.get8(0, IPRIORITYR + u64::from(intid)), 0x40);
        w.enable(intid, 1);
        assert_eq!(w.get8(0, ITARGETSR + u64::from(intid)), 2);
        w.line(intid, true);
        assert!(w.bit(0, ISPENDR, intid));
        assert_eq!(w.serve(1), [intid]);
    }
    assert!(w.injector.set_level(Wired::Spi(Intid(1020)), true).is_err());
}

// One system cut INTIDs to 8 bits.
#[test]
fn t34_intids_keep_all_their_bits() {
    let mut w = World::ready(1, 988);
    w.set(0, C_CTLR, EN0 | EOI_MODE);
    for intid in [44, 300, 511, 556, 812, 1019] {
        w.edge(intid);
        w.enable(intid, 0);
        w.set_bit(0, ISPENDR, intid);
        assert_eq!((w.get(0, HPPIR), w.get(0, IAR)), (intid, intid));
        w.set(0, EOIR, intid);
        assert!(w.bit(0, ISACTIVER, intid));
        w.set(0, DIR, intid & 0xff);
        assert_eq!(w.bit(0, ISACTIVER, intid), intid > 0xff);
        w.set(0, DIR, intid);
        assert!(!w.bit(0, ISACTIVER, intid));
    }
}

#[test]
fn t35_raised_while_disabled_stays_pending_until_enabled() {
    let mut w = World::ready(1, 64);
    w.edge(40);
    for intid in [40, 41] {
        w.line(intid, true);
        assert!(!w.irq(0) && w.bit(0, ISPENDR, intid));
    }
    // The edge is latched, the level is not.
    w.line(40, false);
    w.line(41, false);
    w.enable(40, 0);
    w.enable(41, 0);
    assert_eq!(w.serve(0), [40]);
}

#[test]
fn t35_injection_before_the_guest_set_anything_up() {
    let mut w = World::new(2, 64);
    for intid in 32..96 {
        w.line(intid, true);
        let _ = w.injector.pulse(Wired::Spi(Intid(intid))).unwrap();
    }
    let _ = w.injector.pulse(Wired::Private(VcpuId(1), Intid(27))).unwrap();
    for cpu in 0..2 {
        assert!(!w.irq(cpu) && !w.fiq(cpu));
        assert_eq!((w.get(cpu, IAR), w.get(cpu, HPPIR)), (NONE, NONE));
    }
    assert_eq!((w.get(0, ISPENDR + 4), w.get(0, ISPENDR + 8)), (u32::MAX, u32::MAX));
}

// Each step of a guest's set-up is needed, in any order: nothing is taken before the last step.
#[test]
fn t35_no_delivery_before_the_last_step_of_the_set_up() {
    let steps: [(u64, u32); 5] = [
        (PMR, 0xff),
        (C_CTLR, EN0),
        (CTLR, 1),
        (ISENABLER + 4, 1 << 18),
        (ITARGETSR + 48, 1 << 16),
    ];
    for last in 0..steps.len() {
        let mut w = World::new(2, 64);
        w.line(50, true);
        for (n, &(register, value)) in steps.iter().enumerate() {
            if n != last {
                w.set(0, register, value);
                assert!(!w.irq(0) && w.get(0, IAR) == NONE, "{n} before {last}");
            }
        }
        w.set(0, steps[last].0, steps[last].1);
        assert_eq!(w.get(0, IAR), 50);
    }
}

// Injection works before the host has taken any vCPU with `Gic::cpu`.
#[test]
fn t35_injection_before_there_are_vcpus() {
    let gic = machine(2, 64);
    let injector = gic.engine().injector().unwrap();
    let _ = injector.pulse(Wired::Spi(Intid(40))).unwrap();
    let bus = gic.bus().unwrap();
    bus.write(VcpuId(0), ISENABLER + 4, &[0, 1, 0, 0]).unwrap();
    bus.write(VcpuId(0), ITARGETSR + 40, &[2]).unwrap();
    bus.write(VcpuId(0), CTLR, &[1]).unwrap();
    let mut cpu = gic.cpu(VcpuId(1)).unwrap();
    cpu.power_on();
    for (address, value) in [(PMR, 0xff_u32), (C_CTLR, 1)] {
        cpu.write(address, &value.to_le_bytes()).unwrap();
    }
    cpu.enter();
    assert!(cpu.irq_line());
}

// System registers do not exist on a GICv2, nor do GICv3's frames.
#[test]
fn t11_system_registers_are_absent() {
    let mut w = World::ready(1, 32);
    for op1 in 0..8 {
        for crm in 0..16 {
            for op2 in 0..8 {
                for crn in [4, 12] {
                    let reg = SysReg { op0: 3, op1, crn, crm, op2 };
                    assert_eq!(w.cpus[0].icc_read(reg), None);
                    assert_eq!(w.cpus[0].icc_write(reg, u64::MAX), None);
                }
            }
        }
    }
    assert_eq!((w.get(0, C_CTLR), w.get(0, PMR)), (EN0, 0xf8));
}

#[test]
fn t11_frames_of_the_other_model_are_absent() {
    use vgic_core::gic::{Affinity, Model, MsiFrame, Setup, SetupError};
    let mut v2 = Setup::new(40);
    v2.create(Model::V2).unwrap();
    assert_eq!(v2.add_redistributors(0x0a00_0000, 1), Err(SetupError::WrongModel));
    assert_eq!(v2.set_extended(32, 32), Err(SetupError::WrongModel));
    let mut v3 = Setup::new(40);
    v3.create(Model::V3).unwrap();
    v3.add_vcpu(Affinity(0)).unwrap();
    assert_eq!(v3.set_cpu_interface(GICC), Err(SetupError::WrongModel));
    let frame = MsiFrame { base: V2M, first: 40, count: 1 };
    assert_eq!(v3.add_msi_frame(frame), Err(SetupError::WrongModel));
    v3.set_distributor(GICD & !0xffff).unwrap();
    v3.add_redistributors(0x0a00_0000, 1).unwrap();
    struct NoKick;
    impl Kick for NoKick {
        fn kick(&self, _: VcpuId) {}
    }
    let gic = v3.init::<crate::Vgic>(Arc::new(NoKick)).unwrap();
    let mut cpu = gic.cpu(VcpuId(0)).unwrap();
    assert!(cpu.read(GICC, &mut [0; 4]).is_err());
}
