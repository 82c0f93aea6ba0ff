//! The control side of an MSI domain: maps, moves, configures and unmaps events.
//!
//! Models: `lifetime_intid`, `lifetime_refs`, `delivery_retarget`, `its_commands`, `its_moves`.

#![allow(unsafe_code)] // Slots hold references as raw pointers.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::ControlFlow;
use core::ptr::{self, NonNull};

use super::domain::{Device, Devices, MsiDomain};
use super::route::{Hold, MsiRoute};
use crate::arch::ids::{DeviceId, EventId, Group, Intid, LPI_BASE, VcpuId};
use crate::engine::{Error, LpiConfig, LpiPlace, LpiState, MsiControl, Part};
use crate::lockfree::collect::{ON_REQUEST, ON_THE_SIDE};
use crate::lockfree::irq::Irq;
use crate::lockfree::irq::control::Control;
use crate::lockfree::irq::refs::IrqRef;
use crate::lockfree::map::radix::Tree;
use crate::lockfree::pending::word::BLOCK;
use crate::lockfree::reclaim::refcount::Ref;
use crate::lockfree::reclaim::{Participant, Pin, Reclaim, Slots};
use crate::lockfree::vm::Shared;
use crate::sync::{AtomicPtr, MODEL, relax};

/// How often a call that needs room is retried, while retired objects may still be freed, before it
/// is refused.
const RETRIES: usize = if MODEL { 1 } else { 16 };

/// The control side of a domain. Dropping it unmaps everything.
pub struct Msi<R: Reclaim = Slots> {
    /// The first field: a participant is dropped before the engine that it belongs to.
    participant: R::Participant,
    domain: MsiDomain<R>,
}

impl<R: Reclaim> Msi<R> {
    pub(crate) fn new(shared: Arc<Shared<R>>) -> Result<Self, Error> {
        let participant = shared.reclaim.register().ok_or(Error::TooManyParticipants)?;
        let bits = shared.config.device_bits.into();
        // SAFETY: every handle that has the devices also has the engine; the order of the fields
        // drops the devices first.
        let tree = unsafe { Tree::new(bits, &shared.dispatcher.retired) };
        Ok(Self { participant, domain: MsiDomain { devices: Arc::new(Devices { tree }), shared } })
    }

    /// Saves the pending bits of the VM's mapped LPIs. Calls `f` for every 64 LPIs of which one is
    /// pending, in ascending order, with the first INTID, a multiple of 64, and their 64 bits. That
    /// is the order of an LPI pending table (IHI 0069, 5.1.2).
    ///
    /// LPIs that a vCPU has in its list registers are left out: close the vCPUs first.
    pub fn save_pending(&self, mut f: impl FnMut(Intid, u64)) {
        let pin = &*self.participant.pin();
        let lpis = &self.shared().lpis;
        lpis.blocks.for_each(pin, &mut |key, block| {
            for first in (0..BLOCK).step_by(64) {
                let intid = (key * BLOCK as u64 + first as u64) as u32 + LPI_BASE;
                // A late injector may have left behind the bit of an LPI that is no longer mapped.
                let mapped = |&i: &u32| lpis.get(Intid(intid + i), pin).is_some();
                let bits = block.pending.word(first);
                let bits = (0..64)
                    .filter(|i| bits & 1 << i != 0)
                    .filter(mapped)
                    .fold(0, |bits, i| bits | 1 << i);
                if bits != 0 {
                    f(Intid(intid), bits);
                }
            }
        });
    }

    /// Makes LPIs pending, 64 at a time as [`Msi::save_pending`] saves them. Returns the bits of
    /// the LPIs that are not mapped.
    ///
    /// # Errors
    /// [`Error::IntidRange`] if `first` is not a multiple of 64, or not an LPI.
    pub fn load_pending(&mut self, first: Intid, bits: u64) -> Result<u64, Error> {
        if !first.0.is_multiple_of(64) || !first.is_lpi() {
            return Err(Error::IntidRange(first));
        }
        let shared = self.shared();
        let pin = &*self.participant.pin();
        let mut missed = 0;
        for i in (0..64).filter(|i| bits & 1 << i != 0) {
            match shared.lpis.get(Intid(first.0 + i), pin) {
                Some(irq) => {
                    let _ = shared.inject(irq, pin);
                }
                None => missed |= 1 << i,
            }
        }
        Ok(missed)
    }

