//! MSI domains: the mapping from (DeviceID, EventID) to the LPI, for injections and for the control
//! side.

use core::sync::atomic::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError, RwLock};

use super::irq::IrqState;
use super::kref::IrqRef;
use super::lpis::LpiTable;
use super::spin::SpinLock;
use super::{Participant, Vm};
use crate::arch::ids::{DeviceId, EventId, Intid, VcpuId};
use crate::engine::{Error, Injected, LpiConfig, LpiPlace, LpiState, MsiControl, Part};
use crate::sync::CachePadded;

/// An event of a device. A route keeps it alive, mapped or not.
///
/// Aligned, so that the locks of neighbors do not share a cache line.
#[derive(Default)]
#[repr(align(64))]
struct Event {
    lpi: SpinLock<Option<IrqRef>>,
}

impl Event {
    /// Makes the event's LPI pending. Also returns the vCPU to kick once the caller holds no lock.
    #[inline(always)]
    fn inject(&self, vm: &Vm) -> (Injected, Option<VcpuId>) {
        let lpi = self.lpi.lock();
        let Some(irq) = &*lpi else {
            return (Injected::Unmapped, None);
        };
        let mut state = irq.lock();
        if state.pending_latch {
            return (Injected::Coalesced, None);
        }
        if !vm.takes_msis(&state) {
            return (Injected::Unmapped, None);
        }
        state.pending_latch = true;
        (Injected::Pending, vm.attend(irq, state))
    }

    /// Returns a new reference to the LPI.
    fn get(&self) -> Result<IrqRef, Error> {
        self.lpi.lock().clone().ok_or(Error::NotMapped)
    }

    fn is_mapped(&self) -> bool {
        self.lpi.lock().is_some()
    }
}

/// A (DeviceID, EventID) pair as one number. The events of a device are next to each other.
type Key = u64;

fn key(device: DeviceId, event: EventId) -> Key {
    u64::from(device.0) << 32 | u64::from(event.0)
}

fn parts(key: Key) -> (DeviceId, EventId) {
    (DeviceId((key >> 32) as u32), EventId(key as u32))
}

/// A hash of one multiplication, folded. That is enough for keys that are numbers already, with a
/// seed that the guest does not know.
#[derive(Clone)]
struct KeyHash {
    seed: u64,
    hash: u64,
}

impl BuildHasher for KeyHash {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        self.clone()
    }
}

impl Hasher for KeyHash {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u64(b.into()));
    }

    #[inline(always)]
    fn write_u64(&mut self, n: u64) {
        let product = u128::from(self.hash ^ self.seed ^ n) * 0x9e37_79b9_7f4a_7c15;
        self.hash = product as u64 ^ (product >> 64) as u64;
    }
}

type Shard = RwLock<HashMap<Key, Arc<Event>, KeyHash>>;

/// The number of shards. With these, injectors that look up different events seldom meet in the
/// same reader count.
const SHARDS: usize = 16;

struct Domain {
    vm: Arc<Vm>,
    shards: [CachePadded<Shard>; SHARDS],
}

impl Domain {
    fn shard(&self, device: DeviceId, event: EventId) -> &Shard {
        &self.shards[(event.0 ^ device.0.wrapping_mul(7)) as usize % SHARDS]
    }
}

/// The injection side of an MSI domain.
#[derive(Clone)]
pub struct LockedDomain {
    domain: Arc<Domain>,
}

impl LockedDomain {
    #[inline]
    pub(super) fn inject(&self, device: DeviceId, event: EventId) -> Injected {
        let vm = &*self.domain.vm;
        let shard = self.domain.shard(device, event).read().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = shard.get(&key(device, event)) else {
            return Injected::Unmapped;
        };
        let (injected, kick) = found.inject(vm);
        drop(shard);
        vm.kick(kick);
        injected
    }
}

/// An event that has been looked up.
pub struct LockedRoute {
    vm: Arc<Vm>,
    event: Arc<Event>,
}

impl LockedRoute {
    #[inline]
    pub(super) fn inject(&self) -> Injected {
        let (injected, kick) = self.event.inject(&self.vm);
        self.vm.kick(kick);
        injected
    }
}

/// The control side of an MSI domain.
pub struct LockedMsi {
    participant: Participant,
    domain: Arc<Domain>,
    /// The events in the domain's shards, in order, and readable without the shards' locks: those
    /// that are mapped, or were when they were last checked, and those with routes.
    events: BTreeMap<Key, Arc<Event>>,
    /// The number of these events that were found unmapped, but with a route.
    routed: usize,
}

/// Heap bytes of a mapped event, including its entries in both tables. A hash table is 7/12 full on
/// average, and has one byte more for each slot.
pub(super) const fn event_bytes() -> usize {
    super::arc_bytes::<Event>()
        + super::btree_bytes::<Key, Arc<Event>>()
        + (size_of::<(Key, Arc<Event>)>() + 1) * 12 / 7
}

