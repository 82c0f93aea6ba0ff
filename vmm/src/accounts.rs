//! The cost of storms of MSIs: exits, system calls and kicks between two moments, which the lab's
//! doorbell device announces.
//!
//! A vCPU's runner keeps its own counts, and reports them only while it does not run. For a
//! moment's counts, each runner is therefore stopped, reports, and runs on. That costs each vCPU
//! one kick. The thread that asks for a moment does not wait, as it may be a vCPU's thread. A
//! storm's threads wait before they begin.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde::Serialize;
use vgic_core::ids::VcpuId;
use vgic_kvm::stats::{LineStats, RunStats};
use vgic_kvm::{KvmGic, Stop};

use crate::doorbell::lock;
use crate::irq;
use crate::stats::KernelVcpu;

/// The maximum number of storms in the accounts.
const MOST: usize = 64;
/// How long a storm waits for its first moment. If a vCPU's thread is stuck, the storm begins
/// without it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The source of the counts.
pub(crate) enum Counters {
    /// Our runners, and their lines.
    User(KvmGic),
    /// vCPUs with the kernel's interrupt controller. The kernel's own work is not counted.
    Kernel(Vec<Arc<KernelVcpu>>),
}

/// Counts at one moment.
struct Moment {
    /// CPU time of this process so far, including guests.
    cpu: Duration,
    /// Each vCPU's counts; `None` until it has reported them.
    runs: Vec<Option<RunStats>>,
    lines: LineStats,
    msis: u64,
    kernel_lines: u64,
}

/// A storm, as the guest has described it.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Described {
    pub(crate) paced: bool,
    pub(crate) threads: u32,
    pub(crate) events: u32,
}

struct Storm {
    described: Described,
    begin: Moment,
    end: Option<(Moment, u32)>,
}

#[derive(Default)]
struct State {
    storms: Vec<Storm>,
    stops: Vec<(VcpuId, Stop)>,
    over: bool,
}

impl State {
    fn moments(&mut self) -> impl Iterator<Item = &mut Moment> {
        self.storms
            .iter_mut()
            .flat_map(|storm| [Some(&mut storm.begin), storm.end.as_mut().map(|(end, _)| end)])
            .flatten()
    }

    fn ask(&self) {
        self.stops.iter().for_each(|(_, stop)| stop.stop());
    }
}

/// The accounts of a machine.
pub(crate) struct Accounts {
    counters: Counters,
    vcpus: u16,
    state: Mutex<State>,
    /// Signals that a vCPU has reported its counts, or that the machine has ended.
    told: Condvar,
}

/// The cost of a storm.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Costs {
    /// The number of MSIs sent.
    pub(crate) sent: u64,
    /// The number of interrupts that the guest reports.
    pub(crate) delivered: u64,
    /// Nanoseconds of CPU time of all threads during the storm, in the guest, the VMM and the
    /// kernel.
    pub(crate) cpu_nanoseconds: u64,
    /// The number of times that KVM_RUN returned.
    pub(crate) exits: u64,
    /// The exits for accesses to the interrupt controller.
    pub(crate) gic_exits: u64,
    pub(crate) ioctls: Ioctls,
    /// The number of times that an injection called a vCPU out of its guest by a signal. `None`
    /// where the kernel injects.
    pub(crate) kicks: Option<u64>,
}

/// Calls into KVM, by kind.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Ioctls {
    pub(crate) kvm_run: u64,
    pub(crate) kvm_irq_line: u64,
    pub(crate) kvm_signal_msi: u64,
    /// KVM_GET_MP_STATE and KVM_SET_VCPU_EVENTS; for a GICv3 also those for registers and
    /// breakpoints.
    pub(crate) other: u64,
}

/// A storm's entry in the report.
#[derive(Debug, Serialize)]
pub(crate) struct StormReport {
    #[serde(flatten)]
    described: Described,
    #[serde(flatten)]
    costs: Costs,
}

#[allow(unsafe_code)] // std has no CPU clock of a process.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is that of a `timespec` of ours, which the call fills in.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } != 0;
    if failed { Duration::ZERO } else { Duration::new(time.tv_sec as u64, time.tv_nsec as u32) }
}

impl Moment {
    fn exits(&self) -> RunStats {
        let mut sum = RunStats::default();
        for run in self.runs.iter().flatten() {
            sum.exits += run.exits;
            sum.gic_exits += run.gic_exits;
            sum.trap_calls += run.trap_calls;
            sum.power_queries += run.power_queries;
            sum.aborts += run.aborts;
        }
        sum
    }

    /// The calls into KVM up to this moment.
    fn ioctls(&self, kernel: bool) -> Ioctls {
        let (run, lines) = (self.exits(), self.lines);
        Ioctls {
            kvm_run: run.exits,
            kvm_irq_line: lines.driven + self.kernel_lines,
            kvm_signal_msi: if kernel { self.msis } else { 0 },
            other: run.trap_calls + run.power_queries + run.aborts,
        }
    }
}

impl Accounts {
    pub(crate) fn new(counters: Counters, vcpus: u16) -> Self {
        Self { counters, vcpus, state: Mutex::default(), told: Condvar::new() }
    }

    /// Takes the counts of now, except those of our runners, which they have yet to report.
    fn moment(&self) -> Moment {
        let (runs, lines) = match &self.counters {
            Counters::User(gic) => {
                let mut sum = LineStats::default();
                for line in (0..self.vcpus).map(|n| gic.line_stats(VcpuId(n))) {
                    sum.driven += line.driven;
                    sum.signals += line.signals;
                }
                (vec![None; usize::from(self.vcpus)], sum)
            }
            Counters::Kernel(vcpus) => {
                let runs = vcpus.iter().map(|counts| Some(counts.run_stats())).collect();
                (runs, LineStats::default())
            }
        };
        let (msis, kernel_lines) = (irq::msis(), irq::kernel_lines());
        Moment { cpu: cpu_time(), runs, lines, msis, kernel_lines }
    }

