//! The CPU interface, register by register.

use crate::world::*;

/// A machine with one CPU. SPI 33 is in Group 0 and SPI 34 in Group 1, both edge-triggered and
/// enabled, at these priorities.
fn both_groups(ctlr: u32, priorities: [u8; 2]) -> World {
    let mut w = World::ready(1, 64);
    w.set(0, C_CTLR, ctlr);
    w.set_bit(0, IGROUPR, 34);
    for (intid, priority) in [(33, priorities[0]), (34, priorities[1])] {
        w.edge(intid);
        w.enable(intid, 0);
        w.set8(0, IPRIORITYR + u64::from(intid), priority);
    }
    w
}

// 4.4.1: the bits that exist without the Security Extensions.
#[test]
fn ctlr() {
    let mut w = World::new(2, 32);
    assert_eq!(w.get(0, C_CTLR), 0);
    w.set(0, C_CTLR, u32::MAX);
    assert_eq!((w.get(0, C_CTLR), w.get(1, C_CTLR)), (0x21f, 0));
    for bit in [EN0, EN1, ACK_CTL, FIQ_EN, CBPR, EOI_MODE] {
        w.set(0, C_CTLR, bit);
        assert_eq!(w.get(0, C_CTLR), bit);
    }
}

// 4.4.2 to 4.4.14: reset values and writable bits.
#[test]
fn registers() {
    let mut w = World::new(1, 32);
    assert_eq!((w.get(0, PMR), w.get(0, BPR), w.get(0, ABPR)), (0, 2, 3));
    assert_eq!((w.get(0, IAR), w.get(0, AIAR), w.get(0, RPR)), (NONE, NONE, 0xff));
    assert_eq!((w.get(0, HPPIR), w.get(0, AHPPIR), w.get(0, C_IIDR)), (NONE, NONE, 0x2043b));
    assert_eq!((w.get(0, EOIR), w.get(0, AEOIR), w.get(0, DIR)), (0, 0, 0));
    w.set(0, PMR, 0xffff_fff7);
    w.set(0, BPR, 0xffff_fffd);
    w.set(0, ABPR, 4);
    assert_eq!((w.get(0, PMR), w.get(0, BPR), w.get(0, ABPR)), (0xf0, 5, 4));
    w.set(0, BPR, 0);
    w.set(0, ABPR, 0);
    assert_eq!((w.get(0, BPR), w.get(0, ABPR)), (2, 3));
    w.set(0, C_CTLR, CBPR);
    w.set(0, ABPR, 6);
    assert_eq!(w.get(0, ABPR), 6);
    for n in 0..4 {
        w.set(0, APR + 4 * n, 0x8000_0001);
        w.set(0, NSAPR + 4 * n, 0x10);
    }
    let read = |w: &mut World, base| [0, 4, 8, 12].map(|n| w.get(0, base + n));
    assert_eq!(read(&mut w, APR), [0x8000_0001, 0, 0, 0]);
    assert_eq!(read(&mut w, NSAPR), [0x10, 0, 0, 0]);
    assert_eq!(w.get(0, RPR), 0);
    w.set(0, APR, 0);
    assert_eq!(w.get(0, RPR), 4 << 3);
    for address in [IAR, RPR, HPPIR, AIAR, AHPPIR, C_IIDR] {
        w.set(0, address, u32::MAX);
    }
    assert_eq!((w.get(0, C_IIDR), w.get(0, RPR)), (0x2043b, 0x20));
}

// 4.1.4: only words can be accessed. An acknowledge by halves would lose interrupts.
#[test]
fn narrow_accesses_do_nothing() {
    let mut w = both_groups(EN0, [0x40, 0x40]);
    w.set8(0, PMR, 0);
    w.set16(0, C_CTLR, 0);
    w.set_bit(0, ISPENDR, 33);
    assert_eq!((w.get8(0, IAR), w.get16(0, IAR), w.get8(0, IAR + 1)), (0, 0, 0));
    assert_eq!((w.get(0, PMR), w.get(0, C_CTLR), w.get(0, IAR)), (0xf8, EN0, 33));
}