impl LockedMsi {
    pub(super) fn new(vm: &Arc<Vm>) -> Result<Self, Error> {
        let participant = Participant::new(vm)?;
        let hash = KeyHash { seed: vm.hash_seed, hash: 0 };
        let domain = Domain {
            vm: Arc::clone(vm),
            shards: core::array::from_fn(|_| {
                CachePadded::new(RwLock::new(HashMap::with_hasher(hash.clone())))
            }),
        };
        Ok(Self { participant, domain: Arc::new(domain), events: BTreeMap::new(), routed: 0 })
    }

    fn vm(&self) -> &Vm {
        &self.participant.vm
    }

    /// Checks that the IDs are in the domain's ranges.
    fn check(&self, device: DeviceId, event: EventId) -> Result<(), Error> {
        let config = &self.vm().config;
        if u64::from(device.0) >> config.device_bits != 0 {
            return Err(Error::DeviceRange(device));
        }
        if u64::from(event.0) >> config.event_bits != 0 {
            return Err(Error::EventRange(event));
        }
        Ok(())
    }

    /// Returns a reference to the LPI of a mapped event.
    fn lpi(&self, device: DeviceId, event: EventId) -> Result<IrqRef, Error> {
        self.events.get(&key(device, event)).ok_or(Error::NotMapped)?.get()
    }

    fn has_device(&self, device: DeviceId) -> bool {
        self.events.range(Self::keys_of(device)).next().is_some()
    }

    fn keys_of(device: DeviceId) -> std::ops::RangeInclusive<Key> {
        key(device, EventId(0))..=key(device, EventId(u32::MAX))
    }

    /// Returns the event's entry, and makes it if there is none.
    #[inline(never)] // Named in the TSan suppressions: TSan does not see std's locks.
    fn get_or_make(&mut self, device: DeviceId, event: EventId) -> Result<Arc<Event>, Error> {
        if let Some(found) = self.events.get(&key(device, event)) {
            return Ok(Arc::clone(found));
        }
        if !self.has_device(device) && !self.vm().devices.take() {
            // A device need not count if only a route kept it that is gone now.
            self.collect();
            if !self.vm().devices.take() {
                return Err(Error::TooManyDevices);
            }
        }
        let made = Arc::new(Event::default());
        let mut shard =
            self.domain.shard(device, event).write().unwrap_or_else(PoisonError::into_inner);
        shard.insert(key(device, event), Arc::clone(&made));
        drop(shard);
        self.events.insert(key(device, event), Arc::clone(&made));
        self.routed += 1;
        Ok(made)
    }

    /// Counts one more event, and returns a reference to its LPI.
    fn take_event(&self, intid: Intid, target: VcpuId) -> Result<IrqRef, Error> {
        if !self.vm().events.take() {
            return Err(Error::TooManyEvents);
        }
        let irq = self.vm().lpis.get_or_make(intid, target);
        irq.inspect_err(|_| self.vm().events.give_back(1))
    }

    /// Maps an event to an LPI. With `config`, the LPI gets that configuration and `target`.
    /// Without, an existing LPI keeps its own.
    fn map_as(
        &mut self,
        device: DeviceId,
        event: EventId,
        intid: Intid,
        target: VcpuId,
        config: Option<LpiConfig>,
    ) -> Result<(), Error> {
        self.check(device, event)?;
        self.vm().check_vcpu(target)?;
        self.vm().lpis.check(intid)?;
        if self.events.get(&key(device, event)).is_some_and(|event| event.is_mapped()) {
            return Err(Error::EventMapped);
        }
        self.vm().check_bytes(event_bytes() + LpiTable::bytes_of_one())?;
        let entry = self.get_or_make(device, event)?;
        let irq = match self.take_event(intid, target) {
            Ok(irq) => irq,
            Err(error) => {
                drop(entry);
                self.forget(device, event);
                return Err(error);
            }
        };
        self.routed -= 1;
        self.change(&irq, |state| {
            if !state.own.is_mapped() {
                self.vm().lpis.add_mapped();
            }
            state.own.add_mapping();
            if let Some(config) = config {
                state.enabled = config.enabled;
                state.priority = config.priority;
                state.set_target(target);
            }
        });
        *entry.lpi.lock() = Some(irq);
        Ok(())
    }

