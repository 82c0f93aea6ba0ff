//! A vCPU: a thread that runs a guest, which only takes its interrupts.

use std::hint;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use vgic_core::engine::Vcpu;
use vgic_core::ids::VcpuId;

use super::ledger::{Ledger, Sight};
use super::phase::{Phase, Phases};
use crate::host::{Guest, HostKick};

/// Longest latency, in ns, that the histogram distinguishes from longer ones: a minute.
const LONGEST: u64 = 60_000_000_000;

/// Returns an empty latency histogram: 1 ns to a minute, three digits.
pub(super) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are valid")
}

/// A vCPU's progress, for the coordinator. Written by one thread, on a line of its own.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(super) struct Pulse {
    pub(super) delivered: AtomicU64,
}

/// The result of a vCPU thread.
#[derive(Debug)]
pub(super) struct Takings {
    /// Number of guest entries.
    pub(super) entries: u64,
    /// Number of acknowledged LPIs.
    pub(super) delivered: u64,
    /// Acknowledged INTIDs that belong to no event.
    pub(super) stray: u64,
    /// Acknowledges after which the guest read older data than before.
    pub(super) stale: u64,
    pub(super) latency: Histogram<u64>,
    /// The time when the last LPI had been taken, to within one entry.
    pub(super) last: Instant,
}

/// The state that a vCPU thread shares with the rest of the storm.
pub(super) struct Host<'s> {
    pub(super) kick: &'s HostKick,
    /// How long to poll before sleeping.
    pub(super) halt_poll: Duration,
    pub(super) ledger: &'s Ledger,
    pub(super) phases: &'s Phases,
    pub(super) pulse: &'s Pulse,
}

/// Runs a vCPU until the storm is over and no interrupt is left for it.
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
        // Before the flush: if the storm was over by then, this round takes all remaining
        // interrupts.
        let phase = phases.now();
        let flushed = vcpu.flush(guest.lrs());
        takings.entries += 1;
        let taken = take_all(&mut guest, ledger, &mut takings);
        vcpu.fold(guest.lrs());
        if taken != 0 {
            busy = true;
            takings.delivered += taken;
            // Relaxed: it only shows that the vCPU progresses.
            pulse.delivered.store(takings.delivered, Ordering::Relaxed);
        }
        if phase == Phase::Abandoned {
            break;
        }
        if flushed.waiting || vcpu.has_mail() {
            continue;
        }
        if busy {
            // Before each sleep: reading the clock at each entry would cost too much.
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

/// Polls the mailbox for some time, and returns whether there is mail.
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

/// Runs the guest: takes every interrupt that is signaled, and returns their number.
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
