//! The state of one interrupt, behind its `irq_lock`.

use std::sync::Arc;

use super::cpu::Cpu;
use super::kref::{IrqRef, Kref};
use super::lpis::LpiTable;
use super::own::Own;
use super::spin::{SpinGuard, SpinLock};
use crate::arch::ids::{Group, Intid, Priority, VcpuId};
use crate::arch::lr::{Lr, LrState};
use crate::engine::{Gates, Trigger, WiredConfig};

/// An interrupt. An SGI, PPI or SPI exists from the start. An LPI lives as long as there are
/// references to it: one from each event that is mapped to it, and one from the `ap_list` that it
/// is on.
///
/// It fills one cache line, so the locks of neighbors do not share one.
#[repr(align(64))]
pub(super) struct Irq {
    pub(super) refs: Kref,
    /// The table that an LPI is removed from when it is freed.
    pub(super) table: Option<Arc<LpiTable>>,
    state: SpinLock<IrqState>,
}

/// The state that the `irq_lock` protects.
pub(super) struct IrqState {
    pub(super) intid: Intid,
    /// Its place in the FIFO of its priority.
    place: Place,
    /// The priority of the FIFO of `place`. While the interrupt is active, this is the priority
    /// that it was taken with.
    place_priority: Priority,
    /// The time of its first change since its vCPU's last flush, by that vCPU's clock. If it has
    /// not changed since, this time is not after that flush.
    pub(super) changed: u64,
    /// The fields that only an LPI has, or only a wired interrupt.
    pub(super) own: Own,
    /// The vCPU that takes the interrupt.
    pub(super) target: VcpuId,
    /// The interrupt is on the `ap_list` of `lister`. (An `Option` would not fit into the cache
    /// line.)
    listed: bool,
    lister: VcpuId,
    pub(super) priority: Priority,
    pub(super) group: Group,
    pub(super) trigger: Trigger,
    pub(super) enabled: bool,
    pub(super) line_level: bool,
    /// The interrupt is pending, whether or not its line is high. From the flush that presents it
    /// to the next flush, `lr_latch` has this state instead: the guest may have acknowledged the
    /// interrupt, so an injection means another one.
    pub(super) pending_latch: bool,
    pub(super) active: bool,
    /// The interrupt is in a list register.
    pub(super) in_lr: bool,
    /// The list register's pending bit comes from `pending_latch`, or from an SGI's sender, and
    /// goes back there if it is not acknowledged.
    pub(super) lr_latch: bool,
    /// The interrupt has been acknowledged since it got its place. Once it is pending again, it
    /// goes to the end of its FIFO, at the time in `changed`.
    pub(super) spent: bool,
}

impl IrqState {
    fn new(intid: Intid, target: VcpuId) -> Self {
        Self {
            intid,
            place: Place::default(),
            place_priority: Priority::HIGHEST,
            changed: 0,
            own: Own::default(),
            target,
            listed: false,
            lister: target,
            priority: Priority::HIGHEST,
            group: Group::Group0,
            trigger: Trigger::Edge,
            enabled: false,
            line_level: false,
            pending_latch: false,
            active: false,
            in_lr: false,
            lr_latch: false,
            spent: false,
        }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending_latch
            || self.lr_latch
            || (self.trigger == Trigger::Level && self.line_level)
            || self.unoffered_senders() != 0
    }

    /// The senders for which this SGI is pending, and not in a list register.
    fn unoffered_senders(&self) -> u8 {
        if self.intid.is_sgi() { self.own.senders() } else { 0 }
    }

    /// The sender that this SGI was last presented for, if any.
    fn offered_sender(&self) -> Option<u8> {
        if self.intid.is_sgi() { self.own.offered_sender() } else { None }
    }

    /// The physical interrupt that this interrupt was mapped to when it was last presented.
    pub(super) fn offered_phys(&self) -> Option<u16> {
        let tied = !self.intid.is_sgi() && !self.intid.is_lpi();
        if tied { self.own.offered_phys() } else { None }
    }

    /// The senders for which this SGI is pending.
    pub(super) fn senders(&self) -> u8 {
        let offered = self.offered_sender().filter(|_| self.lr_latch);
        self.unoffered_senders() | offered.map_or(0, |n| 1 << n)
    }

