//! LPIs are moved, disabled and withdrawn while they are injected and taken: none is lost, and none
//! is taken twice.

use vgic_core::engine::*;
use vgic_core::ids::*;

use crate::world::*;

fn storm_work<E: Engine>(storm: &mut Storm<E>, lpis: u32, times: u32) -> Work<'_> {
    Box::new(move |_| storm.run(lpis, times))
}

/// Moves the LPIs that have these `targets` at random: one LPI, one several times, or all of a
/// vCPU.
fn moves<'a, E: Engine>(
    msi: &'a mut E::Msi,
    vcpus: u32,
    targets: &'a mut [u32],
    seed: u32,
) -> Work<'a> {
    Box::new(move |_| {
        let mut rng = Rng::new(seed.into());
        for _ in 0..60 {
            if rng.one_in(8) {
                let (from, to) = (rng.below(vcpus), rng.below(vcpus));
                let moved = msi.move_all(VcpuId(from as u16), VcpuId(to as u16)).unwrap();
                let of_from = targets.iter_mut().filter(|target| **target == from && from != to);
                assert_eq!(moved, of_from.map(|target| *target = to).count());
            } else {
                let n = rng.below(targets.len() as u32);
                for _ in 0..=rng.below(3) {
                    let to = rng.below(vcpus);
                    msi.retarget(DEV, EventId(n), VcpuId(to as u16)).unwrap();
                    targets[n as usize] = to;
                }
            }
            rng.dawdle();
        }
    })
}

/// Checks that each LPI is delivered once, at the vCPU to which it was moved. No other thread may
/// run.
fn probe_targets<E: Build>(world: &mut World<E>, storm: &mut Storm<E>, targets: &[u32]) {
    world.probe(storm, targets.len() as u32);
    for (n, &target) in targets.iter().enumerate() {
        assert_eq!(world.host.book(lpi(n as u32)).taken_by(), target, "LPI {n} was moved there");
    }
}

