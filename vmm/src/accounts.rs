//! What storms of MSIs cost: exits, system calls and kicks between two moments, which the lab's doorbell tells of.
//!
//! A vCPU's runner counts for itself, and tells only when it is not running. So a moment is asked for: each runner is stopped, tells its counts, and runs on. That costs
//! each vCPU one kick. Who asks does not wait, as it may be a vCPU itself; a storm's threads do before they begin.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde::Serialize;
use vgic_core::ids::VcpuId;
use vgic_kvm::stats::{LineStats, RunStats};
use vgic_kvm::{KvmGic, Stop};

use crate::doorbell::lock;
use crate::irq;
use crate::stats::KernelVcpu;

/// Most storms that are kept account of.
const MOST: usize = 64;
/// How long a storm waits for its beginning. It begins without, if a vCPU's thread is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who has the counts.
pub(crate) enum Counters {
    /// Our runners, and their lines.
    User(KvmGic),
    /// vCPUs whose interrupt controller is the kernel's: what that does for itself is not counted.
    Kernel(Vec<Arc<KernelVcpu>>),
}

/// Counts at one moment.
struct Moment {
    /// CPU time of this process so far, that of guests included.
    cpu: Duration,
    /// By vCPU, once it has told.
    runs: Vec<Option<RunStats>>,
    lines: LineStats,
    msis: u64,
    kernel_lines: u64,
}

/// A storm, as who started it has described it.
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
    /// A vCPU has told its counts, or the machine is over.
    told: Condvar,
}

/// What a storm has cost.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Costs {
    /// MSIs.
    pub(crate) sent: u64,
    /// What the guest says it took.
    pub(crate) delivered: u64,
    /// Nanoseconds of CPU time that all threads had meanwhile, in the guest, in the VMM, and in the kernel.
    pub(crate) cpu_nanoseconds: u64,
    /// Times that KVM_RUN returned.
    pub(crate) exits: u64,
    /// Those for accesses to the interrupt controller.
    pub(crate) gic_exits: u64,
    pub(crate) ioctls: Ioctls,
    /// Times that an injection called a vCPU out of its guest, by a signal. Unknown where the kernel injects.
    pub(crate) kicks: Option<u64>,
}

/// Calls into KVM, by what they are.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Ioctls {
    pub(crate) kvm_run: u64,
    pub(crate) kvm_irq_line: u64,
    pub(crate) kvm_signal_msi: u64,
    /// KVM_GET_MP_STATE, KVM_SET_VCPU_EVENTS; of a GICv3, those for registers and breakpoints.
    pub(crate) other: u64,
}

/// A storm's line of the report.
#[derive(Debug, Serialize)]
pub(crate) struct StormReport {
    #[serde(flatten)]
    described: Described,
    #[serde(flatten)]
    costs: Costs,
}

#[allow(unsafe_code)] // What std does not ask for.
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

    /// Calls until this moment.
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

    /// Now; our runners are still to tell theirs.
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

    /// A vCPU runs.
    pub(crate) fn attach(&self, id: VcpuId, stop: Stop) {
        let mut state = lock(&self.state);
        if state.moments().any(|moment| moment.runs[id.index()].is_none()) {
            stop.stop();
        }
        state.stops.push((id, stop));
    }

    /// A vCPU has been stopped. Returns whether it is to run on.
    pub(crate) fn tell(&self, id: VcpuId, stats: RunStats) -> bool {
        let mut state = lock(&self.state);
        for moment in state.moments() {
            moment.runs[id.index()].get_or_insert(stats);
        }
        self.told.notify_all();
        !state.over
    }

    /// The machine is over: each vCPU is to be stopped, and does not run on. Under the lock: a vCPU that has been stopped for a moment either sees this, or is
    /// stopped once more.
    pub(crate) fn over(&self) {
        let mut state = lock(&self.state);
        state.over = true;
        self.told.notify_all();
        state.ask();
    }

    /// A storm is about to begin.
    pub(crate) fn begin(&self, described: Described) {
        let mut state = lock(&self.state);
        // One whose end was not told of has none.
        if state.storms.last().is_some_and(|last| last.end.is_none()) {
            state.storms.pop();
        }
        if state.storms.len() < MOST {
            state.storms.push(Storm { described, begin: self.moment(), end: None });
            state.ask();
        }
    }

    /// Waits until all vCPUs have told their counts of the last beginning.
    pub(crate) fn wait_for_begin(&self) {
        let waits = |state: &mut State| {
            !state.over && state.storms.last().is_some_and(|s| s.begin.runs.contains(&None))
        };
        // Poisoned or late: it begins without.
        let _ = self.told.wait_timeout_while(lock(&self.state), PATIENCE, waits);
    }

    /// The guest has taken all of the last storm, as `delivered` interrupts.
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
        // A vCPU that has not told of the beginning may tell less than nothing.
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

    /// The storms that have ended. After all vCPUs have.
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
        // One that never ends, and one that comes after it.
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