// 4.4.4: Group 1 is acknowledged through the alias, and through IAR only with AckCtl set.
#[test]
fn acknowledge() {
    let mut w = both_groups(EN0 | EN1, [0x80, 0x40]);
    w.set_bit(0, ISPENDR, 33);
    w.set_bit(0, ISPENDR, 34);
    assert_eq!((w.get(0, IAR), w.get(0, HPPIR), w.get(0, AHPPIR)), (1022, 1022, 34));
    assert_eq!(w.get(0, AIAR), 34);
    assert_eq!((w.get(0, RPR), w.get(0, NSAPR), w.get(0, APR)), (0x40, 1 << 8, 0));
    // SPI 33 is pending, but not signaled.
    assert_eq!(
        (w.get(0, IAR), w.get(0, AIAR), w.get(0, HPPIR), w.get(0, AHPPIR)),
        (1023, 1023, 33, 1023)
    );
    w.set(0, AEOIR, 34);
    assert_eq!((w.get(0, AIAR), w.get(0, IAR)), (1023, 33));
    // The alias does not end a Group 0 interrupt.
    w.set(0, AEOIR, 33);
    assert_eq!((w.get(0, RPR), w.bit(0, ISACTIVER, 33)), (0x80, true));
    w.set(0, EOIR, 33);
    assert_eq!((w.get(0, RPR), w.bit(0, ISACTIVER, 33)), (0xff, false));

    w.set(0, C_CTLR, EN0 | EN1 | ACK_CTL);
    w.set_bit(0, ISPENDR, 34);
    assert_eq!((w.get(0, HPPIR), w.get(0, IAR)), (34, 34));
    w.set(0, EOIR, 34);
    assert_eq!(w.get(0, RPR), 0xff);
    // 4.4.5: this is UNPREDICTABLE, and ends the interrupt here.
    w.set_bit(0, ISPENDR, 34);
    assert_eq!(w.get(0, AIAR), 34);
    w.set(0, C_CTLR, EN0 | EN1);
    w.set(0, EOIR, 34);
    assert_eq!(w.get(0, RPR), 0xff);
}

// 4.4.1: the group enables of the CPU interface.
#[test]
fn group_enables() {
    let mut w = both_groups(EN1, [0x40, 0x80]);
    w.set_bit(0, ISPENDR, 33);
    assert_eq!((w.irq(0), w.get(0, IAR), w.get(0, HPPIR)), (false, NONE, NONE));
    w.set_bit(0, ISPENDR, 34);
    assert!(w.irq(0));
    assert_eq!((w.get(0, IAR), w.get(0, AIAR)), (1022, 34));
    w.set(0, C_CTLR, EN0);
    assert_eq!(w.get(0, IAR), 33);
}

// 2.3, 4.4.1: Group 0 is signaled as FIQs if FIQEn is set, Group 1 always as IRQs.
#[test]
fn lines() {
    let mut w = both_groups(EN0 | EN1, [0x40, 0x80]);
    w.set_bit(0, ISPENDR, 33);
    assert_eq!((w.irq(0), w.fiq(0)), (true, false));
    w.set(0, C_CTLR, EN0 | EN1 | FIQ_EN);
    assert_eq!((w.irq(0), w.fiq(0)), (false, true));
    assert_eq!(w.serve(0), [33]);
    assert_eq!((w.irq(0), w.fiq(0)), (false, false));
    w.set_bit(0, ISPENDR, 34);
    assert_eq!((w.irq(0), w.fiq(0)), (true, false));
    w.set(0, C_CTLR, EN0 | FIQ_EN);
    assert_eq!((w.irq(0), w.fiq(0)), (false, false));
}

// 3.3, 4.4.3, 4.4.8: the binary points select the bits of a priority that preempt.
#[test]
fn binary_points() {
    for (ctlr, bpr, abpr, preempts) in [
        (0, 3, 3, true),
        // Both group priorities are 0x20.
        (0, 4, 3, false),
        // The running priority is 0x00.
        (0, 3, 7, false),
        (CBPR, 3, 7, true),
    ] {
        let mut w = both_groups(EN0 | EN1 | ctlr, [0x20, 0x30]);
        w.set(0, BPR, bpr);
        w.set(0, ABPR, abpr);
        w.set_bit(0, ISPENDR, 34);
        assert_eq!(w.get(0, AIAR), 34);
        w.set_bit(0, ISPENDR, 33);
        let expected = if preempts { 33 } else { NONE };
        assert_eq!(w.get(0, IAR), expected, "{ctlr:#x} {bpr} {abpr}");
    }
    // With CBPR, BPR masks Group 1's running priority, too.
    for (ctlr, running) in [(0, 0x38), (CBPR, 0x20)] {
        let mut w = both_groups(EN0 | EN1 | ctlr, [0x20, 0x38]);
        w.set(0, BPR, 4);
        w.set_bit(0, ISPENDR, 34);
        assert_eq!((w.get(0, AIAR), w.get(0, RPR)), (34, running));
    }
}

// 4.4.5, 4.4.15: with EOImode, EOIR drops the priority and DIR deactivates.
#[test]
fn split_end() {
    let mut w = both_groups(EN0 | EOI_MODE, [0x40, 0x40]);
    w.set_bit(0, ISPENDR, 33);
    assert_eq!(w.get(0, IAR), 33);
    w.set(0, EOIR, 33);
    assert_eq!((w.get(0, RPR), w.bit(0, ISACTIVER, 33)), (0xff, true));
    // The SPI is pending again, but still active: it is not signaled.
    w.set_bit(0, ISPENDR, 33);
    assert_eq!(w.get(0, IAR), NONE);
    for nothing in [34, 1023, 1022, 32] {
        w.set(0, DIR, nothing);
    }
    assert!(w.bit(0, ISACTIVER, 33));
    w.set(0, DIR, 33);
    assert!(!w.bit(0, ISACTIVER, 33));
    assert_eq!(w.get(0, IAR), 33);
    // EOImode 0: a write to DIR is UNPREDICTABLE, and ignored here.
    w.set(0, C_CTLR, EN0);
    w.set(0, DIR, 33);
    assert!(w.bit(0, ISACTIVER, 33));
    w.set(0, EOIR, 33);
    assert!(!w.bit(0, ISACTIVER, 33));
}

