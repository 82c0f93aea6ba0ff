//! A storm of MSIs from the VMM's threads: they may coalesce, but none may be lost.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Release},
};

use crate::check::Outcome;
use crate::doorbell::{self, Storm};
use crate::gic::Gic;
use crate::{exceptions, fdt, println, record, same, smp, timer};

/// The maximum number of events of a storm.
pub const EVENTS: usize = 1024;
const THREADS: u32 = 2;
const SECONDS: u64 = 180;

static COUNTERS: [AtomicU64; EVENTS] = [const { AtomicU64::new(0) }; EVENTS];
static AWAKE: AtomicU32 = AtomicU32::new(1);
static SEEN: [AtomicU64; EVENTS] = [const { AtomicU64::new(0) }; EVENTS];

/// The data and the address of MSIs.
pub struct Target {
    pub events: u32,
    pub device: u32,
    pub data: u32,
    pub address: u64,
}

/// Handles an event: reads the number that its sender has written before the MSI.
pub fn see(event: usize) {
    SEEN[event].store(COUNTERS[event].load(Acquire), Release);
}

/// A function that is called repeatedly during a storm, with the number of the call.
pub type Meanwhile = fn(u32);

/// Arms the timer again if the interrupt is the timer's, for storms in which CPUs sleep. Returns
/// whether it is.
pub fn tick(intid: u32) -> bool {
    if intid == timer::INTID {
        timer::arm(timer::frequency() / 500);
    }
    intid == timer::INTID
}

/// Sleeps between interrupts, including the timer's, until `AWAKE` is set.
fn sleeper<G: Gic>(_: u64) {
    G::enable(timer::INTID);
    timer::arm(0);
    while AWAKE.load(Acquire) == 0 {
        exceptions::mask();
        exceptions::wait();
        exceptions::unmask();
    }
    timer::disarm();
    G::disable(timer::INTID);
}

/// Runs `what` while all CPUs sleep between interrupts, like the idle CPUs of an operating system.
/// CPU 0 sleeps where it waits, until its timer wakes it.
pub fn asleep<G: Gic>(what: impl FnOnce() -> Outcome) -> Outcome {
    AWAKE.store(0, Release);
    (1..smp::cpus()).for_each(|cpu| smp::post(cpu, sleeper::<G>, 0));
    G::enable(timer::INTID);
    timer::arm(0);
    let outcome = what();
    AWAKE.store(1, Release);
    (1..smp::cpus()).for_each(smp::finish);
    timer::disarm();
    G::disable(timer::INTID);
    outcome
}

/// Runs one storm. The caller has set up interrupts, and a hook that calls `see`.
pub fn run(target: &Target, paced: bool, meanwhile: Option<Meanwhile>) -> Outcome {
    let usual = if paced { 5_000 } else { 100_000 };
    let count = fdt::value("storm").and_then(|text| text.parse().ok()).unwrap_or(usual);
    COUNTERS.iter().chain(&SEEN).for_each(|counter| counter.store(0, Release));
    let (before, spurious) = (record::messages(), record::all_spurious());
    let storm = Storm {
        threads: THREADS,
        events: target.events,
        count,
        paced,
        device: target.device,
        data: target.data,
        address: target.address,
        counters: COUNTERS.as_ptr() as u64,
        seen: SEEN.as_ptr() as u64,
    };
    storm.start();
    // The status is read rarely, as each read is an exit.
    let mut status = doorbell::RUNNING;
    let mut step = 0;
    timer::within(SECONDS * 1000, || {
        let next = timer::now() + timer::frequency() / 50;
        while let (Some(meanwhile), true) = (meanwhile, timer::now() < next) {
            meanwhile(step);
            step += 1;
            timer::pass(1);
        }
        timer::within(20, || {
            if AWAKE.load(Acquire) == 0 {
                exceptions::mask();
                exceptions::wait();
                exceptions::unmask();
            }
            timer::now() >= next
        });
        status = doorbell::status();
        status != doorbell::RUNNING
    });
    same!("the storm's end", status, doorbell::IDLE);
    let sent: u64 = COUNTERS.iter().map(|counter| counter.load(Acquire)).sum();
    same!("MSIs sent", sent, count);
    let lost = || {
        let pairs = COUNTERS.iter().zip(&SEEN);
        pairs.filter(|(counter, seen)| counter.load(Acquire) != seen.load(Acquire)).count()
    };
    timer::within(record::ARRIVES, || lost() == 0);
    same!("events whose last MSI was lost", lost(), 0);
    // The account ends here, before the wait for interrupts that must not come.
    doorbell::delivered(record::messages() - before);
    record::settled(0);
    let delivered = record::messages() - before;
    println!(
        "COUNT storm paced={paced} events={} sent={sent} delivered={delivered} moved={step} spurious={}",
        target.events,
        record::all_spurious() - spurious,
    );
    if paced {
        same!("interrupts, where none may coalesce", delivered, count);
    }
    Ok(())
}
