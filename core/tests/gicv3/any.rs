//! 1 of N: another vCPU takes what the chosen one would not (IHI 0069, 1.2.3).

use crate::world::*;
use vgic_core::gic::SysReg;

/// 40 modulo 2 is 0: vCPU 0 comes first.
const SPI: u32 = 40;
const ANY: u64 = 1 << 31;

fn world() -> World {
    let mut world = World::running(2);
    world.enable_spi(SPI);
    world.w64(GICD + 0x6000 + 8 * u64::from(SPI), ANY);
    world
}

type Refusal = (&'static str, fn(&mut World), fn(&mut World));

const REFUSALS: [Refusal; 4] = [
    (
        "off",
        |w| w.cpus[0].power_off(),
        |w| {
            w.cpus[0].power_on();
            w.icc(0, SysReg::ICC_PMR_EL1, 0xff);
            w.icc(0, SysReg::ICC_IGRPEN1_EL1, 1);
        },
    ),
    ("asleep", |w| w.w32(rd(0) + 0x14, 2), |w| w.w32(rd(0) + 0x14, 0)),
    (
        "the group is off",
        |w| w.icc(0, SysReg::ICC_IGRPEN1_EL1, 0),
        |w| w.icc(0, SysReg::ICC_IGRPEN1_EL1, 1),
    ),
    (
        "the priority is masked",
        |w| w.icc(0, SysReg::ICC_PMR_EL1, 0x80),
        |w| w.icc(0, SysReg::ICC_PMR_EL1, 0xff),
    ),
];

fn taken(world: &mut World, vcpu: usize) -> Vec<u64> {
    world.look();
    world.take(vcpu)
}

#[test]
fn another_vcpu_takes_it() {
    for (what, refuse, accept) in REFUSALS {
        let mut world = world();
        world.edge(SPI);
        assert_eq!(taken(&mut world, 0), [40], "{what}");
        refuse(&mut world);
        world.edge(SPI);
        assert_eq!(taken(&mut world, 1), [40], "{what}");
        accept(&mut world);
        world.edge(SPI);
        world.look();
        refuse(&mut world);
        assert_eq!(taken(&mut world, 1), [40], "{what}, after it has become pending");
        world.icc(1, SysReg::ICC_IGRPEN1_EL1, 0);
        world.edge(SPI);
        assert_eq!(taken(&mut world, 1), [], "{what}");
        accept(&mut world);
        assert_eq!(taken(&mut world, 0), [40], "{what}: nobody, and then the first");
    }
}

#[test]
fn one_that_has_never_enabled_its_group_does_not_get_it() {
    let mut world = World::reset(&[0, 1]);
    world.cpus[0].power_on();
    world.cpus[1].power_on();
    world.enable_spi(SPI);
    world.w64(GICD + 0x6000 + 8 * u64::from(SPI), ANY);
    world.w32(GICD, 2);
    world.edge(SPI);
    world.icc(1, SysReg::ICC_PMR_EL1, 0xff);
    world.icc(1, SysReg::ICC_IGRPEN1_EL1, 1);
    assert_eq!(taken(&mut world, 1), [40]);
}

#[test]
fn its_group_decides() {
    let mut world = world();
    world.icc(0, SysReg::ICC_IGRPEN0_EL1, 0);
    world.edge(SPI);
    world.look();
    world.w32(GICD + 0x84, 0);
    world.look();
    assert_eq!(world.take0(1), [40]);
}
