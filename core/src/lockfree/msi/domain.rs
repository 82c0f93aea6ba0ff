//! The devices of an MSI domain and their events, which translate an MSI to an LPI, and the
//! injection side of the domain.
//!
//! Models: `lifetime_tree`, `lifetime_refs`, `lifetime_handles`.

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

/// A device, with its events.
pub(crate) struct Device {
    count: RefCount,
    /// The next object in the list of retired objects.
    pub(crate) link: AtomicPtr<()>,
    id: DeviceId,
    pub(super) events: Tree<Irq>,
    domain: Arc<Devices>,
    retired: NonNull<RetiredList>,
    canary: Canary,
}

// SAFETY: every field is atomic or constant, and `retired`, which is Sync, outlives the device (see
// `MsiDomain::find_or_make`).
unsafe impl Send for Device {}

// SAFETY: as above.
unsafe impl Sync for Device {}

impl Counted for Device {
    fn count(&self) -> &RefCount {
        self.canary.touch();
        &self.count
    }

    unsafe fn retire(this: NonNull<Self>) {
        // SAFETY: dead but not yet in the list of retired objects, so it is the caller's alone; the
        // list outlives it.
        let retired = unsafe { this.as_ref().retired.as_ref() };
        retired.push_device(this);
    }
}

impl Device {
    /// Called once, right before the memory is freed.
    pub(crate) fn freed(&mut self) {
        self.canary.bury();
        // In a model the device's memory stays, but its nodes must no longer be counted.
        self.events.clear(&mut |_| ());
    }

    /// Takes a dead device out of its domain.
    pub(crate) fn unlink(&self, pin: &Pin) {
        let _ = self.domain.tree.remove(self.id.0.into(), NonNull::from(self), pin);
    }

    /// The LPI that an event is mapped to.
    fn event<'p>(&'p self, event: EventId, pin: &'p Pin) -> Option<&'p Irq> {
        self.canary.touch();
        self.events.get(event.0.into(), pin)
    }

    /// The LPI of an event, for a caller that is going to change the event's slot.
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
    /// After `devices`, which point into the engine that this field keeps alive.
    pub(crate) shared: Arc<Shared<R>>,
}

impl<R: Reclaim> Clone for MsiDomain<R> {
    fn clone(&self) -> Self {
        Self { devices: Arc::clone(&self.devices), shared: Arc::clone(&self.shared) }
    }
}

impl<R: Reclaim> MsiDomain<R> {
    /// The LPI that an event of a device is mapped to.
    #[inline]
    pub(crate) fn translate<'p>(
        &'p self,
        device: DeviceId,
        event: EventId,
        pin: &'p Pin,
    ) -> Option<&'p Irq> {
        self.devices.tree.get(device.0.into(), pin)?.event(event, pin)
    }

    /// Returns a reference to a device, which is made if there is none.
    ///
    /// # Errors
    /// [`Error::TooManyDevices`].
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
                // SAFETY: devices are freed by `collect`, or with the engine; `retired` exists
                // until then.
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
