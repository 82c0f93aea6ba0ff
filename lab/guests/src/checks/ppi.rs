//! PPIs: the virtual timer, which has a level-sensitive line, and a PPI that software sets pending.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::{begin, quiet};
use crate::check::Outcome;
use crate::gic::Gic;
use crate::record::{self, bump, count, settled};
use crate::smp::MAX_CPUS;
use crate::{same, smp, timer};

/// A PPI without a device.
const OTHER: u32 = 21;
const TICKS: u32 = 50;

static DONE: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// All CPUs' timers tick at the same time, once a millisecond. The handler arms the timer again.
pub fn timer<G: Gic>() -> Outcome {
    begin::<G>();
    DONE.iter().for_each(|done| done.store(0, SeqCst));
    record::set_hook(|iar| {
        if G::intid(iar) == timer::INTID {
            let done = &DONE[smp::cpu()];
            bump(done);
            if done.load(SeqCst) < TICKS {
                timer::arm(timer::frequency() / 1000);
            } else {
                timer::disarm();
            }
        }
    });
    smp::on_each(|_| {
        G::enable(timer::INTID);
        timer::arm(0);
    });
    let cpus = smp::cpus() as u32;
    same!("ticks", settled(TICKS * cpus), TICKS * cpus);
    for cpu in 0..smp::cpus() {
        same!("ticks of a CPU", count(cpu, timer::INTID), TICKS);
    }
    Ok(())
}

/// As long as the line is up, the interrupt arrives again, and no more after that.
pub fn level<G: Gic>() -> Outcome {
    begin::<G>();
    record::set_hook(|_| {
        if record::count(smp::cpu(), timer::INTID) == 4 {
            timer::disarm();
        }
    });
    G::enable(timer::INTID);
    timer::arm(0);
    same!("interrupts of one level", settled(4), 4);

    // The line can be read while the interrupt is disabled.
    G::disable(timer::INTID);
    timer::arm(0);
    same!("pending with the line up", G::is_pending(timer::INTID), true);
    timer::mask();
    same!("pending with the line masked", G::is_pending(timer::INTID), false);
    timer::arm(0);
    same!("pending with the line up again", G::is_pending(timer::INTID), true);
    timer::arm(timer::frequency() * 3600);
    same!("pending with the timer in the future", G::is_pending(timer::INTID), false);
    timer::disarm();
    G::enable(timer::INTID);
    same!("interrupts when the line went down before", quiet(), 4);
    Ok(())
}

/// Each CPU has its own PPI.
pub fn banked<G: Gic>() -> Outcome {
    for cpu in 0..smp::cpus() {
        begin::<G>();
        smp::on_each(|_| {
            // On some boards all PPIs are level-sensitive. A PPI that software sets pending works
            // the same way.
            G::enable(OTHER);
        });
        smp::on(cpu, |_| G::pend(OTHER), 0);
        same!("interrupts", settled(1), 1);
        same!("interrupts of the CPU", count(cpu, OTHER), 1);
        smp::on(cpu, |_| G::disable(OTHER), 0);
        smp::on(cpu, |_| G::pend(OTHER), 0);
        same!("interrupts while disabled", quiet(), 1);
        smp::on(cpu, |_| G::enable(OTHER), 0);
        same!("interrupts when enabled again", settled(2), 2);
        same!("interrupts of the CPU", count(cpu, OTHER), 2);
    }
    Ok(())
}
