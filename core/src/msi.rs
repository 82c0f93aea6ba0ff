//! MSI domains: (DeviceID, EventID) -> LPI.
//!
//! One domain is what one ITS translates with. Its control side ([`Msi`]) exists once, so commands happen in order;
//! its injection side ([`MsiDomain`]) is cloned freely and takes no lock: two trees are walked, devices first,
//! then the device's events. A [`MsiRoute`] has that behind it: it holds the event's slot itself, and keeps the LPI that
//! it found there, so that it needs a pin only when that changes.
//!
//! An event's slot owns one reference to its LPI; each mapped event and each route owns one to its device.

#![allow(unsafe_code)] // Slots hold references as raw pointers.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::ControlFlow;
use core::ptr::{self, NonNull};

use crate::bitmap::{BLOCK, Lane, PendingWord};
use crate::collect::{ON_REQUEST, ON_THE_SIDE};
use crate::control::Control;
use crate::engine::{Error, LpiConfig, LpiPlace, LpiState, MsiControl, Part};
use crate::graveyard::Graveyard;
use crate::ids::{DeviceId, EventId, Group, Intid, LPI_BASE, VcpuId};
use crate::irq::Irq;
use crate::reclaim::{Participant, Pin, Reclaim, Slots};
use crate::refcount::{Counted, Ref, RefCount};
use crate::refs::{IrqRef, Kept};
use crate::sync::{AtomicPtr, Canary, MODEL, relax};
use crate::tree::{HeldSlot, Tree};
use crate::vgic::Shared;

/// How often what needs room is tried again, while something that is dead may be freed, before it is refused.
const RETRIES: usize = if MODEL { 1 } else { 16 };

/// A device: its events.
pub(crate) struct Device {
    count: RefCount,
    /// Next in the graveyard.
    pub(crate) link: AtomicPtr<()>,
    id: DeviceId,
    events: Tree<Irq>,
    domain: Arc<Devices>,
    graveyard: NonNull<Graveyard>,
    canary: Canary,
}

// SAFETY: everything in it is atomic or constant, and `graveyard`, which is Sync, outlives it (see `MsiDomain::find_or_make`).
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Counted for Device {
    fn count(&self) -> &RefCount {
        self.canary.touch();
        &self.count
    }

    unsafe fn bury(this: NonNull<Self>) {
        // SAFETY: dead but not yet in the graveyard, so it is the caller's alone; the graveyard outlives it.
        let graveyard = unsafe { this.as_ref().graveyard.as_ref() };
        graveyard.push_device(this);
    }
}

impl Device {
    /// Called once, right before the memory is freed.
    pub(crate) fn freed(&mut self) {
        self.canary.bury();
        // In a model the memory stays; its nodes are not to count any more.
        self.events.clear(&mut |_| ());
    }

    /// Takes a dead device out of its domain.
    pub(crate) fn unlink(&self, pin: &Pin) {
        let _ = self.domain.tree.remove(self.id.0.into(), NonNull::from(self), pin);
    }

    fn event<'p>(&'p self, event: EventId, pin: &'p Pin) -> Option<&'p Irq> {
        self.canary.touch();
        self.events.get(event.0.into(), pin)
    }

    /// The same for who is going to change the event's slot.
    fn event_to_change<'p>(&'p self, event: EventId, pin: &'p Pin) -> Option<&'p Irq> {
        self.canary.touch();
        self.events.get_to_change(event.0.into(), pin)
    }
}

/// The devices of one domain.
struct Devices {
    tree: Tree<Device>,
}

/// The injection side of a domain.
pub struct MsiDomain<R: Reclaim = Slots> {
    devices: Arc<Devices>,
    /// After `devices`: what they point to is kept alive by this.
    pub(crate) shared: Arc<Shared<R>>,
}

impl<R: Reclaim> Clone for MsiDomain<R> {
    fn clone(&self) -> Self {
        Self { devices: Arc::clone(&self.devices), shared: Arc::clone(&self.shared) }
    }
}

