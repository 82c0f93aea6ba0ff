//! A host's side of waiting for a vCPU to leave its guest: the notification of the exit, and the
//! answer if the wait is ended.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::cpu;
use vgic_core::Vgic;
use vgic_core::engine::*;
use vgic_core::ids::*;

/// A host that does not wait, because its threads are being stopped.
#[derive(Default)]
struct Stopping {
    waits: AtomicU64,
    exits: AtomicU64,
}

impl Stopping {
    fn counts(&self) -> (u64, u64) {
        (self.waits.load(Ordering::Relaxed), self.exits.load(Ordering::Relaxed))
    }
}

impl Kick for Stopping {
    fn kick(&self, _: VcpuId) {}

    fn wait_for_exit(&self, vcpu: VcpuId, done: &dyn Fn() -> bool) {
        assert_eq!(vcpu, VcpuId(0));
        assert!(!done(), "nothing to wait for");
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    fn exited(&self, vcpu: VcpuId) {
        assert_eq!(vcpu, VcpuId(0));
        self.exits.fetch_add(1, Ordering::Relaxed);
    }
}

const SPI: Wired = Wired::Spi(Intid(40));

fn ended_waits<E: Engine>() {
    let host = Arc::new(Stopping::default());
    let vgic = E::new(&Config::with_vcpus(2), host.clone()).unwrap();
    let (mut vcpu, mut lrs) = (vgic.vcpu(VcpuId(0)).unwrap(), cpu(4));
    vcpu.open();
    let injector = vgic.injector().unwrap();
    let config = WiredConfig {
        enabled: true,
        priority: Priority::new(0xa0),
        group: Group::Group1,
        trigger: Trigger::Edge,
        target: VcpuId(0),
    };
    injector.configure(SPI, config).unwrap();
    assert_eq!(injector.pulse(SPI), Ok(Injected::Pending));

    // No thread waits, so no thread is told.
    vcpu.flush(&mut lrs);
    vcpu.fold(&mut lrs);
    assert_eq!(host.counts(), (0, 0));

    // An interrupt in a list register may be pending or active. A thread that asks has to ask again
    // later.
    vcpu.flush(&mut lrs);
    assert_eq!(injector.is_active(SPI), Ok(true), "it may have been acknowledged");
    assert_eq!(injector.is_pending(SPI), Ok(true));
    assert_eq!(host.counts(), (2, 0));
    vcpu.fold(&mut lrs);
    assert_eq!(host.counts(), (2, 1), "told once, whoever waits");
    assert_eq!(injector.is_active(SPI), Ok(false), "now that is known");
    assert_eq!(host.counts(), (2, 1), "without a wait");

    // The interrupt was acknowledged and ended, but may still be active as far as the engine knows.
    vcpu.flush(&mut lrs);
    assert_eq!(lrs.iar1(), Intid(40));
    vcpu.fold(&mut lrs);
    vcpu.flush(&mut lrs);
    let _ = lrs.eoir1(Intid(40));
    assert_eq!(injector.is_active(SPI), Ok(true));
    vcpu.fold(&mut lrs);
    assert_eq!(injector.is_active(SPI), Ok(false));
    assert_eq!(host.counts(), (3, 2));

    // A write takes effect, even if its wait is ended.
    assert_eq!(injector.pulse(SPI), Ok(Injected::Pending));
    vcpu.flush(&mut lrs);
    assert_eq!(lrs.iar1(), Intid(40));
    injector.set_active(SPI, false).unwrap();
    vcpu.fold(&mut lrs);
    vcpu.flush(&mut lrs);
    vcpu.fold(&mut lrs);
    assert_eq!(injector.is_active(SPI), Ok(false));
    assert_eq!(host.counts(), (4, 3));
}

#[test]
fn ended_waits_lock_free() {
    ended_waits::<Vgic>();
}

#[cfg(feature = "locked")]
#[test]
fn ended_waits_locked() {
    ended_waits::<vgic_core::locked::LockedVgic>();
}
