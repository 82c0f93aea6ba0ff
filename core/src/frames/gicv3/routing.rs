//! The routing of interrupts: group enables, redistributors' states, and the routes of SPIs.
//!
//! The engine has gates for each vCPU ([`Gates`]), and an enable bit and a target for each SPI.
//! They follow from registers of several frames, which vCPUs write at the same time:
//!
//! * The gates of a vCPU follow from GICD_CTLR's group enables, GICR_WAKER and
//!   GICR_CTLR.EnableLPIs.
//! * An SPI's enable bit and target follow from its GICD_ISENABLER bit and its GICD_IROUTER. If any
//!   vCPU may take the SPI, they also follow from the set of vCPUs that take part.
//!
//! # Routes
//!
//! * A GICD_IROUTER that names no existing vCPU keeps the written value. The interrupt is disabled
//!   in the engine, and so stays pending until it is routed to a vCPU that exists. GICD_ISENABLER
//!   shows the guest's own bit, which is kept here. (IHI 0069, 12.9, `GICD_IROUTER<n>`, leaves the
//!   handling of such an interrupt open.)
//! * Interrupt_Routing_Mode 1: the interrupt goes to the first vCPU that takes part. The search
//!   begins with the vCPU with the number INTID modulo the number of vCPUs, which spreads
//!   interrupts over the vCPUs. A vCPU takes part while it is powered on and its redistributor is
//!   awake. A vCPU is preferred if its CPU interface has the interrupt's group enabled and does not
//!   mask its priority. When any of this changes, such interrupts are retargeted. While no vCPU
//!   takes part, they stay pending, as do interrupts that name no existing vCPU. (IHI 0069, 1.2.3,
//!   leaves the choice open.)
//!
//! # Words
//!
//! `ctlr`, `vcpus` and `spis` hold the values that were written. Any thread may change them. Each
//! change is one read-modify-write. A thread that has changed a word (the *writer*) updates the
//! engine's state to follow from the words ([`converge`]), and then re-checks whether it still
//! does. If not, another thread has changed a word in between, and the writer repeats the update.
//! So this is lock-free, and when all writers are done, the engine's state follows from the words.
//! Between the words of vCPUs and the engine's words of SPIs there are bitmaps (`takers`). They are
//! brought up to date in the same way, before the engine is. So the statements below about a vCPU's
//! word hold for the bitmaps, too.
//!
//! The engine's state is one word for each vCPU and SPI. Acquire-release read-modify-writes replace
//! it. Consider the last replacement of such a word, and a change of a word here. There are two
//! cases:
//!
//! * The writer has brought the engine up to date after its change. Then the last replacement is
//!   that update, or comes after it and synchronizes with it. The re-check after the last
//!   replacement sees the change.
//! * The writer has found nothing to do: for example, a vCPU falls asleep, and finds no interrupt
//!   that any vCPU may take. Then there is a fence between the writer's change and its search for
//!   such interrupts, and a fence between the change of the route and the look at the vCPUs that
//!   take part. One of the two fences comes first, and the look after the other one sees the change
//!   before the first.

use alloc::boxed::Box;

use super::takers::Takers;
use crate::arch::ids::{ESPI_BASE, Group, Intid, PRIVATE_INTIDS, VcpuId};
use crate::engine::{Engine, Gates, Injector, Wired, WiredConfig};
use crate::frames::machine::{Affinity, Cx, Machine};
use crate::frames::targets::{Choices, Takes};
use crate::sync::{AtomicBool, AtomicU64, Ordering, converge, fence, update};

/// GICD_CTLR.EnableGrp0.
const ENABLE_GRP0: u64 = 1 << 0;
/// GICD_CTLR.EnableGrp1.
const ENABLE_GRP1: u64 = 1 << 1;

/// GICD_IROUTER.Interrupt_Routing_Mode.
const IRM: u64 = 1 << 31;
/// The fields of GICD_IROUTER: affinities and the routing mode.
const ROUTER: u64 = 0xff_00ff_ffff | IRM;
/// The bit of GICD_ISENABLER in a word of `spis`. GICD_IROUTER has no field there.
const ENABLED: u64 = 1 << 63;