on_every_engine! {
    fn retarget_stress<E>() {
        const LPIS: u32 = 12;
        let mut world = World::<E>::with_lpis(4, 4, LPIS);
        let mut targets: Vec<u32> = (0..LPIS).map(|n| n % 4).collect();
        let mut storms = [0, 1].map(|seed| world.storm(LPIS, seed));
        for episode in 0..scaled(300) {
            let World { guests, msi, host, .. } = &mut world;
            let [a, b] = &mut storms;
            let work = vec![
                storm_work(a, LPIS, 150),
                storm_work(b, LPIS, 150),
                moves::<E>(msi, 4, &mut targets, episode),
            ];
            together(guests, work);
            host.balance();
            probe_targets(&mut world, &mut storms[0], &targets);
        }
        drop(storms);
        world.wind_up();
    }

    fn letters_stress<E>() {
        const LPIS: u32 = 8;
        let rules = Rules { exclusive: false, letters: true };
        let mut world = World::<E>::with_rules(2, 2, LPIS, rules);
        let mut targets: Vec<u32> = (0..LPIS).map(|n| n % 2).collect();
        let mut storms = [0, 1].map(|seed| world.storm(LPIS, seed));
        for episode in 0..scaled(300) {
            let World { guests, msi, host, .. } = &mut world;
            let mut work = vec![moves::<E>(msi, 2, &mut targets, episode)];
            work.extend(storms.iter_mut().zip(0..).map(|(storm, me)| -> Work<'_> {
                // Each injector has half of the LPIs.
                Box::new(move |_| {
                    for _ in 0..150 {
                        let n = storm.rng.below(LPIS / 2) * 2 + me;
                        storm.write(n);
                        storm.rng.dawdle();
                    }
                })
            }));
            together(guests, work);
            host.balance();
        }
        drop(storms);
        world.wind_up();
    }

    fn t03_t04_stress_disable_against_move<E>() {
        const LPIS: u32 = 8;
        let mut world = World::<E>::with_lpis(3, 4, LPIS);
        let mut targets: Vec<u32> = (0..LPIS).map(|n| n % 3).collect();
        let mut storms = [0, 1].map(|seed| world.storm(LPIS, seed));
        let mut toggler = world.storm(0, 2);
        for episode in 0..scaled(300) {
            let World { guests, msi, host, .. } = &mut world;
            let [a, b] = &mut storms;
            let host = &*host;
            let toggle: Work = Box::new(|stage| {
                let Storm { injector, rng, .. } = &mut toggler;
                for _ in 0..30 {
                    let vcpu = rng.below(3) as u16;
                    injector.set_lpis_enabled(VcpuId(vcpu), false).unwrap();
                    rng.dawdle();
                    if rng.one_in(4) && host.pass_through(stage, vcpu.into()) {
                        let taken = host.lpis_taken(vcpu.into());
                        host.pass_through(stage, vcpu.into());
                        assert_eq!(host.lpis_taken(vcpu.into()), taken, "no LPIs for vCPU {vcpu}");
                    }
                    injector.set_lpis_enabled(VcpuId(vcpu), true).unwrap();
                    rng.dawdle();
                }
            });
            let work = vec![
                storm_work(a, LPIS, 150),
                storm_work(b, LPIS, 150),
                moves::<E>(msi, 3, &mut targets, episode),
                toggle,
            ];
            together(guests, work);
            host.balance();
            probe_targets(&mut world, &mut storms[0], &targets);
        }
        drop((storms, toggler));
        world.wind_up();
    }

    fn power_stress<E>() {
        const LPIS: u32 = 8;
        let mut world = World::<E>::with_lpis(3, 2, LPIS);
        let mut targets: Vec<u32> = (0..LPIS).map(|n| n % 3).collect();
        let mut storms = [0, 1].map(|seed| world.storm(LPIS, seed));
        for episode in 0..scaled(300) {
            let World { guests, msi, host, .. } = &mut world;
            let [a, b] = &mut storms;
            let work = vec![
                storm_work(a, LPIS, 150),
                storm_work(b, LPIS, 150),
                moves::<E>(msi, 3, &mut targets, episode),
            ];
            together_with(guests, work, |guest| {
                // Now and then, the vCPU is powered off with its mail unread.
                if !guest.rng.one_in(4) {
                    guest.turn();
                } else if guest.close() {
                    guest.rng.dawdle();
                    guest.vcpu.open();
                }
                guest.rng.dawdle();
            });
            host.balance();
            probe_targets(&mut world, &mut storms[0], &targets);
        }
        drop(storms);
        world.wind_up();
    }

    fn t21_clear_stress<E>() {
        const LPIS: u32 = 16;
        const LRS: usize = 4;
        // `is_old` LPIs are pending before the episode, `is_new` LPIs are injected during it.
        let is_old = |n: u32| n % 4 >= 2;
        let is_new = |n: u32| n % 4 != 3;
        let mut world = World::<E>::with_lpis(1, LRS, LPIS);
        let mut storm = world.storm(LPIS, 0);
        for episode in 0..scaled(900) {
            let old = || (0..LPIS).filter(|&n| is_old(n));
            for n in old() {
                assert_eq!(storm.inject(n), Injected::Pending);
            }
            // The first LPIs are in list registers, but the guest has not taken them.
            let guest = &mut world.guests[0];
            guest.vcpu.flush(&mut guest.cpu);
            guest.vcpu.fold(&mut guest.cpu);
            let in_lr: Vec<u32> = old().take(LRS).collect();
            let World { guests, msi, host, .. } = &mut world;
            let mut results = Vec::new();
            let inject: Work = Box::new(|_| {
                results.extend((0..LPIS).filter(|&n| is_new(n)).map(|n| (n, storm.inject(n))));
            });
            let clear: Work = Box::new(move |_| {
                let mut rng = Rng::new(episode.into());
                (0..rng.below(300)).for_each(|_| std::hint::spin_loop());
                (0..LPIS).for_each(|n| msi.clear(DEV, EventId(n)).unwrap());
            });
            if episode % 2 == 1 {
                together(guests, vec![inject, clear]);
            } else {
                // No guest takes anything at the same time, so only the order of injection and
                // CLEAR counts.
                together::<E>(&mut [], vec![inject, clear]);
                if episode % 4 == 0 && guests[0].close() {
                    // The power-off gives back LPIs in list registers that are still pending.
                    guests[0].vcpu.open();
                }
                settle(guests);
                for n in (0..LPIS).filter(|&n| !is_new(n)) {
                    assert_eq!(host.book(lpi(n)).taken(), 0, "LPI {n}: CLEAR alone");
                }
                for (n, result) in results {
                    let taken = host.book(lpi(n)).taken();
                    match result {
                        // CLEAR has withdrawn the LPI together with the earlier injection that this
                        // one was merged with.
                        Injected::Coalesced => assert_eq!(taken, 0, "LPI {n}: injection, CLEAR"),
                        Injected::Pending if is_old(n) && !in_lr.contains(&n) => {
                            assert_eq!(taken, 1, "LPI {n}: CLEAR, injection");
                        }
                        Injected::Pending => assert!(taken <= 1, "LPI {n}: taken {taken} times"),
                        Injected::Unmapped => panic!("LPI {n} is mapped"),
                    }
                }
            }
            host.balance_without_losses();
            world.probe(&mut storm, LPIS);
        }
        drop(storm);
        world.wind_up();
    }
}
