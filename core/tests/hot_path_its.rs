//! Injection through an ITS allocates nothing and frees nothing, while the guest's commands map,
//! move, discard and unmap the injected LPIs.

#![allow(clippy::disallowed_types)] // the test's own threads meet at a barrier

#[path = "common/counting.rs"]
mod counting;
#[path = "its/guest.rs"]
#[allow(dead_code)] // used only by the ITS's own tests
mod guest;
#[path = "gicv3/world.rs"]
#[allow(dead_code)] // as above
mod world;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use counting::counted;
use guest::{CREADR, GITS, Guest, discard, mapc, mapd, mapti, movi, silent_setup, unmapd};
use vgic_core::engine::{Config, Injected};
use vgic_core::gic::SysReg;
use vgic_core::ids::{DeviceId, EventId};
use vgic_core::its::{Command, ItsConfig};
use world::World;

pub(crate) type Engine = vgic_core::Vgic;

const EVENTS: u32 = 32;

fn give(guest: &mut Guest, command: Command) {
    guest.put(&command.encode());
    guest.ring();
    assert_eq!(guest.world.r64(CREADR), guest.end);
}

fn map(guest: &mut Guest, device: u32) {
    give(guest, mapd(device, 5));
    for event in 0..EVENTS {
        give(guest, mapti(device, event, 8192 + device * EVENTS + event, event as u16 % 2));
    }
}

#[test]
fn injection_through_an_its_allocates_nothing() {
    let world = World::init(&silent_setup(2, ItsConfig::at(GITS), Config::default()), 2);
    let its = world.gic.its(0).unwrap();
    let mut guest = Guest { world, its, log: Arc::default(), end: 0 };
    guest.start();
    (0..2).for_each(|n| give(&mut guest, mapc(n, n.into())));
    (0..2).for_each(|device| map(&mut guest, device));

    let (start, stop) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
    let injector = thread::spawn({
        let (bus, port) = (guest.world.gic.bus().unwrap(), guest.its.port());
        let route = |event| guest.its.route(DeviceId(1), EventId(event)).unwrap();
        let routes: Vec<_> = (0..EVENTS).map(route).collect();
        let (start, stop) = (start.clone(), stop.clone());
        move || {
            let (mut pending, mut unmapped) = (0, 0);
            start.wait();
            let counts = counted(|| {
                let mut n = 0;
                while !stop.load(Ordering::Acquire) {
                    let injected = [
                        port.inject(bus.injector(), DeviceId(n % 2), EventId(n % EVENTS)),
                        routes[(n % EVENTS) as usize].inject(bus.injector()),
                    ];
                    for injected in injected {
                        pending += u32::from(injected == Injected::Pending);
                        unmapped += u32::from(injected == Injected::Unmapped);
                    }
                    n = n.wrapping_add(5);
                }
            });
            (counts, pending, unmapped)
        }
    });
    start.wait();
    for round in 0..300 {
        for event in 0..EVENTS {
            give(&mut guest, movi(0, event, (round + event as u16) % 2));
            give(&mut guest, discard(1, event));
            give(&mut guest, mapti(1, event, 8192 + EVENTS + event, event as u16 % 2));
        }
        give(&mut guest, unmapd(1));
        map(&mut guest, 1);
        for cpu in &mut guest.world.cpus {
            // This does not run until nothing is left, as the injector does not wait.
            cpu.enter();
            for _ in 0..EVENTS {
                let Some(intid @ 8192..) = cpu.icc_read(SysReg::ICC_IAR1_EL1) else { break };
                let _ = cpu.icc_write(SysReg::ICC_EOIR1_EL1, intid);
            }
            cpu.exit();
        }
    }
    stop.store(true, Ordering::Release);
    let (counts, pending, unmapped) = injector.join().unwrap();
    assert_eq!(counts, (0, 0), "{pending} became pending, {unmapped} were not mapped");
}
