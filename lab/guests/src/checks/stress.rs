//! Many interrupts between CPUs. They may coalesce, but a handler sees all writes from before the
//! last one.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use super::{SPI, begin, edge};
use crate::check::Outcome;
use crate::gic::Gic;
use crate::smp::MAX_CPUS;
use crate::{exceptions, fdt, println, record, same, smp, timer};

const EVENTS: usize = 16;

static COUNTERS: [AtomicU32; EVENTS] = [const { AtomicU32::new(0) }; EVENTS];
static SEEN: [AtomicU32; EVENTS] = [const { AtomicU32::new(0) }; EVENTS];

fn rounds() -> u32 {
    fdt::value("rounds").and_then(|text| text.parse().ok()).unwrap_or(2000)
}

fn clear() {
    for (counter, seen) in COUNTERS.iter().zip(&SEEN) {
        counter.store(0, SeqCst);
        seen.store(0, SeqCst);
    }
}

fn see(event: usize) {
    SEEN[event].store(COUNTERS[event].load(SeqCst), SeqCst);
}

fn all_seen() -> bool {
    COUNTERS.iter().zip(&SEEN).all(|(counter, seen)| counter.load(SeqCst) == seen.load(SeqCst))
}

/// SPIs from CPU 0 to all CPUs, which are routed to other CPUs in the second pass.
pub fn spis<G: Gic>() -> Outcome {
    let cpus = smp::cpus();
    for moved in [false, true] {
        begin::<G>();
        clear();
        for event in 0..EVENTS {
            edge::<G>(SPI + event as u32, event % cpus);
        }
        record::set_hook(|iar| see((G::intid(iar) - SPI) as usize));
        for round in 1..=rounds() {
            let event = round as usize % EVENTS;
            COUNTERS[event].store(round, SeqCst);
            G::pend(SPI + event as u32);
            if moved && round % 3 == 0 {
                G::route(SPI + event as u32, (round as usize / 3) % cpus);
            }
        }
        let seen = timer::within(record::ARRIVES, all_seen);
        same!("all was seen", seen, true);
        println!("{} of {} arrived", record::all(), rounds());
    }
    Ok(())
}

static REPLIES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// SGIs to and fro. Each is answered before the next is sent, so none may coalesce, and none may be
/// lost.
pub fn ping<G: Gic>() -> Outcome {
    let cpus = smp::cpus();
    if cpus < 2 {
        return Ok(());
    }
    begin::<G>();
    smp::on_each(|_| {
        G::enable(1);
        G::enable(2);
    });
    REPLIES.iter().for_each(|reply| reply.store(0, SeqCst));
    record::set_hook(|iar| {
        let cpu = smp::cpu();
        if cpu == 0 {
            REPLIES[0].store(REPLIES[0].load(SeqCst) + 1, SeqCst);
        } else if G::intid(iar) == 1 {
            G::send_sgi(2, 0);
        }
    });
    let rounds = rounds() / 2;
    for round in 1..=u64::from(rounds) {
        let cpu = 1 + round as usize % (cpus - 1);
        G::send_sgi(1, cpu);
        let answered = timer::within(record::ARRIVES, || REPLIES[0].load(SeqCst) == round);
        same!("answered", answered, true);
    }
    same!("interrupts", record::settled(rounds * 2), rounds * 2);
    Ok(())
}

/// All CPUs at once: each sends SGIs to the next as fast as it can, and handles those of the
/// previous one.
pub fn ring<G: Gic>() -> Outcome {
    begin::<G>();
    clear();
    smp::on_each(|_| {
        for sgi in 0..8 {
            G::enable(sgi);
        }
    });
    record::set_hook(|_| see(smp::cpu()));
    let send = |rounds: u64| {
        let next = (smp::cpu() + 1) % smp::cpus();
        for round in 1..=rounds {
            COUNTERS[next].store(round as u32, SeqCst);
            G::send_sgi(round as u32 % 8, next);
        }
    };
    for cpu in 1..smp::cpus() {
        smp::post(cpu, send, rounds().into());
    }
    send(rounds().into());
    (1..smp::cpus()).for_each(smp::finish);
    let seen = timer::within(record::ARRIVES, all_seen);
    same!("all was seen", seen, true);
    println!("{} of {} arrived", record::all(), rounds() * smp::cpus() as u32);
    Ok(())
}

/// A CPU sleeps until an interrupt arrives, and misses none that arrives just before it sleeps.
pub fn sleep<G: Gic>() -> Outcome {
    let cpus = smp::cpus();
    if cpus < 2 {
        return Ok(());
    }
    begin::<G>();
    smp::on_each(|_| G::enable(1));
    let rounds = rounds() / 4;
    // The sleeper masks interrupts, checks the count, sleeps, and unmasks to take the interrupt.
    smp::post(
        1,
        |rounds| {
            for round in 1..=rounds as u32 {
                while record::count(1, 1) < round {
                    exceptions::mask();
                    if record::count(1, 1) < round {
                        exceptions::wait();
                    }
                    exceptions::unmask();
                }
            }
        },
        rounds.into(),
    );
    for round in 1..=rounds {
        G::send_sgi(1, 1);
        let woken = timer::within(record::ARRIVES, || record::count(1, 1) == round);
        same!("woken", woken, true);
        // The next SGI comes at another moment of its way to sleep.
        for _ in 0..round % 64 * 8 {
            core::hint::spin_loop();
        }
    }
    smp::finish(1);
    same!("interrupts", record::settled(rounds), rounds);
    Ok(())
}
