//! The registers of the distributor, one by one.

use crate::world::*;
use vgic_core::engine::{Injector, Wired};
use vgic_core::ids::{Intid, VcpuId};

// 4.3.1: two enables, shared by all CPUs; the other bits are reserved.
#[test]
fn ctlr() {
    let mut w = World::new(2, 64);
    assert_eq!(w.get(0, CTLR), 0);
    w.set(1, CTLR, u32::MAX);
    assert_eq!((w.get(0, CTLR), w.get8(0, CTLR), w.get16(1, CTLR)), (3, 3, 3));
    w.set8(0, CTLR + 1, 0xff);
    w.set16(0, CTLR + 2, 0);
    assert_eq!(w.get(0, CTLR), 3);
    w.set8(0, CTLR, 2);
    assert_eq!(w.get(0, CTLR), 2);
}

// 4.3.1: interrupts of a disabled group are not forwarded. Enabling the group forwards them at
// once.
#[test]
fn ctlr_gates_each_group() {
    let mut w = World::ready(1, 64);
    w.set(0, C_CTLR, EN0 | EN1 | ACK_CTL);
    w.enable(34, 0);
    w.enable(35, 0);
    w.set_bit(0, IGROUPR, 35);
    w.set(0, CTLR, 0);
    w.line(34, true);
    w.line(35, true);
    assert_eq!((w.get(0, HPPIR), w.irq(0)), (NONE, false));
    w.set(0, CTLR, 2);
    assert_eq!(w.get(0, HPPIR), 35);
    w.set(0, CTLR, 1);
    assert_eq!(w.get(0, HPPIR), 34);
    w.set(0, CTLR, 0);
    assert_eq!(w.get(0, HPPIR), NONE);
    w.set(0, CTLR, 3);
    assert!(w.irq(0));
    w.line(34, false);
    assert_eq!(w.get(0, IAR), 35);
}

// 4.3.2, 4.3.3, 4.3.18: the identification registers.
#[test]
fn identification() {
    for vcpus in [1, 2, 8] {
        let mut w = World::new(vcpus, 64);
        assert_eq!(w.get(0, TYPER), u32::from(vcpus - 1) << 5 | 2);
        assert_eq!(w.get(0, IIDR) & 0xfff, 0x43b);
        let ids: Vec<u32> = (0..12).map(|n| w.get(0, GICD + 0xfd0 + 4 * n)).collect();
        assert_eq!(ids, [4, 0, 0, 0, 0x90, 0xb4, 0x2b, 0, 0xd, 0xf0, 5, 0xb1]);
        for address in [TYPER, IIDR, PIDR2] {
            let before = w.get(0, address);
            w.set(0, address, !before);
            assert_eq!(w.get(0, address), before);
            assert_eq!(w.get8(0, address), before as u8);
        }
        w.set(0, NSACR, u32::MAX);
        assert_eq!((w.get(0, NSACR), w.get(0, SGIR)), (0, 0));
    }
}

// 4.3.4: the groups are banked for private interrupts.
#[test]
fn groups() {
    let mut w = World::new(2, 64);
    assert_eq!((w.get(0, IGROUPR), w.get(0, IGROUPR + 4)), (0, 0));
    w.set(0, IGROUPR, 0xffff_0001);
    w.set(1, IGROUPR + 4, 0x8000_0010);
    assert_eq!((w.get(0, IGROUPR), w.get(1, IGROUPR)), (0xffff_0001, 0));
    assert_eq!((w.get(0, IGROUPR + 4), w.get(1, IGROUPR + 4)), (0x8000_0010, 0x8000_0010));
    w.set8(0, IGROUPR + 7, 0x01);
    assert_eq!(w.get(0, IGROUPR + 4), 0x0100_0010);
    w.set16(0, IGROUPR + 4, 0);
    assert_eq!((w.get(0, IGROUPR + 4), w.get8(0, IGROUPR + 7)), (0x0100_0000, 1));
    assert_eq!(w.get16(0, IGROUPR + 6), 0x0100);
}

