//! The ancestor's design behind the same traits: what the lock-free engine is measured against, and checked with.
//!
//! It is the vGIC of Linux in its structure: an `irq_lock` in every interrupt, an `ap_list` ("active or
//! pending") of every vCPU under an `ap_list_lock`, the target asked of one oracle, list
//! registers filled from the front of a list that is sorted when it does not fit, and a reference for every place
//! that knows an LPI.
//!
//! # Lock order
//!
//! ```text
//! Domain::shards          RwLock: read to inject through the table, written to map
//!   Event::lpi            spin
//!     Cpu::ap_list        spin, "ap_list_lock"; never two at a time
//!       Irq::state        spin, "irq_lock"; never two at a time
//! LpiTable::slots         Mutex: taken when none of the others is held, and none is taken under it
//! ```
//!
//! Take the outer one first. Whoever has the inner one and needs the outer one either tries it without waiting
//! (`Vm::attend`), or lets go and afterwards looks at everything again. The last reference to an LPI takes the
//! table's lock: so a reference that may be the last one is dropped when no lock is held.
//! The host is kicked when no lock is held.
//!
//! # References
//!
//! An event has one to its LPI from map to unmap. An `ap_list` has one to each interrupt on it, gotten when it
//! is queued, put when it is *pruned*: by the fold that finds it finished, by the flush that finds that it is
//! not to be offered here any more, or by closing. The list registers have none of their own: what is in them is on
//! the list. An injection needs none: it holds the event's lock. A look-up by INTID gets one, and the value puts it.
//!
//! # Where it is faster than its model
//!
//! A baseline should not be slow on purpose:
//!
//! * An injector with the `irq_lock` tries the `ap_list_lock` before it lets go of the first: usually
//!   each lock is taken once.
//! * One walk of the list for each entry and exit, not two: the flush evaluates every interrupt; the fold takes only those in
//!   list registers, which are in front. Sorting compares keys made in that walk, not interrupts under two locks.
//! * An event's lock is its own: no look-up of the LPI's INTID, no reference count.
//! * One kick from flush to flush, however much is queued.
//!
//! What is inherent stays: every entry walks all that is pending, and sorts what does not fit.
//!
//! # What the guest has
//!
//! Between a flush and the fold after it, an interrupt in a list register is the guest's, and so is an active one without:
//! nobody else knows its state. Who wants to read or write that makes the vCPU leave the guest, and waits without
//! a lock until it has folded (`Cpu::entry`), as Linux halts the guest. A fold that begins after the request knows the state
//! as it then was: so there is no second look, even if the guest has been entered again meanwhile. A write leaves an order
//! with the interrupt; the fold obeys it, or the flush after it, or whoever waited, whichever comes first.
//!
//! # Order
//!
//! List registers go to the most urgent: by priority, what is active before what it keeps waiting, then by place in line.
//! So an active interrupt can lose its list register, to a pending one of higher priority. An LPI that does is no
//! longer active; if it is pending, too, it goes to the end of its line.
//!
//! Changes are taken in at a vCPU's next flush, in the order in which the interrupts were first changed since its last
//! one. What is offered for the first time, or again after it was taken, or at another priority, or by another
//! vCPU, goes to the end of its priority's line then. What still waits, or comes back from a list register still
//! pending, or became pending again while it was active, keeps its place. What is found pending anew when it is
//! deactivated (a level) joins at the fold, before those changes.

// This engine is the one that has locks.
#![allow(clippy::disallowed_types)]

mod cpu;
mod injector;
mod irq;
mod kref;
mod lpis;
mod msi;
mod own;
mod spin;
mod vcpu;

#[cfg(all(test, not(loom)))]
mod tests;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use core::sync::atomic::{AtomicUsize, Ordering};

pub use injector::LockedInjector;
pub use msi::{LockedDomain, LockedMsi, LockedRoute};
pub use vcpu::LockedVcpu;

use cpu::Cpu;
use irq::{Irq, IrqState};
use kref::IrqRef;
use lpis::LpiTable;
use spin::SpinGuard;

use crate::arch::ids::{ESPI_BASE, Intid, PRIVATE_INTIDS, VcpuId};
use crate::engine::{Config, Engine, Error, Kick, Usage, Wired};
use crate::sync::CachePadded;

