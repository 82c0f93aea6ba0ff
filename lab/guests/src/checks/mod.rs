//! The checks for both GIC versions.

pub mod active;
pub mod line;
pub mod lpi;
pub mod ppi;
pub mod priority;
pub mod spi;
pub mod split;
pub mod storm;
pub mod stress;

use crate::gic::Gic;
use crate::{exceptions, record, smp, timer};

/// The first of the 64 SPIs that checks use. No board has a device there.
pub const SPI: u32 = 160;
pub const SPIS: u32 = 64;

/// Prepares for all checks: disables all SPIs, including those of devices, and starts the CPUs.
pub fn start<G: Gic>() {
    assert!(G::interrupts() >= SPI + SPIS, "only {} interrupts", G::interrupts());
    G::forward(false);
    for word in (32..G::interrupts() & !31).step_by(32) {
        G::reset_word(word);
    }
    exceptions::set_handler(record::handler::<G>);
    smp::start(|_| ());
}

/// Prepares for one check: its interrupts are off and idle, and all CPUs can take interrupts.
pub fn begin<G: Gic>() {
    G::forward(false);
    for word in (SPI..SPI + SPIS).step_by(32) {
        G::reset_word(word);
    }
    smp::on_each(|_| {
        G::reset_word(0);
        timer::disarm();
        G::init_cpu();
        G::set_split_end(false);
        exceptions::unmask();
    });
    record::clear();
    G::forward(true);
}

/// Sets up an edge-triggered SPI for a CPU.
pub fn edge<G: Gic>(spi: u32, cpu: usize) {
    G::set_edge(spi, true);
    G::route(spi, cpu);
    G::enable(spi);
}

/// Waits for [`record::STAYS_AWAY`], and returns the number of interrupts so far.
pub fn quiet() -> u32 {
    timer::pass(record::STAYS_AWAY);
    record::all()
}
