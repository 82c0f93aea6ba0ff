//! The optional observers of the engine: reference tracing and counters.
#![cfg(any(feature = "trace", feature = "counters"))]
#![allow(clippy::disallowed_types)] // the test's own tracer

mod common;

#[cfg(feature = "trace")]
mod trace {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicU64;
    use std::sync::{Arc, Mutex};

    use crate::common::*;
    use vgic_core::Vgic;
    use vgic_core::engine::*;
    use vgic_core::ids::*;
    use vgic_core::trace::*;

    /// The references taken and given back, by INTID and kind.
    type Balances = BTreeMap<(u32, &'static str), (u64, u64)>;

    #[derive(Default)]
    struct Ledger(Mutex<Balances>);

    impl Tracer for Ledger {
        fn event(&self, event: &TraceEvent) {
            assert!(event.site.file().ends_with(".rs"));
            let (kind, up) = match event.kind {
                Trace::Get => ("counted", true),
                Trace::Put => ("counted", false),
                Trace::Keep => ("kept", true),
                Trace::Unkeep => ("kept", false),
                Trace::Post => ("mailbox", true),
                Trace::Unpost => ("mailbox", false),
                Trace::Own => ("owner", true),
                Trace::Disown => ("owner", false),
            };
            let mut ledger = self.0.lock().unwrap();
            let (taken, given) = ledger.entry((event.intid.0, kind)).or_default();
            *if up { taken } else { given } += 1;
        }
    }

    #[test]
    fn every_kind_of_reference_is_given_back_as_often_as_it_is_taken() {
        let ledger = Arc::new(Ledger::default());
        let kicks = Arc::new(Kicks((0..2).map(|_| AtomicU64::new(0)).collect()));
        let vgic: Vgic = Vgic::with_tracer(&Config::with_vcpus(2), kicks, ledger.clone()).unwrap();
        let mut vcpus: Vec<_> = (0..2).map(|v| vgic.vcpu(VcpuId(v)).unwrap()).collect();
        let mut cpus = [cpu(2), cpu(2)];
        vcpus.iter_mut().for_each(Vcpu::open);
        let mut msi = vgic.msi().unwrap();
        let injector = vgic.injector().unwrap();
        let map = |msi: &mut vgic_core::Msi, n: u32| {
            let config = LpiConfig::enabled((n % 4 * 32) as u8);
            msi.map(DEV, EventId(n), lpi(n), VcpuId((n % 2) as u16), config).unwrap();
        };
        let routes: Vec<_> = (0..20).map(|n| msi.route(DEV, EventId(n)).unwrap()).collect();
        (0..20).for_each(|n| map(&mut msi, n));
        for round in 0..50u32 {
            for route in &routes {
                let _ = injector.inject_route(route);
            }
            for (vcpu, cpu) in vcpus.iter_mut().zip(&mut cpus) {
                vcpu.flush(cpu);
                let intid = cpu.iar1();
                let _ = cpu.eoir1(intid);
                vcpu.fold(cpu);
            }
            let n = round % 20;
            match round % 3 {
                0 => msi.retarget(DEV, EventId(n), VcpuId((round % 2) as u16)).unwrap(),
                1 => {
                    msi.unmap(DEV, EventId(n)).unwrap();
                    map(&mut msi, n);
                }
                _ => msi.clear(DEV, EventId(n)).unwrap(),
            }
        }
        drop((routes, msi, vcpus));
        assert_eq!(vgic.usage(), Usage::default());
        let ledger = ledger.0.lock().unwrap();
        let kinds = |kind| ledger.iter().filter(|((_, k), _)| *k == kind).count();
        assert_eq!([kinds("counted"), kinds("kept"), kinds("mailbox"), kinds("owner")], [20; 4]);
        for ((intid, kind), (taken, given)) in ledger.iter() {
            assert_eq!(taken, given, "{kind} references of {intid}");
        }
    }
}

#[cfg(feature = "counters")]
mod counters {
    use crate::common::*;
    use vgic_core::Vgic;
    use vgic_core::counters::VcpuCounters;
    use vgic_core::engine::*;
    use vgic_core::ids::*;

    #[test]
    fn what_happens_is_counted() {
        let mut m = Machine::<Vgic>::new(2, 4);
        m.map(0, 0, 0xa0);
        let _ = (m.inject(0), m.inject(0));
        assert_eq!(m.run(0), [8192]);
        let _ = m.inject(0);
        m.enter(0);
        m.exit(0);
        m.msi.retarget(DEV, EventId(0), VcpuId(1)).unwrap();
        m.enter(0);
        m.exit(0);
        assert_eq!(m.run(1), [8192]);
        let want = VcpuCounters {
            injected: 2,
            coalesced: 1,
            kicks: m.kicks(0),
            entries: 3,
            delivered: 1,
            handed_over: 1,
        };
        assert_eq!(m.vgic.counters(VcpuId(0)), Some(want));
        let one = m.vgic.counters(VcpuId(1)).unwrap();
        assert_eq!((one.delivered, one.entries, one.kicks), (1, 1, 1));
        assert_eq!(m.vgic.counters(VcpuId(2)), None);
    }
}
