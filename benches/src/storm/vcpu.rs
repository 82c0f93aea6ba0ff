//! A vCPU: a thread that runs a guest which does nothing but take its interrupts.

use std::hint;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use vgic_core::engine::Vcpu;
use vgic_core::ids::VcpuId;

use super::ledger::{Ledger, Sight};
use super::phase::{Phase, Phases};
use crate::host::{Guest, HostKick};

/// Longest latency that is told apart from longer ones, in ns: a minute.
const LONGEST: u64 = 60_000_000_000;

/// An empty latency histogram: 1 ns to a minute, three digits.
pub(super) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are valid")
}

/// How far a vCPU is, for the coordinator. Written by one thread, on a line of its own.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(super) struct Pulse {
    pub(super) delivered: AtomicU64,
}

/// What a vCPU thread brings back.
#[derive(Debug)]
pub(super) struct Takings {
    /// Times that the guest was entered.
    pub(super) entries: u64,
    /// LPIs acknowledged.
    pub(super) delivered: u64,
    /// Acknowledged INTIDs that no event has.
    pub(super) stray: u64,
    /// Acknowledges after which the guest read older data than before.
    pub(super) stale: u64,
    pub(super) latency: Histogram<u64>,
    /// When the last LPI had been taken, within one entry.
    pub(super) last: Instant,
}

/// What a vCPU thread shares with the rest of the storm.
pub(super) struct Host<'s> {
    pub(super) kick: &'s HostKick,
    /// How long to look for more before going to sleep.
    pub(super) halt_poll: Duration,
    pub(super) ledger: &'s Ledger,
    pub(super) phases: &'s Phases,
    pub(super) pulse: &'s Pulse,
}

/// Runs a vCPU until the storm is over and nothing is left for it.
pub(super) fn run<V: Vcpu>(id: VcpuId, mut vcpu: V, mut guest: Guest, host: &Host<'_>) -> Takings {
    let &Host { kick, halt_poll, ledger, phases, pulse } = host;
    kick.attach(id);
    vcpu.open();
    let mut takings = Takings {
        entries: 0,
        delivered: 0,
        stray: 0,
        stale: 0,
        latency: latencies(),
        last: Instant::now(),
    };
    let mut busy = false;
    loop {
        // Before the flush: if the storm was over by then, this round takes all that is left.
        let phase = phases.now();
        let flushed = vcpu.flush(guest.lrs());
        takings.entries += 1;
        let taken = take_all(&mut guest, ledger, &mut takings);
        vcpu.fold(guest.lrs());
        if taken != 0 {
            busy = true;
            takings.delivered += taken;
            // Relaxed: only to see that something moves.
            pulse.delivered.store(takings.delivered, Ordering::Relaxed);
        }
        if phase == Phase::Abandoned {
            break;
        }
        if flushed.waiting || vcpu.has_mail() {
            continue;
        }
        if busy {
            // Before each sleep, as reading the clock at each entry would cost too much.
            takings.last = Instant::now();
            busy = false;
        }
        if phase == Phase::Over {
            break;
        }
        if !poll(&vcpu, halt_poll) {
            kick.sleep(id);
        }
    }
    vcpu.close(guest.lrs());
    takings
}

/// Looks for more for a while; returns whether there is.
fn poll<V: Vcpu>(vcpu: &V, time: Duration) -> bool {
    let began = Instant::now();
    while began.elapsed() < time {
        for _ in 0..16 {
            if vcpu.has_mail() {
                return true;
            }
            hint::spin_loop();
        }
    }
    false
}

/// The guest: takes every interrupt that it is offered, and returns how many there were.
#[inline]
fn take_all(guest: &mut Guest, ledger: &Ledger, takings: &mut Takings) -> u64 {
    let mut taken = 0;
    while let Some(intid) = guest.acknowledge() {
        taken += 1;
        match ledger.acknowledged(intid) {
            Sight::Fresh(None) => {}
            Sight::Fresh(Some(latency)) => takings.latency.saturating_record(latency),
            Sight::Stale => takings.stale += 1,
            Sight::Stray => {
                takings.stray += 1;
                taken -= 1;
            }
        }
        guest.end(intid);
    }
    taken
}