    fn shared(&self) -> &Shared<R> {
        &self.domain.shared
    }

    /// Checks the ranges of a DeviceID and an EventID.
    fn check(&self, device: DeviceId, event: EventId) -> Result<(), Error> {
        if u64::from(device.0) >> self.shared().config.device_bits != 0 {
            return Err(Error::DeviceRange(device));
        }
        if u64::from(event.0) >> self.shared().config.event_bits != 0 {
            return Err(Error::EventRange(event));
        }
        Ok(())
    }

    /// Refuses new objects while too many wait to be reclaimed.
    fn check_garbage(&self) -> Result<(), Error> {
        let garbage = self.shared().dispatcher.retired.counts.garbage.get();
        let most = self.shared().config.max_garbage as usize;
        if garbage < most { Ok(()) } else { Err(Error::TooMuchGarbage) }
    }

    fn check_vcpu(&self, vcpu: VcpuId) -> Result<(), Error> {
        if self.shared().dispatcher.has_vcpu(vcpu) { Ok(()) } else { Err(Error::NoSuchVcpu(vcpu)) }
    }

    /// Maps an event to an LPI, and gives the LPI the target and configuration in `new`. If there
    /// are none, the LPI must be mapped already, and stays as it is.
    fn map_as(
        &self,
        device: DeviceId,
        event: EventId,
        intid: Intid,
        new: Option<(VcpuId, LpiConfig)>,
    ) -> Result<(), Error> {
        self.check(device, event)?;
        self.shared().lpis.key(intid)?;
        self.tidy();
        self.retry(|| self.try_map(device, event, intid, new), |error| self.passes(error))
    }

    /// Retries `f`, which needs room, until it succeeds, or fails with an error that does not pass.
    ///
    /// Retired objects count until they are freed. A thread that still uses one may have been
    /// preempted: it is let run before anything is refused. Nor is one collection always enough to
    /// end a grace period of crossbeam-epoch.
    fn retry<T>(
        &self,
        f: impl Fn() -> Result<T, Error>,
        passes: impl Fn(Error) -> bool,
    ) -> Result<T, Error> {
        for _ in 0..RETRIES {
            match f() {
                Err(error) if passes(error) => {
                    let _ = self.shared().collect(&self.participant, ON_THE_SIDE);
                    relax();
                }
                done => return done,
            }
        }
        f().map_err(|error| if passes(error) { Error::TooMuchGarbage } else { error })
    }

    /// Whether the error that refuses a mapping is temporary: it passes when objects that are no
    /// longer mapped are freed, or when other threads give back the bytes that they have reserved.
    fn passes(&self, error: Error) -> bool {
        match error {
            Error::TooManyLpis => self.shared().lpis.will_have_room(),
            Error::TooManyDevices => self.shared().dispatcher.retired.counts.dead_devices.get() > 0,
            Error::TooMuchGarbage => true,
            Error::TooManyBytes => {
                let config = &self.shared().config;
                let bytes = crate::lockfree::cost::of_one_mapping(config);
                self.shared().dispatcher.retired.counts.will_have_bytes(config, bytes)
            }
            _ => false,
        }
    }

