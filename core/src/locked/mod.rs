//! The design of Linux's vGIC behind the engine's traits: the baseline that the lock-free engine is
//! measured against, and checked with.
//!
//! The structure is that of Linux: an `irq_lock` in every interrupt; for every vCPU, an `ap_list`
//! ("active or pending") under an `ap_list_lock`; one oracle that tells an interrupt's target; list
//! registers filled from the front of a list, which is sorted when it does not fit; and a reference
//! for every place that knows an LPI.
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
//! Take the outer lock first. A thread that holds the inner lock and needs the outer one either
//! tries it without waiting (`Vm::attend`), or releases the inner lock and re-checks everything
//! afterwards. The last reference to an LPI takes the table's lock, so a reference that may be the
//! last one is dropped when no lock is held. The host is kicked when no lock is held.
//!
//! # References
//!
//! An event has a reference to its LPI from map to unmap. An `ap_list` has a reference to each
//! interrupt on it. It is gotten when the interrupt is queued, and put when the interrupt is
//! *pruned*: by the fold that finds it finished, by the flush that finds that it is not to be
//! presented here any more, or by closing. The list registers have no references of their own:
//! their interrupts are on the list. An injection needs none: it holds the event's lock. A look-up
//! by INTID gets a reference as a value, and dropping the value puts it.
//!
//! # Improvements over Linux
//!
//! A baseline should not be slow on purpose:
//!
//! * An injector with the `irq_lock` tries the `ap_list_lock` before it releases the `irq_lock`:
//!   usually each lock is taken once.
//! * An entry and the exit after it walk the list once, not twice: the flush evaluates every
//!   interrupt; the fold takes only those in list registers, which are in front. Sorting compares
//!   keys made in that walk, not interrupts under two locks.
//! * Each event has its own lock: there is no look-up of the LPI's INTID, and no reference count.
//! * There is one kick from flush to flush, however many interrupts are queued.
//!
//! The inherent costs stay: every entry walks all pending interrupts, and sorts those that do not
//! fit.
//!
//! # State that the guest owns
//!
//! An interrupt is *presented* when it is put into a list register as pending.
//!
//! Between a flush and the fold after it, the guest owns every interrupt in a list register, and
//! every active one without: no other thread knows its state. A thread that reads or writes that
//! state makes the vCPU leave the guest, and waits without a lock until the vCPU has folded
//! (`Cpu::entry`), as Linux halts the guest. A fold that ends after the request knows the state as
//! it was at the request, so there is no re-check, even if the guest has been entered again since.
//! A write leaves an order with the interrupt. The fold, the flush after it, or the waiting thread
//! carries it out, whichever comes first.
//!
//! # Order
//!
//! List registers go to the most urgent interrupts: by priority, then active interrupts before the
//! pending ones that they keep waiting, then by place in the FIFO of the priority. So an active
//! interrupt can lose its list register to a pending one of higher priority. An LPI that loses its
//! list register is no longer active; if it is pending, too, it goes to the end of its FIFO.
//!
//! A vCPU takes changes in at its next flush, in the order in which the interrupts were first
//! changed since its last flush:
//!
//! * An interrupt goes to the end of its priority's FIFO if it is presented for the first time, or
//!   again after it was acknowledged, or at another priority, or by another vCPU.
//! * An interrupt keeps its place if it still waits, or comes back from a list register still
//!   pending, or became pending again while it was active.
//! * An interrupt that is found pending again when it is deactivated (a level) joins at the fold,
//!   before those changes.

// This engine is the one with locks.
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

/// An interrupt controller that is built with locks.
#[derive(Clone)]
pub struct LockedVgic {
    vm: Arc<Vm>,
}

