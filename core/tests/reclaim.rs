//! Reclamation is bounded: both the number of objects that one call frees, and the number that wait
//! to be freed while several threads map and unmap on CPUs that they share.
#![allow(clippy::disallowed_types)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use vgic_core::Vgic;
use vgic_core::engine::*;
use vgic_core::ids::*;

const ON: LpiConfig = LpiConfig::enabled(0xa0);

struct NoKick;

impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

/// Garbage that one call does not free is left to the next calls.
#[test]
fn a_call_frees_a_bounded_number() {
    const LPIS: u32 = 40_000;
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), Arc::new(NoKick)).unwrap();
    let mut msi = vgic.msi().unwrap();
    for n in 0..LPIS {
        msi.map(DeviceId(1), EventId(n), Intid(LPI_BASE + n), VcpuId(0), ON).unwrap();
    }
    assert_eq!(msi.unmap_device(DeviceId(1)), LPIS as usize);
    let mut calls = 0;
    while vgic.usage().garbage > 0 {
        let before = vgic.usage().lpis;
        msi.collect();
        calls += 1;
        let freed = before - vgic.usage().lpis;
        assert!(freed <= 1 << 14, "{freed} LPIs in one call");
        assert!(calls < 100, "no progress");
    }
    assert!(calls > 2, "{calls} calls");
    drop(msi);
    assert_eq!(vgic.usage(), Usage::default());
}

/// Three threads on two CPUs map and unmap without a pause, and a fourth one collects: no mapping
/// is refused.
#[test]
fn churn_is_not_refused() {
    const ROUNDS: usize = 60_000;
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), Arc::new(NoKick)).unwrap();
    let most = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let churners: Vec<_> = (0..3)
            .map(|c| {
                let (vgic, most) = (&vgic, &most);
                scope.spawn(move || {
                    let mut msi = vgic.msi().unwrap();
                    let (device, intid) = (DeviceId(c), Intid(LPI_BASE + 1024 * c));
                    for _ in 0..ROUNDS {
                        msi.map(device, EventId(0), intid, VcpuId(0), ON).unwrap();
                        msi.unmap(device, EventId(0)).unwrap();
                        most.fetch_max(vgic.usage().garbage, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut msi = vgic.msi().unwrap();
            while !done.load(Ordering::Acquire) {
                msi.collect();
            }
        });
        churners.into_iter().for_each(|churner| churner.join().unwrap());
        done.store(true, Ordering::Release);
    });
    let most = most.into_inner();
    println!("{most} objects of garbage at most");
    assert!(most < Config::default().max_garbage as usize, "{most}");
    vgic.msi().unwrap().collect();
    assert_eq!(vgic.usage(), Usage::default());
}