    /// Maps an event if there is room: see [`Msi::map_as`].
    fn try_map(
        &self,
        device: DeviceId,
        event: EventId,
        intid: Intid,
        new: Option<(VcpuId, LpiConfig)>,
    ) -> Result<(), Error> {
        let shared = self.shared();
        self.check_garbage()?;
        let pin = &*self.participant.pin();
        // First all checks that can refuse the mapping: an object made in vain would be retired at
        // once.
        let found = self.domain.devices.tree.get_to_change(device.0.into(), pin);
        let found = found.and_then(Ref::try_new);
        if let Some(found) = &found
            && found.event_to_change(event, pin).is_some()
        {
            if cfg!(mutant = "refused_map_keeps_device") {
                core::mem::forget(Ref::try_new(&**found));
            }
            return Err(Error::EventMapped);
        }
        if new.is_some() {
            shared.lpis.check_room(intid, pin)?;
        }
        let events = &shared.dispatcher.retired.counts.events;
        if events.get() >= shared.config.max_events as usize {
            return Err(Error::TooManyEvents);
        }
        let counts = &shared.dispatcher.retired.counts;
        let bytes = crate::lockfree::cost::of_one_mapping(&shared.config);
        let _reserved = counts.reserve(&shared.config, bytes)?;
        let device = match found {
            Some(found) => found,
            None => self.domain.find_or_make(device, pin)?,
        };
        if !events.add_below(shared.config.max_events as usize) {
            return Err(Error::TooManyEvents);
        }
        let irq = match new {
            Some((target, config)) => {
                let set = |c: Control| {
                    let c = c.with_target(target).with_enabled(config.enabled);
                    c.with_priority(config.priority)
                };
                let control = set(Control::RESET.with_group(Group::Group1));
                shared.lpis.get_or_insert(intid, control, pin).map(|(irq, made)| {
                    let before = if made { target } else { irq.control().update(set).0.target() };
                    (irq, (before != target).then_some(before))
                })
            }
            None => {
                let irq = shared.lpis.get(intid, pin).and_then(Irq::try_get);
                if cfg!(mutant = "share_writes_back")
                    && let Some(irq) = &irq
                {
                    let seen = irq.control().load();
                    irq.control().update(|_| seen);
                }
                irq.map(|irq| (irq, None)).ok_or(Error::NotMapped)
            }
        };
        let (irq, left) = irq.inspect_err(|_| events.sub(1))?;
        let irq = irq.into_raw();
        // SAFETY: the reference that goes into the slot keeps the interrupt until it is removed,
        // and collection keeps it for as long as any pin that could see it. The slot is empty: only
        // this handle fills slots of the domain.
        let put = unsafe { device.events.insert(event.0.into(), irq, pin) };
        debug_assert!(put.is_ok(), "one handle maps");
        let _ = device.into_raw();
        if !cfg!(mutant = "map_without_attend") {
            // SAFETY: seen under the pin.
            let irq = unsafe { irq.as_ref() };
            shared.dispatcher.schedule_if_busy(irq);
            if let Some(before) = left {
                shared.dispatcher.moved(irq, before);
                shared.settle_at_target(irq, pin);
            }
        }
        Ok(())
    }

    fn try_route(&self, device: DeviceId, event: EventId) -> Result<MsiRoute<R>, Error> {
        let pin = &*self.participant.pin();
        let shared = self.shared();
        let bytes = crate::lockfree::cost::of_one_mapping(&shared.config);
        let _reserved = shared.dispatcher.retired.counts.reserve(&shared.config, bytes)?;
        let device = self.domain.find_or_make(device, pin)?;
        let slot = device.events.hold_slot(event.0.into(), pin);
        let hold = Box::new(Hold { link: AtomicPtr::new(ptr::null_mut()), device, event });
        let shared = Arc::clone(&self.domain.shared);
        Ok(MsiRoute { slot, kept: Cell::new(None), hold: Some(hold), shared })
    }

    /// Removes the mapping of an event, and with `clear` makes its LPI not pending. Returns whether
    /// the event was mapped.
    fn take(&self, device: &Device, event: EventId, clear: bool, pin: &Pin) -> bool {
        let Some(irq) = device.event_to_change(event, pin) else { return false };
        if !device.events.remove(event.0.into(), NonNull::from(irq), pin) {
            return false;
        }
        // SAFETY: the slot's reference, which was given up in `try_map`.
        let irq = unsafe { IrqRef::from_raw(NonNull::from(irq)) };
        // SAFETY: the mapped event's reference to its device, given up in `try_map`.
        let _device = unsafe { Ref::from_raw(NonNull::from(device)) };
        self.shared().dispatcher.retired.counts.events.sub(1);
        if clear {
            // Before the references are dropped: an unmapped LPI is not pending. The host may panic
            // here.
            let _ = self.shared().dispatcher.clear(&irq);
        }
        if cfg!(mutant = "unmap_without_put") {
            let _ = irq.into_raw();
        } else {
            if cfg!(mutant = "put_twice") {
                // SAFETY: none; this is a seeded bug.
                drop(unsafe { IrqRef::from_raw(NonNull::from(&*irq)) });
            }
            drop(irq);
        }
        true
    }

    fn unmap_event(&self, device: DeviceId, event: EventId, clear: bool) -> Result<(), Error> {
        let taken = {
            let pin = &*self.participant.pin();
            let device = self.domain.devices.tree.get(device.0.into(), pin);
            device.is_some_and(|device| self.take(device, event, clear, pin))
        };
        self.tidy();
        if taken { Ok(()) } else { Err(Error::NotMapped) }
    }

