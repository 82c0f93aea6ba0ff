//! The owner's side of a vCPU: guest entry and exit.

use std::sync::Arc;

use super::cpu::{ApList, Cpu, Listed};
use super::irq::{IrqState, Place, SortKey};
use super::kref::IrqRef;
use super::{Participant, Vm};
use crate::arch::ids::{Intid, VcpuId};
use crate::arch::lr::{ListRegisters, Lr, LrState, MAX_LRS, Maintenance};
use crate::engine::{Error, Flushed, Trigger, Vcpu, Wired};

/// The owner's side of a vCPU.
pub struct LockedVcpu {
    participant: Participant,
    entry: Entry,
}

/// The state that the owner keeps from one entry to the next.
struct Entry {
    me: VcpuId,
    open: bool,
    /// Number of list registers in use since the last flush, to be folded. Their interrupts are the
    /// front of the list.
    in_lrs: usize,
    /// Number of list registers that may not be empty.
    written: usize,
    /// Number of active interrupts that are in no list register.
    spilled: usize,
    /// Length of the list when the owner last read it. Any interrupt added since then requests a
    /// flush.
    listed: usize,
    /// Number of places that folds have given since the last flush, relative to the clock at that
    /// flush.
    folded: u64,
    maintenance: Maintenance,
    /// The groups that the guest has enabled at its CPU interface, as of the last flush.
    groups: [bool; 2],
    /// An interrupt that was in a list register, or active, waits for the next flush.
    unflushed: bool,
    /// Level-sensitive interrupts that the guest has ended together with a physical interrupt:
    /// their lines may have fallen. Empty between calls.
    ended: Vec<IrqRef>,
    /// References on their way off the list, kept so that they are dropped without its lock. Empty
    /// between calls.
    pruned: Vec<Listed>,
}

/// The result of a flush.
#[derive(Default)]
struct Tally {
    flushed: Flushed,
    /// List registers with an interrupt that the guest can acknowledge now.
    offered: usize,
    /// Whether a pending interrupt did not fit.
    pending_waits: bool,
    spilled: usize,
}

impl Tally {
    fn add(&mut self, lr: Lr) {
        self.flushed.in_lrs += 1;
        self.flushed.pending += usize::from(lr.state().is_pending());
        self.offered += usize::from(lr.state() == LrState::Pending);
    }

    /// Returns the conditions that the virtual CPU interface is to report. None of them may hold
    /// from the start: otherwise the guest would never get to run.
    fn maintenance(&self, count: usize, groups: [bool; 2]) -> Maintenance {
        Maintenance {
            group_enabled: groups.map(|enabled| !enabled),
            underflow: self.pending_waits && count > 1,
            no_pending: self.pending_waits && self.offered > 0,
            not_present: self.spilled > 0,
            trap_dir: self.spilled > 0,
        }
    }
}

impl LockedVcpu {
    pub(super) fn new(vm: &Arc<Vm>, me: VcpuId) -> Result<Self, Error> {
        vm.check_vcpu(me)?;
        let participant = Participant::new(vm)?;
        if !vm.cpu(me).take_interface() {
            return Err(Error::VcpuInUse(me));
        }
        let entry = Entry {
            me,
            open: false,
            in_lrs: 0,
            written: 0,
            spilled: 0,
            listed: 0,
            folded: 0,
            maintenance: Maintenance::default(),
            groups: [true; 2],
            unflushed: false,
            ended: Vec::new(),
            pruned: Vec::new(),
        };
        Ok(Self { participant, entry })
    }
}

impl Vcpu for LockedVcpu {
    fn open(&mut self) {
        if self.entry.open {
            return;
        }
        self.entry.open = true;
        let (vm, me) = (&*self.participant.vm, self.entry.me);
        let cpu = vm.cpu(me);
        // Interrupts that waited while the vCPU was closed get their places in the order of the
        // scan.
        cpu.take_request();
        cpu.ap_list.lock().open = true;
        cpu.private.iter().chain(&vm.spis).for_each(|irq| vm.requeue(irq, Some(me)));
        vm.lpis.for_each(|irq| vm.requeue(irq, Some(me)));
    }

    /// Closes the vCPU in one call: the baseline does not work in slices.
    fn close_some<L: ListRegisters>(&mut self, lrs: &mut L) -> bool {
        if !self.entry.open {
            return true;
        }
        let vm = &*self.participant.vm;
        self.entry.fold(vm, lrs);
        self.entry.clear_lrs(lrs, 0);
        self.entry.set_maintenance(lrs, Maintenance::default());
        self.entry.shut(vm);
        true
    }

