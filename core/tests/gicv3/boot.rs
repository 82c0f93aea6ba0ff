//! The state that a guest finds at its start, with and without firmware that sets up the GIC.

use crate::world::*;
use vgic_core::gic::{Model, Setup, SetupError, SysReg};

const WAKER: u64 = 0x14;
/// ProcessorSleep and ChildrenAsleep.
const ASLEEP: u32 = 6;

/// The minimal set-up of a kernel: it enables a group in the distributor and in each CPU interface,
/// and three interrupts for vCPU 1. It never writes GICR_WAKER or a group.
fn kernel(world: &mut World) {
    for n in 0..2 {
        world.cpus[n].power_on();
        world.icc(n, SysReg::ICC_PMR_EL1, 0xf0);
        world.icc(n, SysReg::ICC_IGRPEN1_EL1, 1);
    }
    world.w32(sgi(1) + 0x100, 1 << 27 | 1 << 3);
    world.enable_spi(40);
    world.w64(GICD + 0x6000 + 8 * 40, 1);
    world.w32(GICD, 2);
}

fn raise(world: &mut World) {
    world.icc(0, SysReg::ICC_SGI1R_EL1, 3 << 24 | 2);
    world.w32(sgi(1) + 0x200, 1 << 27);
    world.edge(40);
}

fn taken(world: &mut World) -> Vec<u64> {
    world.look();
    let mut taken = world.take(1);
    taken.sort();
    taken
}

#[test]
fn a_kernel_that_writes_no_waker_gets_interrupts() {
    let mut world = World::reset(&[0, 1]);
    kernel(&mut world);
    assert_eq!(world.r32(rd(1) + WAKER), 0, "awake");
    raise(&mut world);
    assert_eq!(taken(&mut world), [3, 27, 40]);
    // The redistributor stays awake until the guest puts it to sleep.
    world.w32(rd(1) + WAKER, 2);
    raise(&mut world);
    assert_eq!(taken(&mut world), []);
    world.w32(rd(1) + WAKER, 0);
    assert_eq!(taken(&mut world), [3, 27, 40]);
}

#[test]
fn any_vcpu_that_is_on_takes_one_of_n() {
    let mut world = World::reset(&[0, 1]);
    kernel(&mut world);
    world.w64(GICD + 0x6000 + 8 * 40, 1 << 31);
    world.cpus[0].power_off();
    world.edge(40);
    assert_eq!(taken(&mut world), [40]);
}

#[test]
fn without_firmware_everything_is_in_group_1() {
    let mut world = World::reset(&[0]);
    assert_eq!([0x80, 0x84].map(|n| world.r32(sgi(0) + n)), [u32::MAX; 2]);
    assert_eq!([0x80, 0x84, 0x88, 0x8c].map(|n| world.r32(GICD + n)), [0, u32::MAX, u32::MAX, 0]);
    assert_eq!([0x1000, 0x1004, 0x1008].map(|n| world.r32(GICD + n)), [u32::MAX, u32::MAX, 0]);
}

#[test]
fn firmware_finds_the_state_of_a_reset() {
    let mut world = World::with_firmware(&[0, 1]);
    for n in [0, 1] {
        assert_eq!(world.r32(rd(n) + WAKER), ASLEEP);
        assert_eq!([0x80, 0x84].map(|offset| world.r32(sgi(n) + offset)), [0; 2]);
    }
    assert_eq!([0x84, 0x88, 0x1000, 0x1004].map(|n| world.r32(GICD + n)), [0; 4]);
    kernel(&mut world);
    world.w32(sgi(1) + 0x80, u32::MAX);
    world.w32(GICD + 0x84, u32::MAX);
    raise(&mut world);
    assert_eq!(taken(&mut world), [], "asleep");
    world.w32(rd(1) + WAKER, 0);
    assert_eq!(taken(&mut world), [3, 27, 40]);
}

#[test]
fn only_gicv3_leaves_anything_to_firmware() {
    let mut setup = Setup::new(40);
    assert_eq!(setup.set_firmware(true), Err(SetupError::NotCreated));
    setup.create(Model::V2).unwrap();
    assert_eq!(setup.set_firmware(true), Err(SetupError::WrongModel));
}
