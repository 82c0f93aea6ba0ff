//! The behavior of the engine, one property per test, on every engine and reclamation backend.

mod common;

use common::*;
use vgic_core::engine::*;
use vgic_core::ids::*;

/// Makes each function a test of each engine.
macro_rules! on_every_engine {
    ($($(#[$meta:meta])* fn $name:ident<$e:ident>() $body:block)*) => {
        $($(#[$meta])* fn $name<$e: Engine>() $body)*

        mod epoch { $(#[test] fn $name() { super::$name::<vgic_core::Vgic<vgic_core::reclaim::Epoch>>(); })* }
        mod slots { $(#[test] fn $name() { super::$name::<vgic_core::Vgic<vgic_core::reclaim::Slots>>(); })* }
        #[cfg(feature = "locked")]
        mod locked { $(#[test] fn $name() { super::$name::<vgic_core::locked::LockedVgic>(); })* }
    };
}

const SPI: Wired = Wired::Spi(Intid(40));

fn wired(trigger: Trigger, priority: u8, target: u16) -> WiredConfig {
    WiredConfig {
        enabled: true,
        priority: Priority::new(priority),
        group: Group::Group1,
        trigger,
        target: VcpuId(target),
    }
}

on_every_engine! {
    fn an_lpi_is_delivered_once<E>() {
        let mut m = Machine::<E>::new(1, 4);
        m.map(0, 0, 0xa0);
        assert_eq!(m.inject(0), Injected::Pending);
        assert_eq!(m.inject(0), Injected::Coalesced);
        assert_eq!(m.kicks(0), 1);
        assert_eq!(m.run(0), [8192]);
        assert!(m.run(0).is_empty());
        assert_eq!(m.inject(1), Injected::Unmapped);
    }

    fn t20_injected_after_eoi_before_exit<E>() {
        let mut m = Machine::<E>::new(1, 4);
        m.map(0, 0, 0xa0);
        let _ = m.inject(0);
        m.enter(0);
        assert_eq!(m.serve(0), [8192]);
        assert_eq!(m.inject(0), Injected::Pending);
        m.exit(0);
        assert_eq!(m.run(0), [8192]);
        assert!(m.drain(0).is_empty());
    }

    fn t40_injected_after_acknowledge_before_exit<E>() {
        let mut m = Machine::<E>::new(1, 4);
        m.map(0, 0, 0xa0);
        let _ = m.inject(0);
        m.enter(0);
        assert_eq!(m.cpus[0].iar1(), lpi(0));
        assert_eq!(m.inject(0), Injected::Pending);
        m.exit(0);
        // The LPI is active, and pending again: it is not taken before it is ended.
        m.enter(0);
        assert_eq!(m.cpus[0].iar1(), Intid(SPURIOUS));
        let _ = m.cpus[0].eoir1(lpi(0));
        assert_eq!(m.serve(0), [8192]);
        m.exit(0);
        assert!(m.drain(0).is_empty());
    }

    fn highest_priority_first_then_oldest_first<E>() {
        let mut m = Machine::<E>::new(1, 2);
        for (n, priority) in [(0, 0xa0), (1, 0x80), (2, 0xa0), (3, 0x20), (4, 0x80), (5, 0xa0)] {
            m.map(n, 0, priority);
            let _ = m.inject(n);
        }
        assert!(m.enter(0).waiting);
        m.exit(0);
        assert_eq!(m.drain(0), [3, 1, 4, 0, 2, 5].map(|n| 8192 + n));
    }

    fn a_more_urgent_one_evicts_and_the_evicted_keeps_its_turn<E>() {
        let mut m = Machine::<E>::new(1, 2);
        for (n, priority) in [(0, 0xa0), (1, 0xa0), (2, 0xa0), (3, 0x20)] {
            m.map(n, 0, priority);
        }
        for n in 0..3 {
            let _ = m.inject(n);
        }
        m.enter(0);
        m.exit(0);
        let _ = m.inject(3);
        assert_eq!(m.drain(0), [3, 0, 1, 2].map(|n| 8192 + n));
    }

    fn t30_everything_pending_at_once<E>() {
        let mut m = Machine::<E>::new(1, 4);
        for n in 0..2000 {
            m.map(n, 0, (n % 256) as u8);
            assert_eq!(m.inject(n), Injected::Pending);
        }
        let seen = m.drain(0);
        let mut want: Vec<u32> = (0..2000).collect();
        want.sort_by_key(|n| Priority::new((n % 256) as u8));
        // The lowest priority does not pass a mask of 0xff: the mask becomes 0xf8, and 0xf8 is not
        // less than that.
        want.retain(|n| Priority::new((n % 256) as u8) != Priority::LOWEST);
        assert_eq!(seen, want.iter().map(|n| 8192 + n).collect::<Vec<_>>());
    }

    fn t28_disabled_is_not_delivered_and_t35_stays_pending<E>() {
        let mut m = Machine::<E>::new(1, 4);
        let off = LpiConfig { enabled: false, priority: Priority::new(0xa0) };
        m.msi.map(DEV, EventId(0), lpi(0), VcpuId(0), off).unwrap();
        assert_eq!(m.inject(0), Injected::Pending);
        assert!(m.run(0).is_empty());
        m.msi.set_config(lpi(0), LpiConfig::enabled(0xa0)).unwrap();
        assert_eq!(m.run(0), [8192]);
    }

    fn disabling_retires_it_from_its_list_register<E>() {
        let mut m = Machine::<E>::new(1, 4);
        m.map(0, 0, 0xa0);
        let _ = m.inject(0);
        m.enter(0);
        m.msi.set_config(lpi(0), LpiConfig { enabled: false, priority: Priority::new(0xa0) }).unwrap();
        m.exit(0);
        assert!(m.run(0).is_empty());
        m.msi.set_config(lpi(0), LpiConfig::enabled(0xa0)).unwrap();
        assert_eq!(m.run(0), [8192]);
    }

    fn clear_withdraws_it_wherever_it_is<E>() {
        let mut m = Machine::<E>::new(1, 1);
        m.map(0, 0, 0xa0);
        m.map(1, 0, 0xa0);
        for _ in 0..2 {
            let _ = m.inject(0);
            let _ = m.inject(1);
            m.enter(0);
            m.exit(0);
            // LPI 0 is in the list register, and LPI 1 waits.
            m.msi.clear(DEV, EventId(0)).unwrap();
            m.msi.clear(DEV, EventId(1)).unwrap();
            assert!(m.drain(0).is_empty());
        }
        let _ = m.inject(0);
        m.enter(0);
        m.exit(0);
        m.msi.clear(DEV, EventId(0)).unwrap();
        assert_eq!(m.inject(0), Injected::Pending, "after CLEAR it was not pending");
        assert_eq!(m.drain(0), [8192]);
    }

    fn retarget_moves_what_is_pending<E>() {
        let mut m = Machine::<E>::new(3, 4);
        m.map(0, 0, 0xa0);
        let _ = m.inject(0);
        m.msi.retarget(DEV, EventId(0), VcpuId(1)).unwrap();
        assert!(m.drain(0).is_empty());
        assert_eq!(m.drain(1), [8192]);
        // The LPI is in a list register of vCPU 1, and is retargeted twice.
        let _ = m.inject(0);
        m.enter(1);
        m.exit(1);
        m.msi.retarget(DEV, EventId(0), VcpuId(0)).unwrap();
        m.msi.retarget(DEV, EventId(0), VcpuId(2)).unwrap();
        assert!(m.drain(1).is_empty());
        assert!(m.drain(0).is_empty());
        assert_eq!(m.drain(2), [8192]);
    }

    fn retarget_of_an_active_one_waits_for_its_end<E>() {
        let mut m = Machine::<E>::new(2, 4);
        m.map(0, 0, 0xa0);
        let _ = m.inject(0);
        m.enter(0);
        assert_eq!(m.cpus[0].iar1(), lpi(0));
        m.exit(0);
        m.msi.retarget(DEV, EventId(0), VcpuId(1)).unwrap();
        let _ = m.inject(0);
        m.enter(0);
        let _ = m.cpus[0].eoir1(lpi(0));
        assert_eq!(m.cpus[0].iar1(), Intid(SPURIOUS), "the new one is for vCPU 1");
        m.exit(0);
        assert!(m.drain(0).is_empty());
        assert_eq!(m.drain(1), [8192]);
    }

    fn t12_move_all_moves_one_vcpus_lpis_only<E>() {
        let mut m = Machine::<E>::new(3, 4);
        for n in 0..6 {
            m.map(n, (n % 3) as u16, 0xa0);
            let _ = m.inject(n);
        }
        assert_eq!(m.msi.move_all(VcpuId(0), VcpuId(0)), Ok(0));
        assert_eq!(m.msi.move_all(VcpuId(0), VcpuId(2)), Ok(2));
        assert!(m.drain(0).is_empty());
        assert_eq!(m.drain(1), [8193, 8196]);
        let mut two = m.drain(2);
        two.sort_unstable();
        assert_eq!(two, [8192, 8194, 8195, 8197]);
    }

    fn t05_discard_then_remap_same_intid<E>() {
        let mut m = Machine::<E>::new(1, 4);
        m.map(0, 0, 0xa0);
        for _ in 0..100 {
            let _ = m.inject(0);
            m.msi.unmap(DEV, EventId(0)).unwrap();
            assert_eq!(m.inject(0), Injected::Unmapped);
            m.map(0, 0, 0xa0);
        }
        assert!(m.drain(0).is_empty(), "DISCARD dropped what was pending");
        assert_eq!(m.inject(0), Injected::Pending);
        assert_eq!(m.drain(0), [8192]);
    }

    fn unmapped_while_in_a_list_register<E>() {
        let mut m = Machine::<E>::new(1, 4);
        m.map(0, 0, 0xa0);
        let _ = m.inject(0);
        m.enter(0);
        m.msi.unmap(DEV, EventId(0)).unwrap();
        m.exit(0);
        assert!(m.drain(0).is_empty());
        m.map(0, 0, 0xa0);
        let _ = m.inject(0);
        m.enter(0);
        assert_eq!(m.cpus[0].iar1(), lpi(0));
        m.msi.unmap(DEV, EventId(0)).unwrap();
        m.map(0, 0, 0xa0);
        let _ = m.cpus[0].eoir1(lpi(0));
        m.exit(0);
        let _ = m.inject(0);
        assert_eq!(m.drain(0), [8192]);
    }

    fn two_events_share_an_lpi<E>() {
        let mut m = Machine::<E>::new(2, 4);
        m.map(0, 0, 0xa0);
        let config = LpiConfig::enabled(0x80);
        m.msi.map(DeviceId(9), EventId(3), lpi(0), VcpuId(1), config).unwrap();
        assert_eq!(m.inject(0), Injected::Pending);
        assert_eq!(m.injector.inject(&m.msi.domain(), DeviceId(9), EventId(3)), Injected::Coalesced);
        assert_eq!(m.drain(1), [8192]);
        m.msi.unmap(DEV, EventId(0)).unwrap();
        let again = m.injector.inject(&m.msi.domain(), DeviceId(9), EventId(3));
        assert_eq!(again, Injected::Pending);
        assert_eq!(m.drain(1), [8192]);
        assert_eq!(m.vgic.usage().lpis, 1);
        assert_eq!(m.msi.unmap_device(DeviceId(9)), 1);
        m.msi.collect();
        assert_eq!(m.vgic.usage().lpis, 0);
    }

    fn a_route_sees_every_remap<E>() {
        let mut m = Machine::<E>::new(1, 4);
        let route = m.msi.route(DEV, EventId(0)).unwrap();
        assert_eq!(m.injector.inject_route(&route), Injected::Unmapped);
        m.map(0, 0, 0xa0);
        assert_eq!(m.injector.inject_route(&route), Injected::Pending);
        assert_eq!(m.drain(0), [8192]);
        m.msi.unmap_device(DEV);
        m.msi.collect();
        assert_eq!(m.injector.inject_route(&route), Injected::Unmapped);
        m.msi.map(DEV, EventId(0), lpi(5), VcpuId(0), LpiConfig::enabled(0xa0)).unwrap();
        assert_eq!(m.injector.inject_route(&route), Injected::Pending);
        assert_eq!(m.drain(0), [8197]);
    }

    fn t03_lpis_disabled_at_the_old_target<E>() {
        let mut m = Machine::<E>::new(2, 4);
        m.map(0, 0, 0xa0);
        let _ = m.inject(0);
        m.enter(0);
        m.exit(0);
        m.injector.set_lpis_enabled(VcpuId(0), false).unwrap();
        assert!(m.drain(0).is_empty());
        m.msi.retarget(DEV, EventId(0), VcpuId(1)).unwrap();
        assert_eq!(m.drain(1), [8192]);
        m.msi.retarget(DEV, EventId(0), VcpuId(0)).unwrap();
        assert_eq!(m.inject(0), Injected::Pending);
        assert!(m.drain(0).is_empty());
        m.injector.set_lpis_enabled(VcpuId(0), true).unwrap();
        assert_eq!(m.drain(0), [8192]);
    }

    fn a_closed_vcpu_keeps_everything_pending<E>() {
        let mut m = Machine::<E>::new(2, 1);
        m.map(0, 0, 0xa0);
        m.map(1, 0, 0xa0);
        m.map(2, 0, 0xa0);
        let (a, b) = (m.inject(0), m.inject(1));
        assert_eq!((a, b), (Injected::Pending, Injected::Pending));
        m.enter(0);
        m.exit(0);
        m.vcpus[0].close(&mut m.cpus[0]);
        assert_eq!(m.inject(0), Injected::Coalesced);
        assert_eq!(m.inject(2), Injected::Pending);
        m.msi.retarget(DEV, EventId(1), VcpuId(1)).unwrap();
        assert_eq!(m.drain(1), [8193]);
        m.vcpus[0].open();
        assert_eq!(m.drain(0), [8192, 8194]);
    }

    fn an_active_spi_survives_power_off<E>() {
        let mut m = Machine::<E>::new(1, 4);
        m.injector.configure(SPI, wired(Trigger::Edge, 0xa0, 0)).unwrap();
        let _ = m.injector.pulse(SPI).unwrap();
        m.enter(0);
        assert_eq!(m.cpus[0].iar1(), Intid(40));
        m.exit(0);
        m.vcpus[0].close(&mut m.cpus[0]);
        let _ = m.injector.pulse(SPI).unwrap();
        m.vcpus[0].open();
        m.enter(0);
        assert_eq!(m.cpus[0].iar1(), Intid(SPURIOUS), "still active");
        let _ = m.cpus[0].eoir1(Intid(40));
        assert_eq!(m.serve(0), [40]);
        m.exit(0);
    }

    fn a_level_is_sampled_again_after_eoi<E>() {
        let mut m = Machine::<E>::new(1, 4);
        m.injector.configure(SPI, wired(Trigger::Level, 0xa0, 0)).unwrap();
        m.injector.set_level(SPI, true).unwrap();
        assert_eq!(m.run(0), [40]);
        assert_eq!(m.run(0), [40], "still asserted");
        m.injector.set_level(SPI, false).unwrap();
        assert!(m.drain(0).is_empty());
        // The interrupt is withdrawn from the list register when the line falls before the
        // acknowledge.
        m.injector.set_level(SPI, true).unwrap();
        m.enter(0);
        m.injector.set_level(SPI, false).unwrap();
        m.exit(0);
        assert!(m.drain(0).is_empty());
    }

    fn an_edge_is_latched_when_it_rises<E>() {
        let mut m = Machine::<E>::new(1, 4);
        m.injector.configure(SPI, wired(Trigger::Edge, 0xa0, 0)).unwrap();
        m.injector.set_level(SPI, true).unwrap();
        m.injector.set_level(SPI, true).unwrap();
        m.injector.set_level(SPI, false).unwrap();
        assert_eq!(m.drain(0), [40]);
        m.injector.set_level(SPI, true).unwrap();
        assert_eq!(m.drain(0), [40]);
    }

    fn sgis_and_ppis_are_each_vcpus_own<E>() {
        let mut m = Machine::<E>::new(2, 4);
        for vcpu in 0..2 {
            for intid in [3, 27] {
                let irq = Wired::Private(VcpuId(vcpu), Intid(intid));
                m.injector.configure(irq, wired(Trigger::Edge, 0x80, 0)).unwrap();
            }
        }
        let _ = m.injector.pulse(Wired::Private(VcpuId(1), Intid(3))).unwrap();
        let _ = m.injector.pulse(Wired::Private(VcpuId(0), Intid(27))).unwrap();
        assert_eq!(m.drain(0), [27]);
        assert_eq!(m.drain(1), [3]);
        let bad = Wired::Private(VcpuId(0), Intid(32));
        assert_eq!(m.injector.pulse(bad), Err(Error::IntidRange(Intid(32))));
        let bad = Wired::Private(VcpuId(2), Intid(3));
        assert_eq!(m.injector.pulse(bad), Err(Error::NoSuchVcpu(VcpuId(2))));
        assert_eq!(m.injector.pulse(Wired::Spi(Intid(64))), Err(Error::IntidRange(Intid(64))));
    }

    fn t32_more_active_than_list_registers<E>() {
        let mut m = Machine::<E>::new(1, 2);
        let spi = |n| Wired::Spi(Intid(40 + n));
        for n in 0..4 {
            // Each SPI preempts the one before.
            m.injector.configure(spi(n), wired(Trigger::Edge, 0xa0 - 0x20 * n as u8, 0)).unwrap();
            let _ = m.injector.pulse(spi(n)).unwrap();
            m.enter(0);
            assert_eq!(m.cpus[0].iar1(), Intid(40 + n), "preempts, though all list registers are active");
            m.exit(0);
        }
        for n in (0..4).rev() {
            m.enter(0);
            let _ = m.cpus[0].eoir1(Intid(40 + n));
            m.exit(0);
        }
        for n in 0..4 {
            assert_eq!(m.injector.pulse(spi(n)).unwrap(), Injected::Pending);
        }
        assert_eq!(m.drain(0), [43, 42, 41, 40], "all had been deactivated");
    }

    fn t32_no_maintenance_storm_with_everything_active<E>() {
        for lrs in 1..3u32 {
            let mut m = Machine::<E>::new(1, lrs as usize);
            let spi = |n| Wired::Spi(Intid(40 + n));
            for n in 0..lrs {
                m.injector.configure(spi(n), wired(Trigger::Edge, 0xa0 - 0x20 * n as u8, 0)).unwrap();
                let _ = m.injector.pulse(spi(n)).unwrap();
                m.enter(0);
                assert_eq!(m.cpus[0].iar1(), Intid(40 + n));
                m.exit(0);
            }
            m.injector.configure(spi(9), wired(Trigger::Edge, 0xe0, 0)).unwrap();
            let _ = m.injector.pulse(spi(9)).unwrap();
            assert!(m.enter(0).waiting);
            assert!(!m.cpus[0].maintenance_pending(), "{lrs} LRs: nothing for the host to do yet");
            for n in (0..lrs).rev() {
                let _ = m.cpus[0].eoir1(Intid(40 + n));
            }
            assert!(m.cpus[0].maintenance_pending(), "{lrs} LRs: now there is room");
            m.exit(0);
            assert_eq!(m.drain(0), [49]);
        }
    }

    fn deactivated_from_outside_its_list_register<E>() {
        let mut m = Machine::<E>::new(1, 1);
        let spi = |n| Wired::Spi(Intid(40 + n));
        for n in 0..2 {
            m.injector.configure(spi(n), wired(Trigger::Edge, 0xa0 - 0x20 * n as u8, 0)).unwrap();
            let _ = m.injector.pulse(spi(n)).unwrap();
            m.enter(0);
            assert_eq!(m.cpus[0].iar1(), Intid(40 + n));
            m.exit(0);
        }
        // SPI 40 has lost its list register to SPI 41.
        assert!(m.vcpus[0].deactivate(Intid(40)));
        assert!(!m.vcpus[0].deactivate(Intid(40)));
        assert!(m.vcpus[0].deactivate(Intid(41)));
        assert!(!m.vcpus[0].deactivate(lpi(0)));
        let _ = m.injector.pulse(spi(0)).unwrap();
        assert_eq!(m.enter(0).pending, 1, "no longer active, so pending is all it is");
        m.exit(0);
    }

    fn limits_and_ranges_are_errors_that_change_nothing<E>() {
        let config = Config { max_lpis: 2, max_devices: 1, max_events: 3, lpis: 16, device_bits: 4, event_bits: 2, ..Config::with_vcpus(1) };
        let mut m = Machine::<E>::with(config, 4);
        let on = LpiConfig::enabled(0xa0);
        let map = |m: &mut Machine<E>, d, e, n, v| m.msi.map(DeviceId(d), EventId(e), lpi(n), VcpuId(v), on);
        assert_eq!(map(&mut m, 16, 0, 0, 0), Err(Error::DeviceRange(DeviceId(16))));
        assert_eq!(map(&mut m, 0, 4, 0, 0), Err(Error::EventRange(EventId(4))));
        assert_eq!(map(&mut m, 0, 0, 16, 0), Err(Error::IntidRange(lpi(16))));
        assert_eq!(map(&mut m, 0, 0, 0, 1), Err(Error::NoSuchVcpu(VcpuId(1))));
        assert_eq!(map(&mut m, 0, 0, 0, 0), Ok(()));
        assert_eq!(map(&mut m, 0, 0, 1, 0), Err(Error::EventMapped));
        assert_eq!(map(&mut m, 1, 0, 1, 0), Err(Error::TooManyDevices));
        assert_eq!(map(&mut m, 0, 1, 1, 0), Ok(()));
        assert_eq!(map(&mut m, 0, 2, 2, 0), Err(Error::TooManyLpis));
        assert_eq!(map(&mut m, 0, 2, 1, 0), Ok(()));
        assert_eq!(map(&mut m, 0, 3, 1, 0), Err(Error::TooManyEvents));
        assert_eq!(m.msi.unmap(DeviceId(0), EventId(3)), Err(Error::NotMapped));
        assert_eq!(m.msi.unmap_device(DeviceId(0)), 3);
        assert_eq!(map(&mut m, 1, 0, 2, 0), Ok(()), "everything is free again");
        assert_eq!(m.vgic.vcpu(VcpuId(0)).err(), Some(Error::VcpuInUse(VcpuId(0))));
        assert_eq!(m.vgic.vcpu(VcpuId(9)).err(), Some(Error::NoSuchVcpu(VcpuId(9))));
        let mut bad = Config::with_vcpus(0);
        assert!(matches!(bad.check(), Err(Error::Config("vcpus"))));
        bad.vcpus = 1;
        bad.lpis = 1 << 24;
        assert!(matches!(bad.check(), Err(Error::Config("lpis"))));
    }

    fn t27_ids_beyond_the_advertised_bits_are_nobody<E>() {
        let mut m = Machine::<E>::new(1, 4);
        m.map(0, 0, 0xa0);
        let domain = m.msi.domain();
        for bit in 16..32 {
            let (device, event) = (DeviceId(DEV.0 | 1 << bit), EventId(1 << bit));
            assert_eq!(m.injector.inject(&domain, device, EventId(0)), Injected::Unmapped);
            assert_eq!(m.injector.inject(&domain, DEV, event), Injected::Unmapped);
            assert_eq!(m.msi.unmap(device, EventId(0)), Err(Error::NotMapped));
            assert_eq!(m.msi.unmap(DEV, event), Err(Error::NotMapped));
            assert_eq!(m.msi.unmap_device(device), 0);
        }
        assert_eq!(m.inject(0), Injected::Pending);
    }

    fn closed_without_a_fold_delivers_nothing_twice<E>() {
        let mut m = Machine::<E>::new(1, 4);
        m.map(0, 0, 0xa0);
        let _ = m.inject(0);
        m.enter(0);
        assert_eq!(m.serve(0), [8192]);
        m.vcpus[0].close(&mut m.cpus[0]);
        m.vcpus[0].open();
        assert!(m.drain(0).is_empty());
    }

    fn t17_a_vm_ends_with_lpis_pending_and_queued<E>() {
        let mut m = Machine::<E>::new(2, 2);
        for n in 0..50 {
            m.map(n, (n % 2) as u16, 0xa0);
            let _ = m.inject(n);
        }
        m.enter(0);
        let _ = m.cpus[0].iar1();
        let vgic = m.vgic.clone();
        drop(m);
        assert_eq!(vgic.usage(), Usage::default());
    }
}

#[test]
fn pending_lpis_are_saved_and_loaded_64_at_a_time() {
    let mut m = Machine::<vgic_core::Vgic>::new(1, 4);
    let pending = [0, 1, 63, 64, 511, 512, 1500];
    for n in 0..1501 {
        m.map(n, 0, 0xa0);
    }
    m.vcpus[0].close(&mut m.cpus[0]);
    for n in pending {
        assert_eq!(m.inject(n), Injected::Pending);
    }
    let mut saved = Vec::new();
    m.msi.save_pending(|first, bits| {
        assert_eq!(first.0 % 64, 0);
        if bits != 0 {
            saved.push((first, bits));
        }
    });
    let mut found = Vec::new();
    for &(first, bits) in &saved {
        found.extend((0..64).filter(|i| bits & 1 << i != 0).map(|i| first.0 + i - LPI_BASE));
    }
    assert_eq!(found, pending);

    let mut other = Machine::<vgic_core::Vgic>::new(1, 4);
    for n in 0..1500 {
        other.map(n, 0, 0xa0);
    }
    let missed: Vec<u64> =
        saved.iter().map(|&(first, bits)| other.msi.load_pending(first, bits).unwrap()).collect();
    assert_eq!(missed.iter().map(|bits| bits.count_ones()).sum::<u32>(), 1, "1500 is not mapped");
    let mut seen = other.drain(0);
    seen.sort_unstable();
    assert_eq!(seen, pending[..6].iter().map(|n| n + LPI_BASE).collect::<Vec<_>>());
    assert_eq!(other.msi.load_pending(Intid(8193), 1), Err(Error::IntidRange(Intid(8193))));
    assert_eq!(other.msi.load_pending(Intid(64), 1), Err(Error::IntidRange(Intid(64))));
}

#[test]
fn what_a_fold_queues_keeps_the_vcpu_awake() {
    let mut m = Machine::<vgic_core::Vgic>::new(1, 4);
    m.injector.configure(SPI, wired(Trigger::Level, 0xa0, 0)).unwrap();
    m.injector.set_level(SPI, true).unwrap();
    assert_eq!(m.run(0), [40]);
    assert!(m.vcpus[0].has_mail(), "the line is still high");
    m.injector.set_level(SPI, false).unwrap();
    assert!(m.drain(0).is_empty());
    assert!(!m.vcpus[0].has_mail());
}

#[test]
fn a_new_interface_does_not_trust_the_list_registers() {
    let mut m = Machine::<vgic_core::Vgic>::new(1, 4);
    m.map(0, 0, 0xa0);
    let _ = m.inject(0);
    m.enter(0);
    drop(m.vcpus.pop());
    m.msi.unmap(DEV, EventId(0)).unwrap();
    m.vcpus.push(m.vgic.vcpu(VcpuId(0)).unwrap());
    m.vcpus[0].open();
    assert!(m.run(0).is_empty());
}

#[test]
fn routes_that_come_and_go_leave_nothing() {
    let config = Config { event_bits: 32, max_events: 4, ..Config::with_vcpus(1) };
    let mut m = Machine::<vgic_core::Vgic>::with(config, 4);
    m.map(0, 0, 0xa0);
    m.msi.collect();
    let before = m.vgic.usage();
    for n in 0..10_000 {
        drop(m.msi.route(DEV, EventId(n << 18)).unwrap());
    }
    m.msi.collect();
    assert_eq!(m.vgic.usage(), before);
}
