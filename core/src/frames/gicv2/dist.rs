//! The distributor, GICD (IHI 0048B, 4.3), as a guest without the Security Extensions sees it.
//!
//! Almost all of its state is in the engine: each register is a view of the interrupts'
//! configurations and states. The exceptions are GICD_CTLR and, for each SPI, its target CPUs
//! together with its enable bit ([`Route`]). The engine knows only the consequences of these
//! values, so they are kept here as the guest wrote them.
//!
//! # Concurrent writers
//!
//! A writer changes the kept value with one atomic access: a read-modify-write of a route, or a
//! store to GICD_CTLR. It then updates the engine from the present kept value, and repeats this
//! until the value did not change during the update. In whichever order writers come, the engine's
//! last configuration follows from the last kept value:
//!
//! The engine's update is a read-modify-write with Acquire and Release of one place. (For GICD_CTLR
//! there is one place for each vCPU; the argument applies to each of them.) So of two updates of
//! one place, the later one's thread sees, after its update, everything that was done before the
//! earlier one, including the value that the earlier one's writer stored. Therefore the thread of
//! the very last update sees the very last value, and stops only if it used that value. The
//! accesses to the kept values add nothing to this order. They are Relaxed, except for changes that
//! are counted ([`Choices`]). A writer repeats its update only if another writer has made progress,
//! so this is lock-free. Tests: `settles_on_the_present_value`, `concurrent_writers_converge`.
//!
//! # Implementation choices
//!
//! The architecture leaves these open:
//!
//! * SGIs are always enabled (4.3.5: IMPLEMENTATION DEFINED).
//! * The configuration of PPIs can be changed. They are level-sensitive after a reset (4.3.13:
//!   IMPLEMENTATION DEFINED).
//! * An SPI with several targets goes to the lowest-numbered target that would take it: its CPU
//!   interface has the SPI's group enabled, and does not mask its priority (1-N model, 1.4.3: any
//!   of the targets may take it). The SPI moves to another target when that changes. An SPI without
//!   targets stays pending (4.3.12).
//! * A write to GICD_SGIR with the reserved target filter does nothing (4.3.15).
//! * Pending bits of SGIs from a source CPU that does not exist are RAZ/WI (4.3.16, 4.3.17).

use alloc::boxed::Box;

use super::layout::{self, Dist};
use crate::arch::ids::{Group, Intid, PRIVATE_END, PRIVATE_INTIDS, Priority, SGIS, VcpuId};
use crate::engine::{Engine, Error, Gates, Injector, Trigger, Wired, WiredConfig};
use crate::frames::machine::{Cx, Machine};
use crate::frames::mmio::{Frame, Reg};
use crate::frames::targets::{Choices, Takes};
use crate::sync::{AtomicU32, AtomicU64, Ordering, converge, fence};

/// EnableGrp0 and EnableGrp1: the bits of GICD_CTLR.
const ENABLE: [u32; 2] = [1 << 0, 1 << 1];

/// GICD_IIDR: implementer Arm, no product number.
const IIDR: u64 = 0x43b;

