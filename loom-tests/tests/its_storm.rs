//! A whole machine under load, in random schedules: vCPUs run, give commands, and switch LPIs and
//! the ITS off and on again, while devices send MSIs without a pause.
//!
//! Chance selects the schedules. A failure prints its schedule, and `shuttle::replay` runs that
//! schedule again.
#![cfg(shuttle)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Mutex;
use shuttle::thread::{self, JoinHandle};
use vgic_core::engine::Injected;
use vgic_core::ids::LPI_BASE;
use vgic_core::its::Command;
use vgic_loom_tests::NoKick;
use vgic_loom_tests::its::*;

const VCPUS: u16 = 3;
/// Events 0 and 1 stay mapped, to LPIs 0 and 1. Events 2 and 3 are discarded and mapped again, to
/// LPIs 2 and 3 or the other way round.
const STABLE: u32 = 2;
/// The number of MSIs of each device.
const ROUNDS: u64 = 8;
/// The number of steps of each vCPU.
const STEPS: usize = 6;

/// For each stable event: the number of the MSI that its device has written last, and the last
/// number that a guest has seen when it took the LPI. The atomics are not shuttle's, so that
/// threads are not switched at these accesses.
#[derive(Default)]
struct Data {
    written: [AtomicU64; STABLE as usize],
    seen: [AtomicU64; STABLE as usize],
}

impl Data {
    /// Runs a vCPU, which takes LPIs.
    fn take(&self, cpu: &mut Cpu) {
        for intid in cpu.run() {
            let n = (intid.0 - LPI_BASE) as usize;
            if n < STABLE as usize {
                let now = self.written[n].load(Ordering::Acquire);
                self.seen[n].fetch_max(now, Ordering::AcqRel);
            }
        }
    }

    /// Sends the MSIs of a device. Returns the number of the last one that had an effect.
    fn send(&self, event: u32, source: &Source) -> u64 {
        let mut due = 0;
        for n in 1..=ROUNDS {
            self.written[event as usize].store(n, Ordering::Release);
            if source.send() != Injected::Unmapped {
                due = n;
            }
        }
        due
    }
}

/// The disturbances of a storm.
#[derive(Clone, Copy)]
struct Weather {
    /// EnableLPIs is cleared and set.
    lpis: bool,
    /// GITS_CTLR is cleared and set.
    its: bool,
    /// Collections are unmapped and mapped again.
    collections: bool,
    /// vCPUs are powered off and on.
    power: bool,
}

const CALM: Weather = Weather { lpis: false, its: false, collections: false, power: false };
const ALL: Weather = Weather { lpis: true, its: true, collections: true, power: true };

/// Commands that a guest can give at any time.
fn some_commands(weather: Weather) -> Vec<Command> {
    let mut rng = thread_rng();
    let vcpu = |rng: &mut dyn shuttle::rand::RngCore| rng.gen_range(0..VCPUS);
    match rng.gen_range(0..if weather.collections { 6 } else { 5 }) {
        0 => vec![movi(rng.gen_range(0..4), vcpu(&mut rng))],
        1 => {
            let (event, swap) = (rng.gen_range(0..2), rng.gen_range(0..2));
            vec![discard(2 + event), mapti(2 + event, 2 + (event ^ swap), vcpu(&mut rng))]
        }
        2 => vec![invall(vcpu(&mut rng))],
        3 => vec![movall(vcpu(&mut rng).into(), vcpu(&mut rng).into())],
        4 => vec![clear(2 + rng.gen_range(0..2)), int(rng.gen_range(0..2))],
        _ => {
            let collection = vcpu(&mut rng);
            vec![unmapc(collection), mapc(collection, vcpu(&mut rng).into())]
        }
    }
}

/// Runs a vCPU's thread. The thread owns the vCPU and its guest and returns them; it shares the
/// machine and the data.
fn vcpu(
    mut cpu: Cpu,
    guest: Guest,
    machine: &Arc<Mutex<Machine>>,
    data: &Arc<Data>,
    weather: Weather,
) -> JoinHandle<(Cpu, Guest)> {
    let (machine, data) = (Arc::clone(machine), Arc::clone(data));
    thread::spawn(move || {
        for _ in 0..STEPS {
            data.take(&mut cpu);
            match thread_rng().gen_range(0..6) {
                0 if weather.lpis => {
                    let vcpu = thread_rng().gen_range(0..VCPUS);
                    guest.enable_lpis(vcpu, false);
                    data.take(&mut cpu);
                    guest.enable_lpis(vcpu, true);
                }
                1 if weather.its => {
                    guest.enable_its(false);
                    data.take(&mut cpu);
                    guest.enable_its(true);
                }
                2 if weather.power => {
                    cpu.power_off();
                    thread::yield_now();
                    cpu.power_on();
                }
                _ => {
                    // The guest's own lock of the queue. Drivers release it before they wait.
                    let end = {
                        let mut machine = machine.lock().unwrap();
                        let end = machine.put(&some_commands(weather));
                        guest.ring(end);
                        end
                    };
                    data.take(&mut cpu);
                    let _ = guest.is_done(end);
                }
            }
        }
        (cpu, guest)
    })
}

