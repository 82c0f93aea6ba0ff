//! One interrupt: its state, behind its `irq_lock`.

use std::sync::Arc;

use super::cpu::Cpu;
use super::kref::{IrqRef, Kref};
use super::lpis::LpiTable;
use super::spin::{SpinGuard, SpinLock};
use crate::engine::{Trigger, WiredConfig};
use crate::ids::{Group, Intid, Priority, VcpuId};
use crate::lr::{Lr, LrState};

/// An interrupt: an SGI, PPI or SPI, which exists from the start, or an LPI, which lives as long as there are
/// references to it: one of each event that is mapped to it, and one of the `ap_list` that it is on.
///
/// One cache line: neighbors' locks do not share one.
#[repr(align(64))]
pub(super) struct Irq {
    pub(super) refs: Kref,
    /// The table that an LPI is to be taken out of in the end.
    pub(super) table: Option<Arc<LpiTable>>,
    state: SpinLock<IrqState>,
}

/// What the `irq_lock` protects.
pub(super) struct IrqState {
    pub(super) intid: Intid,
    /// Its place in its priority's line.
    place: Place,
    /// The priority in whose line that is; while active, the one that it was taken with.
    place_priority: Priority,
    /// When it was first changed since its vCPU's last flush, by that vCPU's clock; before it, if it was not.
    pub(super) changed: u64,
    /// Number of events that are mapped to this LPI.
    pub(super) mappings: u32,
    /// The vCPU that takes it.
    pub(super) target: VcpuId,
    /// It is on the `ap_list` of `lister`. (An `Option` would not fit into the line.)
    listed: bool,
    lister: VcpuId,
    pub(super) priority: Priority,
    pub(super) group: Group,
    pub(super) trigger: Trigger,
    pub(super) enabled: bool,
    pub(super) line_level: bool,
    /// Pending, whatever the line says. From the flush that offers it to the next one, that is in `lr_latch` instead:
    /// the guest may have taken it, so an injection means another one.
    pub(super) pending_latch: bool,
    pub(super) active: bool,
    /// It is in a list register.
    pub(super) in_lr: bool,
    /// The list register's pending bit is what was in `pending_latch`, and goes back there if it is not acknowledged.
    pub(super) lr_latch: bool,
    /// It has been taken since it came to its place: once it is pending again, it goes to the end, which is
    /// where `changed` says.
    pub(super) spent: bool,
}

