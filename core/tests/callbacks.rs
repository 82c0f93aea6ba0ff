//! Hosts that violate the documentation of `Kick`: they call the engine back, or panic. All of this
//! is safe code, so none of it may use freed memory, which AddressSanitizer checks (`cargo xtask
//! asan`), and none may wedge the engine.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_types)]

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vgic_core::cpuif::CpuInterface;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::{Msi, MsiRoute, VcpuInterface, Vgic, VgicInjector};

const DEV: DeviceId = DeviceId(7);
const EV: EventId = EventId(0);

thread_local! {
    static ROUTE: RefCell<Option<MsiRoute>> = const { RefCell::new(None) };
    static INJECTOR: RefCell<Option<VgicInjector>> = const { RefCell::new(None) };
    static MSI: RefCell<Option<Msi>> = const { RefCell::new(None) };
    static VCPU: RefCell<Option<(VcpuInterface, CpuInterface)>> = const { RefCell::new(None) };
    static ARMED: Cell<bool> = const { Cell::new(false) };
}

/// A host that, inside its callbacks, unmaps and frees the LPI that is being injected.
struct CallsBack {
    offers: bool,
}

impl Kick for CallsBack {
    fn kick(&self, _: VcpuId) {
        call_back();
    }
    fn wants_offers(&self) -> bool {
        self.offers
    }
    fn offer(&self, _: VcpuId, _: Group, _: Priority) {
        call_back();
    }
}

fn inject() -> Injected {
    INJECTOR.with_borrow(|i| {
        ROUTE.with_borrow(|r| i.as_ref().unwrap().inject_route(r.as_ref().unwrap()))
    })
}

fn call_back() {
    if !ARMED.replace(false) {
        return;
    }
    // The vCPU drops the LPI from its mailbox. The route learns of the unmapping, and gives up the
    // LPI that it keeps.
    MSI.with_borrow_mut(|m| m.as_mut().unwrap().unmap(DEV, EV).unwrap());
    VCPU.with_borrow_mut(|v| {
        let (vcpu, cpu) = v.as_mut().unwrap();
        vcpu.flush(cpu);
        vcpu.fold(cpu);
    });
    assert_eq!(inject(), Injected::Unmapped);
    MSI.with_borrow_mut(|m| {
        for _ in 0..3 {
            m.as_mut().unwrap().collect();
        }
    });
}

fn guest() -> CpuInterface {
    let mut cpu = CpuInterface::new(4).unwrap();
    cpu.set_pmr(0xff);
    cpu.set_igrpen1(1);
    cpu
}

/// Returns an engine with a route that keeps an LPI from now on. If it is not `taken`, the LPI is
/// pending in a list register.
fn set_up(offers: bool, taken: bool) -> Vgic {
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), Arc::new(CallsBack { offers })).unwrap();
    let mut msi = vgic.msi().unwrap();
    msi.map(DEV, EV, Intid(LPI_BASE), VcpuId(0), LpiConfig::enabled(0xa0)).unwrap();
    let route = msi.route(DEV, EV).unwrap();
    let mut vcpu = vgic.vcpu(VcpuId(0)).unwrap();
    vcpu.open();
    ROUTE.set(Some(route));
    INJECTOR.set(Some(vgic.injector().unwrap()));
    MSI.set(Some(msi));
    VCPU.set(Some((vcpu, guest())));

    assert_eq!(inject(), Injected::Pending);
    VCPU.with_borrow_mut(|v| {
        let (vcpu, cpu) = v.as_mut().unwrap();
        vcpu.flush(cpu);
        if taken {
            let intid = cpu.iar1();
            let _ = cpu.eoir1(intid);
        }
        vcpu.fold(cpu);
    });
    vgic
}

fn tear_down() {
    ROUTE.set(None);
    INJECTOR.set(None);
    MSI.set(None);
    VCPU.set(None);
}

fn calls_back(offers: bool) {
    let vgic = set_up(offers, true);
    ARMED.set(true);
    assert_eq!(inject(), Injected::Pending);
    assert!(!ARMED.get(), "the host was called");
    assert_eq!(vgic.usage().lpis, 0, "freed while it was being injected");
    tear_down();
}