// 4.3.5, 4.3.6: SGIs are always enabled; PPIs are banked; writing 0 does nothing.
#[test]
fn enables() {
    let mut w = World::new(2, 64);
    assert_eq!(w.get(0, ISENABLER), 0xffff);
    w.set(0, ICENABLER, u32::MAX);
    assert_eq!((w.get(0, ISENABLER), w.get(0, ICENABLER)), (0xffff, 0xffff));
    w.set(0, ISENABLER, 1 << 27 | 1 << 30);
    assert_eq!((w.get(0, ICENABLER), w.get(1, ISENABLER)), (0x4800_ffff, 0xffff));
    w.set(0, ISENABLER + 4, 0x8000_0001);
    w.set(1, ISENABLER + 4, 0x10);
    w.set(1, ISENABLER + 4, 0);
    assert_eq!((w.get(0, ISENABLER + 4), w.get(1, ICENABLER + 4)), (0x8000_0011, 0x8000_0011));
    w.set(0, ICENABLER + 4, 0x11);
    assert_eq!(w.get(0, ISENABLER + 4), 0x8000_0000);
    w.set8(0, ISENABLER + 5, 0xff);
    w.set16(0, ICENABLER + 6, 0xffff);
    assert_eq!((w.get(0, ISENABLER + 4), w.get8(0, ISENABLER + 5)), (0xff00, 0xff));
}

// 4.3.12: an SPI without a target stays pending, and the enable in ISENABLER is independent of the
// targets.
#[test]
fn enables_without_targets() {
    let mut w = World::ready(2, 64);
    w.set_bit(0, ISENABLER, 40);
    w.line(40, true);
    assert!(w.bit(0, ISENABLER, 40) && w.bit(0, ISPENDR, 40));
    assert!(!w.irq(0) && !w.irq(1));
    w.set8(0, ITARGETSR + 40, 0b10);
    assert!(!w.irq(0) && w.irq(1));
    w.set8(0, ITARGETSR + 40, 0);
    assert!(!w.irq(0) && !w.irq(1) && w.bit(0, ISENABLER, 40));
    w.set_bit(0, ICENABLER, 40);
    w.set8(0, ITARGETSR + 40, 1);
    assert!(!w.irq(0) && !w.bit(0, ISENABLER, 40));
}

// 4.3.7, 4.3.8: writes set and clear the latch; the level that the line asserts stays.
#[test]
fn pending_level_sensitive() {
    let mut w = World::ready(1, 64);
    w.enable(33, 0);
    w.set_bit(0, ISPENDR, 33);
    assert!(w.bit(0, ISPENDR, 33) && w.bit(0, ICPENDR, 33) && w.irq(0));
    w.set_bit(0, ICPENDR, 33);
    assert!(!w.bit(0, ISPENDR, 33) && !w.irq(0));
    w.line(33, true);
    w.set_bit(0, ISPENDR, 33);
    w.set_bit(0, ICPENDR, 33);
    assert!(w.bit(0, ISPENDR, 33) && w.irq(0));
    // The latch stays set when the line falls.
    w.set_bit(0, ISPENDR, 33);
    w.line(33, false);
    assert!(w.bit(0, ISPENDR, 33));
    assert_eq!(w.serve(0), [33]);
    assert!(!w.bit(0, ISPENDR, 33));
}

#[test]
fn pending_edge_triggered() {
    let mut w = World::ready(1, 64);
    w.enable(33, 0);
    w.edge(33);
    w.line(33, true);
    assert!(w.bit(0, ISPENDR, 33));
    w.set_bit(0, ICPENDR, 33);
    assert!(!w.bit(0, ISPENDR, 33) && !w.irq(0));
    w.line(33, false);
    assert!(!w.bit(0, ISPENDR, 33));
    w.line(33, true);
    w.line(33, false);
    assert_eq!(w.serve(0), [33]);
    w.set8(0, ISPENDR + 4, 0b10);
    assert_eq!(w.serve(0), [33]);
}

// 4.3.7, 4.3.8: the pending bits are banked for PPIs, and read-only for SGIs.
#[test]
fn pending_private() {
    let mut w = World::ready(2, 64);
    w.set(1, ISPENDR, u32::MAX);
    assert_eq!((w.get(0, ISPENDR), w.get(1, ISPENDR)), (0, 0xffff_0000));
    w.set(1, ICPENDR, 0x7fff_ffff);
    assert_eq!((w.get(1, ICPENDR), w.get(0, ICPENDR)), (0x8000_0000, 0));
}

