//! Small storms on each engine: nothing is lost, and deliberate losses are found.

mod common;

use std::time::Duration;

use common::{Fault, Faulty, Forgetful};
use vgic_benches::storm::accounts::Accounts;
use vgic_benches::storm::plan::{Length, MAX_PRIORITIES, Plan};
use vgic_benches::storm::{run, verdict};
use vgic_core::engine::{Engine, Injected};

/// A storm that ends within a moment, even without optimization.
fn small() -> Plan {
    Plan { vcpus: 2, devices: 2, events: 16, length: Length::Iterations(200), ..Plan::default() }
}

fn succeeds<E: Engine>(plan: &Plan) -> Accounts {
    let accounts = run::<E>(plan).unwrap();
    let wrong: Vec<_> = accounts.rules().into_iter().filter(|rule| !rule.holds).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(accounts.lost, 0, "{:?}", accounts.lost_events);
    assert!(accounts.balance());
    assert!(accounts.kicks > 0 && accounts.entries > 0);
    accounts
}

fn loses_nothing<E: Engine>() {
    let accounts = succeeds::<E>(&small());
    assert_eq!(accounts.tally.injected, 2 * 16 * 200);
    assert_eq!(accounts.tally.unmapped, 0);
    // The first injection is a sample, and makes its LPI pending.
    assert!(!accounts.latency.is_empty());
    assert_eq!(accounts.delivered + accounts.merged(), accounts.tally.pending);
    assert!(accounts.usage.lpis >= 32 && accounts.usage.bytes > 0);
}

fn every_shape<E: Engine>() {
    let one = Plan { length: Length::Iterations(500), ..Plan::default() };
    succeeds::<E>(&one);
    // Each injection is delivered separately, or coalesced with a delivered one.
    succeeds::<E>(&Plan { lrs: 1, ..small() });
    succeeds::<E>(&Plan { lrs: 16, priorities: MAX_PRIORITIES, ..small() });
    succeeds::<E>(&Plan { vcpus: 5, devices: 3, events: 7, ..small() });
    // More vCPUs than events: some never get any.
    succeeds::<E>(&Plan { vcpus: 9, devices: 1, events: 2, ..small() });
    // More LPIs are pending than all list registers hold.
    succeeds::<E>(&Plan { vcpus: 1, events: 3000, length: Length::Iterations(2), ..small() });
}

fn survives_churn<E: Engine>() {
    let accounts = succeeds::<E>(&Plan { churn: true, ..small() });
    // A quarter of the events is injected once more at the end.
    assert_eq!(accounts.tally.injected, accounts.stormed + 8);
    assert_eq!(accounts.stormed, 2 * 16 * 200);
    succeeds::<E>(&Plan { churn: true, ..Plan::default() });
    succeeds::<E>(&Plan {
        churn: true,
        vcpus: 4,
        events: 100,
        priorities: 5,
        length: Length::Time(Duration::from_millis(200)),
        ..small()
    });
}

fn paced_is_one_delivery_each<E: Engine>() {
    let accounts = succeeds::<E>(&Plan { paced: true, ..small() });
    assert_eq!((accounts.tally.coalesced, accounts.merged()), (0, 0));
    assert_eq!(accounts.delivered, 2 * 16 * 200);
    succeeds::<E>(&Plan { paced: true, length: Length::Iterations(100), ..Plan::default() });
}

/// The test checks that the storm returns at all. The exact time depends on the machine.
fn stops_when_the_time_is_over<E: Engine>() {
    let length = Length::Time(Duration::from_millis(100));
    let accounts = succeeds::<E>(&Plan { length, ..small() });
    assert!(accounts.tally.injected > 0);
}

/// Drops one injection, but reports that it made the LPI pending.
#[derive(Clone)]
struct DropsOne;

impl Fault for DropsOne {
    fn strike(n: u64) -> Option<Injected> {
        (n == 9).then_some(Injected::Pending)
    }
}

