//! The checks of kvm-unit-tests' interrupt controller tests (arm/gic.c) for a GICv3, from their
//! descriptions.

use crate::world::*;
use vgic_core::gic::SysReg;

/// The SGI that the tests send.
const IPI: u64 = 1;
const NONE: u64 = 1023;

const IPRIORITYR: u64 = 0x400;
/// IRM of ICC_SGI1R_EL1: an SGI to all but the sender.
const TO_ALL_OTHERS: u64 = 1 << 40;

/// vCPUs in clusters of four, all with the IPI enabled.
fn world(vcpus: u32) -> World {
    let affinities: Vec<u32> = (0..vcpus).map(|n| ((n / 4) << 8) | (n % 4)).collect();
    let mut world = World::reset(&affinities);
    world.start();
    for n in 0..vcpus as usize {
        world.w32(sgi(n) + 0x100, 1 << IPI);
    }
    world
}

/// A value for ICC_SGI1R_EL1 that names vCPUs of one cluster.
fn to_cluster(cluster: u64, list: u64) -> u64 {
    cluster << 16 | IPI << 24 | list
}

impl World {
    fn iar(&mut self, vcpu: usize) -> u64 {
        self.cpus[vcpu].enter();
        self.icc_of(vcpu, SysReg::ICC_IAR1_EL1)
    }

    fn send(&mut self, vcpu: usize, value: u64) {
        self.icc(vcpu, SysReg::ICC_SGI1R_EL1, value);
    }

    /// Returns the INTIDs that each vCPU has taken. In GICv3, an INTID does not name the sender.
    fn taken(&mut self) -> Vec<Vec<u64>> {
        (0..self.cpus.len()).map(|n| self.take(n)).collect()
    }
}

// ipi: an SGI to the sender itself gives one acknowledge.
#[test]
fn ipi_self() {
    let mut world = world(5);
    for vcpu in 0..5 {
        world.send(vcpu, to_cluster(vcpu as u64 / 4, 1 << (vcpu % 4)));
        let mut expected = vec![vec![]; 5];
        expected[vcpu] = vec![IPI];
        assert_eq!(world.taken(), expected, "from {vcpu}");
    }
}

// ipi: SGIs to others by list, one write for each cluster; one acknowledge at each target, none
// elsewhere.
#[test]
fn ipi_target_list() {
    let mut world = world(8);
    for sender in [0, 5] {
        let list = 0xaa & !(1_u64 << sender);
        for cluster in 0..2 {
            world.send(sender, to_cluster(cluster, list >> (4 * cluster) & 0xf));
        }
        for (vcpu, seen) in world.taken().into_iter().enumerate() {
            let expected = if list >> vcpu & 1 != 0 { vec![IPI] } else { vec![] };
            assert_eq!(seen, expected, "vCPU {vcpu}, from {sender}");
        }
    }
}

// ipi: an SGI to all others. Each vCPU acknowledges it once, even if it was sent again before.
#[test]
fn ipi_broadcast() {
    let mut world = world(8);
    world.send(3, TO_ALL_OTHERS | IPI << 24);
    world.send(6, TO_ALL_OTHERS | IPI << 24);
    world.send(3, TO_ALL_OTHERS | IPI << 24);
    for (vcpu, seen) in world.taken().into_iter().enumerate() {
        assert_eq!(seen, [IPI], "vCPU {vcpu}: from 3, from 6, or from both");
    }
    world.send(3, TO_ALL_OTHERS | IPI << 24);
    for (vcpu, seen) in world.taken().into_iter().enumerate() {
        let expected = if vcpu == 3 { vec![] } else { vec![IPI] };
        assert_eq!(seen, expected, "vCPU {vcpu}");
    }
}

// ipi: an SGI that is sent again while it is handled comes once more, after its end.
#[test]
fn ipi_sent_again_by_the_handler() {
    let mut world = world(2);
    world.send(0, to_cluster(0, 0b10));
    assert_eq!(world.iar(1), IPI);
    world.send(0, to_cluster(0, 0b10));
    assert_eq!(world.iar(1), NONE, "active");
    world.icc(1, SysReg::ICC_EOIR1_EL1, IPI);
    assert_eq!(world.take(1), [IPI]);
}

/// Separates priority drop and deactivation (EOImode 1).
fn split(world: &mut World) {
    for vcpu in 0..world.cpus.len() {
        world.icc(vcpu, SysReg::ICC_CTLR_EL1, 2);
    }
}

// active: the handler clears the active bit through the redistributor instead of deactivating.
#[test]
fn active_cleared_in_the_handler() {
    let mut world = world(2);
    split(&mut world);
    for _ in 0..3 {
        world.send(1, to_cluster(0, 0b10));
        assert_eq!(world.iar(1), IPI);
        assert_eq!(world.read_from(1, sgi(1) + 0x300, 4), Ok(1 << IPI));
        world.write_from(1, sgi(1) + 0x380, 4, 1 << IPI).unwrap();
        assert_eq!(world.read_from(1, sgi(1) + 0x300, 4), Ok(0));
        world.icc(1, SysReg::ICC_EOIR1_EL1, IPI);
        assert_eq!(world.icc_of(1, SysReg::ICC_RPR_EL1), 0xff);
    }
    assert_eq!(world.taken(), [[], []]);
}