fn storm(weather: Weather) {
    let mut machine = Machine::of(VCPUS, 2, Arc::new(Unwatched), Arc::new(NoKick));
    (0..4).for_each(|n| machine.run(mapti(n, n, n as u16 % VCPUS)));
    let data = Arc::new(Data::default());
    let cpus: Vec<Cpu> = (0..VCPUS).map(|n| machine.cpu(n)).collect();
    let guests: Vec<Guest> = (0..VCPUS).map(|_| machine.guest()).collect();
    let sources: Vec<Source> =
        (0..4).map(|n| if n % 2 == 0 { machine.route(n) } else { machine.source(n) }).collect();
    let machine = Arc::new(Mutex::new(machine));

    let vcpus: Vec<_> = cpus
        .into_iter()
        .zip(guests)
        .map(|(cpu, guest)| vcpu(cpu, guest, &machine, &data, weather))
        .collect();
    let devices: Vec<_> = sources
        .into_iter()
        .enumerate()
        .map(|(event, source)| {
            let data = Arc::clone(&data);
            thread::spawn(move || {
                if event < STABLE as usize {
                    return (data.send(event as u32, &source), source);
                }
                for _ in 0..ROUNDS {
                    let _ = source.send();
                }
                (0, source)
            })
        })
        .collect();
    let devices: Vec<(u64, Source)> = devices.into_iter().map(|d| d.join().unwrap()).collect();
    let (mut cpus, guests): (Vec<Cpu>, Vec<Guest>) =
        vcpus.into_iter().map(|vcpu| vcpu.join().unwrap()).unzip();

    // The last writes may have come in any order. In the end, the guest enables and maps
    // everything.
    let mut machine = Arc::into_inner(machine).unwrap().into_inner().unwrap();
    (0..VCPUS).for_each(|n| guests[0].enable_lpis(n, true));
    guests[0].enable_its(true);
    (0..VCPUS).for_each(|n| machine.run(mapc(n, n.into())));
    for _ in 0..=VCPUS {
        cpus.iter_mut().for_each(|cpu| data.take(cpu));
    }
    for (event, (due, _)) in devices.iter().enumerate().take(STABLE as usize) {
        let seen = data.seen[event].load(Ordering::Acquire);
        // An MSI that is sent while LPIs are disabled is ignored, and an LPI that is pending then
        // is cleared.
        assert!(
            weather.lpis || seen >= *due,
            "event {event}: MSI {due} was sent, and {seen} is the last one seen"
        );
    }
    // After that, everything still works.
    (STABLE..4).for_each(|n| machine.run(discard(n)));
    (STABLE..4).for_each(|n| machine.run(mapti(n, n, 0)));
    (0..4).for_each(|n| machine.run(int(n)));
    let mut taken: Vec<_> = (0..=VCPUS)
        .flat_map(|_| cpus.iter_mut().flat_map(Cpu::settle).collect::<Vec<_>>())
        .collect();
    taken.sort();
    assert_eq!(taken, (0..4).map(lpi).collect::<Vec<_>>());
    drop((devices, guests));
    machine.end(cpus);
}

/// The number of schedules of each storm.
const SCHEDULES: usize = 4000;

fn storms(weather: Weather) {
    shuttle::check_random(move || storm(weather), SCHEDULES);
}

#[test]
fn commands() {
    storms(CALM);
}

#[test]
fn commands_and_enable_lpis() {
    storms(Weather { lpis: true, ..CALM });
}

#[test]
fn t02_commands_and_enable_lpis_and_ctlr() {
    storms(Weather { lpis: true, its: true, ..CALM });
}

#[test]
fn everything() {
    storms(ALL);
}

/// Schedules with few preemptions, at the worst places.
#[test]
fn everything_with_few_preemptions() {
    shuttle::check_pct(|| storm(ALL), SCHEDULES, 5);
}