    fn unmap_event(&mut self, device: DeviceId, event: EventId, clear: bool) -> Result<(), Error> {
        let entry = self.events.get(&key(device, event)).ok_or(Error::NotMapped)?;
        // An injection holds the lock until the LPI is pending and queued: it comes before this, or
        // finds nothing.
        let irq = entry.lpi.lock().take().ok_or(Error::NotMapped)?;
        let mut state = irq.lock();
        state.own.drop_mapping();
        if !state.own.is_mapped() {
            self.vm().lpis.drop_mapped();
        }
        drop(state);
        if clear {
            self.vm().clear(&irq);
        }
        drop(irq);
        self.vm().events.give_back(1);
        self.routed += 1;
        self.forget(device, event);
        Ok(())
    }

    /// Removes an event's entry, if it is not mapped and has no route.
    #[inline(never)] // See `get_or_make`.
    fn forget(&mut self, device: DeviceId, event: EventId) {
        let Some(found) = self.events.get(&key(device, event)) else { return };
        // Only this handle makes routes. The two references are those of `self.events` and of the
        // shard.
        if found.is_mapped() || Arc::strong_count(found) > 2 {
            return;
        }
        let mut shard =
            self.domain.shard(device, event).write().unwrap_or_else(PoisonError::into_inner);
        shard.remove(&key(device, event));
        drop(shard);
        self.events.remove(&key(device, event));
        self.routed -= 1;
        if !self.has_device(device) {
            self.vm().devices.give_back(1);
        }
    }

    /// Calls `f` with the LPIs from `from` up, until `f` has been called `most` times.
    fn some(&self, from: Intid, most: u32, mut f: impl FnMut(&IrqRef)) -> Part {
        let mut part = Part::default();
        let _ = self.vm().lpis.for_each_from(from, |irq| {
            if part.looked >= most {
                part.next = Some(irq.lock().intid);
                return ControlFlow::Break(());
            }
            part.looked += 1;
            f(irq);
            ControlFlow::Continue(())
        });
        part
    }

    /// Changes an LPI with `f`, and makes the change known to its vCPU.
    fn change(&self, irq: &IrqRef, f: impl FnOnce(&mut IrqState)) {
        let mut state = irq.lock();
        f(&mut state);
        self.vm().settle_at_target(&mut state);
        let kick = self.vm().attend(irq, state);
        self.vm().kick(kick);
    }
}

impl Vm {
    /// Whether an LPI can become pending. Its target vCPU decides.
    fn takes_msis(&self, state: &IrqState) -> bool {
        self.cpu(state.target).takes_msis()
    }

    /// Clears the pending state of an LPI, which may have a new target, if its target takes no
    /// MSIs.
    fn settle_at_target(&self, state: &mut IrqState) {
        if !self.takes_msis(state) {
            state.clear_pending();
        }
    }

    /// Clears an LPI's pending state if `which` returns true. Returns the result of `which`.
    fn clear_if(&self, irq: &IrqRef, which: impl FnOnce(&IrqState) -> bool) -> bool {
        let mut state = irq.lock();
        if !which(&state) {
            return false;
        }
        state.clear_pending();
        if state.vcpu().is_some() {
            let kick = self.attend(irq, state);
            self.kick(kick);
        }
        true
    }

    fn clear(&self, irq: &IrqRef) {
        let _ = self.clear_if(irq, |_| true);
    }
}

/// Dropping it unmaps everything.
impl Drop for LockedMsi {
    fn drop(&mut self) {
        let keys: Vec<Key> = self.events.keys().copied().collect();
        for (device, event) in keys.into_iter().map(parts) {
            let _ = self.unmap(device, event);
        }
        // The remaining events have a route, which finds nothing mapped from now on.
        while let Some((&left, _)) = self.events.first_key_value() {
            self.events.retain(|&key, _| parts(key).0 != parts(left).0);
            self.vm().devices.give_back(1);
        }
    }
}

/// Returns the state of an LPI for the control side. `None`: it is not mapped.
fn lpi_state(irq: &IrqRef) -> Option<LpiState> {
    let state = irq.lock();
    state.own.is_mapped().then(|| LpiState {
        intid: state.intid,
        target: state.target,
        config: LpiConfig { enabled: state.enabled, priority: state.priority },
        pending: state.pending_latch,
        place: match state.vcpu() {
            Some(vcpu) => LpiPlace::Held(vcpu),
            None => LpiPlace::Idle,
        },
    })
}

impl MsiControl for LockedMsi {
    type Domain = LockedDomain;
    type Route = LockedRoute;

    fn domain(&self) -> LockedDomain {
        LockedDomain { domain: Arc::clone(&self.domain) }
    }

    fn map(
        &mut self,
        device: DeviceId,
        event: EventId,
        intid: Intid,
        target: VcpuId,
        config: LpiConfig,
    ) -> Result<(), Error> {
        self.map_as(device, event, intid, target, Some(config))
    }

    fn share(&mut self, device: DeviceId, event: EventId, intid: Intid) -> Result<(), Error> {
        let target = self.target_of(intid).ok_or(Error::NotMapped)?;
        self.map_as(device, event, intid, target, None)
    }

