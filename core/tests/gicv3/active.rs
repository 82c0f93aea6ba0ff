//! The guest changes attributes of an active interrupt, in a list register and without one: an end
//! still ends it.

use crate::world::*;
use proptest::prelude::*;
use vgic_core::gic::SysReg;
use vgic_core::ids::Group;
use vgic_core::lr::ListRegisters;

const ISACTIVER: u64 = GICD + 0x304;
const IGROUPR: u64 = GICD + 0x84;
const IPRIORITYR: u64 = GICD + 0x400;
const IROUTER: u64 = GICD + 0x6000;
const ICENABLER: u64 = GICD + 0x184;
const SPLIT: u64 = 2;

/// A machine with `lrs` list registers for each vCPU.
fn world(lrs: usize) -> World {
    let mut setup = setup(&[0, 1]);
    setup.set_distributor(GICD).unwrap();
    setup.add_redistributors(GICR, 2).unwrap();
    setup.set_lrs(lrs).unwrap();
    let mut world = World::init(&setup, 2);
    world.start();
    world
}

fn group_bit(world: &mut World, spi: u32, group: usize) {
    let old = world.r32(IGROUPR);
    let bit = 1 << (spi - 32);
    world.w32(IGROUPR, if group == 1 { old | bit } else { old & !bit });
}

fn iar(group: usize) -> SysReg {
    [SysReg::ICC_IAR0_EL1, SysReg::ICC_IAR1_EL1][group]
}

fn eoir(group: usize) -> SysReg {
    [SysReg::ICC_EOIR0_EL1, SysReg::ICC_EOIR1_EL1][group]
}

/// Prepares SPI `spi` to be taken by vCPU 0 in a group.
fn prepare(world: &mut World, spi: u32, priority: u8, group: usize) {
    world.enable_spi(spi);
    world.w8(IPRIORITYR + u64::from(spi), priority);
    world.w64(IROUTER + 8 * u64::from(spi), 0);
    group_bit(world, spi, group);
}

fn take(world: &mut World, spi: u32, group: usize) {
    world.edge(spi);
    world.look();
    world.cpus[0].enter();
    assert_eq!(world.icc_of(0, iar(group)), spi.into());
    world.cpus[0].exit();
}

#[test]
fn displaced_and_its_group_changed() {
    for register in [0, 1] {
        let mut world = world(1);
        prepare(&mut world, 40, 0xa0, 1);
        prepare(&mut world, 41, 0x50, 1);
        take(&mut world, 40, 1);
        take(&mut world, 41, 1);
        group_bit(&mut world, 40, 0);
        world.icc(0, eoir(1), 41);
        world.cpus[0].enter();
        // A CPU interface in hardware accepts an end only through the register of this group.
        assert_eq!(world.cpus[0].cpu_interface().read(0).group(), Group::Group1);
        world.icc(0, eoir(register), 40);
        assert_eq!(world.r32(ISACTIVER), 0, "EOIR{register}");
        world.edge(40);
        assert_eq!(world.take0(0), [40]);
    }
}

#[test]
fn its_list_register_keeps_the_group_that_it_was_acknowledged_in() {
    for (before, after) in [(0, 1), (1, 0)] {
        let mut world = world(2);
        prepare(&mut world, 40, 0xa0, before);
        take(&mut world, 40, before);
        group_bit(&mut world, 40, after);
        for _ in 0..2 {
            world.cpus[0].enter();
            assert_eq!(world.cpus[0].cpu_interface().read(0).group() as usize, before);
            world.cpus[0].exit();
        }
    }
}

/// A change to SPI 40 + `.0` by the guest.
#[derive(Clone, Copy, Debug)]
enum Change {
    Group(u32, usize),
    Priority(u32, u8),
    Route(u32, u64),
    Disable(u32),
}

const NESTED: u32 = 4;

fn change() -> impl Strategy<Value = Change> {
    let n = || 0..NESTED;
    prop_oneof![
        3 => (n(), 0..2usize).prop_map(|(n, group)| Change::Group(n, group)),
        2 => (n(), any::<u8>()).prop_map(|(n, priority)| Change::Priority(n, priority)),
        1 => (n(), 0..3u64).prop_map(|(n, target)| Change::Route(n, target)),
        1 => n().prop_map(Change::Disable),
    ]
}

fn apply(world: &mut World, change: Change) {
    match change {
        Change::Group(n, group) => group_bit(world, 40 + n, group),
        Change::Priority(n, priority) => world.w8(IPRIORITYR + u64::from(40 + n), priority),
        Change::Route(n, target) => world.w64(IROUTER + 8 * u64::from(40 + n), target),
        Change::Disable(n) => world.w32(ICENABLER, 1 << (8 + n)),
    }
}

proptest! {
    /// SPIs nest. After each SPI is taken, some of the active ones are changed; at last the binary
    /// points are. Each SPI is ended in the group in which it was acknowledged, or in its present
    /// group.
    #[test]
    fn what_is_changed_can_be_ended(
        lrs in 1..=4usize,
        groups in any::<[bool; NESTED as usize]>(),
        changes in proptest::collection::vec(proptest::collection::vec(change(), 0..4), NESTED as usize),
        points in proptest::option::of((0..8u64, 0..8u64, any::<bool>())),
        current in any::<[bool; NESTED as usize]>(),
        split: bool,
    ) {
        let mut world = world(lrs);
        let groups = groups.map(usize::from);
        if split {
            world.icc(0, SysReg::ICC_CTLR_EL1, SPLIT);
        }
        for (n, changes) in (0..NESTED).zip(&changes) {
            prepare(&mut world, 40 + n, 0xc0 - 0x30 * n as u8, groups[n as usize]);
            take(&mut world, 40 + n, groups[n as usize]);
            for &change in changes {
                let (Change::Group(of, _) | Change::Priority(of, _) | Change::Route(of, _)
                    | Change::Disable(of)) = change;
                if of <= n {
                    apply(&mut world, change);
                }
            }
        }
        if let Some((bpr0, bpr1, common)) = points {
            world.icc(0, SysReg::ICC_BPR0_EL1, bpr0);
            world.icc(0, SysReg::ICC_BPR1_EL1, bpr1);
            world.icc(0, SysReg::ICC_CTLR_EL1, u64::from(common) | if split { SPLIT } else { 0 });
        }
        prop_assert_eq!(world.r32(ISACTIVER), 0xf << 8);
        for n in (0..NESTED).rev() {
            let now = (world.r32(IGROUPR) >> (8 + n) & 1) as usize;
            let group = if current[n as usize] { now } else { groups[n as usize] };
            world.cpus[0].enter();
            world.icc(0, eoir(group), (40 + n).into());
            if split {
                world.icc(0, SysReg::ICC_DIR_EL1, (40 + n).into());
            }
            world.cpus[0].exit();
            prop_assert_eq!(world.r32(ISACTIVER), (0xf << 8) & !(u32::MAX << (8 + n)), "SPI {}", 40 + n);
        }
        prop_assert_eq!(world.icc_of(0, SysReg::ICC_RPR_EL1), 0xff);
        for (n, group) in (0..NESTED).zip(groups) {
            prepare(&mut world, 40 + n, 0x80, group);
            take(&mut world, 40 + n, group);
            world.icc(0, eoir(group), (40 + n).into());
            if split {
                world.icc(0, SysReg::ICC_DIR_EL1, (40 + n).into());
            }
        }
        prop_assert_eq!(world.r32(ISACTIVER), 0);
    }
}