    /// Clears senders of this SGI, in a list register as well.
    pub(super) fn clear_senders(&mut self, senders: u8) {
        self.own.set_senders(self.own.senders() & !senders);
        self.lr_latch &= self.offered_sender().is_none_or(|n| senders & 1 << n == 0);
    }

    /// Takes the pending state back from a list register.
    pub(super) fn return_latch(&mut self) {
        if core::mem::take(&mut self.lr_latch) {
            match self.offered_sender() {
                Some(n) => self.own.set_senders(self.own.senders() | 1 << n),
                None => self.pending_latch = true,
            }
        }
    }

    /// Moves the pending state into a list register.
    fn offer_latch(&mut self) {
        if self.intid.is_sgi() {
            self.lr_latch = self.own.offer_sender().is_some();
            if self.lr_latch {
                return;
            }
        } else if !self.intid.is_lpi() && !self.active {
            self.own.offer_phys();
        }
        self.lr_latch = core::mem::take(&mut self.pending_latch);
    }

    /// Whether a vCPU should have the interrupt on its `ap_list`.
    pub(super) fn is_wanted(&self) -> bool {
        self.active || (self.enabled && self.is_pending())
    }

    /// Whether vCPU `me` may present the interrupt to its guest, once it is pending.
    fn is_deliverable(&self, me: VcpuId, gates: Gates) -> bool {
        self.enabled && self.target == me && gates.pass(self.group, self.intid.is_lpi())
    }

    /// Whether the interrupt is active, as far as vCPU `me` knows. It is not if the host made it
    /// active at another vCPU.
    pub(super) fn is_active_at(&self, me: VcpuId) -> bool {
        self.active && !self.is_placed_elsewhere(me)
    }

    fn is_placed_elsewhere(&self, me: VcpuId) -> bool {
        self.target != me && !self.intid.is_lpi() && self.own.is_placed()
    }

    /// Returns the sort key of the interrupt in the `ap_list` of vCPU `me`, which it is on.
    ///
    /// The keys of one list are different, and sort in the order in which list registers are
    /// filled: the highest priority first; active interrupts before the pending ones that they keep
    /// waiting; the longest wait first. Interrupts that are to leave the list come last.
    pub(super) fn sort_key(&mut self, me: VcpuId, gates: Gates) -> SortKey {
        self.return_latch();
        self.obey_order();
        let active = self.is_active_at(me);
        if !active && (self.active || !self.is_deliverable(me, gates) || !self.is_pending()) {
            return SortKey::leaving(Place::when(self.changed));
        }
        if active {
            if self.is_placed() {
                self.place_priority = self.priority;
            }
            // From now on it stays on this list until it is deactivated, even if its target
            // changes.
            self.set_placed(false);
            // If it is pending again while it is active, it keeps its place.
            self.spent &= !self.is_pending();
        } else if self.spent || self.place_priority != self.priority {
            self.take_place(Place::when(self.changed));
        }
        SortKey::new(self.place_priority, active, self.place)
    }

    fn is_placed(&self) -> bool {
        !self.intid.is_lpi() && self.own.is_placed()
    }

    fn set_placed(&mut self, placed: bool) {
        if !self.intid.is_lpi() {
            self.own.set_placed(placed);
        }
    }

    /// Makes the interrupt inactive.
    pub(super) fn deactivate(&mut self) {
        self.active = false;
        self.set_placed(false);
    }

    /// Makes the interrupt active or inactive, if the host has ordered that. No guest owns the
    /// interrupt. Returns whether its state has changed.
    pub(super) fn obey_order(&mut self) -> bool {
        let order = if self.intid.is_lpi() { None } else { self.own.take_order() };
        let Some(active) = order.filter(|&active| active != self.active) else { return false };
        if active {
            self.active = true;
            self.place_priority = self.priority;
            self.own.set_placed(true);
            self.own.offer_group(self.group);
            // This is as if the guest had acknowledged it just now.
            if self.intid.is_sgi() {
                self.return_latch();
                self.own.forget_offer();
            } else {
                self.own.offer_phys();
            }
        } else {
            self.deactivate();
            self.spent = true;
        }
        true
    }

