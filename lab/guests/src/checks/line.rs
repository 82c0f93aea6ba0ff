//! SPIs with lines that a device drives: the lab doorbell.

use super::{SPI, begin, quiet};
use crate::check::Outcome;
use crate::gic::Gic;
use crate::record::{self, count, settled};
use crate::{doorbell, same, smp};

/// Level-sensitive: the SPI is pending exactly as long as the line is up.
pub fn level<G: Gic>() -> Outcome {
    same!("the doorbell's identification", doorbell::id(), 0x4c41_4244);
    for cpu in 0..smp::cpus() {
        begin::<G>();
        G::set_edge(SPI, false);
        G::route(SPI, cpu);
        doorbell::line(SPI, true);
        same!("pending with the line up", G::is_pending(SPI), true);
        doorbell::line(SPI, false);
        same!("pending with the line down", G::is_pending(SPI), false);
        // The handler lowers the line only at every fourth interrupt.
        record::set_hook(|iar| {
            if record::count(smp::cpu(), G::intid(iar)) % 4 == 0 {
                doorbell::line(G::intid(iar), false);
            }
        });
        G::enable(SPI);
        same!("interrupts without a line", quiet(), 0);
        for round in 1..=5 {
            doorbell::line(SPI, true);
            same!("interrupts", settled(round * 4), round * 4);
            same!("interrupts of the CPU", count(cpu, SPI), round * 4);
            same!("pending after it", G::is_pending(SPI), false);
        }
        // A line that goes up and down while the SPI is disabled leaves nothing pending.
        G::disable(SPI);
        doorbell::line(SPI, true);
        doorbell::line(SPI, false);
        G::enable(SPI);
        same!("interrupts after a line that went down", quiet(), 20);
    }
    Ok(())
}

/// Edge-triggered: one interrupt for each rise.
pub fn edge<G: Gic>() -> Outcome {
    begin::<G>();
    super::edge::<G>(SPI, 0);
    for round in 1..=5 {
        doorbell::line(SPI, true);
        same!("interrupts of a rise", settled(round), round);
        doorbell::line(SPI, true);
        same!("interrupts of no rise", quiet(), round);
        doorbell::line(SPI, false);
        same!("interrupts of a fall", quiet(), round);
    }
    // A rise while the SPI is disabled stays pending after the fall.
    G::disable(SPI);
    doorbell::line(SPI, true);
    doorbell::line(SPI, false);
    G::enable(SPI);
    same!("interrupts of a rise that was before", settled(6), 6);
    Ok(())
}
