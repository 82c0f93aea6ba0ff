//! End of interrupt in two steps: priority drop first, deactivation later.

use super::{SPI, begin, edge, quiet};
use crate::check::Outcome;
use crate::gic::Gic;
use crate::record::{nth, settled};
use crate::{same, smp};

/// Interrupts on one CPU are deactivated in another order than they came.
pub fn split<G: Gic>() -> Outcome {
    begin::<G>();
    G::set_split_end(true);
    for n in 0..3 {
        edge::<G>(SPI + n, 0);
    }
    G::pend(SPI);
    same!("interrupts", settled(1), 1);
    same!("priority after its end", G::running_priority() & 0xff, 0xff);
    same!("active after its end", G::is_active(SPI), true);
    G::pend(SPI);
    same!("interrupts while it is active", quiet(), 1);
    // Others of the same priority arrive while it is active.
    G::pend(SPI + 1);
    same!("interrupts of the second", settled(2), 2);
    G::pend(SPI + 2);
    same!("interrupts of the third", settled(3), 3);
    for n in 0..3 {
        same!("active", G::is_active(SPI + n), true);
    }
    G::deactivate(nth(0, 1));
    same!("active after its deactivation", G::is_active(SPI + 1), false);
    same!("active still", G::is_active(SPI + 2), true);
    G::deactivate(nth(0, 0));
    same!("interrupts when it may come again", settled(4), 4);
    G::deactivate(nth(0, 3));
    G::deactivate(nth(0, 2));
    for n in 0..3 {
        same!("active after all", G::is_active(SPI + n), false);
    }
    same!("interrupts after all", quiet(), 4);
    G::set_split_end(false);
    G::pend(SPI);
    same!("interrupts in one step", settled(5), 5);
    same!("active in one step", G::is_active(SPI), false);
    Ok(())
}

/// More interrupts are active than there are list registers on any machine. The last ones are
/// deactivated first.
pub fn many<G: Gic>() -> Outcome {
    const MANY: u32 = 24;
    begin::<G>();
    G::set_split_end(true);
    for n in 0..MANY {
        edge::<G>(SPI + n, 0);
        G::pend(SPI + n);
    }
    same!("interrupts", settled(MANY), MANY);
    for n in 0..MANY {
        same!("active", G::is_active(SPI + n), true);
        G::pend(SPI + n);
    }
    same!("interrupts while all are active", quiet(), MANY);
    for n in (0..MANY as usize).rev() {
        G::deactivate(nth(0, n));
    }
    same!("interrupts when all may come again", settled(MANY * 2), MANY * 2);
    for n in 0..MANY {
        same!("active again", G::is_active(SPI + n), true);
    }
    for n in MANY..MANY * 2 {
        G::deactivate(nth(0, n as usize));
    }
    for n in 0..MANY {
        same!("active after all", G::is_active(SPI + n), false);
    }
    G::set_split_end(false);
    same!("interrupts after all", quiet(), MANY * 2);
    Ok(())
}

/// One CPU takes an SPI, and another deactivates it.
pub fn elsewhere<G: Gic>() -> Outcome {
    let last = smp::cpus() - 1;
    if last == 0 {
        return Ok(());
    }
    begin::<G>();
    // The CPU that deactivates must be in this mode too.
    smp::on_each(|_| G::set_split_end(true));
    edge::<G>(SPI, last);
    for round in 1..=10 {
        G::pend(SPI);
        same!("interrupts", settled(round), round);
        same!("active", G::is_active(SPI), true);
        G::deactivate(nth(last, round as usize - 1));
        same!("active after its deactivation", G::is_active(SPI), false);
    }
    smp::on_each(|_| G::set_split_end(false));
    Ok(())
}