impl<R: Reclaim> MsiDomain<R> {
    /// What an event is mapped to.
    #[inline]
    pub(crate) fn translate<'p>(
        &'p self,
        device: DeviceId,
        event: EventId,
        pin: &'p Pin,
    ) -> Option<&'p Irq> {
        self.devices.tree.get(device.0.into(), pin)?.event(event, pin)
    }

    /// A reference to a device, made if there is none.
    fn find_or_make(&self, device: DeviceId, pin: &Pin) -> Result<Ref<Device>, Error> {
        let key = u64::from(device.0);
        let graveyard = &self.shared.hub.graveyard;
        loop {
            let found = self.devices.tree.get_to_change(key, pin);
            if let Some(device) = found.and_then(Ref::try_new) {
                return Ok(device);
            }
            if !graveyard.counts.devices.add_below(self.shared.config.max_devices as usize) {
                return Err(Error::TooManyDevices);
            }
            let fresh = NonNull::from(Box::leak(Box::new(Device {
                count: RefCount::new(),
                link: AtomicPtr::new(ptr::null_mut()),
                id: device,
                // SAFETY: devices are freed by `collect`, or with the engine; the graveyard is there until then.
                events: unsafe { Tree::new(self.shared.config.event_bits.into(), graveyard) },
                domain: Arc::clone(&self.devices),
                graveyard: NonNull::from(graveyard),
                canary: Canary::default(),
            })));
            let put = match found {
                // SAFETY: a device is freed by `collect`, after it was unlinked and a grace period.
                Some(dead) => unsafe {
                    self.devices.tree.replace(key, NonNull::from(dead), fresh, pin)
                },
                // SAFETY: as above.
                None => unsafe { self.devices.tree.insert(key, fresh, pin) }.is_ok(),
            };
            if put {
                // SAFETY: the reference that it was made with.
                return Ok(unsafe { Ref::from_raw(fresh) });
            }
            graveyard.counts.devices.sub(1);
            // SAFETY: never shared.
            drop(unsafe { Box::from_raw(fresh.as_ptr()) });
        }
    }
}

/// One event of one device, resolved: an injection through it is one load away from the LPI, and needs no pin while
/// the event's mapping does not change. It sees every remap.
///
/// It remembers the LPI that it injected last, and keeps its memory: after an event is unmapped, the LPI (and with it
/// its block of pending bits and its place in the trees) stays until the route is used again or dropped. It does not count against
/// [`Config::max_lpis`](crate::engine::Config) then. It can be sent to another thread, but not shared.
pub struct MsiRoute<R: Reclaim = Slots> {
    slot: HeldSlot<Irq>,
    /// What the slot held last.
    kept: Cell<Option<KeptRaw>>,
    /// Keeps the slot where it is, until it is collected. `None` only while this is dropped.
    hold: Option<Box<Hold>>,
    /// Last: what the others point to is kept alive by this.
    pub(crate) shared: Arc<Shared<R>>,
}

/// A `Kept` that was given up, and where the pending bit of its LPI is.
type KeptRaw = (NonNull<Irq>, NonNull<PendingWord>, Lane);

/// What a route holds: a slot of its device's tree of events. Made with the route, so that dropping one allocates nothing;
/// given up through the graveyard, as releasing a slot can prune the tree.
pub(crate) struct Hold {
    /// Next in the graveyard.
    pub(crate) link: AtomicPtr<()>,
    device: Ref<Device>,
    event: EventId,
}

impl Hold {
    pub(crate) fn release(&self, pin: &Pin) {
        self.device.events.release_slot(self.event.0.into(), pin);
        if cfg!(mutant = "slot_released_twice") {
            self.device.events.release_slot(self.event.0.into(), pin);
        }
    }
}

