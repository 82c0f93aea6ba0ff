//! Interrupts that are not forwarded stay pending, and are delivered when they may be; 1 of N.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::world::*;
use vgic_core::engine::*;
use vgic_core::gic::SysReg;
use vgic_core::ids::*;
use vgic_core::memory::GuestMemory;

const WAKER: u64 = 0x14;
const SLEEP: u32 = 2;
/// GICD_IROUTER.Interrupt_Routing_Mode.
const ANY: u64 = 1 << 31;

/// A machine with SPI 40, and PPI 27 and SGI 3 of vCPU 0, all enabled.
fn world(vcpus: u32) -> World {
    let mut world = World::running(vcpus);
    world.enable_spi(40);
    world.w32(sgi(0) + 0x100, 1 << 27 | 1 << 3);
    world
}

fn raise(world: &mut World) {
    world.edge(40);
    world.w32(sgi(0) + 0x200, 1 << 27);
    world.icc(0, SysReg::ICC_SGI1R_EL1, 3 << 24 | 1);
}

fn sorted(mut taken: Vec<u64>) -> Vec<u64> {
    taken.sort();
    taken
}

#[test]
fn asleep_keeps_pending() {
    let mut world = world(1);
    world.w32(rd(0) + WAKER, SLEEP);
    assert_eq!(world.r32(rd(0) + WAKER), 6);
    raise(&mut world);
    assert_eq!(world.take(0), []);
    assert_eq!(world.r32(sgi(0) + 0x200), 1 << 27 | 1 << 3);
    world.w32(rd(0) + WAKER, 0);
    assert_eq!(world.r32(rd(0) + WAKER), 0);
    assert_eq!(sorted(world.take(0)), [3, 27, 40]);
}

#[test]
fn what_was_offered_before_it_fell_asleep_stays_pending() {
    let mut world = world(1);
    raise(&mut world);
    world.cpus[0].enter();
    assert!(world.cpus[0].irq_line());
    world.w32(rd(0) + WAKER, SLEEP);
    world.cpus[0].enter();
    assert!(!world.cpus[0].irq_line());
    world.w32(rd(0) + WAKER, 0);
    assert_eq!(sorted(world.take(0)), [3, 27, 40]);
}

#[test]
fn off_keeps_pending() {
    let mut world = world(1);
    world.cpus[0].power_off();
    raise(&mut world);
    assert_eq!(world.take(0), []);
    world.cpus[0].power_on();
    assert_eq!(world.take(0), [], "the CPU interface is as after a reset");
    for (reg, value) in [(SysReg::ICC_PMR_EL1, 0xff), (SysReg::ICC_IGRPEN1_EL1, 1)] {
        world.icc(0, reg, value);
    }
    assert_eq!(sorted(world.take(0)), [3, 27, 40]);
}

#[test]
fn disabled_groups_keep_pending() {
    let mut world = world(2);
    // SPI 40 in Group 0; the others are in Group 1.
    world.w32(GICD + 0x84, !(1 << 8));
    for (ctlr, group0, group1) in
        [(0, vec![], vec![]), (1, vec![40], vec![]), (2, vec![], vec![3, 27])]
    {
        world.w32(GICD, 0);
        raise(&mut world);
        world.w32(GICD, ctlr);
        assert_eq!(world.take0(0), group0, "{ctlr}");
        assert_eq!(sorted(world.take(0)), group1, "{ctlr}");
        world.w32(GICD, 3);
        world.take0(0);
        world.take(0);
    }
}