/// A state of a vCPU that decides which interrupts are forwarded to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Flag {
    /// The vCPU is powered on.
    On = 1 << 0,
    /// GICR_WAKER.ProcessorSleep is 0.
    Awake = 1 << 1,
    /// GICR_CTLR.EnableLPIs is 1.
    Lpis = 1 << 2,
}

/// The routing state that the frames of one controller share.
pub(crate) struct State {
    /// GICD_CTLR's group enables.
    ctlr: AtomicU64,
    /// The [`Flag`]s of each vCPU, and the [`Takes`] of its CPU interface.
    vcpus: Box<[AtomicU64]>,
    /// GICD_IROUTER and [`ENABLED`] of each SPI, and then of each extended SPI.
    spis: Box<[AtomicU64]>,
    /// The number of SPIs that are not extended.
    count: u32,
    /// Counts the SPIs that any vCPU may take (GICD_IROUTER.IRM).
    choices: Choices,
    /// The vCPUs that would take them. This follows `vcpus` once `follows` is set.
    takers: Takers,
    /// Whether there has ever been such an SPI.
    follows: AtomicBool,
    /// Whether all of `takers` has been brought up to date since `follows` was set.
    followed: AtomicBool,
}

impl State {
    /// Creates the state that matches a new engine: nothing is enabled, all vCPUs are off, and all
    /// SPIs are routed to vCPU 0. Redistributors are awake, unless the guest begins with firmware
    /// that wakes them.
    pub(crate) fn new(machine: &Machine) -> Self {
        let flags = if machine.firmware { 0 } else { Flag::Awake as u64 };
        let route = machine.affinities.first().map_or(0, |a| a.mpidr());
        let spis = usize::from(machine.spis) + usize::from(machine.espis);
        Self {
            ctlr: AtomicU64::new(0),
            vcpus: machine.affinities.iter().map(|_| AtomicU64::new(flags)).collect(),
            spis: (0..spis).map(|_| AtomicU64::new(route)).collect(),
            count: machine.spis.into(),
            choices: Choices::default(),
            takers: Takers::new(if spis > 0 { machine.affinities.len() } else { 0 }),
            follows: AtomicBool::new(false),
            followed: AtomicBool::new(false),
        }
    }

    /// The writable bits of GICD_CTLR.
    pub(crate) fn ctlr(&self) -> u64 {
        self.ctlr.load(Ordering::Acquire)
    }

    /// Writes GICD_CTLR.
    pub(crate) fn set_ctlr<E: Engine>(&self, cx: &Cx<'_, E>, value: u64) {
        self.ctlr.swap(value & (ENABLE_GRP0 | ENABLE_GRP1), Ordering::AcqRel);
        for vcpu in 0..self.vcpus.len() {
            self.settle_gates(cx.injector, VcpuId(vcpu as u16));
        }
    }

    /// Whether a flag of a vCPU is set.
    pub(crate) fn flag(&self, vcpu: VcpuId, flag: Flag) -> bool {
        self.vcpus[vcpu.index()].load(Ordering::Acquire) & flag as u64 != 0
    }

    /// Changes a flag of a vCPU.
    pub(crate) fn set_flag<I: Injector>(
        &self,
        machine: &Machine,
        injector: &I,
        vcpu: VcpuId,
        flag: Flag,
        set: bool,
    ) {
        let new = |old| if set { old | flag as u64 } else { old & !(flag as u64) };
        let old = update(&self.vcpus[vcpu.index()], new);
        if old == new(old) {
            return;
        }
        if flag != Flag::On {
            self.settle_gates(injector, vcpu);
        }
        if takes_part(old) != takes_part(new(old)) {
            self.vcpu_changed(machine, injector, vcpu);
        }
    }

    /// The guest has changed the [`Takes`] of a vCPU's CPU interface.
    pub(crate) fn set_takes<I: Injector>(
        &self,
        machine: &Machine,
        injector: &I,
        vcpu: VcpuId,
        takes: Takes,
    ) {
        let old = update(&self.vcpus[vcpu.index()], |old| old & !Takes::BITS | takes.bits());
        // If the vCPU does not take part, the thread that lets it take part again sees the new
        // value.
        if Takes::of(old) != takes && takes_part(old) {
            self.vcpu_changed(machine, injector, vcpu);
        }
    }