// SAFETY: `kept` is a reference that this value owns; who has the value uses it, one thread at a time (it is not Sync).
unsafe impl<R: Reclaim> Send for MsiRoute<R> {}

impl<R: Reclaim> MsiRoute<R> {
    /// The LPI that the event is mapped to, and its pending bit, if it is the one that the route keeps. That is valid without a pin.
    #[inline(always)]
    pub(crate) fn kept(&self) -> Option<(&Irq, &PendingWord, Lane)> {
        let (kept, word, lane) = self.kept.get()?;
        // SAFETY: `hold` keeps the device, and so its tree of events, and the slot in it.
        let now = unsafe { self.slot.load() };
        // SAFETY: the `Kept` that `kept` stands for is ended only by `keep`, which takes this route's LPI out of
        // use first, and by dropping the route.
        let kept = unsafe { kept.as_ref() };
        // SAFETY: the block of pending bits is there for as long as the interrupt's memory is (`lpis::Lpis::make`).
        let word = unsafe { word.as_ref() };
        ptr::eq(now, kept).then_some((kept, word, lane))
    }

    /// Brings the pending word that an injection writes here, while what the caller has written before is still on its way.
    #[inline(always)]
    pub(crate) fn prefetch(&self) {
        if let Some((_, word, _)) = self.kept.get() {
            // SAFETY: as in `kept`.
            unsafe { word.as_ref() }.prefetch();
        }
    }

    /// What the event is mapped to, which is kept from now on instead of what was kept so far.
    pub(crate) fn keep<'p>(&self, _pin: &'p Pin) -> Option<&'p Irq> {
        // SAFETY: as in `kept`.
        let now = unsafe { self.slot.load() };
        // SAFETY: what a slot holds stays allocated for as long as a pin that could see it.
        let now = unsafe { now.as_ref() };
        let kept = if cfg!(mutant = "kept_without_reference") {
            now.map(NonNull::from)
        } else {
            now.and_then(Irq::try_keep).map(Kept::into_raw)
        };
        let kept = kept.map(|kept| {
            // SAFETY: kept, or (a seeded bug) seen under the pin.
            let irq = unsafe { kept.as_ref() };
            (kept, NonNull::from(irq.pending()), irq.lane())
        });
        if kept.is_some() {
            self.shared.hub.graveyard.counts.kept.add(1);
        }
        self.end(self.kept.replace(kept));
        now
    }

    fn end(&self, kept: Option<KeptRaw>) {
        let Some((kept, ..)) = kept else { return };
        if !cfg!(mutant = "kept_without_reference") {
            // SAFETY: given up in `keep`, and taken out of `self.kept` by the caller.
            drop(unsafe { Kept::from_raw(kept) });
        }
        self.shared.hub.graveyard.counts.kept.sub(1);
    }
}

impl<R: Reclaim> Drop for MsiRoute<R> {
    fn drop(&mut self) {
        self.end(self.kept.take());
        if let Some(hold) = self.hold.take() {
            self.shared.hub.graveyard.push_hold(NonNull::from(Box::leak(hold)));
        }
    }
}

/// The control side of a domain. Dropping it unmaps everything.
pub struct Msi<R: Reclaim = Slots> {
    /// First: a participant ends before the engine that it belongs to.
    participant: R::Participant,
    domain: MsiDomain<R>,
}

impl<R: Reclaim> Msi<R> {
    pub(crate) fn new(shared: Arc<Shared<R>>) -> Result<Self, Error> {
        let participant = shared.reclaim.register().ok_or(Error::TooManyParticipants)?;
        let bits = shared.config.device_bits.into();
        // SAFETY: whoever has the devices has the engine, too; the fields' order ends the devices first.
        let tree = unsafe { Tree::new(bits, &shared.hub.graveyard) };
        Ok(Self { participant, domain: MsiDomain { devices: Arc::new(Devices { tree }), shared } })
    }

