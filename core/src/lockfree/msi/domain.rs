//! Devices and their events: what an MSI is translated by.

#![allow(unsafe_code)] // Slots hold references as raw pointers.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::{self, NonNull};

use crate::arch::ids::{DeviceId, EventId};
use crate::engine::Error;
use crate::lockfree::irq::Irq;
use crate::lockfree::map::radix::Tree;
use crate::lockfree::reclaim::refcount::{Counted, Ref, RefCount};
use crate::lockfree::reclaim::retired::RetiredList;
use crate::lockfree::reclaim::{Pin, Reclaim, Slots};
use crate::lockfree::vm::Shared;
use crate::sync::{AtomicPtr, Canary};

/// A device: its events.
pub(crate) struct Device {
    count: RefCount,
    /// Next in the retired.
    pub(crate) link: AtomicPtr<()>,
    id: DeviceId,
    pub(super) events: Tree<Irq>,
    domain: Arc<Devices>,
    retired: NonNull<RetiredList>,
    canary: Canary,
}

// SAFETY: everything in it is atomic or constant, and `retired`, which is Sync, outlives it (see `MsiDomain::find_or_make`).
unsafe impl Send for Device {}

// SAFETY: as above.
unsafe impl Sync for Device {}

impl Counted for Device {
    fn count(&self) -> &RefCount {
        self.canary.touch();
        &self.count
    }

    unsafe fn retire(this: NonNull<Self>) {
        // SAFETY: dead but not yet in the retired, so it is the caller's alone; the retired outlives it.
        let retired = unsafe { this.as_ref().retired.as_ref() };
        retired.push_device(this);
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
    pub(super) fn event_to_change<'p>(&'p self, event: EventId, pin: &'p Pin) -> Option<&'p Irq> {
        self.canary.touch();
        self.events.get_to_change(event.0.into(), pin)
    }
}

/// The devices of one domain.
pub(super) struct Devices {
    pub(super) tree: Tree<Device>,
}

/// The injection side of a domain.
pub struct MsiDomain<R: Reclaim = Slots> {
    pub(super) devices: Arc<Devices>,
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
    pub(super) fn find_or_make(&self, device: DeviceId, pin: &Pin) -> Result<Ref<Device>, Error> {
        let key = u64::from(device.0);
        let retired = &self.shared.dispatcher.retired;
        loop {
            let found = self.devices.tree.get_to_change(key, pin);
            if let Some(device) = found.and_then(Ref::try_new) {
                return Ok(device);
            }
            if !retired.counts.devices.add_below(self.shared.config.max_devices as usize) {
                return Err(Error::TooManyDevices);
            }
            let fresh = NonNull::from(Box::leak(Box::new(Device {
                count: RefCount::new(),
                link: AtomicPtr::new(ptr::null_mut()),
                id: device,
                // SAFETY: devices are freed by `collect`, or with the engine; the retired is there until then.
                events: unsafe { Tree::new(self.shared.config.event_bits.into(), retired) },
                domain: Arc::clone(&self.devices),
                retired: NonNull::from(retired),
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
            retired.counts.devices.sub(1);
            // SAFETY: never shared.
            drop(unsafe { Box::from_raw(fresh.as_ptr()) });
        }
    }
}