// 3.2.1: a CPU may deactivate an SPI that another CPU acknowledged.
#[test]
fn deactivated_by_another_cpu() {
    let mut w = World::ready(2, 64);
    for cpu in 0..2 {
        w.set(cpu, C_CTLR, EN0 | EOI_MODE);
    }
    w.enable(35, 0);
    w.line(35, true);
    assert_eq!(w.get(0, IAR), 35);
    w.set(0, EOIR, 35);
    w.line(35, false);
    w.set(1, DIR, 35);
    assert!(!w.bit(0, ISACTIVER, 35));
    w.line(35, true);
    assert_eq!(w.get(0, IAR), 35);
}

// 4.4.5, 4.4.15: an SGI is ended with its source, and sources do not hide each other.
#[test]
fn sgis_are_ended_with_their_source() {
    let mut w = World::ready(3, 32);
    w.set(1, C_CTLR, EN0 | EOI_MODE);
    w.set(2, SGIR, 0b010 << 16 | 7);
    let iar = w.get(1, IAR);
    assert_eq!(iar, 2 << 10 | 7);
    w.set(1, EOIR, iar);
    assert_eq!((w.get(1, RPR), w.get(1, ISACTIVER)), (0xff, 1 << 7));
    w.set(1, DIR, iar);
    assert_eq!(w.get(1, ISACTIVER), 0);
    w.set(1, C_CTLR, EN0);
    w.set(0, SGIR, 0b010 << 16 | 7);
    w.set(2, SGIR, 0b010 << 16 | 7);
    let mut seen = w.serve(1);
    seen.sort_unstable();
    assert_eq!(seen, [7, 2 << 10 | 7]);
}

// 4.4.4, 4.4.5: bits 12:10 have a meaning for SGIs only; the bits above have none.
#[test]
fn end_ignores_reserved_bits() {
    let mut w = both_groups(EN0, [0x40, 0x40]);
    w.set_bit(0, ISPENDR, 33);
    assert_eq!(w.get(0, IAR), 33);
    w.set(0, EOIR, 0xffff_e000 | 3 << 10 | 33);
    assert_eq!((w.get(0, RPR), w.get(0, IAR)), (0xff, NONE));
    w.set_bit(0, ISPENDR, 33);
    assert_eq!(w.get(0, IAR), 33);
}

// 4.4.5: ends of the special INTIDs do nothing, nor does an end without an acknowledge.
#[test]
fn spurious_ends() {
    let mut w = both_groups(EN0, [0x40, 0x40]);
    w.set(0, EOIR, 33);
    w.set_bit(0, ISPENDR, 33);
    assert_eq!(w.get(0, IAR), 33);
    for special in 1020..1024 {
        w.set(0, EOIR, special);
        w.set(0, AEOIR, special);
    }
    assert_eq!(w.get(0, RPR), 0x40);
    w.set(0, EOIR, 33);
    assert_eq!(w.get(0, RPR), 0xff);
}

// A vCPU that is powered off loses the state of its interface, but no interrupt.
#[test]
fn power_off_resets() {
    let mut w = both_groups(EN0 | ACK_CTL | FIQ_EN, [0x40, 0x40]);
    w.set_bit(0, ISPENDR, 33);
    assert!(w.fiq(0));
    w.cpus[0].power_off();
    assert!(!w.cpus[0].irq_line() && !w.cpus[0].fiq_line());
    w.cpus[0].power_on();
    assert_eq!((w.get(0, C_CTLR), w.get(0, PMR)), (0, 0));
    w.set(0, PMR, 0xff);
    w.set(0, C_CTLR, EN0);
    assert!(w.irq(0));
    assert_eq!(w.get(0, IAR), 33);
}

// With more active interrupts than list registers, each end applies to the interrupt that it names.
#[test]
fn ends_without_a_list_register() {
    let mut w = World::with_lrs(1, 64, 1).set_up();
    for (intid, priority) in [(33, 0x80), (34, 0x40), (35, 0x20)] {
        w.set8(0, IPRIORITYR + u64::from(intid), priority);
        w.edge(intid);
        w.enable(intid, 0);
        w.set_bit(0, ISPENDR, intid);
        assert_eq!(w.get(0, IAR), intid);
    }
    let active = |w: &mut World| w.get(0, ISACTIVER + 4) >> 1;
    assert_eq!(active(&mut w), 0b111);
    // SPI 35 is not active any more when it is ended: nothing else is deactivated instead.
    w.set_bit(0, ICACTIVER, 35);
    w.set(0, EOIR, 35);
    assert_eq!((active(&mut w), w.get(0, RPR)), (0b011, 0x40));
    // Ends in the wrong order (4.4.5: UNPREDICTABLE): the priorities drop in the order of their
    // nesting.
    w.set(0, EOIR, 33);
    assert_eq!(w.get(0, RPR), 0x80);
    w.set(0, EOIR, 34);
    assert_eq!(w.get(0, RPR), 0xff);
}