    fn unmap(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        self.unmap_event(device, event, true)
    }

    fn detach(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        self.unmap_event(device, event, false)
    }

    fn unmap_device(&mut self, device: DeviceId) -> usize {
        let keys: Vec<Key> =
            self.events.range(Self::keys_of(device)).map(|(&key, _)| key).collect();
        keys.into_iter().filter(|&key| self.unmap(device, EventId(key as u32)).is_ok()).count()
    }

    fn retarget(&mut self, device: DeviceId, event: EventId, target: VcpuId) -> Result<(), Error> {
        self.vm().check_vcpu(target)?;
        let irq = self.lpi(device, event)?;
        self.change(&irq, |state| state.set_target(target));
        Ok(())
    }

    fn move_some(
        &mut self,
        from: VcpuId,
        to: VcpuId,
        first: Intid,
        most: u32,
    ) -> Result<Part, Error> {
        self.vm().check_vcpu(from)?;
        self.vm().check_vcpu(to)?;
        if from == to {
            return Ok(Part::default());
        }
        let mut moved = 0;
        let part = self.some(first, most, |irq| {
            let mut state = irq.lock();
            // An LPI without a mapping is only waiting to be freed.
            if state.target == from && state.own.is_mapped() {
                moved += 1;
                state.set_target(to);
                self.vm().settle_at_target(&mut state);
                let kick = self.vm().attend(irq, state);
                self.vm().kick(kick);
            }
        });
        Ok(Part { changed: moved, ..part })
    }

    fn set_config(&mut self, intid: Intid, config: LpiConfig) -> Result<(), Error> {
        let irq = self.vm().lpis.get(intid).ok_or(Error::NotMapped)?;
        let mut state = irq.lock();
        if !state.own.is_mapped() {
            return Err(Error::NotMapped);
        }
        state.enabled = config.enabled;
        state.priority = config.priority;
        let kick = self.vm().attend(&irq, state);
        self.vm().kick(kick);
        Ok(())
    }

    fn target_of(&self, intid: Intid) -> Option<VcpuId> {
        let irq = self.vm().lpis.get(intid)?;
        let state = irq.lock();
        state.own.is_mapped().then_some(state.target)
    }

    fn set_pending(&mut self, intid: Intid, pending: bool) -> Result<(), Error> {
        let irq = self.vm().lpis.get(intid).ok_or(Error::NotMapped)?;
        let mut state = irq.lock();
        if !state.own.is_mapped() {
            return Err(Error::NotMapped);
        }
        if !pending {
            drop(state);
            self.vm().clear(&irq);
        } else if !state.pending_latch && self.vm().takes_msis(&state) {
            state.pending_latch = true;
            let kick = self.vm().attend(&irq, state);
            self.vm().kick(kick);
        }
        Ok(())
    }

    fn silence(&mut self, intid: Intid) -> bool {
        let vm = self.vm();
        let irq = vm.lpis.get(intid);
        irq.is_some_and(|irq| vm.clear_if(&irq, |state| !vm.takes_msis(state)))
    }

    fn lpis_from(&self, from: Intid, f: &mut dyn FnMut(LpiState) -> ControlFlow<()>) {
        let _ = self
            .vm()
            .lpis
            .for_each_from(from, |irq| lpi_state(irq).map_or(ControlFlow::Continue(()), &mut *f));
    }

    fn some_lpis(&self, from: Intid, most: u32, f: &mut dyn FnMut(LpiState)) -> Part {
        self.some(from, most, |irq| {
            lpi_state(irq).map(&mut *f);
        })
    }

    fn clear(&mut self, device: DeviceId, event: EventId) -> Result<(), Error> {
        let irq = self.lpi(device, event)?;
        self.vm().clear(&irq);
        Ok(())
    }

    fn route(&mut self, device: DeviceId, event: EventId) -> Result<LockedRoute, Error> {
        self.check(device, event)?;
        let event = self.get_or_make(device, event)?;
        Ok(LockedRoute { vm: Arc::clone(&self.participant.vm), event })
    }

    fn check_bytes(&mut self, bytes: usize) -> Result<(), Error> {
        self.vm().check_bytes(bytes)
    }

    fn count_bytes(&mut self, more: usize, less: usize) {
        // Relaxed: the number publishes nothing.
        self.vm().beside.fetch_add(more, Ordering::Relaxed);
        self.vm().beside.fetch_sub(less, Ordering::Relaxed);
    }

    fn collect(&mut self) {
        if self.routed == 0 {
            return;
        }
        let unmapped = self.events.iter().filter(|(_, event)| !event.is_mapped());
        let keys: Vec<Key> = unmapped.map(|(&key, _)| key).collect();
        for (device, event) in keys.into_iter().map(parts) {
            self.forget(device, event);
        }
    }
}