/// An interrupt controller built with locks.
#[derive(Clone)]
pub struct LockedVgic {
    vm: Arc<Vm>,
}

/// What the handles of one VM share.
struct Vm {
    config: Config,
    kick: Arc<dyn Kick>,
    cpus: Box<[CachePadded<Cpu>]>,
    /// The SPIs, then the extended ones.
    spis: Box<[IrqRef]>,
    lpis: Arc<LpiTable>,
    devices: Quota,
    events: Quota,
    /// Bytes that others keep beside the mappings.
    beside: AtomicUsize,
    participants: Quota,
    /// What the tables' hashes start from: a guest cannot choose numbers that collide.
    hash_seed: u64,
}

impl Vm {
    fn cpu(&self, vcpu: VcpuId) -> &Cpu {
        &self.cpus[vcpu.index()]
    }

    fn check_vcpu(&self, vcpu: VcpuId) -> Result<(), Error> {
        if vcpu.index() < self.cpus.len() { Ok(()) } else { Err(Error::NoSuchVcpu(vcpu)) }
    }

    /// Makes sure that whoever must know of a change of `irq`, whose lock the caller holds, learns of it. Returns the vCPU
    /// that is to be kicked once the caller holds no lock.
    ///
    /// What is on an `ap_list` stays there until that vCPU's next flush. What is not is queued to its target if it
    /// is to be offered.
    #[inline(always)]
    #[must_use = "the vCPU must be kicked"]
    fn attend<'i>(&self, irq: &'i IrqRef, mut state: SpinGuard<'i, IrqState>) -> Option<VcpuId> {
        loop {
            if let Some(vcpu) = state.vcpu() {
                return self.cpu(vcpu).request(&mut state).then_some(vcpu);
            }
            let target = state.target;
            let cpu = self.cpu(target);
            if !state.is_wanted() {
                // What is idle has no place yet. But a wired interrupt was configured for a purpose.
                if state.is_pending() || !state.intid.is_lpi() {
                    state.note_change(cpu);
                }
                return None;
            }
            // Against the lock order, but without waiting.
            if let Some(ap_list) = cpu.ap_list.try_lock() {
                return cpu.enlist(ap_list, irq, state).then_some(target);
            }
            drop(state);
            let ap_list = cpu.ap_list.lock();
            state = irq.lock();
            // Nobody held the `irq_lock` for a moment: it may have been queued, pointed elsewhere, or calmed.
            if state.vcpu().is_none() && state.target == target && state.is_wanted() {
                return cpu.enlist(ap_list, irq, state).then_some(target);
            }
        }
    }

    /// Queues an interrupt that is to be offered, after something has become willing to take it.
    fn requeue(&self, irq: &IrqRef, only: Option<VcpuId>) {
        let state = irq.lock();
        if only.is_none_or(|vcpu| state.target == vcpu)
            && state.vcpu().is_none()
            && state.is_wanted()
        {
            let kick = self.attend(irq, state);
            self.kick(kick);
        }
    }

    #[inline]
    fn kick(&self, vcpu: Option<VcpuId>) {
        if let Some(vcpu) = vcpu {
            self.kick.kick(vcpu);
        }
    }

    /// A vCPU has taken back what its guest did.
    #[inline]
    fn left(&self, vcpu: VcpuId) {
        if self.cpu(vcpu).leave() {
            self.kick.exited(vcpu);
        }
    }

    /// The SPI of an INTID.
    fn spi(&self, intid: Intid) -> Result<&IrqRef, Error> {
        let spis = u32::from(self.config.spis);
        let n = match intid.0.checked_sub(ESPI_BASE) {
            Some(n) => Some(n + spis),
            None => intid.0.checked_sub(PRIVATE_INTIDS).filter(|&n| n < spis),
        };
        n.and_then(|n| self.spis.get(n as usize)).ok_or(Error::IntidRange(intid))
    }

    /// Heap bytes of what is mapped.
    fn bytes(&self) -> usize {
        // Relaxed: a number that publishes nothing.
        let beside = self.beside.load(Ordering::Relaxed);
        self.lpis.bytes() + self.events.used() * msi::event_bytes() + beside
    }

    /// Refuses what would need more memory than there may be, or says that LPIs which are not mapped any more will make room.
    fn check_bytes(&self, bytes: usize) -> Result<(), Error> {
        let (now, most) = (self.bytes() + bytes, self.config.max_bytes);
        let passing = self.lpis.unmapped_bytes();
        if now as u64 <= most {
            Ok(())
        } else if passing > 0 && now.saturating_sub(passing) as u64 <= most {
            Err(Error::TooMuchGarbage)
        } else {
            Err(Error::TooManyBytes)
        }
    }

    /// Looks a wired interrupt up.
    fn wired(&self, wired: Wired) -> Result<&IrqRef, Error> {
        match wired {
            Wired::Spi(intid) => self.spi(intid),
            Wired::Private(vcpu, intid) => {
                self.check_vcpu(vcpu)?;
                self.cpu(vcpu).private(intid).ok_or(Error::IntidRange(intid))
            }
        }
    }
}

