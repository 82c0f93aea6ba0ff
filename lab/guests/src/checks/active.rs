//! The active state, read and written through registers.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::{SPI, begin, edge, quiet};
use crate::check::Outcome;
use crate::gic::{Gic, USUAL};
use crate::record::{self, settled};
use crate::{same, smp, timer};

static SEEN: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];

/// The interrupt is active on the CPU that handles it.
pub fn active<G: Gic>() -> Outcome {
    begin::<G>();
    edge::<G>(SPI, 0);
    record::set_hook(|iar| {
        SEEN[0].store(G::is_active(SPI).into(), SeqCst);
        SEEN[1].store(G::is_pending(SPI).into(), SeqCst);
        SEEN[2].store(G::running_priority(), SeqCst);
        SEEN[3].store(G::intid(iar), SeqCst);
    });
    same!("priority when nothing runs", G::running_priority() & 0xff, 0xff);
    G::pend(SPI);
    same!("interrupts", settled(1), 1);
    same!("active in its handler", SEEN[0].load(SeqCst), 1);
    same!("pending in its handler", SEEN[1].load(SeqCst), 0);
    same!("priority in its handler", SEEN[2].load(SeqCst), USUAL);
    same!("number in its handler", SEEN[3].load(SeqCst), SPI);
    same!("active after it", G::is_active(SPI), false);
    same!("priority after it", G::running_priority() & 0xff, 0xff);

    // Set active by register, as if a CPU handled it.
    G::activate(SPI);
    same!("active by register", G::is_active(SPI), true);
    G::pend(SPI);
    same!("interrupts while active", quiet(), 1);
    same!("pending while active", G::is_pending(SPI), true);
    G::clear_active(SPI);
    same!("interrupts when not active any more", settled(2), 2);
    same!("active after all", G::is_active(SPI), false);

    // Set active and pending while disabled. Both are cleared while enabled.
    G::disable(SPI);
    G::activate(SPI);
    G::pend(SPI);
    G::enable(SPI);
    same!("interrupts while active", quiet(), 2);
    G::unpend(SPI);
    G::clear_active(SPI);
    same!("interrupts when neither", quiet(), 2);
    Ok(())
}

static RELEASE: AtomicU32 = AtomicU32::new(0);

/// The interrupt is active on another CPU, which handles it at the same time.
pub fn elsewhere<G: Gic>() -> Outcome {
    let last = smp::cpus() - 1;
    if last == 0 {
        return Ok(());
    }
    begin::<G>();
    edge::<G>(SPI, last);
    for round in 0..10 {
        RELEASE.store(0, SeqCst);
        record::set_hook(|_| while RELEASE.load(SeqCst) == 0 {});
        G::pend(SPI);
        let arrived = timer::within(record::ARRIVES, || record::total(last) == round * 2 + 1);
        same!("arrived", arrived, true);
        let seen = [G::is_active(SPI), G::is_pending(SPI)];
        G::pend(SPI);
        let then = [G::is_active(SPI), G::is_pending(SPI)];
        G::unpend(SPI);
        let cleared = G::is_pending(SPI);
        G::pend(SPI);
        let early = quiet();
        RELEASE.store(1, SeqCst);
        same!("active elsewhere", seen[0], true);
        same!("pending elsewhere", seen[1], false);
        same!("active elsewhere, pending again", then[0], true);
        same!("pending elsewhere again", then[1], true);
        same!("pending elsewhere, cleared", cleared, false);
        same!("interrupts while active", early, round * 2 + 1);
        same!("interrupts", settled(round * 2 + 2), round * 2 + 2);
        same!("active after it", G::is_active(SPI), false);
    }
    Ok(())
}
