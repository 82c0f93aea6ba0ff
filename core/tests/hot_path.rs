//! Injection, entry and exit allocate nothing and free nothing. This is counted per thread, while a
//! control thread unmaps, maps and moves the LPIs in use.

#![allow(clippy::disallowed_types)] // the test's own threads meet at a barrier

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use common::*;
use counting::counted;
use vgic_core::Vgic;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::reclaim::{Epoch, Reclaim, Slots};

const LPIS: u32 = 300;

/// Runs an injector and a vCPU beside a control thread that churns. Returns the counts of the
/// injector and of the vCPU.
fn churn<R: Reclaim>(rounds: u32) -> [(u64, u64); 2] {
    let m = Machine::<Vgic<R>>::new(2, 4);
    let Machine { mut vcpus, mut msi, mut cpus, vgic, .. } = m;
    let domain = msi.domain();
    let routes: Vec<_> = (0..LPIS).map(|n| msi.route(DEV, EventId(n)).unwrap()).collect();
    let map = move |msi: &mut <Vgic<R> as Engine>::Msi, n: u32| {
        let config = LpiConfig::enabled((n % 8 * 8) as u8);
        msi.map(DEV, EventId(n), lpi(n), VcpuId((n % 2) as u16), config).unwrap();
    };
    (0..LPIS).for_each(|n| map(&mut msi, n));
    let start = Arc::new(Barrier::new(3));
    let stop = Arc::new(AtomicBool::new(false));

    let injector = thread::spawn({
        let (injector, start, stop) = (vgic.injector().unwrap(), start.clone(), stop.clone());
        move || {
            start.wait();
            counted(|| {
                let mut n = 0;
                while !stop.load(Ordering::Acquire) {
                    let _ = injector.inject_route(&routes[n as usize % routes.len()]);
                    let _ = injector.inject(&domain, DEV, EventId(n % LPIS));
                    let _ = injector.pulse(Wired::Private(VcpuId(0), Intid(n % 32)));
                    n = n.wrapping_add(7);
                }
            })
        }
    });
    let vcpu = thread::spawn({
        let (start, stop) = (start.clone(), stop.clone());
        move || {
            start.wait();
            let count = counted(|| {
                while !stop.load(Ordering::Acquire) {
                    for (vcpu, cpu) in vcpus.iter_mut().zip(&mut cpus) {
                        vcpu.flush(cpu);
                        loop {
                            let intid = cpu.iar1();
                            if intid == Intid(SPURIOUS) {
                                break;
                            }
                            // Some LPIs stay active, so that list registers run short and are taken
                            // away.
                            if intid.0 % 16 != 0 {
                                let _ = cpu.eoir1(intid);
                            }
                        }
                        vcpu.fold(cpu);
                        if cpu.rpr() < 0x10 {
                            for n in 0..LPIS {
                                let _ = cpu.eoir1(lpi(n));
                            }
                        }
                    }
                }
            });
            drop(vcpus);
            count
        }
    });
    start.wait();
    for round in 0..rounds {
        for n in 0..LPIS {
            match (n + round) % 3 {
                0 => {
                    msi.unmap(DEV, EventId(n)).unwrap();
                    map(&mut msi, n);
                }
                1 => msi.retarget(DEV, EventId(n), VcpuId((round % 2) as u16)).unwrap(),
                _ => msi.clear(DEV, EventId(n)).unwrap(),
            }
        }
    }
    stop.store(true, Ordering::Release);
    let counts = [injector.join().unwrap(), vcpu.join().unwrap()];
    drop(msi);
    vgic.msi().unwrap().collect();
    assert_eq!(vgic.usage(), Usage::default());
    counts
}

#[test]
fn fixed_slots_under_churn() {
    assert_eq!(churn::<Slots>(3000), [(0, 0); 2]);
}

#[test]
fn epoch_under_churn() {
    // A vCPU does not pin at its entry and exit, so it does not touch crossbeam. An injector does:
    // every 128th pin collects the garbage of other threads from crossbeam's queue, which frees
    // queue nodes and, in the long run, allocates some. That is why the fixed slots are the
    // default.
    let [_, vcpu] = churn::<Epoch>(3000);
    assert_eq!(vcpu, (0, 0));
}