    /// Gives the interrupt a place in the FIFO of its present priority.
    fn take_place(&mut self, place: Place) {
        self.spent = false;
        self.place = place;
        self.place_priority = self.priority;
    }

    /// Moves the interrupt into a list register of vCPU `me`.
    pub(super) fn fill_lr(&mut self, me: VcpuId, gates: Gates) -> Lr {
        let deliverable = self.is_deliverable(me, gates);
        // A level-sensitive interrupt is sampled again once it has been deactivated, not before. A
        // hardware-mapped interrupt cannot be pending and active (IHI 0069, 12.4, `ICH_LR<n>_EL2`).
        // An SGI of another sender needs another list register.
        let once = self.trigger == Trigger::Level
            || self.offered_phys().is_some()
            || self.offered_sender().is_some()
            || self.unoffered_senders() != 0;
        let offer = deliverable && self.is_pending() && !(self.active && once);
        let state = match (self.is_active_at(me), offer) {
            // The interrupt has changed since it was sorted.
            (false, false) => return Lr::EMPTY,
            (false, true) => LrState::Pending,
            (true, false) => LrState::Active,
            (true, true) => LrState::PendingActive,
        };
        self.in_lr = true;
        if state.is_active() {
            self.set_placed(false);
        }
        if offer {
            self.offer_latch();
        }
        let group = self.offer_group();
        let mut lr = Lr::pending(self.intid, self.place_priority, group).with_state(state);
        if let Some(n) = self.offered_sender() {
            lr = lr.with_source(n);
        }
        if let Some(pintid) = self.offered_phys() {
            return lr.with_hw(pintid);
        }
        // The guest may stay in for long after it has ended the interrupt. If the interrupt goes to
        // another vCPU next, or is pending once more, that end must cause an exit.
        let more = self.pending_latch || self.unoffered_senders() != 0;
        let held = self.active && !deliverable;
        let told = self.trigger == Trigger::Level || more || held;
        if told { lr.with_eoi_maintenance() } else { lr }
    }

    /// Returns the group for the list register. While the interrupt is active, this is the group
    /// that it was acknowledged in.
    fn offer_group(&mut self) -> Group {
        if self.intid.is_lpi() {
            return self.group;
        }
        if !self.active {
            self.own.offer_group(self.group);
        }
        self.own.offered_group()
    }

    /// Takes the interrupt back out of a list register that the guest left in `state`. If that
    /// makes it pending again, it goes to the place `end`. Returns whether it went there.
    pub(super) fn fold_lr(&mut self, state: LrState, cpu: &Cpu, end: Place) -> bool {
        if !core::mem::take(&mut self.in_lr) {
            // The flush left the list register empty.
            return false;
        }
        self.active = state.is_active();
        if !state.is_pending() {
            self.lr_latch = false;
        }
        self.obey_order();
        if state.is_pending() {
            // It keeps its place. If it was withdrawn since the flush, the next flush finds that it
            // is not pending.
            return false;
        }
        // An edge that came since the flush has its place by the time at which it came.
        self.spent = true;
        (self.trigger == Trigger::Level || self.changed <= cpu.last_flush()) && self.end_offer(end)
    }

    /// Records that the interrupt has been acknowledged or deactivated. If it is pending and not
    /// active now, it is pending again, and goes to the place `end`. Returns whether it does.
    pub(super) fn end_offer(&mut self, end: Place) -> bool {
        self.spent = true;
        let anew = !self.active && self.is_pending();
        if anew {
            self.take_place(end);
        }
        anew
    }

    /// Records that the interrupt has changed, for its place in the FIFO. Changes are taken in at
    /// the next flush, so the first one since the last flush counts.
    pub(super) fn note_change(&mut self, cpu: &Cpu) {
        if self.changed <= cpu.last_flush() {
            self.changed = cpu.tick();
        }
    }

    /// Clears the pending state, in a list register as well. A level that asserts the interrupt
    /// still does, and so do an SGI's senders.
    pub(super) fn clear_pending(&mut self) {
        self.pending_latch = false;
        self.lr_latch &= self.offered_sender().is_some();
    }