    /// A vCPU's word has changed.
    fn vcpu_changed<I: Injector>(&self, machine: &Machine, injector: &I, vcpu: VcpuId) {
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence. A guest that changes PMR for every critical section, and
        // has never had an SPI that any vCPU may take, pays no more than this.
        if self.follows.load(Ordering::Relaxed) {
            self.settle_takers(vcpu.index());
            if self.choices.is_any() {
                self.choose_anew(machine, injector);
            }
        }
    }

    /// Makes the bitmaps follow the words of vCPUs from now on.
    fn follow<I: Injector>(&self, machine: &Machine, injector: &I) {
        self.follows.swap(true, Ordering::AcqRel);
        // Pairs with the fence in `vcpu_changed`: a thread that has changed a vCPU's word sees
        // `follows` set, or this thread sees the changed word.
        fence(Ordering::SeqCst);
        (0..self.vcpus.len()).for_each(|vcpu| self.settle_takers(vcpu));
        // Release: pairs with `settle_spi`.
        self.followed.swap(true, Ordering::AcqRel);
        // Another thread may have chosen targets from incomplete bitmaps.
        self.choose_anew(machine, injector);
    }

    /// Brings a vCPU's bits in the bitmaps up to date with its word.
    fn settle_takers(&self, vcpu: usize) {
        let takes = || {
            let word = self.vcpus[vcpu].load(Ordering::Acquire);
            takes_part(word).then(|| Takes::of(word))
        };
        converge(takes, |takes| self.takers.set(vcpu, *takes));
    }

    /// Retargets all SPIs that any vCPU may take.
    fn choose_anew<I: Injector>(&self, machine: &Machine, injector: &I) {
        // `settle_takers` puts a fence between the change and this look.
        for (n, word) in self.spis.iter().enumerate() {
            if word.load(Ordering::Acquire) & IRM != 0 {
                self.settle_spi_now(machine, injector, n);
            }
        }
    }

    /// An SPI's group or priority has changed.
    pub(crate) fn attributes_changed<E: Engine>(&self, cx: &Cx<'_, E>, spi: Intid) {
        if let Some(n) = self.position(spi)
            && self.spis[n].load(Ordering::Acquire) & IRM != 0
        {
            self.settle_spi(cx.machine, cx.injector, n);
        }
    }

    fn settle_gates<I: Injector>(&self, injector: &I, vcpu: VcpuId) {
        fence(Ordering::SeqCst);
        let wanted = || {
            let ctlr = self.ctlr();
            let groups = [ctlr & ENABLE_GRP0 != 0, ctlr & ENABLE_GRP1 != 0];
            let lpis = self.flag(vcpu, Flag::Lpis);
            match self.flag(vcpu, Flag::Awake) {
                true => Gates { groups, lpis, msis: lpis },
                // Interrupts that become pending during sleep stay pending.
                false => Gates { msis: lpis, ..Gates::CLOSED },
            }
        };
        // The vCPU exists.
        converge(wanted, |&gates| {
            let _ = injector.update_gates(vcpu, |_| gates);
        });
    }

    /// The position of an SPI in `spis`; `None` if it does not exist.
    fn position(&self, spi: Intid) -> Option<usize> {
        let n = match spi.0.checked_sub(ESPI_BASE) {
            Some(n) => self.count + n,
            None => spi.0.checked_sub(PRIVATE_INTIDS).filter(|&n| n < self.count)?,
        };
        Some(n as usize).filter(|&n| n < self.spis.len())
    }

    fn intid(&self, n: usize) -> Intid {
        match (n as u32).checked_sub(self.count) {
            Some(extended) => Intid(ESPI_BASE + extended),
            None => Intid(PRIVATE_INTIDS + n as u32),
        }
    }

    /// Returns an SPI's bit in GICD_ISENABLER.
    pub(crate) fn enabled(&self, spi: Intid) -> bool {
        self.position(spi).is_some_and(|n| self.spis[n].load(Ordering::Acquire) & ENABLED != 0)
    }

    /// Writes an SPI's bit in GICD_ISENABLER.
    pub(crate) fn set_enabled<E: Engine>(&self, cx: &Cx<'_, E>, spi: Intid, enabled: bool) {
        if let Some(n) = self.position(spi) {
            update(&self.spis[n], |old| if enabled { old | ENABLED } else { old & !ENABLED });
            self.settle_spi(cx.machine, cx.injector, n);
        }
    }