    /// Registers a vCPU that runs from now on.
    pub(crate) fn attach(&self, id: VcpuId, stop: Stop) {
        let mut state = lock(&self.state);
        if state.moments().any(|moment| moment.runs[id.index()].is_none()) {
            stop.stop();
        }
        state.stops.push((id, stop));
    }

    /// Records the counts of a vCPU that has been stopped. Returns whether it is to run on.
    pub(crate) fn tell(&self, id: VcpuId, stats: RunStats) -> bool {
        let mut state = lock(&self.state);
        for moment in state.moments() {
            moment.runs[id.index()].get_or_insert(stats);
        }
        self.told.notify_all();
        !state.over
    }

    /// Ends the machine: stops each vCPU, and none runs on. This happens under the lock, so a vCPU
    /// that has been stopped for a moment either sees `over`, or is stopped once more.
    pub(crate) fn over(&self) {
        let mut state = lock(&self.state);
        state.over = true;
        self.told.notify_all();
        state.ask();
    }

    /// Opens the account of a storm that is about to begin.
    pub(crate) fn begin(&self, described: Described) {
        let mut state = lock(&self.state);
        // Discards the previous storm if its end was never reported.
        if state.storms.last().is_some_and(|last| last.end.is_none()) {
            state.storms.pop();
        }
        if state.storms.len() < MOST {
            state.storms.push(Storm { described, begin: self.moment(), end: None });
            state.ask();
        }
    }

    /// Waits until all vCPUs have reported their counts of the last beginning.
    pub(crate) fn wait_for_begin(&self) {
        let waits = |state: &mut State| {
            !state.over && state.storms.last().is_some_and(|s| s.begin.runs.contains(&None))
        };
        // If the lock is poisoned or the time is up, the storm begins without the counts.
        let _ = self.told.wait_timeout_while(lock(&self.state), PATIENCE, waits);
    }

    /// Records that the guest has taken all of the last storm, as `delivered` interrupts.
    pub(crate) fn end(&self, delivered: u32) {
        let mut state = lock(&self.state);
        if let Some(storm) = state.storms.last_mut()
            && storm.end.is_none()
        {
            storm.end = Some((self.moment(), delivered));
            state.ask();
        }
    }

    fn costs(&self, begin: &Moment, end: &Moment, delivered: u32) -> Costs {
        let kernel = matches!(self.counters, Counters::Kernel(_));
        let (first, last) = (begin.ioctls(kernel), end.ioctls(kernel));
        // If a vCPU has not reported its counts of the beginning, the difference may be negative.
        let signals = end.lines.signals.saturating_sub(begin.lines.signals);
        let gic_exits = end.exits().gic_exits.saturating_sub(begin.exits().gic_exits);
        Costs {
            sent: end.msis - begin.msis,
            delivered: delivered.into(),
            cpu_nanoseconds: end.cpu.saturating_sub(begin.cpu).as_nanos() as u64,
            exits: last.kvm_run.saturating_sub(first.kvm_run),
            gic_exits,
            ioctls: Ioctls {
                kvm_run: last.kvm_run.saturating_sub(first.kvm_run),
                kvm_irq_line: last.kvm_irq_line.saturating_sub(first.kvm_irq_line),
                kvm_signal_msi: last.kvm_signal_msi.saturating_sub(first.kvm_signal_msi),
                other: last.other.saturating_sub(first.other),
            },
            kicks: (!kernel).then_some(signals),
        }
    }

    /// The storms that have ended. Call it after all vCPUs have ended.
    pub(crate) fn storms(&self) -> Vec<StormReport> {
        let state = lock(&self.state);
        let ended = state.storms.iter().filter_map(|storm| Some((storm, storm.end.as_ref()?)));
        ended
            .map(|(storm, (end, delivered))| StormReport {
                described: storm.described,
                costs: self.costs(&storm.begin, end, *delivered),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORM: Described = Described { paced: false, threads: 2, events: 64 };

    #[test]
    fn costs_are_what_came_between() {
        let counts = Arc::new(KernelVcpu::default());
        let accounts = Accounts::new(Counters::Kernel(vec![Arc::clone(&counts)]), 1);
        counts.exits.add();
        accounts.begin(STORM);
        accounts.wait_for_begin();
        (0..3).for_each(|_| counts.exits.add());
        accounts.end(7);
        counts.exits.add();
        accounts.end(8);
        // One storm that never ends, and one after it.
        accounts.begin(STORM);
        accounts.begin(STORM);
        counts.exits.add();
        accounts.end(1);
        let storms = accounts.storms();
        let costs: Vec<_> = storms.iter().map(|s| (s.costs.delivered, s.costs.exits)).collect();
        assert_eq!(costs, [(7, 3), (1, 1)]);
        assert_eq!(storms[0].costs.kicks, None, "the kernel does not say");
        let json = serde_json::to_value(&storms[0]).unwrap();
        assert_eq!(json["ioctls"]["kvm_run"], 3);
        assert_eq!(json["events"], 64);
    }

    #[test]
    fn a_guest_cannot_make_it_grow() {
        let accounts = Accounts::new(Counters::Kernel(vec![]), 0);
        for _ in 0..3 * MOST {
            accounts.begin(STORM);
            accounts.end(0);
        }
        assert_eq!(accounts.storms().len(), MOST);
    }
}