    fn unmap_all_of(&self, device: &Device, pin: &Pin) -> usize {
        let mut events = Vec::new();
        device.events.for_each(pin, &mut |event, _| events.push(EventId(event as u32)));
        events.into_iter().filter(|&event| self.take(device, event, true, pin)).count()
    }

    /// Collects if there is enough to be worth it. While much garbage waits, lets other threads
    /// run: one of them may be pinned, and have been preempted.
    fn tidy(&self) {
        const WORTH: usize = if MODEL { 1 } else { 128 };
        let garbage = &self.shared().dispatcher.retired.counts.garbage;
        if garbage.get() < WORTH {
            return;
        }
        let _ = self.shared().collect(&self.participant, ON_THE_SIDE);
        if garbage.get() > self.shared().config.max_garbage as usize / 4 {
            relax();
        }
    }

    /// Calls `f` with LPIs from `from` up, mapped or not, until `most` have been looked at. The
    /// thread is pinned no longer than that.
    fn some(&self, from: Intid, most: u32, mut f: impl FnMut(&Irq, &Pin)) -> Part {
        let pin = &*self.participant.pin();
        let first = from.0.saturating_sub(LPI_BASE).into();
        let mut part = Part::default();
        let _ = self.shared().lpis.irqs.for_each_from(first, pin, &mut |_, irq| {
            if part.looked >= most {
                part.next = Some(irq.intid());
                return ControlFlow::Break(());
            }
            part.looked += 1;
            f(irq, pin);
            ControlFlow::Continue(())
        });
        part
    }

    fn with_event<T>(
        &self,
        device: DeviceId,
        event: EventId,
        f: impl FnOnce(&Irq, &Pin) -> T,
    ) -> Result<T, Error> {
        let pin = &*self.participant.pin();
        let irq = self.domain.translate(device, event, pin).ok_or(Error::NotMapped)?;
        Ok(f(irq, pin))
    }
}

/// The state of an LPI as seen from outside; `None` if the LPI is not mapped.
fn lpi_state(irq: &Irq) -> Option<LpiState> {
    let (state, control) = (irq.state.load(), irq.control().load());
    let place = match state.owner() {
        Some(vcpu) => LpiPlace::Held(vcpu),
        None if state.is_queued() => LpiPlace::Queued,
        None => LpiPlace::Idle,
    };
    state.is_mapped().then(|| LpiState {
        intid: irq.intid(),
        target: control.target(),
        config: LpiConfig { enabled: control.enabled(), priority: control.priority() },
        pending: irq.looks_pending(),
        place,
    })
}

impl<R: Reclaim> MsiControl for Msi<R> {
    type Domain = MsiDomain<R>;
    type Route = MsiRoute<R>;

    fn domain(&self) -> MsiDomain<R> {
        self.domain.clone()
    }

    fn map(
        &mut self,
        device: DeviceId,
        event: EventId,
        intid: Intid,
        target: VcpuId,
        config: LpiConfig,
    ) -> Result<(), Error> {
        self.check_vcpu(target)?;
        self.map_as(device, event, intid, Some((target, config)))
    }

    fn share(&mut self, device: DeviceId, event: EventId, intid: Intid) -> Result<(), Error> {
        self.map_as(device, event, intid, None)
    }

    fn unmap(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        self.unmap_event(device, event, true)
    }

    fn detach(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        self.unmap_event(device, event, false)
    }

    fn unmap_device(&mut self, device: DeviceId) -> usize {
        let taken = {
            let pin = &*self.participant.pin();
            let device = self.domain.devices.tree.get(device.0.into(), pin);
            device.map_or(0, |device| self.unmap_all_of(device, pin))
        };
        self.tidy();
        taken
    }

    fn retarget(&mut self, device: DeviceId, event: EventId, target: VcpuId) -> Result<(), Error> {
        self.check_vcpu(target)?;
        self.with_event(device, event, |irq, pin| {
            let (old, _) = irq.control().update(|c| c.with_target(target));
            if cfg!(mutant = "retarget_without_attend") {
                return;
            }
            self.shared().dispatcher.schedule_if_busy(irq);
            if old.target() != target {
                self.shared().dispatcher.moved(irq, old.target());
                self.shared().settle_at_target(irq, pin);
            }
        })
    }