    #[inline]
    fn flush<L: ListRegisters>(&mut self, lrs: &mut L) -> Flushed {
        if !self.entry.open {
            return Flushed::default();
        }
        self.entry.flush(&self.participant.vm, lrs)
    }

    #[inline]
    fn fold<L: ListRegisters>(&mut self, lrs: &mut L) {
        self.entry.fold(&self.participant.vm, lrs);
    }

    /// An interrupt that was active when the vCPU was closed can be deactivated already just after
    /// [`Vcpu::open`], before any flush.
    fn deactivate(&mut self, intid: Intid) -> bool {
        let (vm, me) = (&*self.participant.vm, self.entry.me);
        let private = intid.is_private();
        let wired = if private { Wired::Private(me, intid) } else { Wired::Spi(intid) };
        let Ok(irq) = vm.wired(wired) else { return false };
        let mut state = irq.lock();
        if state.vcpu() != Some(me) || !state.is_active_at(me) || state.in_lr {
            return false;
        }
        // The next flush does the rest.
        self.entry.end(vm.cpu(me), irq, &mut state);
        drop(state);
        self.entry.sample_ended(vm);
        true
    }

    fn has_mail(&self) -> bool {
        self.entry.unflushed || self.participant.vm.cpu(self.entry.me).is_requested()
    }
}

impl Drop for LockedVcpu {
    fn drop(&mut self) {
        let vm = &*self.participant.vm;
        if self.entry.open {
            // The list registers are not read: it is as if the guest had not touched them.
            self.entry.shut(vm);
        }
        vm.cpu(self.entry.me).return_interface();
    }
}

impl Entry {
    fn flush<L: ListRegisters>(&mut self, vm: &Vm, lrs: &mut L) -> Flushed {
        if self.in_lrs > 0 {
            self.fold(vm, lrs);
        }
        let cpu = vm.cpu(self.me);
        cpu.enter();
        self.unflushed = false;
        if self.folded > 0 {
            // The places of the next fold come after those of the last fold.
            cpu.tick();
            self.folded = 0;
        }
        let count = lrs.count();
        let groups = lrs.groups_enabled();
        if groups != self.groups {
            self.change_groups(vm, groups);
        }
        let mut tally = Tally::default();
        if cpu.take_request() || self.listed > 0 {
            let mut ap_list = cpu.ap_list.lock();
            if ap_list.list.len() <= count {
                self.fill_all(&mut ap_list, lrs, &mut tally);
            } else {
                self.fill_first(&mut ap_list, lrs, &mut tally);
            }
            self.listed = ap_list.list.len();
        }
        self.in_lrs = tally.flushed.in_lrs;
        self.spilled = tally.spilled;
        self.clear_lrs(lrs, self.in_lrs);
        self.written = self.in_lrs;
        self.set_maintenance(lrs, tally.maintenance(count, self.groups));
        // The pruned interrupts may belong to another vCPU now. Queue them in the order in which
        // that was decided.
        self.pruned.sort_unstable_by_key(|listed| listed.key);
        self.pruned.drain(..).for_each(|listed| vm.requeue(&listed.irq, None));
        tally.flushed
    }

    /// Handles a change of the groups that the guest has enabled at its CPU interface.
    #[cold]
    fn change_groups(&mut self, vm: &Vm, groups: [bool; 2]) {
        let cpu = vm.cpu(self.me);
        cpu.ap_list.lock().groups = groups;
        let rose = [0, 1].iter().any(|&g| groups[g] && !self.groups[g]);
        self.groups = groups;
        if rose {
            cpu.private.iter().chain(&vm.spis).for_each(|irq| vm.requeue(irq, Some(self.me)));
            vm.lpis.for_each(|irq| vm.requeue(irq, Some(self.me)));
        }
    }

    fn set_maintenance<L: ListRegisters>(&mut self, lrs: &mut L, wanted: Maintenance) {
        if self.maintenance != wanted {
            self.maintenance = wanted;
            lrs.set_maintenance(wanted);
        }
    }

    /// Returns the place of an interrupt that is pending again once it has been deactivated.
    fn next_place(&self, cpu: &Cpu) -> Place {
        Place::folded(cpu.last_flush(), self.folded + 1)
    }

