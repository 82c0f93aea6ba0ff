//! Priorities: the order of interrupts, and preemption.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use super::{SPI, begin, edge, quiet};
use crate::check::Outcome;
use crate::gic::Gic;
use crate::record::{self, all, nth, settled};
use crate::{exceptions, same, timer};

/// The most urgent of several interrupts comes first. There are more interrupts than list registers
/// on any machine.
pub fn order<G: Gic>() -> Outcome {
    const MANY: u32 = 32;
    for seed in 0..4 {
        begin::<G>();
        // A permutation of 0..MANY, twice the number of levels.
        let rank = |n: u32| (n * 13 + seed * 5) % MANY;
        for n in 0..MANY {
            edge::<G>(SPI + n, 0);
            G::set_priority(SPI + n, (rank(n) / 2 * 16) as u8 & 0xf0);
        }
        exceptions::mask();
        for n in 0..MANY {
            G::pend(SPI + n);
        }
        exceptions::unmask();
        same!("interrupts", settled(MANY), MANY);
        for n in 0..MANY as usize {
            let rank = rank(G::intid(nth(0, n)) - SPI);
            same!("the level of the n-th", rank / 2, n / 2);
        }
    }
    Ok(())
}

/// A CPU's mask holds back interrupts that are not more urgent.
pub fn mask<G: Gic>() -> Outcome {
    begin::<G>();
    edge::<G>(SPI, 0);
    edge::<G>(SPI + 1, 0);
    G::set_priority(SPI, 0x80);
    G::set_priority(SPI + 1, 0x70);
    G::set_mask(0x80);
    G::pend(SPI);
    same!("interrupts at the mask's level", quiet(), 0);
    G::pend(SPI + 1);
    same!("interrupts above the mask's level", settled(1), 1);
    same!("which one", G::intid(nth(0, 0)), SPI + 1);
    G::set_mask(0x90);
    same!("interrupts when let through", settled(2), 2);
    same!("which one", G::intid(nth(0, 1)), SPI);
    // The priority changes while the SPI is pending.
    G::set_mask(0x80);
    G::pend(SPI);
    same!("interrupts at the mask's level", quiet(), 2);
    G::set_priority(SPI, 0x40);
    same!("interrupts when made more urgent", settled(3), 3);
    Ok(())
}

static EVENTS: [AtomicU32; 32] = [const { AtomicU32::new(0) }; 32];
static AT: AtomicUsize = AtomicUsize::new(0);

fn event(value: u32) {
    let at = AT.load(SeqCst);
    if let Some(event) = EVENTS.get(at) {
        event.store(value, SeqCst);
    }
    AT.store(at + 1, SeqCst);
}

/// Returns the events: n when the handler of SPI + n began, 100 + n when it ended.
fn happened() -> impl Iterator<Item = u32> {
    EVENTS.iter().take(AT.load(SeqCst)).map(|event| event.load(SeqCst))
}

/// A handler that unmasks interrupts. For the first SPI, it also sets all others pending.
fn nesting<G: Gic>(iar: u32) {
    let n = G::intid(iar) - SPI;
    event(n);
    if n == 0 {
        for other in 1..4 {
            G::pend(SPI + other);
        }
    }
    exceptions::unmask();
    timer::pass(record::STAYS_AWAY);
    exceptions::mask();
    event(100 + n);
}

fn nested<G: Gic>(group_bits: u32, priorities: [u8; 4], wanted: &[u32]) -> Outcome {
    begin::<G>();
    AT.store(0, SeqCst);
    G::set_group_bits(group_bits);
    for (spi, priority) in (SPI..).zip(priorities) {
        edge::<G>(spi, 0);
        G::set_priority(spi, priority);
    }
    record::set_hook(nesting::<G>);
    G::pend(SPI);
    same!("interrupts", settled(4), 4);
    timer::within(record::ARRIVES, || AT.load(SeqCst) == wanted.len());
    same!("beginnings and ends", AT.load(SeqCst), wanted.len());
    for (happened, &wanted) in happened().zip(wanted) {
        same!("what came next", happened, wanted);
    }
    same!("priority after all", G::running_priority() & 0xff, 0xff);
    Ok(())
}

/// More urgent interrupts preempt handlers; others wait.
pub fn preemption<G: Gic>() -> Outcome {
    // The others are more urgent, as urgent, and less urgent than the first.
    nested::<G>(0, [0x80, 0x40, 0x80, 0xc0], &[0, 1, 101, 100, 2, 102, 3, 103])?;
    // Two are more urgent than the first: the most urgent preempts it first, and the next after
    // that.
    nested::<G>(0, [0xa0, 0x60, 0x20, 0xc0], &[0, 2, 102, 1, 101, 100, 3, 103])?;
    // Only bits 7 to 5 decide: 0x40 and 0x50 do not preempt each other, but all bits decide the
    // order.
    nested::<G>(5, [0x50, 0x40, 0x60, 0x30], &[0, 3, 103, 100, 1, 101, 2, 102])
}

/// Nests handlers as deep as there are levels.
pub fn deep<G: Gic>() -> Outcome {
    const LEVELS: u32 = 14;
    begin::<G>();
    for n in 0..LEVELS {
        edge::<G>(SPI + n, 0);
        G::set_priority(SPI + n, (0xe0 - n * 16) as u8);
    }
    AT.store(0, SeqCst);
    record::set_hook(|iar| {
        let n = G::intid(iar) - SPI;
        event(n);
        if n + 1 < LEVELS {
            G::pend(SPI + n + 1);
            exceptions::unmask();
            timer::within(record::ARRIVES, || all() >= n + 2);
            exceptions::mask();
        }
        event(100 + G::running_priority() / 16);
    });
    G::pend(SPI);
    same!("interrupts", settled(LEVELS), LEVELS);
    timer::within(record::ARRIVES, || AT.load(SeqCst) == 2 * LEVELS as usize);
    for (at, event) in (0..2 * LEVELS).zip(happened()) {
        let wanted = if at < LEVELS { at } else { 100 + at - LEVELS + 1 };
        same!("what came next", event, wanted);
    }
    same!("priority after all", G::running_priority() & 0xff, 0xff);
    Ok(())
}