    fn move_some(
        &mut self,
        from: VcpuId,
        to: VcpuId,
        first: Intid,
        most: u32,
    ) -> Result<Part, Error> {
        self.check_vcpu(from)?;
        self.check_vcpu(to)?;
        if from == to {
            return Ok(Part::default());
        }
        let mut moved = 0;
        let part = self.some(first, most, |irq, pin| {
            let all = cfg!(mutant = "move_all_of_all");
            let (old, _) = irq
                .control()
                .update(|c| if c.target() == from || all { c.with_target(to) } else { c });
            if cfg!(mutant = "move_all_without_attend") {
                return;
            }
            if (old.target() == from || all) && irq.state.load().is_mapped() {
                self.shared().dispatcher.schedule_if_busy(irq);
                self.shared().dispatcher.moved(irq, from);
                self.shared().settle_at_target(irq, pin);
                moved += 1;
            }
        });
        Ok(Part { changed: moved, ..part })
    }

    fn set_config(&mut self, intid: Intid, config: LpiConfig) -> Result<(), Error> {
        let pin = &*self.participant.pin();
        let irq = self.shared().lpis.get(intid, pin).ok_or(Error::NotMapped)?;
        irq.control().update(|c| c.with_enabled(config.enabled).with_priority(config.priority));
        self.shared().dispatcher.schedule_if_busy(irq);
        Ok(())
    }

    fn target_of(&self, intid: Intid) -> Option<VcpuId> {
        let pin = &*self.participant.pin();
        Some(self.shared().lpis.get(intid, pin)?.control().load().target())
    }

    fn set_pending(&mut self, intid: Intid, pending: bool) -> Result<(), Error> {
        let shared = self.shared();
        let pin = &*self.participant.pin();
        let irq = shared.lpis.get(intid, pin).ok_or(Error::NotMapped)?;
        if pending {
            let _ = shared.inject(irq, pin);
        } else {
            let _ = shared.dispatcher.clear(irq);
        }
        Ok(())
    }

    fn silence(&mut self, intid: Intid) -> bool {
        let pin = &*self.participant.pin();
        let irq = self.shared().lpis.get(intid, pin);
        irq.is_some_and(|irq| self.shared().silence(irq, pin))
    }

    fn lpis_from(&self, from: Intid, f: &mut dyn FnMut(LpiState) -> ControlFlow<()>) {
        let pin = &*self.participant.pin();
        let first = from.0.saturating_sub(LPI_BASE).into();
        let _ = self.shared().lpis.irqs.for_each_from(first, pin, &mut |_, irq| {
            lpi_state(irq).map_or(ControlFlow::Continue(()), &mut *f)
        });
    }

    fn some_lpis(&self, from: Intid, most: u32, f: &mut dyn FnMut(LpiState)) -> Part {
        self.some(from, most, |irq, _| {
            lpi_state(irq).map(&mut *f);
        })
    }

    fn clear(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        self.with_event(device, event, |irq, _| self.shared().dispatcher.clear(irq)).map(drop)
    }

    fn route(&mut self, device: DeviceId, event: EventId) -> Result<MsiRoute<R>, Error> {
        self.check(device, event)?;
        self.tidy();
        let make = || self.check_garbage().and_then(|()| self.try_route(device, event));
        self.retry(make, |error| self.passes(error))
    }

    fn check_bytes(&mut self, bytes: usize) -> Result<(), Error> {
        let (config, counts) = (&self.shared().config, &self.shared().dispatcher.retired.counts);
        let check = || counts.reserve(config, bytes).map(drop);
        self.retry(check, |_| counts.will_have_bytes(config, bytes))
    }

    fn count_bytes(&mut self, more: usize, less: usize) {
        let beside = &self.shared().dispatcher.retired.counts.beside;
        beside.add(more);
        beside.sub(less);
    }

    fn collect(&mut self) {
        let _ = self.shared().collect(&self.participant, ON_REQUEST);
    }
}

impl<R: Reclaim> Drop for Msi<R> {
    fn drop(&mut self) {
        {
            let pin = &*self.participant.pin();
            let mut devices = Vec::new();
            self.domain.devices.tree.for_each(pin, &mut |_, device| devices.push(device));
            for device in devices {
                let _ = self.unmap_all_of(device, pin);
            }
        }
        // Collect everything: no later call through this handle continues the work.
        for _ in 0..1024 {
            if !self.shared().collect(&self.participant, ON_REQUEST) {
                break;
            }
        }
    }
}