#[test]
fn sgis_are_pending_but_not_by_ispendr() {
    let mut w = World::ready(2, 64);
    w.set(0, SGIR, 1 << 17 | 3);
    assert_eq!((w.get(0, ISPENDR), w.get(1, ISPENDR)), (0, 1 << 3));
    w.set(1, ICPENDR, u32::MAX);
    assert_eq!(w.get(1, ICPENDR), 1 << 3);
}

// 4.3.9, 4.3.10: the active bits.
#[test]
fn active() {
    let mut w = World::ready(2, 64);
    w.enable(37, 1);
    w.line(37, true);
    assert_eq!(w.get(1, IAR), 37);
    assert!(w.bit(0, ISACTIVER, 37) && w.bit(1, ICACTIVER, 37));
    w.set(1, EOIR, 37);
    assert!(!w.bit(0, ISACTIVER, 37));
    w.line(37, false);
    // The guest sets the active bit: an active interrupt is not taken.
    w.set_bit(0, ISACTIVER, 37);
    w.line(37, true);
    assert!(w.bit(0, ICACTIVER, 37) && w.bit(0, ISPENDR, 37));
    assert_eq!(w.get(1, IAR), NONE);
    w.set_bit(0, ICACTIVER, 37);
    assert!(!w.bit(0, ISACTIVER, 37));
    assert_eq!(w.get(1, IAR), 37);
    // The active bits of private interrupts are banked.
    w.set(1, ISACTIVER, 1 << 30 | 1 << 20);
    assert_eq!((w.get(0, ISACTIVER), w.get(1, ISACTIVER)), (0, 1 << 30 | 1 << 20));
    w.set8(1, ICACTIVER + 3, 0xff);
    assert_eq!(w.get(1, ICACTIVER), 1 << 20);
}

// 4.3.11: five bits of priority; banked for private interrupts.
#[test]
fn priorities() {
    let mut w = World::new(2, 64);
    assert_eq!((w.get(0, IPRIORITYR), w.get(0, IPRIORITYR + 32)), (0, 0));
    w.set(0, IPRIORITYR + 40, 0xffa7_5301);
    assert_eq!((w.get(1, IPRIORITYR + 40), w.get16(1, IPRIORITYR + 42)), (0xf8a0_5000, 0xf8a0));
    w.set(1, IPRIORITYR + 28, 0x8070_6050);
    assert_eq!((w.get(0, IPRIORITYR + 28), w.get(1, IPRIORITYR + 28)), (0, 0x8070_6050));
    w.set16(1, IPRIORITYR + 28, 0x1020);
    assert_eq!(w.get(1, IPRIORITYR + 28), 0x8070_1020);
}

// 4.3.12: private interrupts read as the reading CPU's own bit; absent CPUs are masked off.
#[test]
fn targets() {
    let mut w = World::new(3, 64);
    for (cpu, own) in [(0, 0x0101_0101), (1, 0x0202_0202), (2, 0x0404_0404)] {
        for n in (0..32).step_by(4) {
            w.set(cpu, ITARGETSR + n, u32::MAX);
            assert_eq!(w.get(cpu, ITARGETSR + n), own);
        }
        assert_eq!(w.get8(cpu, ITARGETSR + 17), own as u8);
    }
    assert_eq!(w.get(0, ITARGETSR + 32), 0);
    w.set(0, ITARGETSR + 32, 0xff84_0601);
    assert_eq!(w.get(2, ITARGETSR + 32), 0x0704_0601);
    w.set8(0, ITARGETSR + 33, 2);
    assert_eq!((w.get(0, ITARGETSR + 32), w.get16(0, ITARGETSR + 32)), (0x0704_0201, 0x0201));
}

// 4.3.12: RAZ/WI on a uniprocessor, where every SPI goes to the only CPU.
#[test]
fn targets_of_a_uniprocessor() {
    let mut w = World::ready(1, 64);
    w.set(0, ITARGETSR + 32, u32::MAX);
    assert_eq!((w.get(0, ITARGETSR), w.get(0, ITARGETSR + 32)), (0, 0));
    w.set_bit(0, ISENABLER, 33);
    w.line(33, true);
    assert_eq!(w.get(0, IAR), 33);
}

