//! More interrupts than list registers, on every engine.

mod common;

use common::*;
use vgic_core::cpuif::DirOutcome;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::lr::{ListRegisters, Lr, LrState};

macro_rules! on_every_engine {
    ($($(#[$meta:meta])* fn $name:ident<$e:ident>() $body:block)*) => {
        $($(#[$meta])* fn $name<$e: Engine>() $body)*

        mod lock_free { $(#[test] fn $name() { super::$name::<vgic_core::Vgic>(); })* }
        #[cfg(feature = "locked")]
        mod locked { $(#[test] fn $name() { super::$name::<vgic_core::locked::LockedVgic>(); })* }
    };
}

fn spi<E: Engine>(m: &Machine<E>, intid: u32, priority: u8) -> Wired {
    let wired = Wired::Spi(Intid(intid));
    let config = WiredConfig {
        enabled: true,
        priority: Priority::new(priority),
        group: Group::Group1,
        trigger: Trigger::Edge,
        target: VcpuId(0),
    };
    m.injector.configure(wired, config).unwrap();
    wired
}

fn lrs<E: Engine>(m: &Machine<E>) -> Vec<Lr> {
    (0..m.cpus[0].count()).map(|n| m.cpus[0].read(n)).collect()
}

on_every_engine! {
    /// The guest has dropped the priority of all active interrupts, and is ready for more.
    fn t32_active_interrupts_do_not_starve_pending_ones<E>() {
        let mut m = Machine::<E>::new(1, 2);
        m.cpus[0].set_ctlr(2); // EOImode 1
        for intid in 40..44 {
            let wired = spi(&m, intid, 0x80);
            let _ = m.injector.pulse(wired).unwrap();
            m.enter(0);
            assert!(!m.cpus[0].misr().underflow && !m.cpus[0].misr().no_pending);
            assert_eq!(m.cpus[0].iar1(), Intid(intid));
            let _ = m.cpus[0].eoir1(Intid(intid));
            m.exit(0);
        }
        m.map(0, 0, 0xf0);
        let _ = m.inject(0);
        assert!(m.enter(0).waiting, "active ones wait for a list register");
        assert!(!m.cpus[0].maintenance_pending(), "no exit before the guest does something");
        assert_eq!(m.serve(0), [8192], "less urgent than all of them");
        m.exit(0);
        // Each interrupt is deactivated where it is.
        for intid in (40..44).map(Intid) {
            m.enter(0);
            match m.cpus[0].dir(intid) {
                DirOutcome::Deactivated(_) => {}
                DirOutcome::Trapped(_) => {
                    let here = m.cpus[0].deactivate(intid).is_some();
                    assert!(here || m.vcpus[0].deactivate(intid), "{intid}");
                }
                other => panic!("{intid}: {other:?}"),
            }
            m.exit(0);
            assert_eq!(m.injector.is_active(Wired::Spi(intid)), Ok(false));
        }
        assert_eq!(m.enter(0).in_lrs, 0);
    }

    /// An active LPI loses its list register while it is pending again at another priority: it then
    /// waits at that priority.
    fn an_lpi_that_loses_its_list_register_is_offered_at_its_own_priority<E>() {
        let mut m = Machine::<E>::new(1, 1);
        m.map(0, 0, 0xa0);
        m.map(1, 0, 0x50);
        let _ = m.inject(0);
        m.enter(0);
        assert_eq!(m.cpus[0].iar1(), lpi(0));
        m.exit(0);
        m.msi.set_config(lpi(0), LpiConfig::enabled(0x10)).unwrap();
        let _ = m.inject(0);
        let _ = m.inject(1);
        // The locked engine sorts interrupts that it has taken out of a list register at the next
        // entry.
        m.enter(0);
        m.exit(0);
        m.enter(0);
        let [lr] = lrs(&m)[..] else { panic!("one list register") };
        let urgent = (lpi(0), LrState::Pending, Priority::new(0x10));
        assert_eq!((lr.intid(), lr.state(), lr.priority()), urgent);
        m.exit(0);
        assert_eq!(m.drain(0), [8192, 8193]);
    }

    /// An interrupt that is disabled while it is active still deactivates its physical interrupt
    /// when the guest ends it.
    fn t31_a_disabled_active_interrupt_keeps_its_physical_side<E>() {
        let mut m = Machine::<E>::new(1, 4);
        let wired = spi(&m, 40, 0x80);
        m.injector.map_phys(wired, 77).unwrap();
        let _ = m.injector.pulse(wired).unwrap();
        m.enter(0);
        assert_eq!(m.cpus[0].iar1(), Intid(40));
        m.exit(0);
        m.injector.update(wired, |c| WiredConfig { enabled: false, ..c }).unwrap();
        for _ in 0..2 {
            m.enter(0);
            let lr = lrs(&m)[0];
            assert_eq!((lr.intid(), lr.state(), lr.hw()), (Intid(40), LrState::Active, Some(77)));
            m.exit(0);
        }
        m.enter(0);
        let done = m.cpus[0].eoir1(Intid(40)).expect("it is active");
        assert_eq!(done.hw, Some(77));
        m.exit(0);
        assert_eq!(m.injector.is_active(wired), Ok(false));
    }

    /// All INTIDs are pending at once, with a handful of list registers: none is dropped, and none
    /// comes twice.
    fn t30_all_intids_pending_at_once<E>() {
        let config = Config { spis: 988, espis: 1024, eppis: 64, lpis: 2048, ..Config::with_vcpus(1) };
        let mut m = Machine::<E>::with(config, 4);
        let private = (0..32).chain(EPPI_BASE..EPPI_END).map(|n| Wired::Private(VcpuId(0), Intid(n)));
        let shared = (32..SPI_END).chain(ESPI_BASE..ESPI_END).map(|n| Wired::Spi(Intid(n)));
        let config = WiredConfig {
            enabled: true,
            priority: Priority::new(0x80),
            group: Group::Group1,
            trigger: Trigger::Edge,
            target: VcpuId(0),
        };
        let mut expected: Vec<u32> = Vec::new();
        for wired in private.chain(shared) {
            m.injector.configure(wired, config).unwrap();
            assert_eq!(m.injector.pulse(wired), Ok(Injected::Pending));
            let (Wired::Private(_, intid) | Wired::Spi(intid)) = wired;
            expected.push(intid.0);
        }
        for n in 0..2048 {
            m.map(n, 0, 0x80);
            assert_eq!(m.inject(n), Injected::Pending);
            expected.push(lpi(n).0);
        }
        let mut seen = m.drain(0);
        seen.sort_unstable();
        expected.sort_unstable();
        assert_eq!(seen, expected);
    }
}
