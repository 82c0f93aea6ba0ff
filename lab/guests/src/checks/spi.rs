//! SPIs that software sets pending. Each arrives once, at its target CPU, and only when it is
//! allowed.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::{SPI, begin, edge, quiet};
use crate::check::Outcome;
use crate::gic::Gic;
use crate::record::{self, all, count, settled};
use crate::{exceptions, println, same, smp, timer};

/// SPIs to each CPU, with each trigger type.
pub fn spi<G: Gic>() -> Outcome {
    for is_edge in [true, false] {
        for cpu in 0..smp::cpus() {
            println!("edge: {is_edge}, to CPU {cpu}");
            begin::<G>();
            G::set_edge(SPI, is_edge);
            G::route(SPI, cpu);
            G::enable(SPI);
            for round in 1..=3 {
                G::pend(SPI);
                same!("interrupts", settled(round), round);
                same!("interrupts of the CPU", count(cpu, SPI), round);
            }
            same!("pending after it", G::is_pending(SPI), false);
            same!("active after it", G::is_active(SPI), false);
        }
    }
    Ok(())
}

/// An SPI that is disabled, masked or not forwarded stays pending, and arrives as soon as it is
/// allowed.
pub fn gates<G: Gic>() -> Outcome {
    begin::<G>();
    edge::<G>(SPI, 0);
    G::disable(SPI);
    G::pend(SPI);
    same!("interrupts while disabled", quiet(), 0);
    same!("pending while disabled", G::is_pending(SPI), true);
    same!("enabled", G::is_enabled(SPI), false);
    G::unpend(SPI);
    same!("pending after it was cleared", G::is_pending(SPI), false);
    G::enable(SPI);
    same!("enabled", G::is_enabled(SPI), true);
    same!("interrupts after it was cleared", quiet(), 0);

    G::disable(SPI);
    G::pend(SPI);
    G::enable(SPI);
    same!("interrupts when enabled again", settled(1), 1);

    G::forward(false);
    G::pend(SPI);
    same!("interrupts while none are forwarded", quiet(), 1);
    G::forward(true);
    same!("interrupts when forwarded again", settled(2), 2);

    G::set_mask(0);
    G::pend(SPI);
    same!("interrupts at mask 0", quiet(), 2);
    G::set_mask(0xff);
    same!("interrupts when let through", settled(3), 3);

    // Masked in the processor, it shows as the highest pending interrupt, and need not be taken.
    exceptions::mask();
    G::pend(SPI);
    timer::pass(record::STAYS_AWAY);
    same!("the highest pending", G::intid(G::highest_pending()), SPI);
    G::unpend(SPI);
    timer::pass(record::STAYS_AWAY);
    same!("what an acknowledge finds", G::intid(G::acknowledge()), 1023);
    exceptions::unmask();
    same!("interrupts after all", quiet(), 3);
    Ok(())
}

/// An SPI that is pending for a CPU that does not take it is routed to another CPU, which does.
pub fn retarget<G: Gic>() -> Outcome {
    if smp::cpus() < 2 {
        return Ok(());
    }
    begin::<G>();
    edge::<G>(SPI, 0);
    for round in 1..=20 {
        exceptions::mask();
        G::route(SPI, 0);
        G::pend(SPI);
        // In every other round, there is time to forward it to CPU 0.
        timer::pass(round % 2);
        G::route(SPI, 1);
        let arrived = timer::within(record::ARRIVES, || record::total(1) >= round as u32);
        exceptions::unmask();
        same!("arrived at CPU 1", arrived, true);
        same!("pending still", G::is_pending(SPI), false);
    }
    same!("interrupts", quiet(), 20);
    same!("interrupts of CPU 1", count(1, SPI), 20);
    // The other direction, from a CPU that is busy.
    smp::on(1, smp::mask, 0);
    for round in 1..=20 {
        G::route(SPI, 1);
        G::pend(SPI);
        timer::pass(round % 2);
        G::route(SPI, 0);
        let arrived = timer::within(record::ARRIVES, || record::total(0) >= round as u32);
        same!("arrived at CPU 0", arrived, true);
    }
    smp::on(1, smp::unmask, 0);
    same!("interrupts", quiet(), 40);
    same!("interrupts of CPU 0", count(0, SPI), 20);
    Ok(())
}

static LEFT: AtomicU32 = AtomicU32::new(0);
static DEPTH: AtomicU32 = AtomicU32::new(0);
static DEEPEST: AtomicU32 = AtomicU32::new(0);

/// An interrupt that becomes pending while it is handled arrives again after its end, and not
/// before.
pub fn again<G: Gic>() -> Outcome {
    begin::<G>();
    edge::<G>(SPI, 0);
    LEFT.store(4, SeqCst);
    DEEPEST.store(0, SeqCst);
    record::set_hook(|_| {
        let depth = DEPTH.load(SeqCst) + 1;
        DEPTH.store(depth, SeqCst);
        DEEPEST.store(depth.max(DEEPEST.load(SeqCst)), SeqCst);
        let left = LEFT.load(SeqCst);
        if left > 0 {
            LEFT.store(left - 1, SeqCst);
            // Setting it pending twice counts once.
            G::pend(SPI);
            G::pend(SPI);
            exceptions::unmask();
            timer::pass(2);
            exceptions::mask();
        }
        DEPTH.store(DEPTH.load(SeqCst) - 1, SeqCst);
    });
    G::pend(SPI);
    same!("interrupts", settled(5), 5);
    same!("how deep they nested", DEEPEST.load(SeqCst), 1);
    Ok(())
}

static RELEASE: AtomicU32 = AtomicU32::new(0);

/// An SPI that one CPU handles, that is routed to another CPU and is pending again, waits for its
/// end on the first CPU.
pub fn move_active<G: Gic>() -> Outcome {
    if smp::cpus() < 2 {
        return Ok(());
    }
    begin::<G>();
    edge::<G>(SPI, 1);
    for round in 1..=5 {
        RELEASE.store(0, SeqCst);
        record::set_hook(|_| while smp::cpu() == 1 && RELEASE.load(SeqCst) == 0 {});
        G::route(SPI, 1);
        G::pend(SPI);
        let arrived = timer::within(record::ARRIVES, || count(1, SPI) == round);
        same!("arrived at CPU 1", arrived, true);
        G::route(SPI, 0);
        G::pend(SPI);
        let early = quiet();
        let (active, pending) = (G::is_active(SPI), G::is_pending(SPI));
        RELEASE.store(1, SeqCst);
        same!("interrupts while it is handled", early, round * 2 - 1);
        same!("active while it is handled", active, true);
        same!("pending while it is handled", pending, true);
        same!("interrupts after it", settled(round * 2), round * 2);
        same!("interrupts of CPU 0", count(0, SPI), round);
    }
    same!("interrupts", all(), 10);
    Ok(())
}