    /// Returns the GICD_IROUTER of an SPI, or 0 if the SPI does not exist.
    pub(crate) fn route(&self, spi: Intid) -> u64 {
        self.position(spi).map_or(0, |n| self.spis[n].load(Ordering::Acquire) & ROUTER)
    }

    /// Writes the bits of `mask` of an SPI's GICD_IROUTER.
    pub(crate) fn set_route<E: Engine>(&self, cx: &Cx<'_, E>, spi: Intid, value: u64, mask: u64) {
        let Some(n) = self.position(spi) else { return };
        let mask = mask & ROUTER;
        self.choices.change(|| {
            let new = |old| old & !mask | value & mask;
            let old = update(&self.spis[n], new);
            (old & IRM != 0, new(old) & IRM != 0)
        });
        self.settle_spi(cx.machine, cx.injector, n);
    }

    /// Updates the engine after a change of an SPI's word, or of other state that decides its
    /// target.
    fn settle_spi<I: Injector>(&self, machine: &Machine, injector: &I, n: usize) {
        // Acquire: pairs with `follow`. While another thread runs `follow`, this one runs it as
        // well instead of waiting.
        if self.spis[n].load(Ordering::Acquire) & IRM != 0 && !self.followed.load(Ordering::Acquire)
        {
            self.follow(machine, injector);
        }
        fence(Ordering::SeqCst);
        self.settle_spi_now(machine, injector, n);
    }

    /// Updates an SPI in the engine. The caller has passed a fence. The wanted target is compared
    /// with the engine's target, not with the target that was wanted before: if two vCPUs change at
    /// once, it is possible that neither sees a difference from that earlier target.
    fn settle_spi_now<I: Injector>(&self, machine: &Machine, injector: &I, n: usize) {
        let irq = Wired::Spi(self.intid(n));
        // The interrupt exists.
        while let Ok(config) = injector.config(irq) {
            let (enabled, target) = self.wanted(machine, config, n);
            if with_route(config, enabled, target) == config {
                return;
            }
            let _ = injector.update(irq, |old| with_route(old, enabled, target));
            // As in `converge`.
            fence(Ordering::SeqCst);
        }
    }

    /// Returns whether an SPI is enabled, and its target, if it has one.
    fn wanted(&self, machine: &Machine, config: WiredConfig, n: usize) -> (bool, Option<VcpuId>) {
        let word = self.spis[n].load(Ordering::Acquire);
        let target = match word & IRM {
            0 => machine.vcpu(Affinity::from_mpidr(word)),
            _ => self.any(self.intid(n), config),
        };
        (word & ENABLED != 0, target)
    }

    /// Chooses the vCPU for an interrupt that any vCPU may take.
    fn any(&self, spi: Intid, config: WiredConfig) -> Option<VcpuId> {
        self.takers.choose(config, spi.0 as usize % self.vcpus.len())
    }
}

/// Whether a vCPU with this word takes SPIs that any vCPU may take.
fn takes_part(word: u64) -> bool {
    let both = Flag::On as u64 | Flag::Awake as u64;
    word & both == both
}

/// Returns the engine's configuration that follows from an SPI's bit in GICD_ISENABLER and its
/// target. An SPI without a target is disabled until it has one, even if that is the target that it
/// had before.
fn with_route(old: WiredConfig, enabled: bool, target: Option<VcpuId>) -> WiredConfig {
    WiredConfig {
        enabled: enabled && target.is_some(),
        target: target.unwrap_or(old.target),
        ..old
    }
}

/// Returns an interrupt's group for its bit in GICD_IGROUPR.
pub(crate) const fn group(bit: bool) -> Group {
    if bit { Group::Group1 } else { Group::Group0 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use core::cell::Cell;

    #[test]
    fn what_is_changed_meanwhile_is_applied_as_well() {
        let (raw, applied) = (Cell::new(0), Cell::new(None));
        let apply = |&value: &i32| {
            applied.set(Some(value));
            // Another thread changes the value, three times.
            raw.set((value + 1).min(3));
        };
        converge(|| raw.get(), apply);
        assert_eq!(applied.get(), Some(3));
    }
}