    /// Changes the vCPU that takes the interrupt.
    pub(super) fn set_target(&mut self, target: VcpuId) {
        if self.target != target && !self.listed {
            self.changed = 0;
        }
        self.target = target;
    }

    /// Returns the vCPU that has the interrupt on its `ap_list`.
    pub(super) fn vcpu(&self) -> Option<VcpuId> {
        self.listed.then_some(self.lister)
    }

    /// Records that the interrupt is on its target's list, at the end of its priority's FIFO.
    pub(super) fn enlist(&mut self) {
        self.listed = true;
        self.lister = self.target;
        self.take_place(Place::when(self.changed));
    }

    /// Records that the interrupt is no longer on the list of vCPU `me`.
    pub(super) fn unlist(&mut self, me: VcpuId) {
        self.listed = false;
        if self.target != me {
            self.changed = 0;
        }
        self.in_lr = false;
    }

    /// Returns the configuration of a wired interrupt.
    pub(super) fn config(&self) -> WiredConfig {
        WiredConfig {
            enabled: self.enabled,
            priority: self.priority,
            group: self.group,
            trigger: self.trigger,
            target: self.target,
        }
    }

    /// Sets the configuration of a wired interrupt.
    pub(super) fn configure(&mut self, config: &WiredConfig) {
        self.enabled = config.enabled;
        self.priority = config.priority;
        self.group = config.group;
        self.trigger = config.trigger;
        self.set_target(config.target);
    }
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Irq>() == 64);

impl Irq {
    fn make(state: IrqState, table: Option<Arc<LpiTable>>) -> IrqRef {
        IrqRef::new(Self { refs: Kref::new(), table, state: SpinLock::new(state) })
    }

    /// Creates an SGI, PPI or SPI in its reset state.
    pub(super) fn wired(intid: Intid, target: VcpuId) -> IrqRef {
        Self::make(IrqState::new(intid, target), None)
    }

    /// Creates an LPI.
    pub(super) fn lpi(intid: Intid, target: VcpuId, table: &Arc<LpiTable>) -> IrqRef {
        let state = IrqState { group: Group::Group1, ..IrqState::new(intid, target) };
        Self::make(state, Some(Arc::clone(table)))
    }

    /// Takes the `irq_lock`.
    #[inline(always)]
    pub(super) fn lock(&self) -> SpinGuard<'_, IrqState> {
        self.state.lock()
    }
}

/// A place in the FIFO of one priority at one vCPU. Lower places come first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Place(u64);

impl Place {
    const FOLDED_BITS: u32 = 6;

    /// The place of an interrupt that changed at clock time `changed`.
    pub(super) const fn when(changed: u64) -> Self {
        Self(changed << Self::FOLDED_BITS)
    }

    /// The place of the `n`th interrupt that folds found pending again. It comes before everything
    /// that changed since the last flush, because the time at which the guest was done with the
    /// interrupt is unknown.
    pub(super) const fn folded(last_flush: u64, n: u64) -> Self {
        let last = (1 << Self::FOLDED_BITS) - 1;
        Self(last_flush << Self::FOLDED_BITS | if n < last { n } else { last })
    }
}

/// The result of [`IrqState::sort_key`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SortKey(u64);

impl SortKey {
    const LEVEL_SHIFT: u32 = 59;
    const PENDING: u64 = 1 << 58;
    /// A key above every place, in the lowest priority level.
    const LEAVING: u64 = !((1 << 57) - 1);
    /// The key of an interrupt that has not been evaluated.
    pub(super) const NONE: Self = Self(u64::MAX);

    fn new(priority: Priority, active: bool, place: Place) -> Self {
        let class = if active { 0 } else { Self::PENDING };
        Self((priority.level() as u64) << Self::LEVEL_SHIFT | class | place.0)
    }

    fn leaving(place: Place) -> Self {
        Self(Self::LEAVING | place.0)
    }

    pub(super) fn is_active(self) -> bool {
        self.0 & Self::PENDING == 0
    }

    pub(super) fn is_leaving(self) -> bool {
        self.0 >= Self::LEAVING
    }
}