#[test]
fn lpis_need_enable_lpis() {
    let mut world = world(2);
    let mut msi = world.gic.engine().msi().unwrap();
    let (device, event) = (DeviceId(1), EventId(2));
    msi.map(device, event, Intid(8200), VcpuId(1), LpiConfig::enabled(0x40)).unwrap();
    let domain = msi.domain();
    let inject = |world: &World| {
        let injected = world.cpus[0].bus().injector().inject(&domain, device, event);
        assert_eq!(injected, Injected::Pending);
    };
    let ignored = |world: &World| {
        let injected = world.cpus[0].bus().injector().inject(&domain, device, event);
        assert_eq!(injected, Injected::Unmapped);
    };
    ignored(&world);
    assert_eq!(world.take(1), []);
    world.ram.write(RAM + 8200 - 8192, &[0x41]).unwrap();
    for n in 0..2 {
        world.w64(rd(n) + 0x70, RAM | 15);
    }
    world.w32(rd(0), 1);
    assert_eq!(world.take(1), [], "of another vCPU");
    world.w32(rd(1), 1);
    assert_eq!(world.take(1), [], "it came before");
    inject(&world);
    assert_eq!(world.take(1), [8200]);
    world.w32(rd(1) + WAKER, SLEEP);
    inject(&world);
    assert_eq!(world.take(1), []);
    world.w32(rd(1) + WAKER, 0);
    assert_eq!(world.take(1), [8200]);
    world.w32(GICD, 1);
    inject(&world);
    assert_eq!(world.take(1), [], "LPIs are in Group 1");
    world.w32(GICD, 3);
    assert_eq!(world.take(1), [8200]);
    world.w32(rd(1), 0);
    ignored(&world);
    world.w32(rd(1), 1);
    assert_eq!(world.take(1), []);
}

/// Raises SPI 40, and returns the vCPUs that take it.
fn taker(world: &mut World) -> Vec<usize> {
    world.edge(40);
    world.look();
    (0..world.cpus.len()).filter(|&n| world.take(n) == [40]).collect()
}

#[test]
fn one_of_n_is_one_that_takes_part() {
    // 40 modulo 3 is 1, so vCPU 1 is the first choice.
    let mut world = world(3);
    let route = GICD + 0x6000 + 8 * 40;
    world.w64(route, ANY | 2);
    assert_eq!(world.r64(route), ANY | 2);
    assert_eq!(taker(&mut world), [1]);
    world.w32(rd(1) + WAKER, SLEEP);
    assert_eq!(taker(&mut world), [2], "not one that sleeps");
    world.cpus[2].power_off();
    assert_eq!(taker(&mut world), [0], "not one that is off");
    world.w32(rd(0) + WAKER, SLEEP);
    assert_eq!(taker(&mut world), [], "nobody is left");
    assert_eq!(world.r32(GICD + 0x204), 1 << 8, "it stays pending");
    assert_eq!(world.r32(GICD + 0x104), 1 << 8, "and enabled");
    world.w32(rd(1) + WAKER, 0);
    assert_eq!(world.take(1), [40], "until someone wakes up");
    world.w64(route, 2);
    assert_eq!(taker(&mut world), [], "back to one that is named, and off");
}

/// The last vCPU that took part is also the first that does again, as when a system is suspended
/// together with its CPUs' redistributors.
#[test]
fn one_of_n_when_the_last_one_comes_back() {
    for vcpus in [1, 2] {
        let mut world = world(vcpus);
        world.w64(GICD + 0x6000 + 8 * 40, ANY);
        assert_eq!(taker(&mut world), [0]);
        (0..vcpus as usize).rev().for_each(|n| world.w32(rd(n) + WAKER, SLEEP));
        assert_eq!(taker(&mut world), [], "nobody is left");
        world.w32(rd(0) + WAKER, 0);
        assert_eq!(world.take(0), [40], "of {vcpus}");
        world.cpus[0].power_off();
        world.cpus[0].power_on();
        world.icc(0, SysReg::ICC_PMR_EL1, 0xff);
        world.icc(0, SysReg::ICC_IGRPEN1_EL1, 1);
        assert_eq!(taker(&mut world), [0], "of {vcpus}, off and on again");
    }
}