/// The state that all handles of one VM share.
struct Vm {
    config: Config,
    kick: Arc<dyn Kick>,
    cpus: Box<[CachePadded<Cpu>]>,
    /// The SPIs, followed by the extended SPIs.
    spis: Box<[IrqRef]>,
    lpis: Arc<LpiTable>,
    devices: Quota,
    events: Quota,
    /// Heap bytes that callers have reported besides the mappings.
    beside: AtomicUsize,
    participants: Quota,
    /// The seed of the tables' hashes, so that a guest cannot choose numbers that collide.
    hash_seed: u64,
}

impl Vm {
    fn cpu(&self, vcpu: VcpuId) -> &Cpu {
        &self.cpus[vcpu.index()]
    }

    fn check_vcpu(&self, vcpu: VcpuId) -> Result<(), Error> {
        if vcpu.index() < self.cpus.len() { Ok(()) } else { Err(Error::NoSuchVcpu(vcpu)) }
    }

    /// Makes a change of `irq` known to the vCPU that must see it. The caller holds the `irq_lock`.
    /// Returns the vCPU to kick once the caller holds no lock.
    ///
    /// An interrupt on an `ap_list` stays there until that vCPU's next flush. An interrupt on no
    /// list is queued to its target if it is active, or enabled and pending.
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
                // An idle LPI has no place yet. A wired interrupt gets one, because it was
                // configured for a purpose.
                if state.is_pending() || !state.intid.is_lpi() {
                    state.note_change(cpu);
                }
                return None;
            }
            // This is against the lock order, but does not wait.
            if let Some(ap_list) = cpu.ap_list.try_lock() {
                return cpu.enlist(ap_list, irq, state).then_some(target);
            }
            drop(state);
            let ap_list = cpu.ap_list.lock();
            state = irq.lock();
            // The `irq_lock` was free for a moment. Another thread may have queued the interrupt,
            // changed its target, or made it idle.
            if state.vcpu().is_none() && state.target == target && state.is_wanted() {
                return cpu.enlist(ap_list, irq, state).then_some(target);
            }
        }
    }

    /// Queues an interrupt that is wanted and on no list, after a vCPU has become ready to take it.
    /// With `only`, does so only if that vCPU is the target.
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

    /// Records that a vCPU has taken back its guest's changes, and tells the host if a thread waits
    /// for that.
    #[inline]
    fn left(&self, vcpu: VcpuId) {
        if self.cpu(vcpu).leave() {
            self.kick.exited(vcpu);
        }
    }

    /// Returns the SPI of an INTID.
    fn spi(&self, intid: Intid) -> Result<&IrqRef, Error> {
        let spis = u32::from(self.config.spis);
        let n = match intid.0.checked_sub(ESPI_BASE) {
            Some(n) => Some(n + spis),
            None => intid.0.checked_sub(PRIVATE_INTIDS).filter(|&n| n < spis),
        };
        n.and_then(|n| self.spis.get(n as usize)).ok_or(Error::IntidRange(intid))
    }

    /// Returns the heap bytes of the mappings.
    fn bytes(&self) -> usize {
        // Relaxed: the number publishes nothing.
        let beside = self.beside.load(Ordering::Relaxed);
        self.lpis.bytes() + self.events.used() * msi::event_bytes() + beside
    }

    /// Checks that `bytes` more heap bytes are allowed. Returns [`Error::TooMuchGarbage`] if LPIs
    /// that are no longer mapped will make room, and [`Error::TooManyBytes`] if they will not.
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

    /// Returns a wired interrupt.
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

/// A counter of objects, with a limit.
struct Quota {
    used: AtomicUsize,
    max: usize,
}

impl Quota {
    fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Takes one from the quota. Returns false if none is left.
    fn take(&self) -> bool {
        // Relaxed, here and below: the number publishes nothing.
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

/// Heap bytes of an [`Arc`] of `T`: two counts, then `T` at its alignment.
const fn arc_bytes<T>() -> usize {
    let align = if align_of::<T>() > 16 { align_of::<T>() } else { 16 };
    align + size_of::<T>()
}

/// Heap bytes of one entry of a B-tree map. Its nodes are about two thirds full.
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