    /// Saves the pending bits of the VM's mapped LPIs: calls `f` with an INTID, a multiple of 64, and the bits of the 64
    /// LPIs from there on, in ascending order, for every 64 of which one is pending. That is the order of an LPI pending
    /// table (IHI 0069, 5.1.2).
    ///
    /// What a vCPU has in its list registers is not among them: close the vCPUs first.
    pub fn save_pending(&self, mut f: impl FnMut(Intid, u64)) {
        let pin = &*self.participant.pin();
        let lpis = &self.shared().lpis;
        lpis.blocks.for_each(pin, &mut |key, block| {
            for first in (0..BLOCK).step_by(64) {
                let intid = (key * BLOCK as u64 + first as u64) as u32 + LPI_BASE;
                // A late injector may have left a bit behind of what is no longer mapped.
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

    /// Makes LPIs pending, 64 at a time as [`Msi::save_pending`] saves them. Returns the bits that found no LPI mapped.
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

    fn check(&self, device: DeviceId, event: EventId) -> Result<(), Error> {
        if u64::from(device.0) >> self.shared().config.device_bits != 0 {
            return Err(Error::DeviceRange(device));
        }
        if u64::from(event.0) >> self.shared().config.event_bits != 0 {
            return Err(Error::EventRange(event));
        }
        Ok(())
    }

    /// Refuses to make more while too much waits to be reclaimed.
    fn check_garbage(&self) -> Result<(), Error> {
        let garbage = self.shared().hub.graveyard.counts.garbage.get();
        let most = self.shared().config.max_garbage as usize;
        if garbage < most { Ok(()) } else { Err(Error::TooMuchGarbage) }
    }

    fn check_vcpu(&self, vcpu: VcpuId) -> Result<(), Error> {
        if self.shared().hub.has_vcpu(vcpu) { Ok(()) } else { Err(Error::NoSuchVcpu(vcpu)) }
    }

    /// Maps an event to an LPI: as it is to be from now on, or as it is.
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

    /// Tries what needs room until it is done, or refused by something that does not pass.
    ///
    /// What is dead counts until it is freed. A thread that is looking at it may have been preempted: it is let run before anything is
    /// refused. Nor does one collection end a grace period, with crossbeam-epoch.
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

    /// Whether what refuses a mapping passes by itself, as something that is unmapped is still to be freed.
    fn passes(&self, error: Error) -> bool {
        match error {
            Error::TooManyLpis => self.shared().lpis.will_have_room(),
            Error::TooManyDevices => self.shared().hub.graveyard.counts.dead_devices.get() > 0,
            Error::TooMuchGarbage => true,
            Error::TooManyBytes => {
                let config = &self.shared().config;
                let bytes = crate::cost::of_one_mapping(config);
                self.shared().hub.graveyard.counts.will_have_bytes(config, bytes)
            }
            _ => false,
        }
    }

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
        // First all that can refuse it: what was made for nothing would be dead at once.
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
        let events = &shared.hub.graveyard.counts.events;
        if events.get() >= shared.config.max_events as usize {
            return Err(Error::TooManyEvents);
        }
        let counts = &shared.hub.graveyard.counts;
        let bytes = crate::cost::of_one_mapping(&shared.config);
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
        // SAFETY: the reference that goes into the slot keeps the interrupt until it is removed, and collection keeps
        // it for as long as a pin that could see it. The slot is empty: only this handle fills slots of the domain.
        let put = unsafe { device.events.insert(event.0.into(), irq, pin) };
        debug_assert!(put.is_ok(), "one handle maps");
        let _ = device.into_raw();
        if !cfg!(mutant = "map_without_attend") {
            // SAFETY: seen under the pin.
            let irq = unsafe { irq.as_ref() };
            shared.hub.attend_unless_idle(irq);
            if let Some(before) = left {
                shared.hub.moved(irq, before);
                shared.settle_at_target(irq, pin);
            }
        }
        Ok(())
    }

    fn try_route(&self, device: DeviceId, event: EventId) -> Result<MsiRoute<R>, Error> {
        let pin = &*self.participant.pin();
        let shared = self.shared();
        let bytes = crate::cost::of_one_mapping(&shared.config);
        let _reserved = shared.hub.graveyard.counts.reserve(&shared.config, bytes)?;
        let device = self.domain.find_or_make(device, pin)?;
        let slot = device.events.hold_slot(event.0.into(), pin);
        let hold = Box::new(Hold { link: AtomicPtr::new(ptr::null_mut()), device, event });
        let shared = Arc::clone(&self.domain.shared);
        Ok(MsiRoute { slot, kept: Cell::new(None), hold: Some(hold), shared })
    }

    /// Takes an event's mapping out. Its LPI is then not pending, if `clear`.
    fn take(&self, device: &Device, event: EventId, clear: bool, pin: &Pin) -> bool {
        let Some(irq) = device.event_to_change(event, pin) else { return false };
        if !device.events.remove(event.0.into(), NonNull::from(irq), pin) {
            return false;
        }
        // SAFETY: the slot's reference, which was given up in `try_map`.
        let irq = unsafe { IrqRef::from_raw(NonNull::from(irq)) };
        // SAFETY: the mapped event's reference to its device, given up in `try_map`.
        let _device = unsafe { Ref::from_raw(NonNull::from(device)) };
        self.shared().hub.graveyard.counts.events.sub(1);
        if clear {
            // Before the references go: what is unmapped is not pending. The host may panic here.
            let _ = self.shared().hub.clear(&irq);
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

    /// Collects if there is something worth collecting. While much waits, other threads are let run: one of them may be
    /// pinned, and have been preempted.
    fn tidy(&self) {
        const WORTH: usize = if MODEL { 1 } else { 128 };
        let garbage = &self.shared().hub.graveyard.counts.garbage;
        if garbage.get() < WORTH {
            return;
        }
        let _ = self.shared().collect(&self.participant, ON_THE_SIDE);
        if garbage.get() > self.shared().config.max_garbage as usize / 4 {
            relax();
        }
    }

    /// Calls `f` with LPIs from `from` up, until `most` have been looked at. Pinned no longer than that.
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

/// An LPI as others see it, if it is mapped.
fn lpi_state(irq: &Irq) -> Option<LpiState> {
    let (state, control) = (irq.state.load(), irq.control().load());
    let place = match state.owner() {
        Some(vcpu) => LpiPlace::Held(vcpu),
        None if state.is_signaled() => LpiPlace::Queued,
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
            self.shared().hub.attend_unless_idle(irq);
            if old.target() != target {
                self.shared().hub.moved(irq, old.target());
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
                self.shared().hub.attend_unless_idle(irq);
                self.shared().hub.moved(irq, from);
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
        self.shared().hub.attend_unless_idle(irq);
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
            let _ = shared.hub.clear(irq);
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
        self.with_event(device, event, |irq, _| self.shared().hub.clear(irq)).map(drop)
    }

    fn route(&mut self, device: DeviceId, event: EventId) -> Result<MsiRoute<R>, Error> {
        self.check(device, event)?;
        self.tidy();
        let make = || self.check_garbage().and_then(|()| self.try_route(device, event));
        self.retry(make, |error| self.passes(error))
    }

    fn check_bytes(&mut self, bytes: usize) -> Result<(), Error> {
        let (config, counts) = (&self.shared().config, &self.shared().hub.graveyard.counts);
        let check = || counts.reserve(config, bytes).map(drop);
        self.retry(check, |_| counts.will_have_bytes(config, bytes))
    }

    fn count_bytes(&mut self, more: usize, less: usize) {
        let beside = &self.shared().hub.graveyard.counts.beside;
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
        // All of it: no later call of this thread goes on.
        for _ in 0..1024 {
            if !self.shared().collect(&self.participant, ON_REQUEST) {
                break;
            }
        }
    }
}
