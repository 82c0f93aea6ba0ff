//! Changes of mappings during the storm: DISCARD and MAPTI on some events, MOVI on others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vgic_core::engine::{Engine, Error, Injected, Injector, MsiControl};
use vgic_core::ids::VcpuId;

use super::injector::Tally;
use super::ledger::Ledger;
use super::plan::Plan;
use crate::rng::Rng;

/// Injections per operation. The rate is proportional, so that engines of different speed are
/// disturbed alike. A guest's driver remaps far less often.
const INJECTIONS_PER_OPERATION: u64 = 100;

/// Operations that a churn performs even after it is told to stop, if as many are due.
const LEAST_OPERATIONS: u64 = 8;

/// Operations between two calls of `collect`.
const OPERATIONS_PER_COLLECT: u64 = 256;

/// Attempts to map an event at the end.
const ATTEMPTS: usize = 1000;

/// The disturbed events: an eighth of all (at least one) is unmapped and mapped, another eighth is
/// moved.
#[derive(Debug)]
pub(super) struct Churn {
    /// (index, whether it is mapped now)
    remapped: Vec<(u32, bool)>,
    moved: Vec<u32>,
    rng: Rng,
    pub(super) done: Churned,
}

/// The operations of a churn and their results.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Churned {
    /// Operations: unmapped, mapped or moved.
    pub operations: u64,
    /// Injections of events right after they were unmapped, which must have no effect.
    pub probes: u64,
    /// The number of these injections that did have an effect.
    pub effective: u64,
}

impl Churn {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut rng = Rng::new(plan.seed, u64::MAX);
        let mut all: Vec<u32> = (0..plan.lpis()).collect();
        rng.shuffle(&mut all);
        let share = (all.len() / 8).max(1);
        let remapped = all.iter().take(share).map(|index| (*index, true)).collect();
        let moved = all.iter().skip(share).take(share).copied().collect();
        Self { remapped, moved, rng, done: Churned::default() }
    }

    /// Disturbs events until `halt`. At each wake-up it performs the operations that are due for
    /// the injections made so far.
    pub(super) fn run<E: Engine>(
        &mut self,
        msi: &mut E::Msi,
        injector: &E::Injector,
        plan: &Plan,
        ledger: &Ledger,
        injected: impl Fn() -> u64,
        halt: &AtomicBool,
    ) -> Result<(), Error> {
        let domain = msi.domain();
        loop {
            // Relaxed: only a request to stop soon; the thread is joined.
            let halted = || halt.load(Ordering::Relaxed);
            let due = injected() / INJECTIONS_PER_OPERATION;
            // A storm can be over before this thread has had a CPU. Without this minimum, the
            // report would then claim that the storm survived a churn that never happened.
            let least = due.min(LEAST_OPERATIONS);
            while self.done.operations < least || (self.done.operations < due && !halted()) {
                if self.done.operations.is_multiple_of(2) || self.moved.is_empty() {
                    if let Some(unmapped) = self.remap_one(msi, plan, ledger)? {
                        let (device, event) = plan.event(unmapped);
                        self.done.probe(injector.inject(&domain, device, event));
                    }
                } else {
                    self.move_one(msi, plan)?;
                }
                self.done.operations += 1;
                if self.done.operations.is_multiple_of(OPERATIONS_PER_COLLECT) {
                    msi.collect();
                }
            }
            if halted() {
                return Ok(());
            }
            // Injectors wake this thread regularly. With few CPUs, a thread that woke on its own
            // would do nothing for long, and then take a CPU from the storm.
            thread::park();
        }
    }

    fn move_one<M: MsiControl>(&mut self, msi: &mut M, plan: &Plan) -> Result<(), Error> {
        let at = self.rng.below(self.moved.len() as u32) as usize;
        let (device, event) = plan.event(self.moved[at]);
        msi.retarget(device, event, self.any_vcpu(plan))
    }

    /// Unmaps an event and returns its index, or maps it again, possibly to another vCPU.
    fn remap_one<M: MsiControl>(
        &mut self,
        msi: &mut M,
        plan: &Plan,
        ledger: &Ledger,
    ) -> Result<Option<u32>, Error> {
        let at = self.rng.below(self.remapped.len() as u32) as usize;
        let (index, mapped) = self.remapped[at];
        let (device, event) = plan.event(index);
        if mapped {
            msi.unmap(device, event)?;
            ledger.discarded(index);
        } else {
            let target = self.any_vcpu(plan);
            match msi.map(device, event, plan.intid(index), target, plan.config_of(index)) {
                // A retired LPI or device counts until it is reclaimed, and that may wait for a
                // thread that does not run. Skip the event for now.
                Err(Error::TooManyLpis | Error::TooManyDevices) => return Ok(None),
                result => result?,
            }
        }
        self.remapped[at].1 = !mapped;
        Ok(mapped.then_some(index))
    }

    fn any_vcpu(&mut self, plan: &Plan) -> VcpuId {
        VcpuId(self.rng.below(u32::from(plan.vcpus)) as u16)
    }

    /// After the storm: maps all unmapped events, and injects every disturbed event once more. A
    /// DISCARD may drop a pending interrupt, but nothing may drop these.
    pub(super) fn finish<E: Engine>(
        &mut self,
        msi: &mut E::Msi,
        injector: &E::Injector,
        plan: &Plan,
        ledger: &Ledger,
    ) -> Result<Tally, Error> {
        let domain = msi.domain();
        let mut tally = Tally::default();
        for (index, mapped) in &mut self.remapped {
            if !*mapped {
                map_at_last(msi, plan, *index)?;
                *mapped = true;
            }
        }
        for index in self.remapped.iter().map(|(index, _)| *index).chain(self.moved.iter().copied())
        {
            let (device, event) = plan.event(index);
            ledger.send(index, ledger.sent(index) + 1);
            // By look-up, unlike the storm itself: the tables must agree with the routes.
            tally.injected += 1;
            tally.count(injector.inject(&domain, device, event));
        }
        Ok(tally)
    }
}

impl Churned {
    fn probe(&mut self, result: Injected) {
        self.probes += 1;
        self.effective += u64::from(result != Injected::Unmapped);
    }
}

/// Maps an event to its first vCPU. If a bound is reached, reclaims retired objects first: nothing
/// else runs that could delay that for long.
fn map_at_last<M: MsiControl>(msi: &mut M, plan: &Plan, index: u32) -> Result<(), Error> {
    let (device, event) = plan.event(index);
    let mut attempts = 0;
    loop {
        let target = plan.target(index);
        match msi.map(device, event, plan.intid(index), target, plan.config_of(index)) {
            Err(Error::TooManyLpis | Error::TooManyDevices) if attempts < ATTEMPTS => {
                attempts += 1;
                msi.collect();
                thread::yield_now();
            }
            result => return result,
        }
    }
}