// 1.4.3: with several targets, exactly one of them takes the SPI.
#[test]
fn several_targets_one_delivery() {
    let mut w = World::ready(4, 64);
    w.edge(33);
    w.set8(0, ITARGETSR + 33, 0b1100);
    w.set_bit(0, ISENABLER, 33);
    w.line(33, true);
    let seen: Vec<_> = (0..4).map(|cpu| w.serve(cpu)).collect();
    assert_eq!(seen.concat(), [33]);
    assert!(seen[0].is_empty() && seen[1].is_empty());
    // A pending SPI follows its targets.
    w.line(33, false);
    w.line(33, true);
    w.set8(0, ITARGETSR + 33, 0b0010);
    assert_eq!(w.serve(1), [33]);
    assert_eq!(w.get8(0, ITARGETSR + 33), 0b0010);
}

// 4.3.13: SGIs are edge-triggered, PPIs and SPIs are level-sensitive at first, and bit 0 of each
// pair is RAZ/WI.
#[test]
fn configuration() {
    let mut w = World::new(2, 64);
    w.set(0, ICFGR, 0);
    assert_eq!((w.get(0, ICFGR), w.get(0, ICFGR + 4)), (0xaaaa_aaaa, 0));
    w.set(0, ICFGR + 8, u32::MAX);
    assert_eq!(w.get(1, ICFGR + 8), 0xaaaa_aaaa);
    w.set8(0, ICFGR + 8, 0b0111_0100);
    assert_eq!(w.get(1, ICFGR + 8), 0xaaaa_aa20);
    w.set16(0, ICFGR + 10, 0x5555);
    assert_eq!((w.get(0, ICFGR + 8), w.get8(0, ICFGR + 9)), (0xaa20, 0xaa));
    w.set(1, ICFGR + 4, 1 << 23);
    assert_eq!((w.get(0, ICFGR + 4), w.get(1, ICFGR + 4)), (0, 1 << 23));
}

// 4.3.15: the filters are target list, all but the sender, the sender, reserved; absent CPUs and
// NSATT are ignored; byte accesses do nothing.
#[test]
fn sgir() {
    for (value, targets) in [
        (0b0101 << 16, vec![0, 2]),
        (0xff << 16, vec![0, 1, 2]),
        (0xf8 << 16, vec![]),
        (0, vec![]),
        (1 << 24 | 0b0010 << 16, vec![0, 2]),
        (2 << 24, vec![1]),
        (3 << 24 | 0xff << 16, vec![]),
        (2 << 24 | 1 << 15, vec![1]),
    ] {
        let mut w = World::ready(3, 64);
        w.set8(1, SGIR, 0xff);
        w.set16(1, SGIR + 2, 0x02ff);
        w.set(1, SGIR, value | 9);
        for cpu in 0..3 {
            let expected: &[u32] = if targets.contains(&cpu) { &[1 << 10 | 9] } else { &[] };
            assert_eq!(w.serve(cpu), expected, "{value:#x} at CPU {cpu}");
        }
    }
}

// 4.3.16, 4.3.17, and 2.2.1: an SGI is pending once for each source.
#[test]
fn sgi_sources() {
    let mut w = World::ready(3, 64);
    w.set(0, SGIR, 0b010 << 16 | 5);
    w.set(2, SGIR, 0b010 << 16 | 5);
    assert_eq!((w.get8(1, SPENDSGIR + 5), w.get8(0, SPENDSGIR + 5)), (0b101, 0));
    assert_eq!(w.get(1, CPENDSGIR + 4), 0b101 << 8);
    w.set8(1, CPENDSGIR + 5, 0b001);
    assert_eq!(w.get16(1, CPENDSGIR + 4), 0b100 << 8);
    // Sources that do not exist are masked off.
    w.set(1, SPENDSGIR + 4, 0xfa << 8 | 0x02);
    assert_eq!(w.get(1, SPENDSGIR + 4), 0b110 << 8 | 0b010);
    let mut seen = w.serve(1);
    seen.sort_unstable();
    assert_eq!(seen, [1 << 10 | 4, 1 << 10 | 5, 2 << 10 | 5]);
    assert_eq!((w.get(1, SPENDSGIR + 4), w.get(1, ISPENDR)), (0, 0));
}

