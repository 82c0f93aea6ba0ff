//! The checks that both GIC versions get.

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

/// The first of the 64 SPIs that checks use: no board has a device there.
pub const SPI: u32 = 160;
pub const SPIS: u32 = 64;

/// Before the first check: all SPIs off, those of devices included.
pub fn start<G: Gic>() {
    assert!(G::interrupts() >= SPI + SPIS, "only {} interrupts", G::interrupts());
    G::forward(false);
    for word in (32..G::interrupts() & !31).step_by(32) {
        G::reset_word(word);
    }
    exceptions::set_handler(record::handler::<G>);
    smp::start(|_| ());
}

/// Before each check: its interrupts off and idle, all CPUs ready to take more.
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

/// An edge-triggered SPI for a CPU.
pub fn edge<G: Gic>(spi: u32, cpu: usize) {
    G::set_edge(spi, true);
    G::route(spi, cpu);
    G::enable(spi);
}

/// Waits a while; how many interrupts there have been.
pub fn quiet() -> u32 {
    timer::pass(record::STAYS_AWAY);
    record::all()
}