#[test]
fn one_of_n_is_chosen_again_when_the_chosen_one_goes() {
    let mut world = world(3);
    world.w64(GICD + 0x6000 + 8 * 40, ANY);
    for (leave, taker) in [(WAKER, 2), (0, 2)] {
        world.edge(40);
        world.look();
        world.cpus[1].enter();
        assert!(world.cpus[1].irq_line());
        match leave {
            0 => world.cpus[1].power_off(),
            _ => world.w32(rd(1) + WAKER, SLEEP),
        }
        world.cpus[1].enter();
        assert!(!world.cpus[1].irq_line());
        assert_eq!(world.take(taker), [40]);
        world.w32(rd(1) + WAKER, 0);
    }
}

#[test]
fn one_of_n_when_a_vcpus_thread_ends() {
    let mut world = world(3);
    world.w64(GICD + 0x6000 + 8 * 40, ANY);
    drop(world.cpus.remove(1));
    world.edge(40);
    world.look();
    assert_eq!(world.take(1), [40], "vCPU 2");
}

/// Threads write several registers that determine one state of the engine. When all are done, this
/// state follows from the last writes.
#[test]
fn concurrent_writers_converge() {
    for round in 0..200 {
        let mut world = world(2);
        let route = GICD + 0x6000 + 8 * 40;
        let gic = &world.gic;
        let write = |n: u32| {
            let bus = gic.bus().unwrap();
            let put = |address, value: u32| {
                bus.write(VcpuId(0), address, &value.to_le_bytes()).unwrap();
            };
            for i in (0..20).chain([n]) {
                put(GICD, i % 4);
                put(rd(1) + WAKER, if i % 2 == 0 { SLEEP } else { 0 });
                put(route, if i % 3 == 0 { ANY as u32 } else { i % 2 });
                put(GICD + if i % 2 == 0 { 0x104 } else { 0x184 }, 1 << 8);
            }
        };
        std::thread::scope(|s| {
            for n in 0..2 {
                s.spawn(move || write(round + n));
            }
        });
        // The engine acts according to the final contents of the registers.
        let awake = world.r32(rd(1) + WAKER) == 0;
        let ctlr = world.r32(GICD) & 3;
        let enabled = world.r32(GICD + 0x104) == 1 << 8;
        let target = match world.r64(route) {
            0 | ANY => 0,
            _ => 1,
        };
        let open = enabled && ctlr & 2 != 0 && (target == 0 || awake);
        let expected = if open { vec![target] } else { vec![] };
        assert_eq!(taker(&mut world), expected, "round {round}");
    }
}

/// Two threads write one register at the same moment, many times.
#[test]
fn two_writers_at_once_agree_with_the_register() {
    let mut world = world(1);
    let rounds = 4_000;
    let bus = world.gic.bus().unwrap();
    // Both threads arrive, and then continue together.
    let arrived = AtomicU32::new(0);
    let meet_at = |count: u32| {
        arrived.fetch_add(1, Ordering::AcqRel);
        while arrived.load(Ordering::Acquire) < 2 * count {
            std::thread::yield_now();
        }
    };
    let meet_at = &meet_at;
    let mut wrong = Vec::new();
    let writes = |round: u32| match round % 2 {
        0 => [(GICD, 2), (GICD, 0)],
        _ => [(GICD + 0x104, 1 << 8), (GICD + 0x184, 1 << 8)],
    };
    std::thread::scope(|s| {
        s.spawn(move || {
            for round in 0..rounds {
                let (address, value): (u64, u32) = writes(round)[1];
                meet_at(2 * round + 1);
                bus.write(VcpuId(0), address, &value.to_le_bytes()).unwrap();
                meet_at(2 * round + 2);
            }
        });
        for round in 0..rounds {
            let (address, value) = writes(round)[0];
            world.take(0);
            meet_at(2 * round + 1);
            world.w32(address, value);
            meet_at(2 * round + 2);
            world.edge(40);
            let open = world.r32(GICD) & 2 != 0 && world.r32(GICD + 0x104) == 1 << 8;
            let expected = if open { vec![40] } else { vec![] };
            if world.take(0) != expected {
                wrong.push(round); // no panic here: the other thread waits for this one
            }
            // Restores the state for the next round.
            world.w32(GICD, 2);
            world.w32(GICD + 0x104, 1 << 8);
        }
    });
    assert_eq!(wrong, []);
}
