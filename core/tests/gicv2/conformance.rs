//! The checks of kvm-unit-tests' GICv2 tests (arm/gic.c), from their descriptions.

use crate::world::*;

/// The SGI that the tests send.
const IPI: u32 = 1;

/// Returns the GICC_IAR values that each CPU has taken.
fn taken(w: &mut World) -> Vec<Vec<u32>> {
    (0..w.cpus.len()).map(|cpu| w.serve(cpu)).collect()
}

// ipi: an SGI to the sender itself gives one acknowledge, with the sender as its source.
#[test]
fn ipi_self() {
    let mut w = World::ready(4, 64);
    for cpu in 0..4 {
        w.set(cpu, SGIR, 2 << 24 | IPI);
        let mut expected = vec![vec![]; 4];
        expected[cpu] = vec![(cpu as u32) << 10 | IPI];
        assert_eq!(taken(&mut w), expected);
    }
}

// ipi: an SGI to every other CPU by list.
#[test]
fn ipi_target_list() {
    let mut w = World::ready(8, 64);
    for sender in [0, 5] {
        let list = 0xaa & !(1 << sender);
        w.set(sender, SGIR, list << 16 | IPI);
        for (cpu, seen) in taken(&mut w).into_iter().enumerate() {
            let expected =
                if list >> cpu & 1 != 0 { vec![(sender as u32) << 10 | IPI] } else { vec![] };
            assert_eq!(seen, expected, "CPU {cpu}");
        }
    }
}

// ipi: an SGI to all others. Each CPU acknowledges it once, even if it was sent twice before.
#[test]
fn ipi_broadcast() {
    let mut w = World::ready(8, 64);
    w.set(3, SGIR, 1 << 24 | IPI);
    w.set(3, SGIR, 1 << 24 | IPI);
    for (cpu, seen) in taken(&mut w).into_iter().enumerate() {
        let expected = if cpu == 3 { vec![] } else { vec![3 << 10 | IPI] };
        assert_eq!(seen, expected, "CPU {cpu}");
    }
}

// active: the handler clears the active bit through the distributor instead of ending the
// interrupt.
#[test]
fn active_cleared_in_the_handler() {
    let mut w = World::ready(2, 64);
    w.set(0, C_CTLR, EN0 | EOI_MODE);
    for _ in 0..3 {
        w.set(0, SGIR, 2 << 24 | IPI);
        let iar = w.get(0, IAR);
        assert_eq!(iar, IPI);
        assert_eq!(w.get(0, ISACTIVER), 1 << IPI);
        w.set(0, ICACTIVER, 1 << IPI);
        assert_eq!(w.get(0, ISACTIVER), 0);
        w.set(0, EOIR, iar);
    }
}

// active: another CPU clears the active bit of an SPI.
#[test]
fn active_cleared_by_another_cpu() {
    let mut w = World::ready(2, 64);
    w.set(0, C_CTLR, EN0 | EOI_MODE);
    w.enable(40, 0);
    w.line(40, true);
    for _ in 0..3 {
        assert_eq!(w.get(0, IAR), 40);
        w.set(0, EOIR, 40);
        assert_eq!(w.get(0, IAR), NONE);
        w.set_bit(1, ICACTIVER, 40);
        assert!(!w.bit(0, ISACTIVER, 40));
    }
}

// mmio: the identification registers are read-only.
#[test]
fn mmio_read_only() {
    let mut w = World::new(3, 96);
    for address in [TYPER, IIDR, PIDR2] {
        let original = w.get(0, address);
        for value in [0, u32::MAX, !original] {
            w.set(0, address, value);
            assert_eq!(w.get(0, address), original, "{address:#x}");
        }
    }
    assert_eq!((w.get(0, TYPER) >> 5 & 7, w.get(0, PIDR2) >> 4 & 0xf), (2, 2));
}

// mmio: at least 4 bits of priority, equal for every interrupt; nothing beyond the last interrupt.
#[test]
fn mmio_priorities() {
    let mut w = World::new(3, 96);
    let intids = u64::from(w.get(0, TYPER) & 0x1f) * 32 + 32;
    let first_spi = IPRIORITYR + 32;
    let original = w.get(0, first_spi);
    w.set(0, first_spi, u32::MAX);
    let mask = w.get(0, first_spi);
    assert_eq!(mask, (mask & 0xff) * 0x0101_0101);
    assert!(
        (mask as u8).leading_ones() >= 4
            && (mask as u8).count_ones() == (mask as u8).leading_ones()
    );
    w.set(0, first_spi, 0);
    assert_eq!(w.get(0, first_spi), 0);
    w.set(0, first_spi, original);

    w.set(0, IPRIORITYR + intids, u32::MAX);
    assert_eq!(w.get(0, IPRIORITYR + intids), 0);
    let last = IPRIORITYR + intids - 4;
    w.set(0, last, 0x0102_0304 << 4);
    assert_eq!(w.get(0, last), 0x1020_3040);
    byte_accesses(&mut w, first_spi, 0xff, mask as u8);
}

/// Writes and reads a word at `address` by bytes. The bits of `mask` in the byte `write` are kept.
fn byte_accesses(w: &mut World, address: u64, write: u8, mask: u8) {
    w.set(0, address, 0);
    w.set8(0, address + 1, write);
    assert_eq!(w.get(0, address), u32::from(write & mask) << 8);
    w.set(0, address, 0x4030_2010);
    for n in 0..4 {
        assert_eq!(w.get8(0, address + n), ((n as u8 + 1) * 0x10) & mask);
    }
    w.set8(0, address + 2, 0);
    assert_eq!(w.get(0, address), 0x4000_2010 & (u32::from(mask) * 0x0101_0101));
}

// mmio: the bits of CPUs that do not exist are masked in targets.
#[test]
fn mmio_targets() {
    for cpus in [2, 3, 8] {
        let mut w = World::new(cpus, 96);
        let mask = ((1_u32 << cpus) - 1) * 0x0101_0101;
        let first_spi = ITARGETSR + 32;
        w.set(0, first_spi, u32::MAX);
        assert_eq!(w.get(0, first_spi), mask);
        w.set(0, first_spi, 0);
        assert_eq!(w.get(0, first_spi), 0);
        byte_accesses(&mut w, first_spi, 0xff, mask as u8);
    }
}

// Priority masking: only interrupts that are more urgent than the mask are signaled.
#[test]
fn priority_masking() {
    let mut w = World::ready(1, 64);
    w.enable(40, 0);
    w.line(40, true);
    for (priority, mask, signaled) in [
        (0x80, 0x80, false),
        (0x80, 0x88, true),
        (0x00, 0x00, false),
        (0x00, 0x08, true),
        (0xf8, 0xff, false),
        (0xf0, 0xff, true),
    ] {
        w.set8(0, IPRIORITYR + 40, priority);
        w.set(0, PMR, mask);
        assert_eq!(w.irq(0), signaled, "priority {priority:#x} under {mask:#x}");
        let iar = w.get(0, IAR);
        assert_eq!(iar, if signaled { 40 } else { NONE });
        if signaled {
            w.set(0, EOIR, iar);
        }
    }
}
