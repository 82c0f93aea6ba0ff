//! A flush reports waiting interrupts: to its caller, and to the list registers as the maintenance
//! that it requires.

mod common;
use common::*;
use vgic_core::Vgic;
use vgic_core::engine::*;
use vgic_core::ids::*;

fn nothing_waits_that_was_cleared<E: Engine>() {
    let mut m = Machine::<E>::new(1, 1);
    (0..4).for_each(|n| m.map(n, 0, if n == 2 { 0x20 } else { 0xa0 }));
    let inject = |m: &Machine<E>, n| assert_eq!(m.inject(n), Injected::Pending);
    let full = |waiting| Flushed { in_lrs: 1, pending: 1, waiting };

    // The cleared LPIs are queued in the mailbox; LPI 2 is more urgent.
    for cleared in [vec![3], vec![1, 2, 3]] {
        inject(&m, 0);
        for &n in &cleared {
            inject(&m, n);
            m.msi.clear(DEV, EventId(n)).unwrap();
        }
        assert_eq!(m.enter(0), full(false), "{cleared:?}");
        assert_eq!(m.serve(0), [lpi(0).0]);
        m.exit(0);
        assert_eq!(m.drain(0), []);
    }

    // The cleared LPI is behind one that waits, which then gets the list register.
    (0..2).for_each(|n| inject(&m, n));
    inject(&m, 3);
    m.msi.clear(DEV, EventId(3)).unwrap();
    assert_eq!(m.enter(0), full(true));
    assert_eq!(m.serve(0), [lpi(0).0]);
    m.exit(0);
    assert_eq!(m.enter(0), full(false));
    assert_eq!(m.serve(0), [lpi(1).0]);
    m.exit(0);

    // LPI 2 is more urgent than the LPI in the list register. Injected again, it takes the list
    // register.
    inject(&m, 0);
    assert_eq!(m.enter(0), full(false));
    m.exit(0);
    inject(&m, 2);
    m.msi.clear(DEV, EventId(2)).unwrap();
    assert_eq!(m.enter(0), full(false));
    m.exit(0);
    inject(&m, 2);
    m.msi.clear(DEV, EventId(2)).unwrap();
    inject(&m, 2);
    assert_eq!(m.enter(0), full(true));
    assert_eq!(m.serve(0), [lpi(2).0]);
    m.exit(0);
    assert_eq!(m.drain(0), [lpi(0).0]);
}

#[test]
fn nothing_waits_that_was_cleared_lock_free() {
    nothing_waits_that_was_cleared::<Vgic>();
}

#[cfg(feature = "locked")]
#[test]
fn nothing_waits_that_was_cleared_locked() {
    nothing_waits_that_was_cleared::<vgic_core::locked::LockedVgic>();
}

#[test]
fn maintenance_is_wanted_while_something_waits_and_of_disabled_groups() {
    let mut m = Machine::<Vgic>::new(1, 2);
    (0..4).for_each(|n| m.map(n, 0, 0xa0));
    for _ in 0..2 {
        (0..4).for_each(|n| assert_eq!(m.inject(n), Injected::Pending));
        assert!(m.enter(0).waiting);
        assert_eq!(m.serve(0).len(), 2);
        assert!(m.cpus[0].misr().underflow, "two are waiting");
        m.exit(0);
        assert!(!m.enter(0).waiting);
        assert_eq!(m.serve(0).len(), 2);
        assert!(!m.cpus[0].maintenance_pending(), "nothing is waiting");
        m.exit(0);
    }
    // A vCPU that was powered off, and groups that change.
    (0..4).for_each(|n| assert_eq!(m.inject(n), Injected::Pending));
    m.cpus[0].set_igrpen0(0);
    assert!(m.enter(0).waiting);
    m.cpus[0].set_igrpen0(1);
    assert!(m.cpus[0].misr().group_enabled[0], "it was off at the flush");
    m.exit(0);
    assert_eq!(m.drain(0).len(), 4);
    m.cpus[0].set_igrpen0(0);
    assert!(!m.enter(0).waiting);
    m.vcpus[0].close(&mut m.cpus[0]);
    m.cpus[0].set_igrpen0(1);
    assert!(!m.cpus[0].maintenance_pending(), "it wants nothing while it is off");
    m.cpus[0].set_igrpen0(0);
    m.vcpus[0].open();
    m.enter(0);
    m.cpus[0].set_igrpen0(1);
    assert!(m.cpus[0].misr().group_enabled[0], "it was off at the first flush after that");
    m.exit(0);
    m.enter(0);
    assert!(!m.cpus[0].maintenance_pending());
}