/// The injection is ignored, as LPIs are disabled. The LPI that an earlier injection has brought
/// into a list register is taken back, and for that the host is called.
fn calls_back_from_an_ignored_injection(offers: bool) {
    let vgic = set_up(offers, false);
    let disable = |gates| Gates { msis: false, ..gates };
    INJECTOR.with_borrow(|i| i.as_ref().unwrap().update_gates(VcpuId(0), disable).unwrap());
    ARMED.set(true);
    assert_eq!(inject(), Injected::Unmapped);
    assert!(!ARMED.get(), "the host was called");
    MSI.with_borrow_mut(|m| m.as_mut().unwrap().collect());
    assert_eq!(vgic.usage().lpis, 0, "freed after it was injected");
    tear_down();
}

#[test]
fn a_kick_that_calls_back() {
    calls_back(false);
}

#[test]
fn an_offer_that_calls_back() {
    calls_back(true);
}

#[test]
fn a_kick_of_an_ignored_injection_that_calls_back() {
    calls_back_from_an_ignored_injection(false);
}

#[test]
fn an_offer_of_an_ignored_injection_that_calls_back() {
    calls_back_from_an_ignored_injection(true);
}

/// A host that panics in one kick.
#[derive(Default)]
struct Panics(AtomicBool);

impl Kick for Panics {
    fn kick(&self, _: VcpuId) {
        if self.0.swap(false, Ordering::Relaxed) {
            panic!("a host that panics");
        }
    }
}

/// Maps `n` LPIs to vCPU 0, and returns their routes.
fn lpis(vgic: &Vgic, n: u32) -> (Msi, Vec<MsiRoute>) {
    let mut msi = vgic.msi().unwrap();
    let routes = (0..n)
        .map(|n| {
            let (event, intid) = (EventId(n), Intid(LPI_BASE + n));
            msi.map(DEV, event, intid, VcpuId(0), LpiConfig::enabled(0xa0)).unwrap();
            msi.route(DEV, event).unwrap()
        })
        .collect();
    (msi, routes)
}

/// Takes all interrupts of a vCPU, and returns their number.
fn take_all(vcpu: &mut VcpuInterface, cpu: &mut CpuInterface) -> usize {
    let mut taken = 0;
    loop {
        vcpu.flush(cpu);
        let before = taken;
        while let intid @ Intid(LPI_BASE..) = cpu.iar1() {
            let _ = cpu.eoir1(intid);
            taken += 1;
        }
        vcpu.fold(cpu);
        if taken == before && !vcpu.has_mail() {
            return taken;
        }
    }
}

/// The kick of an injection panics: the interrupt is queued in the mailbox.
#[test]
fn an_injection_whose_kick_panics() {
    let host = Arc::new(Panics::default());
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), host.clone()).unwrap();
    let (msi, routes) = lpis(&vgic, 2);
    let injector = vgic.injector().unwrap();
    let (mut vcpu, mut cpu) = (vgic.vcpu(VcpuId(0)).unwrap(), guest());
    vcpu.open();
    host.0.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| injector.inject_route(&routes[0]))).is_err());
    assert_eq!(injector.inject_route(&routes[1]), Injected::Pending);
    assert_eq!(take_all(&mut vcpu, &mut cpu), 2);
    drop((msi, routes));
}

/// A vCPU hands interrupts over in its flush, and the kick panics in the middle of its mail: the
/// rest of the mail is not lost.
#[test]
fn a_flush_in_which_a_kick_panics() {
    let host = Arc::new(Panics::default());
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(2), host.clone()).unwrap();
    let (mut msi, routes) = lpis(&vgic, 8);
    let injector = vgic.injector().unwrap();
    let [mut a, mut b] = [0, 1].map(|n| vgic.vcpu(VcpuId(n)).unwrap());
    let (mut cpu_a, mut cpu_b) = (guest(), guest());
    a.open();
    b.open();
    for route in &routes {
        assert_eq!(injector.inject_route(route), Injected::Pending);
    }
    // These LPIs are queued in A's mailbox, but now belong to B.
    for n in [2, 3, 5] {
        msi.retarget(DEV, EventId(n), VcpuId(1)).unwrap();
    }
    host.0.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| a.flush(&mut cpu_a))).is_err());
    assert_eq!(take_all(&mut a, &mut cpu_a), 5);
    assert_eq!(take_all(&mut b, &mut cpu_b), 3);
    drop((msi, routes));
}