fn a_dropped_injection_is_found<E: Engine>() {
    // Each event once: otherwise an earlier injection that is still pending may rightly stand for
    // the dropped one.
    let plan = Plan {
        devices: 1,
        length: Length::Iterations(1),
        stall: Duration::from_millis(300),
        ..small()
    };
    let accounts = run::<Faulty<E, DropsOne>>(&plan).unwrap();
    assert_eq!((accounts.lost, accounts.delivered), (1, 15));
    let [event] = accounts.lost_events.as_slice() else { panic!("{:?}", accounts.lost_events) };
    assert_eq!((event.sent, event.seen), (1, 0));
    assert!(!accounts.balance());
    let failure = format!("{:?}", std::process::ExitCode::FAILURE);
    assert_eq!(format!("{:?}", verdict(&[accounts])), failure);
}

/// An event that is still mapped after it was unmapped loses nothing: its injections have an
/// effect.
fn a_forgotten_unmapping_is_found<E: Engine>() {
    let plan = Plan { churn: true, length: Length::Iterations(1000), ..small() };
    // The churn may have had no CPU. With less than four unmappings it forgets none.
    let unmaps = |accounts: &Accounts| accounts.churned.probes >= 4;
    let accounts = (0..1000).map(|_| run::<Forgetful<E>>(&plan).unwrap()).find(unmaps).unwrap();
    assert!(accounts.churned.effective > 0, "{:?}", accounts.churned);
    assert!(!accounts.balance());
}

/// A paced injector would wait forever for an LPI lost in the middle of a storm.
fn a_dropped_injection_is_found_when_paced<E: Engine>() {
    let plan = Plan { devices: 1, paced: true, stall: Duration::from_millis(300), ..small() };
    let accounts = run::<Faulty<E, DropsOne>>(&plan).unwrap();
    assert_eq!((accounts.lost, accounts.delivered), (1, accounts.tally.injected - 1));
    assert!(accounts.tally.injected < 16 * 200);
}

/// Drops the first injection and reports it as coalesced. Later injections make up for it.
#[derive(Clone)]
struct DropsFirst;

impl Fault for DropsFirst {
    fn strike(n: u64) -> Option<Injected> {
        (n == 0).then_some(Injected::Coalesced)
    }
}

/// Makes interrupts pending, but reports that nothing is mapped.
#[derive(Clone)]
struct Denies;

impl Fault for Denies {
    fn strike(n: u64) -> Option<Injected> {
        (n == 0).then_some(Injected::Unmapped)
    }
}

fn wrong_answers_are_found<E: Engine>() {
    // A later injection rightly makes up for it: coalescing guarantees only that the last one is
    // delivered.
    succeeds::<Faulty<E, DropsFirst>>(&small());
    let accounts = run::<Faulty<E, Denies>>(&small()).unwrap();
    assert_eq!(accounts.lost, 0);
    assert!(!accounts.balance(), "without churn nothing may be unmapped");
}

/// Panics in the middle of a storm.
#[derive(Clone)]
struct Panics;

impl Fault for Panics {
    fn strike(n: u64) -> Option<Injected> {
        assert!(n < 100, "on purpose");
        None
    }
}

fn a_panic_ends_the_storm<E: Engine>() {
    let result = std::panic::catch_unwind(|| run::<Faulty<E, Panics>>(&small()));
    assert!(result.is_err());
}

fn a_refusal_is_an_error<E: Engine>() {
    let plan = Plan { vcpus: 513, ..small() };
    assert!(run::<E>(&plan).is_err());
}

macro_rules! on_each_engine {
    ($($test:ident),* $(,)?) => {
        mod lockfree {
            $(#[test] fn $test() { super::$test::<vgic_core::Vgic>(); })*
        }
        mod locked {
            $(#[test] fn $test() { super::$test::<vgic_core::locked::LockedVgic>(); })*
        }
    };
}

on_each_engine!(
    loses_nothing,
    every_shape,
    survives_churn,
    stops_when_the_time_is_over,
    a_dropped_injection_is_found,
    a_forgotten_unmapping_is_found,
    a_dropped_injection_is_found_when_paced,
    paced_is_one_delivery_each,
    wrong_answers_are_found,
    a_panic_ends_the_storm,
    a_refusal_is_an_error,
);