// 4.3: registers of interrupts that do not exist are RAZ/WI, and the last, partial register ends at
// INTID 1019.
#[test]
fn beyond_the_last_interrupt() {
    let mut w = World::new(2, 32);
    for (array, last) in [
        (IGROUPR, 4),
        (ISENABLER, 4),
        (ISPENDR, 4),
        (ISACTIVER, 4),
        (IPRIORITYR, 60),
        (ITARGETSR, 60),
        (ICFGR, 12),
    ] {
        for offset in [last + 4, if array == IPRIORITYR || array == ITARGETSR { 1016 } else { 124 }]
        {
            if array != ICFGR || offset < 256 {
                w.set(0, array + offset, u32::MAX);
                assert_eq!(w.get(0, array + offset), 0, "{array:#x} + {offset:#x}");
            }
        }
    }
    let mut w = World::new(2, 988);
    for array in [IGROUPR, ISENABLER, ISPENDR] {
        w.set(0, array + 124, u32::MAX);
        assert_eq!(w.get(0, array + 124), 0x0fff_ffff, "{array:#x}");
    }
    w.set(0, ICFGR + 252, u32::MAX);
    assert_eq!(w.get(0, ICFGR + 252), 0x00aa_aaaa);
    w.set(0, IPRIORITYR + 1020, u32::MAX);
    w.set(0, ITARGETSR + 1020, u32::MAX);
    assert_eq!((w.get(0, IPRIORITYR + 1020), w.get(0, ITARGETSR + 1020)), (0, 0));
}

/// Several threads write the targets and the enable of one SPI, and GICD_CTLR. In the end, the
/// engine's configuration agrees with the registers.
#[test]
fn concurrent_writers_converge() {
    use vgic_core::engine::*;
    use vgic_core::ids::*;
    let gic = machine(4, 64);
    for round in 0..300_u32 {
        std::thread::scope(|scope| {
            for thread in 0..3_u32 {
                let bus = gic.bus().unwrap();
                scope.spawn(move || {
                    for n in 0..20 {
                        let x = round.wrapping_mul(31).wrapping_add(n * 7 + thread * 13);
                        let me = VcpuId(thread as u16);
                        bus.write(me, ITARGETSR + 50, &[1 << (x % 5) >> 1]).unwrap();
                        let array = if x & 8 != 0 { ISENABLER } else { ICENABLER };
                        bus.write(me, array + 4, &(1_u32 << 18).to_le_bytes()).unwrap();
                        bus.write(me, CTLR, &[(x >> 4) as u8 & 3]).unwrap();
                    }
                });
            }
        });
        let bus = gic.bus().unwrap();
        let (mut targets, mut enable) = ([0; 1], [0; 4]);
        bus.read(VcpuId(0), ITARGETSR + 50, &mut targets).unwrap();
        bus.read(VcpuId(0), ISENABLER + 4, &mut enable).unwrap();
        let enabled = u32::from_le_bytes(enable) >> 18 & 1 != 0;
        let config = bus.injector().config(Wired::Spi(Intid(50))).unwrap();
        assert_eq!(config.enabled, enabled && targets[0] != 0);
        if targets[0] != 0 {
            assert_eq!(1 << config.target.0, targets[0]);
        }
    }
}

// The host's own pulse has no sender. The guest takes both SGIs, in either order.
#[test]
fn an_sgi_that_is_sent_while_the_hosts_pulse_of_it_is_offered() {
    let mut w = World::ready(2, 64);
    let sgi = Wired::Private(VcpuId(0), Intid(3));
    for _ in 0..2 {
        let _ = w.injector.pulse(sgi).unwrap();
        assert!(w.irq(0), "offered");
        w.set(1, SGIR, 1 << 16 | 3);
        assert!(w.irq(0), "both");
        let mut seen = w.serve(0);
        seen.sort();
        assert_eq!(seen, [3, 1 << 10 | 3]);
        assert_eq!(w.injector.senders(VcpuId(0), Intid(3)), Ok(0));
    }
}