/// A vCPU hands interrupts over in its power-off, and the kick panics: the rest is not lost.
#[test]
fn a_power_off_in_which_a_kick_panics() {
    let host = Arc::new(Panics::default());
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(2), host.clone()).unwrap();
    let (mut msi, routes) = lpis(&vgic, 8);
    let injector = vgic.injector().unwrap();
    let [mut a, mut b] = [0, 1].map(|n| vgic.vcpu(VcpuId(n)).unwrap());
    let (mut cpu_a, mut cpu_b) = (guest(), guest());
    a.open();
    b.open();
    for (n, route) in routes.iter().enumerate() {
        assert_eq!(injector.inject_route(route), Injected::Pending);
        if n == 5 {
            // Four LPIs are in list registers, two in a bucket, and the last two in the mailbox.
            a.flush(&mut cpu_a);
            a.fold(&mut cpu_a);
        }
    }
    for n in 0..8 {
        msi.retarget(DEV, EventId(n), VcpuId(1)).unwrap();
    }
    host.0.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| a.close(&mut cpu_a))).is_err());
    a.close(&mut cpu_a);
    assert_eq!(take_all(&mut b, &mut cpu_b), 8);
    a.open();
    assert_eq!(take_all(&mut a, &mut cpu_a), 0);
    drop((msi, routes));
}

/// The kick of an unmapping panics: the event is unmapped, and nothing of it is left.
#[test]
fn an_unmapping_whose_kick_panics() {
    let host = Arc::new(Panics::default());
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), host.clone()).unwrap();
    let (mut msi, routes) = lpis(&vgic, 1);
    let injector = vgic.injector().unwrap();
    let (mut vcpu, mut cpu) = (vgic.vcpu(VcpuId(0)).unwrap(), guest());
    vcpu.open();
    assert_eq!(injector.inject_route(&routes[0]), Injected::Pending);
    // The LPI is in a list register, so that its vCPU has to be told.
    vcpu.flush(&mut cpu);
    vcpu.fold(&mut cpu);
    host.0.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| msi.unmap(DEV, EV))).is_err());
    assert_eq!(msi.unmap(DEV, EV), Err(Error::NotMapped));
    assert_eq!(take_all(&mut vcpu, &mut cpu), 0);
    drop((routes, vcpu));
    (0..4).for_each(|_| msi.collect());
    assert_eq!(vgic.usage(), Usage::default(), "something is left");
}

/// A flush continues with the mail of an earlier one, and searches for pending LPIs, as the guest
/// has enabled a group. In between, a kick panics.
#[test]
fn a_flush_with_left_over_mail_in_which_a_kick_panics() {
    const MANY: u32 = 5_000;
    let host = Arc::new(Panics::default());
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), host.clone()).unwrap();
    let (msi, routes) = lpis(&vgic, MANY);
    let injector = vgic.injector().unwrap();
    let (mut vcpu, mut cpu) = (vgic.vcpu(VcpuId(0)).unwrap(), guest());
    cpu.set_igrpen1(0);
    vcpu.open();
    for (n, route) in routes.iter().enumerate() {
        assert_eq!(injector.inject_route(route), Injected::Pending);
        if n == 0 || n == routes.len() - 1 {
            vcpu.flush(&mut cpu);
            vcpu.fold(&mut cpu);
        }
    }
    cpu.set_igrpen1(1);
    host.0.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| vcpu.flush(&mut cpu))).is_err());
    assert!(vcpu.has_mail());
    assert_eq!(take_all(&mut vcpu, &mut cpu), MANY as usize);
    drop((msi, routes));
}

/// A vCPU searches for pending LPIs, and the kick for the first one panics.
fn a_look_in_which_a_kick_panics(opened: bool) {
    let host = Arc::new(Panics::default());
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(1), host.clone()).unwrap();
    let (msi, routes) = lpis(&vgic, 8);
    let injector = vgic.injector().unwrap();
    let (mut vcpu, mut cpu) = (vgic.vcpu(VcpuId(0)).unwrap(), guest());
    if opened {
        cpu.set_igrpen1(0);
        vcpu.open();
    }
    for route in &routes {
        assert_eq!(injector.inject_route(route), Injected::Pending);
    }
    assert_eq!(take_all(&mut vcpu, &mut cpu), 0);
    cpu.set_igrpen1(1);
    host.0.store(true, Ordering::Relaxed);
    let look = || {
        if opened {
            vcpu.flush(&mut cpu);
        } else {
            vcpu.open();
        }
    };
    assert!(catch_unwind(AssertUnwindSafe(look)).is_err());
    assert!(vcpu.has_mail());
    assert_eq!(take_all(&mut vcpu, &mut cpu), 8);
    drop((msi, routes));
}

#[test]
fn a_power_on_in_which_a_kick_panics() {
    a_look_in_which_a_kick_panics(false);
}

#[test]
fn an_enabled_group_in_whose_flush_a_kick_panics() {
    a_look_in_which_a_kick_panics(true);
}

