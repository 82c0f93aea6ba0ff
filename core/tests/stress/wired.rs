//! SGIs, PPIs and SPIs: lines that rise and fall, edges, and new configurations, all at once.

use vgic_core::engine::*;
use vgic_core::ids::*;

use crate::world::*;

const fn spi(n: u32) -> Wired {
    Wired::Spi(Intid(n))
}

/// These SPIs are pulsed.
const PULSED: [u32; 3] = [40, 41, 42];
/// This SPI is edge-triggered, and raised by its line.
const RISING: u32 = 43;
/// These SPIs are level-sensitive.
const LEVEL: [u32; 2] = [44, 45];
/// This SPI is level-sensitive. No other thread changes its configuration, and nothing is more
/// urgent.
const URGENT: u32 = 46;
/// This SPI is sometimes edge-triggered, sometimes level-sensitive.
const EITHER: u32 = 47;
/// This SPI is pulsed and withdrawn.
const WITHDRAWN: u32 = 48;
/// These lines go up and down, and are low at the end.
const LINES: [Wired; 4] = [spi(LEVEL[0]), spi(LEVEL[1]), spi(EITHER), PPI];
const SGI: Wired = Wired::Private(VcpuId(1), Intid(3));
const PPI: Wired = Wired::Private(VcpuId(0), Intid(27));

fn number(wired: Wired) -> u32 {
    match wired {
        Wired::Spi(intid) | Wired::Private(_, intid) => intid.0,
    }
}

/// Returns the configuration at the beginning and at the end of an episode.
fn final_config(wired: Wired) -> WiredConfig {
    let n = number(wired);
    let target = match wired {
        Wired::Spi(_) => VcpuId((n % 2) as u16),
        Wired::Private(vcpu, _) => vcpu,
    };
    let level = LEVEL.contains(&n) || [URGENT, EITHER, 27].contains(&n);
    let trigger = if level { Trigger::Level } else { Trigger::Edge };
    let priority = Priority::new(if n == URGENT { 0 } else { 0xa0 });
    WiredConfig { enabled: true, priority, group: Group::Group1, trigger, target }
}

fn all() -> impl Iterator<Item = Wired> {
    (40..49).map(spi).chain([SGI, PPI])
}

on_every_engine! {
    fn wired_stress<E>() {
        let rules = Rules { exclusive: true, letters: false };
        let host = Host::new(2, 1, rules);
        let mut world = World::<E>::new(&config(2), 4, &host);
        let [mut lines, mut edges, mut configs] = [0, 1, 2].map(|seed| world.storm(0, seed));
        all().for_each(|wired| lines.injector.configure(wired, final_config(wired)).unwrap());
        let host = &*host;
        let book = |n| host.book(Intid(n));
        for _ in 0..scaled(300) {
            let toggle: Work = Box::new(|stage| {
                let Storm { injector, rng, .. } = &mut lines;
                for _ in 0..60 {
                    match rng.below(4) {
                        0 => {
                            let _ = book(RISING).send(|| {
                                injector.set_level(spi(RISING), true).unwrap();
                                injector.set_level(spi(RISING), false).unwrap();
                                Injected::Pending
                            });
                        }
                        1 if rng.one_in(8) => {
                            injector.set_level(spi(URGENT), true).unwrap();
                            // The SPI comes again after it has been taken and ended, independent of
                            // the other threads.
                            let vcpu = final_config(spi(URGENT)).target;
                            let taken = book(URGENT).taken() + 2;
                            let last = host.entries(vcpu.index()) + 500;
                            let enough = || book(URGENT).taken() >= taken;
                            stage.until(|| {
                                host.kick(vcpu);
                                enough() || host.entries(vcpu.index()) > last
                            });
                            assert!(enough() || !stage.goes_on(), "500 entries, and its line is high");
                            injector.set_level(spi(URGENT), false).unwrap();
                        }
                        _ => {
                            let line = LINES[rng.below(4) as usize];
                            injector.set_level(line, rng.one_in(2)).unwrap();
                        }
                    }
                    rng.dawdle();
                }
                LINES.iter().for_each(|&line| injector.set_level(line, false).unwrap());
            });
            let pulse: Work = Box::new(|_| {
                let Storm { injector, rng, .. } = &mut edges;
                for _ in 0..150 {
                    let n = PULSED[rng.below(3) as usize];
                    let _ = book(n).send(|| injector.pulse(spi(n)).unwrap());
                    match rng.below(4) {
                        0 => _ = book(3).send(|| injector.pulse(SGI).unwrap()),
                        1 => _ = book(WITHDRAWN).send(|| injector.pulse(spi(WITHDRAWN)).unwrap()),
                        2 => injector.clear_pulse(spi(WITHDRAWN)).unwrap(),
                        _ => {}
                    }
                    rng.dawdle();
                }
            });
            let configure: Work = Box::new(|_| {
                let Storm { injector, rng, .. } = &mut configs;
                for _ in 0..60 {
                    let wired = all().nth(rng.below(11) as usize).unwrap();
                    if wired == spi(URGENT) {
                        continue;
                    }
                    let trigger = if wired == spi(EITHER) && rng.one_in(2) {
                        Trigger::Edge
                    } else {
                        final_config(wired).trigger
                    };
                    let config = WiredConfig {
                        enabled: rng.one_in(2),
                        priority: Priority::new((0x40 + rng.below(4) * 0x20) as u8),
                        group: Group::Group1,
                        trigger,
                        target: VcpuId(rng.below(2) as u16),
                    };
                    injector.configure(wired, config).unwrap();
                    rng.dawdle();
                }
                // Ends with a known configuration.
                all().for_each(|wired| injector.configure(wired, final_config(wired)).unwrap());
            });
            together(&mut world.guests, vec![toggle, pulse, configure]);

            // All lines are low, and every edge has been seen.
            for n in (40..49).chain([3, 27]) {
                let [sent, seen, pending, taken, _] = book(n).turn_page();
                if PULSED.contains(&n) || n == RISING || n == 3 {
                    assert_eq!(seen, sent, "INTID {n}: edges, and the last one that was seen");
                    assert!(taken <= pending, "INTID {n}: taken {taken} times, {pending} edges");
                }
                if n == WITHDRAWN {
                    assert!(taken <= pending, "INTID {n}: taken {taken} times, {pending} edges");
                }
            }
            world.guests.iter_mut().for_each(Guest::enter);
            all().for_each(|wired| assert_eq!(book(number(wired)).taken(), 0, "{wired:?} is idle"));

            // A level that stays high is taken again and again, without another kick.
            for line in LINES {
                lines.injector.set_level(line, true).unwrap();
                let guest = &mut world.guests[final_config(line).target.index()];
                guest.diligent = true;
                for _ in 0..4 {
                    assert!(guest.turn(), "{line:?}: it was kicked, or has just ended it");
                    assert_eq!(guest.log.drain(..).as_slice(), [Intid(number(line))]);
                }
                guest.diligent = false;
                lines.injector.set_level(line, false).unwrap();
                settle(&mut world.guests);
                assert_eq!(book(number(line)).turn_page()[3], 4, "{line:?}: the line is low");
                // An interrupt is withdrawn, even from its list register, if its line falls before
                // it is taken.
                lines.injector.set_level(line, true).unwrap();
                let guest = &mut world.guests[final_config(line).target.index()];
                guest.vcpu.flush(&mut guest.cpu);
                guest.vcpu.fold(&mut guest.cpu);
                lines.injector.set_level(line, false).unwrap();
                settle(&mut world.guests);
                assert_eq!(book(number(line)).taken(), 0, "{line:?}: it fell in time");
            }
        }
    }
}