// active: another vCPU clears the active bit of a private interrupt and of an SPI.
#[test]
fn active_cleared_by_another_vcpu() {
    let mut world = world(2);
    split(&mut world);
    world.enable_spi(40);
    for (intid, set, clear) in
        [(IPI, sgi(0) + 0x300, sgi(0) + 0x380), (40, GICD + 0x304, GICD + 0x384)]
    {
        let bit = 1 << (intid % 32);
        for _ in 0..3 {
            if intid == IPI {
                world.send(1, to_cluster(0, 1));
            } else {
                world.edge(40);
            }
            assert_eq!(world.iar(0), intid);
            world.icc(0, SysReg::ICC_EOIR1_EL1, intid);
            assert_eq!(world.iar(0), NONE, "still active");
            // The thread of vCPU 0 answers the kick.
            world.cpus[0].exit();
            assert_eq!(world.read_from(1, set, 4), Ok(bit));
            world.write_from(1, clear, 4, bit).unwrap();
            assert_eq!(world.read_from(1, set, 4), Ok(0));
        }
    }
    assert_eq!(world.taken(), [[], []]);
}

/// Writes and reads a word at `address` by bytes. The bits of `mask` in each byte are kept.
fn byte_accesses(world: &mut World, address: u64, mask: u8) {
    let masked = |value: u32| value & (u32::from(mask) * 0x0101_0101);
    world.w32(address, 0);
    world.w8(address + 1, 0xff);
    assert_eq!(world.r32(address), masked(0xff00));
    world.w32(address, 0x4030_2010);
    for n in 0..4 {
        assert_eq!(world.r8(address + n), ((n as u8 + 1) * 0x10) & mask);
    }
    world.w8(address + 2, 0);
    assert_eq!(world.r32(address), masked(0x4000_2010));
}

// Priorities: at least 4 bits, equal for every interrupt; bytes and words; nothing beyond the last
// interrupt.
#[test]
fn priorities() {
    let mut world = world(2);
    let intids = u64::from(world.r32(GICD + 4) & 0x1f) * 32 + 32;
    let first = GICD + IPRIORITYR + 32;
    for address in [first, GICD + IPRIORITYR + intids - 4, sgi(1) + IPRIORITYR, sgi(1) + 0x41c] {
        world.w32(address, u32::MAX);
        let mask = world.r32(address);
        assert_eq!(mask, (mask & 0xff) * 0x0101_0101);
        let byte = mask as u8;
        assert!(byte.leading_ones() >= 4 && byte.count_ones() == byte.leading_ones(), "{byte:#x}");
        byte_accesses(&mut world, address, byte);
    }
    for offset in [intids, 1016] {
        world.w32(GICD + IPRIORITYR + offset, u32::MAX);
        assert_eq!(world.r32(GICD + IPRIORITYR + offset), 0);
    }
    // The distributor does not have the priorities of private interrupts.
    world.w32(GICD + IPRIORITYR, u32::MAX);
    assert_eq!(world.r32(GICD + IPRIORITYR), 0);
}

// The identification registers are read-only.
#[test]
fn read_only() {
    let mut world = world(2);
    for address in
        [GICD + 4, GICD + 8, GICD + 0xffe8, rd(1) + 4, rd(1) + 8, rd(1) + 12, rd(1) + 0xffe8]
    {
        let original = world.r32(address);
        for value in [0, u32::MAX, !original] {
            world.w32(address, value);
            assert_eq!(world.r32(address), original, "{address:#x}");
        }
    }
    assert_eq!(world.r32(GICD + 0xffe8) >> 4 & 0xf, 3);
}

// Priority masking: only interrupts that are more urgent than the mask are signaled.
#[test]
fn priority_masking() {
    let mut world = world(1);
    world.enable_spi(40);
    world.w32(GICD + 0xc08, 0);
    world.line(40, true);
    // PMR has as many bits as the priorities.
    world.icc(0, SysReg::ICC_PMR_EL1, 0xff);
    let implemented = world.icc_of(0, SysReg::ICC_PMR_EL1);
    assert!((0xf0..=0xff).contains(&implemented), "at least 4 bits");
    for (priority, mask, signaled) in [
        (0x80, 0x80, false),
        (0x80, 0x88, true),
        (0x00, 0x00, false),
        (0x00, 0x08, true),
        (0xf8, 0xff, false),
        (0xf0, 0xff, true),
        (0x20, 0x10, false),
    ] {
        world.w8(GICD + IPRIORITYR + 40, priority);
        world.icc(0, SysReg::ICC_PMR_EL1, mask);
        world.cpus[0].enter();
        assert_eq!(world.cpus[0].irq_line(), signaled, "priority {priority:#x} under {mask:#x}");
        assert_eq!(world.icc_of(0, SysReg::ICC_HPPIR1_EL1), 40, "the mask does not hide it");
        let iar = world.iar(0);
        assert_eq!(iar, if signaled { 40 } else { NONE });
        if signaled {
            assert_eq!(world.icc_of(0, SysReg::ICC_RPR_EL1), priority.into());
            world.icc(0, SysReg::ICC_EOIR1_EL1, iar);
        }
    }
}