    /// Fills the list registers with the whole list, which fits. Walks the list once, and locks
    /// each interrupt once.
    fn fill_all<L: ListRegisters>(&mut self, ap_list: &mut ApList, lrs: &mut L, tally: &mut Tally) {
        let gates = ap_list.open_gates();
        let list = &mut ap_list.list;
        let mut sorted = true;
        let mut last = None;
        for _ in 0..list.len() {
            let Some(Listed { irq, .. }) = list.pop_front() else { break };
            let mut state = irq.lock();
            let key = state.sort_key(self.me, gates);
            if !key.is_leaving() {
                let lr = state.fill_lr(self.me, gates);
                drop(state);
                lrs.write(tally.flushed.in_lrs, lr);
                tally.add(lr);
                sorted &= last.replace(key) < Some(key);
                list.push_back(Listed { irq, key });
            } else {
                state.unlist(self.me);
                drop(state);
                self.pruned.push(Listed { irq, key });
            }
        }
        if !sorted {
            let mut filled = [(SortKey::NONE, Lr::EMPTY); MAX_LRS];
            let filled = &mut filled[..list.len()];
            for (n, (to, listed)) in filled.iter_mut().zip(list.iter()).enumerate() {
                *to = (listed.key, lrs.read(n));
            }
            filled.sort_unstable_by_key(|&(key, _)| key);
            filled.iter().enumerate().for_each(|(n, &(_, lr))| lrs.write(n, lr));
            list.make_contiguous().sort_unstable_by_key(|listed| listed.key);
        }
    }

    /// Fills the list registers with the most urgent interrupts of the list.
    fn fill_first<L: ListRegisters>(
        &mut self,
        ap_list: &mut ApList,
        lrs: &mut L,
        tally: &mut Tally,
    ) {
        let gates = ap_list.open_gates();
        let list = &mut ap_list.list;
        let mut leaving = 0;
        for listed in list.iter_mut() {
            let mut state = listed.irq.lock();
            listed.key = state.sort_key(self.me, gates);
            if listed.key.is_leaving() {
                state.unlist(self.me);
                leaving += 1;
            }
        }
        let sorted = list.make_contiguous();
        // The list is mostly sorted already, with new interrupts at its end. A stable sort makes
        // use of that.
        if !sorted.is_sorted_by_key(|listed| listed.key) {
            sorted.sort_by_key(|listed| listed.key);
        }
        let (kept, _) = sorted.split_at_mut(sorted.len() - leaving);
        let count = lrs.count();
        if kept.len() > count && kept[..count].iter().all(|listed| listed.key.is_active()) {
            // All list registers would hold active interrupts. The guest may have dropped their
            // priorities long ago, and be ready for a pending one.
            if let Some(n) = kept[count..].iter().position(|listed| !listed.key.is_active()) {
                kept[count - 1..=count + n].rotate_right(1);
            }
        }
        let (first, rest) = kept.split_at_mut(kept.len().min(lrs.count()));
        for (n, listed) in first.iter().enumerate() {
            let lr = listed.irq.lock().fill_lr(self.me, gates);
            lrs.write(n, lr);
            tally.add(lr);
        }
        for listed in rest.iter() {
            if !listed.key.is_active() {
                tally.pending_waits = true;
                continue;
            }
            tally.spilled += 1;
        }
        tally.flushed.waiting = tally.pending_waits || tally.spilled > 0;
        if tally.pending_waits && tally.offered == 0 {
            // The waiting interrupts are not more urgent than the active ones, so they can wait
            // until one of those is deactivated.
            for n in 0..first.len() {
                let lr = lrs.read(n);
                // A hardware-mapped interrupt cannot ask for maintenance. Its physical interrupt,
                // deactivated with it, can fire again, which is an exit.
                if lr.state().is_active() && lr.hw().is_none() {
                    lrs.write(n, lr.with_eoi_maintenance());
                }
            }
        }
        let kept = kept.len();
        self.pruned.extend(list.drain(kept..));
    }