/// Runs `then` after a power-off in which a kick has panicked.
fn after_a_power_off_that_panics(then: impl Fn(&mut VcpuInterface, &mut CpuInterface)) {
    let host = Arc::new(Panics::default());
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(2), host.clone()).unwrap();
    let (mut msi, routes) = lpis(&vgic, 8);
    let injector = vgic.injector().unwrap();
    let [mut a, mut b] = [0, 1].map(|n| vgic.vcpu(VcpuId(n)).unwrap());
    let (mut cpu_a, mut cpu_b) = (guest(), guest());
    a.open();
    b.open();
    for route in &routes {
        assert_eq!(injector.inject_route(route), Injected::Pending);
    }
    a.flush(&mut cpu_a);
    a.fold(&mut cpu_a);
    // LPI 1 is in a list register, and moves to B. The LPIs behind it are not given back at first.
    msi.retarget(DEV, EventId(1), VcpuId(1)).unwrap();
    host.0.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| a.close(&mut cpu_a))).is_err());
    then(&mut a, &mut cpu_a);
    a.open();
    assert_eq!(take_all(&mut a, &mut cpu_a), 7);
    assert_eq!(take_all(&mut b, &mut cpu_b), 1);
    drop((msi, routes));
}

#[test]
fn a_power_on_after_a_power_off_that_panics() {
    after_a_power_off_that_panics(|_, _| ());
}

#[test]
fn a_flush_after_a_power_off_that_panics() {
    after_a_power_off_that_panics(|vcpu, cpu| {
        assert_eq!(vcpu.flush(cpu), Flushed::default());
        vcpu.fold(cpu);
    });
}

/// The guest has ended two level-sensitive SPIs that are still asserted. The first one now belongs
/// to another vCPU, and the kick of that vCPU panics.
#[test]
fn an_exit_in_which_a_kick_panics() {
    let host = Arc::new(Panics::default());
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(2), host.clone()).unwrap();
    let injector = vgic.injector().unwrap();
    let [mut a, mut b] = [0, 1].map(|n| vgic.vcpu(VcpuId(n)).unwrap());
    let (mut cpu_a, mut cpu_b) = (guest(), guest());
    a.open();
    b.open();
    let level = |target| WiredConfig {
        enabled: true,
        priority: Priority::new(0xa0),
        group: Group::Group1,
        trigger: Trigger::Level,
        target: VcpuId(target),
    };
    let spis = [32, 33].map(|n| Wired::Spi(Intid(n)));
    for spi in spis {
        injector.configure(spi, level(0)).unwrap();
        injector.set_level(spi, true).unwrap();
    }
    // EOIR drops the priority, DIR deactivates.
    cpu_a.set_ctlr(1 << 1);
    a.flush(&mut cpu_a);
    for n in [32, 33] {
        assert_eq!(cpu_a.iar1(), Intid(n));
        let _ = cpu_a.eoir1(Intid(n));
    }
    a.fold(&mut cpu_a);
    injector.configure(spis[0], level(1)).unwrap();
    a.flush(&mut cpu_a);
    let _ = [32, 33].map(|n| cpu_a.dir(Intid(n)));
    host.0.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| a.fold(&mut cpu_a))).is_err());
    assert!(a.has_mail());
    for (vcpu, cpu, intid) in [(&mut a, &mut cpu_a, 33), (&mut b, &mut cpu_b, 32)] {
        vcpu.flush(cpu);
        assert_eq!(cpu.iar1(), Intid(intid));
        vcpu.fold(cpu);
    }
}

/// A vCPU interface is dropped, and the kick for an LPI that goes to another vCPU panics.
#[test]
fn an_interface_that_is_dropped_while_a_kick_panics() {
    let host = Arc::new(Panics::default());
    let vgic: Vgic = Vgic::new(&Config::with_vcpus(2), host.clone()).unwrap();
    let (mut msi, routes) = lpis(&vgic, 1);
    let injector = vgic.injector().unwrap();
    let [mut a, mut b] = [0, 1].map(|n| vgic.vcpu(VcpuId(n)).unwrap());
    a.open();
    b.open();
    assert_eq!(injector.inject_route(&routes[0]), Injected::Pending);
    msi.retarget(DEV, EventId(0), VcpuId(1)).unwrap();
    host.0.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(a))).is_err());
    assert!(vgic.vcpu(VcpuId(0)).is_ok(), "it can be had again");
    assert_eq!(take_all(&mut b, &mut guest()), 1);
    drop((msi, routes));
}
