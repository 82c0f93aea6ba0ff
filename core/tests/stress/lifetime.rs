//! LPIs that are unmapped, mapped again and disabled while they are injected, queued and taken.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vgic_core::engine::*;
use vgic_core::ids::*;

use crate::world::*;

/// A device without routes, which goes away with its last event.
const OTHER: DeviceId = DeviceId(0x1234);
const OTHERS: u32 = 2;

/// The state of one mapping, or of those of [`OTHER`], which come and go together.
struct Mapping {
    /// Odd while `unmap` has returned and `map` has not been called.
    generation: AtomicU64,
    /// The number of injections that took place while `generation` was odd.
    refused: AtomicU64,
}

on_every_engine! {
    fn t01_stress_unmapped_is_unmapped<E>() {
        const EVENTS: u32 = 3;
        let host = Host::new(1, EVENTS + OTHERS, Rules::default());
        let mut world = World::<E>::new(&config(1), 4, &host);
        let mut storms = [0, 1].map(|seed| world.storm(EVENTS, seed));
        let map_others = |msi: &mut E::Msi| {
            for n in 0..OTHERS {
                let (intid, on) = (lpi(EVENTS + n), LpiConfig::enabled(0x80));
                msi.map(OTHER, EventId(n), intid, VcpuId(0), on).unwrap();
            }
        };
        (0..EVENTS).for_each(|n| map::<E>(&mut world.msi, n, 0, 0xa0));
        map_others(&mut world.msi);
        for episode in 0..scaled(150) {
            let mappings: Vec<Mapping> = (0..=EVENTS)
                .map(|_| Mapping { generation: AtomicU64::new(0), refused: AtomicU64::new(0) })
                .collect();
            let (mappings, done, host) = (&mappings, &AtomicBool::new(false), &host);
            let World { guests, msi, .. } = &mut world;
            let control: Work = Box::new(move |stage| {
                let mut rng = Rng::new(episode.into());
                for _ in 0..60 {
                    let which = rng.below(EVENTS + 1);
                    let Mapping { generation, refused } = &mappings[which as usize];
                    if which < EVENTS {
                        msi.unmap(DEV, EventId(which)).unwrap();
                    } else {
                        assert_eq!(msi.unmap_device(OTHER), OTHERS as usize);
                    }
                    let before = refused.load(Ordering::Relaxed);
                    generation.fetch_add(1, Ordering::AcqRel);
                    if rng.one_in(8) && !stage.until(|| refused.load(Ordering::Relaxed) > before) {
                        return;
                    }
                    rng.dawdle();
                    generation.fetch_add(1, Ordering::AcqRel);
                    if which < EVENTS {
                        map::<E>(msi, which, 0, 0xa0);
                    } else {
                        map_others(msi);
                    }
                    rng.dawdle();
                }
                done.store(true, Ordering::Relaxed);
            });
            let injectors = storms.iter_mut().map(|storm| -> Work<'_> {
                Box::new(move |stage| {
                    while stage.goes_on() && !done.load(Ordering::Relaxed) {
                        let which = storm.rng.below(EVENTS + 1);
                        let Mapping { generation, refused } = &mappings[which as usize];
                        let before = generation.load(Ordering::Acquire);
                        let result = if which < EVENTS {
                            storm.inject(which)
                        } else {
                            let n = storm.rng.below(OTHERS);
                            let Storm { injector, domain, .. } = &storm;
                            host.book(lpi(EVENTS + n)).send(|| injector.inject(domain, OTHER, EventId(n)))
                        };
                        let after = generation.load(Ordering::Acquire);
                        if before == after && before % 2 == 1 {
                            assert_eq!(result, Injected::Unmapped, "nothing was mapped all the time");
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        storm.rng.dawdle();
                    }
                })
            });
            together(guests, injectors.chain([control]).collect());
            host.balance_without_losses();
            world.probe(&mut storms[0], EVENTS);
        }
        drop(storms);
        world.msi.unmap_device(OTHER);
        world.wind_up();
    }

    fn t01_stress_a_new_mapping_inherits_nothing<E>() {
        const LPIS: u32 = 4;
        let host = Host::new(1, LPIS, Rules::default());
        let mut world = World::<E>::new(&config(1), 4, &host);
        let mut storms = [0, 1].map(|seed| world.storm(LPIS, seed));
        for episode in 0..scaled(600) {
            (0..LPIS).for_each(|n| map::<E>(&mut world.msi, n, 0, 0xa0));
            // A closed vCPU leaves everything to the injectors.
            let closed = episode % 4 == 0 && world.guests[0].close();
            let World { guests, msi, .. } = &mut world;
            let unmap: Work = Box::new(|_| {
                let mut rng = Rng::new(episode.into());
                for n in 0..LPIS {
                    rng.dawdle();
                    msi.unmap(DEV, EventId((n + episode) % LPIS)).unwrap();
                }
            });
            let injectors = storms.iter_mut().map(|storm| -> Work<'_> {
                Box::new(|_| storm.run(LPIS, 20))
            });
            together(guests, injectors.chain([unmap]).collect());
            host.balance_without_losses();
            (0..LPIS).for_each(|n| map::<E>(&mut world.msi, n, 0, 0xa0));
            let guest = &mut world.guests[0];
            if closed {
                guest.vcpu.open();
            }
            guest.enter();
            assert_eq!(guest.serve(), [], "nothing was injected since it was mapped");
            (0..LPIS).for_each(|n| assert_eq!(host.book(lpi(n)).taken(), 0, "LPI {n}, newly mapped"));
            world.probe(&mut storms[0], LPIS);
            (0..LPIS).for_each(|n| world.msi.unmap(DEV, EventId(n)).unwrap());
        }
        drop(storms);
        world.wind_up();
    }

    fn t02_stress_enable_lpis_from_two_sides<E>() {
        const LPIS: u32 = 16;
        let mut world = World::<E>::with_lpis(2, 4, LPIS);
        let mut storms = [0, 1].map(|seed| world.storm(LPIS, seed));
        let mut sides = [2, 3].map(|seed| world.storm(0, seed));
        for _ in 0..scaled(400) {
            let injectors = storms.iter_mut().map(|storm| -> Work<'_> {
                Box::new(|_| storm.run(LPIS, 100))
            });
            let togglers = sides.iter_mut().map(|side| -> Work<'_> {
                Box::new(move |_| {
                    for _ in 0..40 {
                        let (vcpu, on) = (side.rng.below(2) as u16, side.rng.one_in(2));
                        side.injector.set_lpis_enabled(VcpuId(vcpu), on).unwrap();
                        side.rng.dawdle();
                    }
                })
            });
            together(&mut world.guests, injectors.chain(togglers).collect());
            for vcpu in 0..2 {
                sides[0].injector.set_lpis_enabled(VcpuId(vcpu), true).unwrap();
            }
            settle(&mut world.guests);
            world.host.balance();
        }
        world.probe(&mut storms[0], LPIS);
        drop((storms, sides));
        world.wind_up();
    }

    fn t13_stress_withdrawn_between_entry_and_exit<E>() {
        const LPIS: u32 = 16;
        let host = Host::new(1, LPIS, Rules::default());
        let mut world = World::<E>::new(&config(1), 2, &host);
        let mut storm = world.storm(LPIS, 0);
        (0..LPIS).for_each(|n| map::<E>(&mut world.msi, n, 0, 0xa0));
        for episode in 0..scaled(400) {
            let mut priorities = [0; LPIS as usize];
            let host = &host;
            let World { guests, msi, .. } = &mut world;
            let inject: Work = Box::new(|_| storm.run(LPIS, 200));
            let withdraw: Work = Box::new(|stage| {
                let mut rng = Rng::new(episode.into());
                for _ in 0..60 {
                    let n = rng.below(LPIS);
                    let priority = (rng.below(4) * 0x30) as u8;
                    if rng.one_in(2) {
                        msi.unmap(DEV, EventId(n)).unwrap();
                        rng.dawdle();
                        map::<E>(msi, n, 0, priority);
                    } else {
                        let off = LpiConfig { enabled: false, priority: Priority::new(0) };
                        msi.set_config(lpi(n), off).unwrap();
                        rng.dawdle();
                        if rng.one_in(8) && host.pass_through(stage, 0) {
                            let taken = host.book(lpi(n)).taken();
                            host.pass_through(stage, 0);
                            assert_eq!(host.book(lpi(n)).taken(), taken, "LPI {n} is disabled");
                        }
                        msi.set_config(lpi(n), LpiConfig::enabled(priority)).unwrap();
                    }
                    priorities[n as usize] = priority;
                    rng.dawdle();
                }
                // Ends with a known configuration.
                for n in 0..LPIS {
                    priorities[n as usize] = (rng.below(4) * 0x30) as u8;
                    msi.set_config(lpi(n), LpiConfig::enabled(priorities[n as usize])).unwrap();
                }
            });
            together(guests, vec![inject, withdraw]);
            host.balance_without_losses();
            // The history of the engine does not disturb the order.
            for n in 0..LPIS {
                assert_eq!(storm.inject(n), Injected::Pending);
            }
            let mut want: Vec<u32> = (0..LPIS).collect();
            want.sort_by_key(|&n| priorities[n as usize]);
            let want: Vec<Intid> = want.into_iter().map(lpi).collect();
            assert_eq!(world.guests[0].serve(), want);
            host.balance();
        }
        drop(storm);
        world.wind_up();
    }
}