/// How much of something exists, and may exist.
struct Quota {
    used: AtomicUsize,
    max: usize,
}

impl Quota {
    fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Takes one, if there is one left.
    fn take(&self) -> bool {
        // Relaxed, here and below: a number that publishes nothing.
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < self.max).then_some(n + 1))
            .is_ok()
    }

    fn give_back(&self, n: usize) {
        self.used.fetch_sub(n, Ordering::Relaxed);
    }

    fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// A handle that counts as a participant.
struct Participant {
    vm: Arc<Vm>,
}

impl Participant {
    fn new(vm: &Arc<Vm>) -> Result<Self, Error> {
        if !vm.participants.take() {
            return Err(Error::TooManyParticipants);
        }
        Ok(Self { vm: Arc::clone(vm) })
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        self.vm.participants.give_back(1);
    }
}

/// Heap bytes of an [`Arc`] of `T`: two counts, then `T` where its alignment wants it.
const fn arc_bytes<T>() -> usize {
    let align = if align_of::<T>() > 16 { align_of::<T>() } else { 16 };
    align + size_of::<T>()
}

/// Heap bytes of one entry of a B-tree map, whose nodes are two thirds full or so.
const fn btree_bytes<K, V>() -> usize {
    (size_of::<K>() + size_of::<V>()) * 3 / 2
}

impl Engine for LockedVgic {
    type Vcpu = LockedVcpu;
    type Msi = LockedMsi;
    type Domain = LockedDomain;
    type Route = LockedRoute;
    type Injector = LockedInjector;

    const NAME: &'static str = "locked";

    fn new(config: &Config, kick: Arc<dyn Kick>) -> Result<Self, Error> {
        config.check()?;
        let spis = PRIVATE_INTIDS..PRIVATE_INTIDS + u32::from(config.spis);
        let espis = ESPI_BASE..ESPI_BASE + u32::from(config.espis);
        let vm = Vm {
            kick,
            cpus: (0..config.vcpus)
                .map(|v| CachePadded::new(Cpu::new(VcpuId(v), config.eppis)))
                .collect(),
            spis: spis.chain(espis).map(|n| Irq::wired(Intid(n), VcpuId(0))).collect(),
            lpis: LpiTable::new(config.lpis, config.max_lpis),
            devices: Quota::new(config.max_devices as usize),
            events: Quota::new(config.max_events as usize),
            beside: AtomicUsize::new(0),
            participants: Quota::new(config.participants.into()),
            hash_seed: RandomState::new().hash_one(0),
            config: config.clone(),
        };
        Ok(Self { vm: Arc::new(vm) })
    }

    fn vcpu(&self, vcpu: VcpuId) -> Result<LockedVcpu, Error> {
        LockedVcpu::new(&self.vm, vcpu)
    }

    fn msi(&self) -> Result<LockedMsi, Error> {
        LockedMsi::new(&self.vm)
    }

    fn injector(&self) -> Result<LockedInjector, Error> {
        Ok(LockedInjector { participant: Participant::new(&self.vm)? })
    }

    fn usage(&self) -> Usage {
        Usage { lpis: self.vm.lpis.live(), garbage: 0, bytes: self.vm.bytes() }
    }
}