impl IrqState {
    fn new(intid: Intid, target: VcpuId) -> Self {
        Self {
            intid,
            place: Place::default(),
            place_priority: Priority::HIGHEST,
            changed: 0,
            mappings: 0,
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
        self.pending_latch || self.lr_latch || (self.trigger == Trigger::Level && self.line_level)
    }

    /// Whether some vCPU should have it on its `ap_list`.
    pub(super) fn is_wanted(&self) -> bool {
        self.active || (self.enabled && self.is_pending())
    }

    /// Whether vCPU `me` may offer it to its guest.
    fn is_offered(&self, me: VcpuId, lpis_enabled: bool) -> bool {
        self.enabled
            && self.is_pending()
            && self.target == me
            && (lpis_enabled || !self.intid.is_lpi())
    }

    /// Where it belongs in the `ap_list` of vCPU `me`, which it is on.
    ///
    /// The keys of one list are different, and sort as list registers are filled: the highest priority first;
    /// what is active before what it keeps waiting; what waits longest first. What is to leave the list is behind all that.
    pub(super) fn sort_key(&mut self, me: VcpuId, lpis_enabled: bool) -> SortKey {
        self.pending_latch |= core::mem::take(&mut self.lr_latch);
        if !self.active && !self.is_offered(me, lpis_enabled) {
            return SortKey::leaving(Place::when(self.changed));
        }
        if self.active {
            // Pending again while it is active, it keeps its place.
            self.spent &= !self.is_pending();
        } else if self.spent || self.place_priority != self.priority {
            self.take_place(Place::when(self.changed));
        }
        SortKey::new(self.place_priority, self.active, self.place)
    }

    /// Gives it a place in its present priority's line.
    fn take_place(&mut self, place: Place) {
        self.spent = false;
        self.place = place;
        self.place_priority = self.priority;
    }

    /// Moves it into a list register of vCPU `me`.
    pub(super) fn fill_lr(&mut self, me: VcpuId, lpis_enabled: bool) -> Lr {
        // A level-sensitive interrupt is sampled again once it has been deactivated, not before.
        let offer =
            self.is_offered(me, lpis_enabled) && (!self.active || self.trigger == Trigger::Edge);
        self.in_lr = true;
        if offer {
            self.lr_latch = self.pending_latch;
            self.pending_latch = false;
        }
        let state = match (self.active, offer) {
            (false, false) => return Lr::EMPTY, // It has changed since it was sorted.
            (false, true) => LrState::Pending,
            (true, false) => LrState::Active,
            (true, true) => LrState::PendingActive,
        };
        let lr = Lr::pending(self.intid, self.place_priority, self.group).with_state(state);
        if self.trigger == Trigger::Level { lr.with_eoi_maintenance() } else { lr }
    }

    /// Takes it back out of a list register that the guest left in this state. `end` is where it goes if that makes it
    /// pending anew; returns whether it went there.
    pub(super) fn fold_lr(&mut self, state: LrState, cpu: &Cpu, end: Place) -> bool {
        self.in_lr = false;
        self.active = state.is_active();
        if state.is_pending() {
            // It keeps its place. If it was withdrawn meanwhile, the next flush finds that it is not pending.
            return false;
        }
        self.lr_latch = false;
        // An edge that came since the flush has its place by the time when it came.
        self.spent = true;
        (self.trigger == Trigger::Level || self.changed <= cpu.last_flush()) && self.end_offer(end)
    }

    /// It has been acknowledged or deactivated. If it is pending and not active now, then anew: it goes to `end`. Returns
    /// whether it does.
    pub(super) fn end_offer(&mut self, end: Place) -> bool {
        self.spent = true;
        let anew = !self.active && self.is_pending();
        if anew {
            self.take_place(end);
        }
        anew
    }

    /// Records that it has changed, for its place in line. Changes are taken in at the next flush,
    /// so the first one since the last flush counts.
    pub(super) fn note_change(&mut self, cpu: &Cpu) {
        if self.changed <= cpu.last_flush() {
            self.changed = cpu.tick();
        }
    }

    /// Makes it not pending, in a list register neither. A level that asserts it still does.
    pub(super) fn clear_pending(&mut self) {
        self.pending_latch = false;
        self.lr_latch = false;
    }

    /// Changes the vCPU that takes it.
    pub(super) fn set_target(&mut self, target: VcpuId) {
        if self.target != target && !self.listed {
            self.changed = 0;
        }
        self.target = target;
    }

    /// The vCPU whose `ap_list` it is on.
    pub(super) fn vcpu(&self) -> Option<VcpuId> {
        self.listed.then_some(self.lister)
    }

    /// Puts it on its target's list, at the end of its priority's line.
    pub(super) fn enlist(&mut self) {
        self.listed = true;
        self.lister = self.target;
        self.take_place(Place::when(self.changed));
    }

    /// Takes it off the list of vCPU `me`.
    pub(super) fn unlist(&mut self, me: VcpuId) {
        self.listed = false;
        if self.target != me {
            self.changed = 0;
        }
        self.in_lr = false;
        if self.intid.is_lpi() {
            // An LPI is active only as far as the CPU interface remembers it, in a list register.
            self.active = false;
        }
    }

    /// Takes over the configuration of a wired interrupt.
    pub(super) fn configure(&mut self, config: &WiredConfig) {
        self.enabled = config.enabled;
        self.priority = config.priority;
        self.group = config.group;
        self.trigger = if self.intid.is_sgi() { Trigger::Edge } else { config.trigger };
        if !self.intid.is_private() {
            self.set_target(config.target);
        }
    }
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Irq>() == 64);

impl Irq {
    fn make(state: IrqState, table: Option<Arc<LpiTable>>) -> IrqRef {
        IrqRef::new(Self { refs: Kref::new(), table, state: SpinLock::new(state) })
    }

    /// An SGI, PPI or SPI as it is after reset.
    pub(super) fn wired(intid: Intid, target: VcpuId) -> IrqRef {
        Self::make(IrqState::new(intid, target), None)
    }

    /// An LPI.
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

/// A place in the line of one priority at one vCPU: the lower, the earlier.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Place(u64);

impl Place {
    const FOLDED_BITS: u32 = 6;

    /// Of what changed when the clock showed `changed`.
    pub(super) const fn when(changed: u64) -> Self {
        Self(changed << Self::FOLDED_BITS)
    }

    /// Of the `n`th that a fold found pending anew: before everything that changed since the last flush, since
    /// nobody knows when the guest was done with it.
    pub(super) const fn folded(last_flush: u64, n: u64) -> Self {
        let last = (1 << Self::FOLDED_BITS) - 1;
        Self(last_flush << Self::FOLDED_BITS | if n < last { n } else { last })
    }
}

/// See [`IrqState::sort_key`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SortKey(u64);

impl SortKey {
    const LEVEL_SHIFT: u32 = 59;
    const PENDING: u64 = 1 << 58;
    /// Above every place, in the lowest level.
    const LEAVING: u64 = !((1 << 57) - 1);
    /// Of what has not been looked at.
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