    fn fold<L: ListRegisters>(&mut self, vm: &Vm, lrs: &mut L) {
        let ends = lrs.take_eoi_count() as usize;
        let cpu = vm.cpu(self.me);
        if self.in_lrs == 0 && (ends == 0 || self.spilled == 0) {
            return vm.left(self.me);
        }
        let mut ap_list = cpu.ap_list.lock();
        let list = &mut ap_list.list;
        let mut kept = 0;
        for n in 0..self.in_lrs {
            let Some(Listed { irq, key }) = list.pop_front() else { break };
            let lr = lrs.read(n);
            let tied = lr.hw().is_some();
            let mut state = irq.lock();
            // An LPI has no active state (IHI 0069, 4.1.2): once it has been acknowledged, nothing
            // of it is left here.
            let lr = if state.intid.is_lpi() { lr.without_active() } else { lr }.state();
            self.folded += u64::from(state.fold_lr(lr, cpu, self.next_place(cpu)));
            let ended = lr == LrState::Invalid;
            let ordered = state.active != lr.is_active();
            if ended && tied {
                self.note_ended(&irq, &mut state);
            }
            // An interrupt that was withdrawn while it was presented stays listed. The next flush
            // decides.
            if state.active || lr.is_pending() || state.is_pending() {
                drop(state);
                list.push_back(Listed { irq, key });
                self.unflushed |= ended || ordered;
                kept += 1;
            } else {
                state.unlist(self.me);
                drop(state);
                self.pruned.push(Listed { irq, key });
            }
        }
        list.rotate_right(kept);
        if ends > 0 && self.spilled > 0 {
            // EOIs without a list register are those of the most urgent active interrupts that have
            // none.
            let mut ends = ends;
            for listed in list.range(kept..).filter(|listed| listed.key.is_active()) {
                let mut state = listed.irq.lock();
                if ends > 0 && state.active {
                    // If that finishes the interrupt, the next flush prunes it.
                    ends -= 1;
                    self.end(cpu, &listed.irq, &mut state);
                }
            }
        }
        self.listed = list.len();
        self.in_lrs = 0;
        drop(ap_list);
        vm.left(self.me);
        self.sample_ended(vm);
        // Put the references that were gotten when these interrupts were queued.
        self.pruned.clear();
    }

    /// Handles the guest's deactivation of an interrupt that is in no list register.
    fn end(&mut self, cpu: &Cpu, irq: &IrqRef, state: &mut IrqState) {
        state.deactivate();
        self.folded += u64::from(state.end_offer(self.next_place(cpu)));
        self.unflushed |= state.is_pending();
        if state.offered_phys().is_some() {
            self.note_ended(irq, state);
        }
    }

    /// Notes that the guest has ended a hardware-mapped interrupt together with its physical
    /// interrupt.
    fn note_ended(&mut self, irq: &IrqRef, state: &mut IrqState) {
        if state.trigger == Trigger::Level {
            state.own.set_line_set(false);
            self.ended.push(irq.clone());
        }
    }

    /// Asks the host for the lines of the interrupts in `ended`. The caller holds no lock: the host
    /// may have one of its own.
    fn sample_ended(&mut self, vm: &Vm) {
        for irq in self.ended.drain(..) {
            let intid = irq.lock().intid;
            let private = intid.is_private();
            let wired = if private { Wired::Private(self.me, intid) } else { Wired::Spi(intid) };
            let Some(high) = vm.kick.input_level(wired) else { continue };
            let mut state = irq.lock();
            // A thread that has set the line since the interrupt ended knows better.
            if state.own.is_line_set() || state.line_level == high {
                continue;
            }
            state.line_level = high;
            if state.trigger == Trigger::Level {
                // This vCPU need not be kicked: it checks its mailbox before it enters the guest or
                // sleeps.
                let kick = vm.attend(&irq, state);
                vm.kick(kick.filter(|&vcpu| vcpu != self.me));
            }
        }
    }

    /// Clears the list registers from `first` up.
    fn clear_lrs<L: ListRegisters>(&mut self, lrs: &mut L, first: usize) {
        (first..self.written).for_each(|n| lrs.write(n, Lr::EMPTY));
        self.written = self.written.min(first);
    }

    /// Powers the vCPU off. Its list is empty from now on.
    fn shut(&mut self, vm: &Vm) {
        let cpu = vm.cpu(self.me);
        let mut ap_list = cpu.ap_list.lock();
        ap_list.open = false;
        for listed in ap_list.list.drain(..) {
            let mut state = listed.irq.lock();
            state.return_latch();
            state.unlist(self.me);
            drop(state);
            self.pruned.push(listed);
        }
        drop(ap_list);
        vm.left(self.me);
        cpu.take_request();
        self.unflushed = false;
        (self.open, self.in_lrs, self.spilled, self.listed) = (false, 0, 0, 0);
        // An interrupt that was active here while its target changed belongs to its target now.
        self.pruned.drain(..).for_each(|listed| vm.requeue(&listed.irq, None));
    }
}
