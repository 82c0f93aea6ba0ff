//! 1 of N: another vCPU takes an SPI that the chosen vCPU would not take (IHI 0069, 1.2.3).

use crate::world::*;
use vgic_core::gic::SysReg;

/// 40 modulo 2 is 0, so vCPU 0 is the first choice.
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

/// While no SPI is 1 of N, the engine does not track which vCPUs would take one.
#[test]
fn what_has_changed_while_there_was_no_such_spi() {
    let mut world = world();
    let route = GICD + 0x6000 + 8 * u64::from(SPI);
    for (pmr, taker) in [(0, 1), (0xff, 0), (0x80, 1)] {
        world.w64(route, 0);
        world.icc(0, SysReg::ICC_PMR_EL1, pmr);
        world.w64(route, ANY);
        world.edge(SPI);
        assert_eq!(taken(&mut world, taker), [40], "PMR {pmr:#x}");
    }
}

/// There are more vCPUs than a word has bits. The search starts at the vCPU that the INTID selects,
/// and the first vCPU that would take the SPI gets it.
#[test]
fn of_many() {
    const VCPUS: usize = 130;
    let mut world = World::running(VCPUS as u32);
    world.enable_spi(SPI);
    world.w64(GICD + 0x6000 + 8 * u64::from(SPI), ANY);
    let order: Vec<usize> = (40..VCPUS).chain(0..40).collect();
    for &n in &order {
        world.edge(SPI);
        assert_eq!(taken(&mut world, n), [40], "vCPU {n}");
        world.icc(n, SysReg::ICC_PMR_EL1, 0);
    }
    for &n in order.iter().rev() {
        world.icc(n, SysReg::ICC_PMR_EL1, 0xff);
        world.edge(SPI);
        assert_eq!(taken(&mut world, n), [40], "vCPU {n}");
    }
}

/// Threads change the routes and the vCPUs' readiness at the same time. When all are done, every
/// SPI is at a correct vCPU.
#[test]
fn with_threads() {
    const VCPUS: usize = 4;
    const TAKER: usize = 2;
    let spis = 40..72_u32;
    for round in 0..30_u64 {
        let mut world = World::running(VCPUS as u32);
        spis.clone().for_each(|spi| world.enable_spi(spi));
        let bus = world.gic.bus().unwrap();
        std::thread::scope(|scope| {
            for (n, cpu) in world.cpus.iter_mut().enumerate() {
                scope.spawn(move || {
                    for step in 0..50 {
                        let value = if (step ^ round) % 3 == 0 { 0 } else { 0xff };
                        cpu.icc_write(SysReg::ICC_PMR_EL1, value).unwrap();
                    }
                    let last = if n == TAKER { 0xff } else { 0 };
                    cpu.icc_write(SysReg::ICC_PMR_EL1, last).unwrap();
                });
            }
            let spis = spis.clone();
            scope.spawn(move || {
                let route = |spi: u32, value: u64| {
                    let at = GICD + 0x6000 + 8 * u64::from(spi);
                    bus.write(vgic_core::ids::VcpuId(0), at, &value.to_le_bytes()).unwrap();
                };
                for spi in (0..8).flat_map(|_| spis.clone()) {
                    route(spi, ANY);
                    route(spi, 0);
                }
                spis.for_each(|spi| route(spi, ANY));
            });
        });
        spis.clone().for_each(|spi| world.edge(spi));
        let mut all = taken(&mut world, TAKER);
        all.sort_unstable();
        assert_eq!(all, spis.clone().map(u64::from).collect::<Vec<_>>(), "round {round}");
    }
}