/// PIDR4 to PIDR7, PIDR0 to PIDR3, CIDR0 to CIDR3 (4.3.18): designer Arm, architecture version 2, a
/// generic component.
const ID: [u8; 12] = [0x04, 0x00, 0x00, 0x00, 0x90, 0xb4, 0x2b, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The guest's settings for an SPI's delivery: the byte of GICD_ITARGETSR, and above it the bit of
/// GICD_ISENABLER.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Route(u32);

impl Route {
    const TARGETS: u32 = 0xff;
    const ENABLED: u32 = 1 << 8;

    fn enabled(self) -> bool {
        self.0 & Self::ENABLED != 0
    }

    fn targets(self) -> u8 {
        self.0 as u8
    }

    /// Whether there is a choice of targets.
    fn has_several(self) -> bool {
        self.targets().count_ones() > 1
    }

    /// Returns the target of an interrupt: the lowest-numbered one that would take it, or else the
    /// lowest-numbered one.
    fn choose(self, config: WiredConfig, takes: impl Fn(usize) -> Takes) -> Option<VcpuId> {
        let mut targets = ones(self.targets().into());
        let lowest = targets.clone().next();
        let passes = |&n: &u32| takes(n as usize).passes(config.group, config.priority);
        let target = if self.has_several() { targets.find(passes).or(lowest) } else { lowest };
        target.map(|n| VcpuId(n as u16))
    }

    /// Returns the engine's configuration that follows from this route and the chosen target.
    fn apply(self, target: Option<VcpuId>, config: WiredConfig) -> WiredConfig {
        match target {
            None => WiredConfig { enabled: false, ..config },
            Some(target) => WiredConfig { enabled: self.enabled(), target, ..config },
        }
    }
}

/// The distributor's state that is not in the engine.
pub(crate) struct DistV2 {
    ctlr: AtomicU32,
    /// The [`Route`] of each SPI.
    routes: Box<[AtomicU32]>,
    /// Counts the SPIs that have several targets.
    choices: Choices,
    /// One bit for each CPU that exists.
    cpus: u8,
    /// The [`Takes`] of each CPU interface.
    takes: [AtomicU64; 8],
}

/// The positions of the bits that are 1 in `value`, from 0 up.
fn ones(value: u64) -> impl Iterator<Item = u32> + Clone {
    (0..u64::BITS).filter(move |n| value >> n & 1 != 0)
}

/// The interrupts of word `index` of a register with one bit for each interrupt, with their bit
/// positions.
fn word<'a, E: Engine>(cx: &'a Cx<'_, E>, index: u32) -> impl Iterator<Item = (u32, Wired)> + 'a {
    (0..32).map(move |n| (n, wired(cx, 32 * index + n)))
}

/// An interrupt as the accessing CPU sees it. If it does not exist, the engine returns an error,
/// and its bits are RAZ/WI.
fn wired<E: Engine>(cx: &Cx<'_, E>, intid: u32) -> Wired {
    let intid = Intid(intid);
    if intid.is_private() { Wired::Private(cx.vcpu, intid) } else { Wired::Spi(intid) }
}

fn is_sgi(wired: Wired) -> bool {
    matches!(wired, Wired::Private(_, intid) if intid.is_sgi())
}

/// Reads a word with one bit for each interrupt.
fn read_bits<E: Engine>(
    cx: &Cx<'_, E>,
    index: u32,
    get: impl Fn(Wired) -> Result<bool, Error>,
) -> u64 {
    let set = word(cx, index).filter(|&(_, wired)| get(wired).unwrap_or(false));
    set.fold(0, |value, (n, _)| value | 1 << n)
}

/// Calls `f` for each interrupt of a word that has its bit set in `value`.
fn for_ones<E: Engine>(cx: &Cx<'_, E>, index: u32, value: u64, f: impl Fn(Wired)) {
    ones(value).for_each(|n| f(wired(cx, 32 * index + n)));
}

/// Updates the engine from a kept value until that is the present value.
fn settle(kept: &AtomicU32, hand_over: impl Fn(u32)) {
    let mut value = kept.load(Ordering::Relaxed);
    loop {
        hand_over(value);
        // This load cannot come before the engine's update, which acquires.
        let now = kept.load(Ordering::Relaxed);
        if now == value {
            return;
        }
        value = now;
    }
}

impl DistV2 {
    pub(crate) fn new(machine: &Machine) -> Self {
        let cpus = u8::MAX >> (8 - machine.vcpus().clamp(1, 8));
        // A uniprocessor's SPIs all go to its one CPU (4.3.12).
        let route = if cpus == 1 { 1 } else { 0 };
        let routes = (0..machine.spis).map(|_| AtomicU32::new(route)).collect();
        let (choices, takes) = Default::default();
        Self { ctlr: AtomicU32::new(0), routes, choices, cpus, takes }
    }

    /// Brings the engine's interrupts, which are new, to their state after a reset (table 4-1). The
    /// SPIs in `edges` are edge-triggered.
    pub(crate) fn reset<I: Injector>(
        &self,
        injector: &I,
        vcpus: u16,
        edges: impl Iterator<Item = Intid>,
    ) -> Result<(), Error> {
        let private = (0..vcpus)
            .flat_map(|vcpu| (0..PRIVATE_END).map(move |n| Wired::Private(VcpuId(vcpu), Intid(n))));
        let shared = (0..self.routes.len() as u32).map(|n| Wired::Spi(Intid(PRIVATE_INTIDS + n)));
        for wired in private.chain(shared) {
            let sgi = is_sgi(wired);
            let trigger = if sgi { Trigger::Edge } else { Trigger::Level };
            let group = Group::Group0;
            injector.update(wired, |config| WiredConfig {
                enabled: sgi,
                priority: Priority::HIGHEST,
                group,
                trigger,
                ..config
            })?;
        }
        for spi in edges {
            injector.update(Wired::Spi(spi), |c| WiredConfig { trigger: Trigger::Edge, ..c })?;
        }
        Ok(())
    }

    fn is_uniprocessor(&self) -> bool {
        self.cpus == 1
    }

    /// The kept route of an SPI.
    fn route(&self, intid: Intid) -> Option<&AtomicU32> {
        self.routes.get(intid.0.checked_sub(PRIVATE_INTIDS)? as usize)
    }

    /// Replaces a field of an SPI's route, and updates the engine.
    fn set_route<E: Engine>(&self, cx: &Cx<'_, E>, intid: Intid, field: u32, value: u32) {
        let Some(kept) = self.route(intid) else { return };
        // One exchange covers both fields, or else another writer's field would be lost. AcqRel:
        // see `Choices::change`.
        let new = |route| route & !field | value;
        self.choices.change(|| {
            let with = |route| Some(new(route));
            let old = kept.fetch_update(Ordering::AcqRel, Ordering::Relaxed, with);
            let old = old.unwrap_or_else(|old| old);
            (Route(old).has_several(), Route(new(old)).has_several())
        });
        self.settle_route(cx.injector, intid);
    }

    fn takes(&self, cpu: usize) -> Takes {
        // Relaxed, here and below: there are fences between the changes and the reads that depend
        // on them.
        Takes::of(self.takes[cpu].load(Ordering::Relaxed))
    }

    /// Updates the engine from an SPI's route and the [`Takes`] of its targets.
    fn settle_route<I: Injector>(&self, injector: &I, spi: Intid) {
        let Some(kept) = self.route(spi) else { return };
        fence(Ordering::SeqCst);
        let wanted = || {
            let route = Route(kept.load(Ordering::Relaxed));
            let config = injector.config(Wired::Spi(spi)).ok();
            (route, config.and_then(|config| route.choose(config, |n| self.takes(n))))
        };
        converge(wanted, |&(route, target)| {
            let _ = injector.update(Wired::Spi(spi), |config| route.apply(target, config));
        });
    }

    /// The guest has changed the [`Takes`] of a CPU interface. As in GICv3 (`gicv3::routing`), an
    /// SPI that already goes to the right target is left alone.
    pub(crate) fn set_takes<I: Injector>(&self, injector: &I, cpu: VcpuId, takes: Takes) {
        let Some(word) = self.takes.get(cpu.index()) else { return };
        word.swap(takes.bits(), Ordering::AcqRel);
        if !self.choices.is_any() {
            return;
        }
        for n in 0..self.routes.len() {
            let route = Route(self.routes[n].load(Ordering::Relaxed));
            let spi = Intid(PRIVATE_INTIDS + n as u32);
            if !route.has_several() {
                continue;
            }
            let Ok(config) = injector.config(Wired::Spi(spi)) else { continue };
            if route.choose(config, |n| self.takes(n)) != Some(config.target) {
                self.settle_route(injector, spi);
            }
        }
    }

    /// The group or the priority of an interrupt has changed.
    fn attribute_changed<E: Engine>(&self, cx: &Cx<'_, E>, wired: Wired) {
        if let Wired::Spi(spi) = wired
            && self.route(spi).is_some_and(|r| Route(r.load(Ordering::Relaxed)).has_several())
        {
            self.settle_route(cx.injector, spi);
        }
    }

    fn write_ctlr<E: Engine>(&self, cx: &Cx<'_, E>, value: u64, mask: u64) {
        let enable = ENABLE[0] | ENABLE[1];
        let mask = mask as u32 & enable;
        if mask == 0 {
            return;
        }
        // Both bits are in one byte, so every access that writes one of them writes both.
        self.ctlr.store(value as u32 & enable, Ordering::Relaxed);
        settle(&self.ctlr, |ctlr| {
            let groups = ENABLE.map(|bit| ctlr & bit != 0);
            for vcpu in (0..cx.machine.vcpus()).map(VcpuId) {
                let _ = cx.injector.update_gates(vcpu, |gates| Gates { groups, ..gates });
            }
        });
    }

    fn is_enabled<E: Engine>(&self, cx: &Cx<'_, E>, wired: Wired) -> Result<bool, Error> {
        match wired {
            Wired::Private(..) => cx.injector.config(wired).map(|config| config.enabled),
            Wired::Spi(intid) => {
                let kept = self.route(intid).ok_or(Error::IntidRange(intid))?;
                Ok(Route(kept.load(Ordering::Relaxed)).enabled())
            }
        }
    }

    fn set_enabled<E: Engine>(&self, cx: &Cx<'_, E>, wired: Wired, enabled: bool) {
        match wired {
            Wired::Private(_, intid) if intid.is_sgi() => {}
            Wired::Private(..) => {
                let _ = cx.injector.update(wired, |config| WiredConfig { enabled, ..config });
            }
            Wired::Spi(intid) => {
                let value = if enabled { Route::ENABLED } else { 0 };
                self.set_route(cx, intid, Route::ENABLED, value);
            }
        }
    }

    fn read_targets<E: Engine>(&self, cx: &Cx<'_, E>, intid: Intid) -> u8 {
        let targets = |kept: &AtomicU32| Route(kept.load(Ordering::Relaxed)).targets();
        if self.is_uniprocessor() {
            0
        } else if intid.is_private() {
            1 << cx.vcpu.0
        } else {
            self.route(intid).map_or(0, targets)
        }
    }

    fn write_targets<E: Engine>(&self, cx: &Cx<'_, E>, intid: Intid, targets: u8) {
        if self.is_uniprocessor() || intid.is_private() {
            return;
        }
        self.set_route(cx, intid, Route::TARGETS, (targets & self.cpus).into());
    }

    fn read_config<E: Engine>(&self, cx: &Cx<'_, E>, index: u32) -> u64 {
        let edge = |n: &u32| {
            let config = cx.injector.config(wired(cx, 16 * index + n));
            config.is_ok_and(|config| config.trigger == Trigger::Edge)
        };
        (0..16).filter(edge).fold(0, |value, n| value | 0b10 << (2 * n))
    }

    fn write_config<E: Engine>(&self, cx: &Cx<'_, E>, index: u32, value: u64, mask: u64) {
        // Bit 0 of each pair is RAZ/WI: it once selected the handling model.
        for n in (0..16).filter(|n| mask >> (2 * n + 1) & 1 != 0) {
            let edge = value >> (2 * n + 1) & 1 != 0;
            let trigger = if edge { Trigger::Edge } else { Trigger::Level };
            // The engine keeps SGIs edge-triggered.
            let configure = |config| WiredConfig { trigger, ..config };
            let _ = cx.injector.update(wired(cx, 16 * index + n), configure);
        }
    }

    fn write_groups<E: Engine>(&self, cx: &Cx<'_, E>, index: u32, value: u64, mask: u64) {
        for_ones(cx, index, mask, |wired| {
            let (Wired::Private(_, intid) | Wired::Spi(intid)) = wired;
            let group1 = value >> (intid.0 % 32) & 1 != 0;
            let group = if group1 { Group::Group1 } else { Group::Group0 };
            let _ = cx.injector.update(wired, |config| WiredConfig { group, ..config });
            self.attribute_changed(cx, wired);
        });
    }

    /// GICD_SGIR: the accessing CPU sends an SGI.
    fn send<E: Engine>(&self, cx: &Cx<'_, E>, value: u64) {
        let me = 1_u8 << cx.vcpu.0;
        let targets = match value >> 24 & 3 {
            0 => (value >> 16) as u8 & self.cpus,
            1 => self.cpus & !me,
            2 => me,
            _ => 0,
        };
        let sgi = Intid(value as u32 & (SGIS - 1));
        for target in ones(targets.into()) {
            let _ = cx.injector.pulse_from(VcpuId(target as u16), sgi, me);
        }
    }

    fn is_pending<E: Engine>(&self, cx: &Cx<'_, E>, wired: Wired) -> Result<bool, Error> {
        match wired {
            // An SGI from any source counts. The engine may know its source before it knows the
            // interrupt as pending.
            Wired::Private(vcpu, sgi) if sgi.is_sgi() => {
                Ok(cx.injector.senders(vcpu, sgi)? != 0 || cx.injector.is_pending(wired)?)
            }
            _ => cx.injector.is_pending(wired),
        }
    }
}

impl<E: Engine> Frame<Cx<'_, E>> for &DistV2 {
    type Kind = Dist;
    const LAYOUT: &'static [Reg<Dist>] = layout::DIST;

    fn read(&mut self, cx: &Cx<'_, E>, kind: Dist, index: u32) -> u64 {
        let injector = cx.injector;
        match kind {
            Dist::Ctlr => self.ctlr.load(Ordering::Relaxed).into(),
            Dist::Typer => {
                // A partial last register counts: 988 SPIs are 1020 INTIDs in 32 registers.
                let registers = (PRIVATE_INTIDS + u32::from(cx.machine.spis)).div_ceil(32);
                (u32::from(cx.machine.vcpus() - 1) << 5 | (registers - 1)).into()
            }
            Dist::Iidr => IIDR,
            Dist::Igroupr => read_bits(cx, index, |wired| {
                injector.config(wired).map(|config| config.group == Group::Group1)
            }),
            Dist::Isenabler | Dist::Icenabler => {
                read_bits(cx, index, |wired| self.is_enabled(cx, wired))
            }
            Dist::Ispendr | Dist::Icpendr => {
                read_bits(cx, index, |wired| self.is_pending(cx, wired))
            }
            Dist::Isactiver | Dist::Icactiver => {
                read_bits(cx, index, |wired| injector.is_active(wired))
            }
            Dist::Ipriorityr => {
                let config = injector.config(wired(cx, index));
                config.map_or(0, |config| config.priority.byte()).into()
            }
            Dist::Itargetsr => self.read_targets(cx, Intid(index)).into(),
            Dist::Icfgr => self.read_config(cx, index),
            Dist::Cpendsgir | Dist::Spendsgir => {
                injector.senders(cx.vcpu, Intid(index)).unwrap_or(0).into()
            }
            Dist::Id => ID.get(index as usize).copied().unwrap_or(0).into(),
            Dist::Sgir => 0,
        }
    }

    fn write(&mut self, cx: &Cx<'_, E>, kind: Dist, index: u32, value: u64, mask: u64) {
        let injector = cx.injector;
        match kind {
            Dist::Ctlr => self.write_ctlr(cx, value, mask),
            Dist::Igroupr => self.write_groups(cx, index, value, mask),
            Dist::Isenabler => {
                for_ones(cx, index, value, |wired| self.set_enabled(cx, wired, true))
            }
            Dist::Icenabler => {
                for_ones(cx, index, value, |wired| self.set_enabled(cx, wired, false));
            }
            // SGIs become pending through GICD_SGIR and GICD_SPENDSGIR only (4.3.7, 4.3.8).
            Dist::Ispendr => for_ones(cx, index, value, |wired| {
                if !is_sgi(wired) {
                    let _ = injector.pulse(wired);
                }
            }),
            // An interrupt stays pending while its line is asserted.
            Dist::Icpendr => for_ones(cx, index, value, |wired| {
                if !is_sgi(wired) {
                    let _ = injector.clear_pulse(wired);
                }
            }),
            Dist::Isactiver => for_ones(cx, index, value, |wired| {
                let _ = injector.set_active(wired, true);
            }),
            Dist::Icactiver => for_ones(cx, index, value, |wired| {
                let _ = injector.set_active(wired, false);
            }),
            Dist::Ipriorityr => {
                let (priority, wired) = (Priority::new(value as u8), wired(cx, index));
                let _ = injector.update(wired, |c| WiredConfig { priority, ..c });
                self.attribute_changed(cx, wired);
            }
            Dist::Itargetsr => self.write_targets(cx, Intid(index), value as u8),
            Dist::Icfgr => self.write_config(cx, index, value, mask),
            Dist::Sgir => self.send(cx, value),
            Dist::Cpendsgir => {
                let _ = injector.clear_from(cx.vcpu, Intid(index), value as u8 & self.cpus);
            }
            Dist::Spendsgir => {
                let _ = injector.pulse_from(cx.vcpu, Intid(index), value as u8 & self.cpus);
            }
            Dist::Typer | Dist::Iidr | Dist::Id => {}
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use core::cell::RefCell;

    /// Another writer changes the value during an update: the update is repeated, but only as often
    /// as needed.
    #[test]
    fn settles_on_the_present_value() {
        let kept = AtomicU32::new(1);
        let told = RefCell::new(alloc::vec::Vec::new());
        settle(&kept, |value| {
            told.borrow_mut().push(value);
            if value < 3 {
                kept.fetch_add(1, Ordering::Relaxed);
            }
        });
        assert_eq!(*told.borrow(), [1, 2, 3]);
    }

    #[test]
    fn a_route_without_targets_is_not_enabled() {
        let config = WiredConfig {
            enabled: false,
            priority: Priority::new(0x40),
            group: Group::Group1,
            trigger: Trigger::Level,
            target: VcpuId(5),
        };
        let enabled = |target| WiredConfig { enabled: true, target: VcpuId(target), ..config };
        let apply = |route, config, takers: u8| {
            let takes = |n: usize| Takes::new([false, takers >> n & 1 != 0], 0x48);
            Route(route).apply(Route(route).choose(config, takes), config)
        };
        let none = apply(Route::ENABLED, enabled(1), 0xff);
        assert_eq!(none, WiredConfig { target: VcpuId(1), ..config });
        assert_eq!(apply(Route::ENABLED | 0x80, config, 0), enabled(7));
        let two = Route::ENABLED | 0x06;
        assert_eq!(apply(two, config, 0xff), enabled(1));
        assert_eq!(apply(two, config, 0b100), enabled(2), "the one that takes it");
        assert_eq!(apply(two, config, 0b001), enabled(1), "none of them");
        let masked = |priority| WiredConfig { priority, ..config };
        let low = apply(two, masked(Priority::new(0x48)), 0b100);
        assert_eq!(low.target, VcpuId(1), "masked");
        let off = apply(0x01, enabled(3), 0xff);
        assert_eq!(off, WiredConfig { target: VcpuId(0), ..config });
    }
}
