//! The engine on the crossbeam-epoch backend. The other models explore the fixed-slot backend;
//! these cover the points at which the two backends differ. They have two threads and a small
//! bound, because crossbeam-epoch has many words of its own.
#![cfg(any(loom, shuttle))]

use std::sync::Arc;

use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::reclaim::Epoch;
use vgic_loom_tests::sched::thread;
use vgic_loom_tests::{Guest, NoKick, model};

type Vgic = vgic_core::Vgic<Epoch>;
type Cpu = vgic_core::VcpuInterface<Epoch>;
type Msi = vgic_core::Msi<Epoch>;

const DEV: DeviceId = DeviceId(0);
const EV: EventId = EventId(0);
const LPI: Intid = Intid(LPI_BASE);
const A: VcpuId = VcpuId(0);

fn vm() -> (Vgic, Msi, Cpu) {
    let shape =
        Config { vcpus: 1, spis: 0, lpis: 2, device_bits: 1, event_bits: 1, ..Config::default() };
    let vgic = Vgic::new(&shape, Arc::new(NoKick)).unwrap();
    let mut msi = vgic.msi().unwrap();
    map(&mut msi);
    let mut vcpu = vgic.vcpu(A).unwrap();
    vcpu.open();
    (vgic, msi, vcpu)
}

fn map(msi: &mut Msi) {
    msi.map(DEV, EV, LPI, A, LpiConfig::enabled(0xa0)).unwrap();
}

/// Runs the vCPU until no interrupt comes. Returns how many interrupts the guest took.
fn settle(vcpu: &mut Cpu) -> usize {
    let mut guest = Guest::default();
    let mut all = 0;
    loop {
        vcpu.flush(&mut guest);
        let taken = guest.serve();
        vcpu.fold(&mut guest);
        all += taken;
        if taken == 0 && !vcpu.has_mail() {
            return all;
        }
    }
}

/// Ends the model. It collects several times, because crossbeam-epoch advances by one epoch at a
/// time.
fn end(vgic: Vgic, mut msi: Msi, others: impl Sized) {
    drop(others);
    let _ = msi.unmap_device(DEV);
    for _ in 0..8 {
        msi.collect();
    }
    assert_eq!(vgic.usage(), Usage::default(), "something is left");
}

#[test]
fn epoch_look_up_vs_last_put() {
    model(2, 3_471, || {
        let (vgic, mut msi, mut vcpu) = vm();
        let (injector, domain) = (vgic.injector().unwrap(), msi.domain());
        let other = thread::spawn(move || {
            let _ = injector.inject(&domain, DEV, EV);
            (injector, domain)
        });
        msi.unmap(DEV, EV).unwrap();
        let (injector, domain) = other.join().unwrap();
        assert_eq!(settle(&mut vcpu), 0, "an interrupt of what is unmapped");
        assert_eq!(injector.inject(&domain, DEV, EV), Injected::Unmapped);
        end(vgic, msi, (vcpu, injector, domain));
    });
}

#[test]
fn epoch_mapped_again_vs_stale_injector() {
    model(1, 1_626, || {
        let (vgic, mut msi, mut vcpu) = vm();
        let (injector, domain) = (vgic.injector().unwrap(), msi.domain());
        let other = thread::spawn(move || {
            let injected = injector.inject(&domain, DEV, EV);
            (injected, injector, domain)
        });
        msi.unmap(DEV, EV).unwrap();
        map(&mut msi);
        let (injected, injector, domain) = other.join().unwrap();
        let taken = settle(&mut vcpu);
        assert!(
            taken <= usize::from(injected != Injected::Unmapped),
            "{injected:?}, {taken} taken"
        );
        assert_eq!(injector.inject(&domain, DEV, EV), Injected::Pending, "nothing is left behind");
        assert_eq!(settle(&mut vcpu), 1);
        end(vgic, msi, (vcpu, injector, domain));
    });
}

#[test]
fn epoch_route_vs_last_put() {
    model(2, 3_202, || {
        let (vgic, mut msi, mut vcpu) = vm();
        let (injector, route) = (vgic.injector().unwrap(), msi.route(DEV, EV).unwrap());
        let other = thread::spawn(move || {
            let _ = injector.inject_route(&route);
            (injector, route)
        });
        msi.unmap(DEV, EV).unwrap();
        let (injector, route) = other.join().unwrap();
        assert_eq!(settle(&mut vcpu), 0);
        assert_eq!(injector.inject_route(&route), Injected::Unmapped);
        end(vgic, msi, (vcpu, injector, route));
    });
}

/// The vCPU may have the last reference.
#[test]
fn epoch_drain_vs_last_put() {
    model(4, 550, || {
        let (vgic, mut msi, mut vcpu) = vm();
        let (injector, domain) = (vgic.injector().unwrap(), msi.domain());
        assert_eq!(injector.inject(&domain, DEV, EV), Injected::Pending);
        let other = thread::spawn(move || (settle(&mut vcpu), vcpu));
        msi.unmap(DEV, EV).unwrap();
        let (taken, mut vcpu) = other.join().unwrap();
        assert!(taken <= 1);
        assert_eq!(settle(&mut vcpu), 0);
        end(vgic, msi, (vcpu, injector, domain));
    });
}
