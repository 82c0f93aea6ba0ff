//! Doorbells: guest writes that signal an eventfd instead of causing an exit from `KVM_RUN`.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::Error;
use crate::error::kvm;

/// A registered doorbell. Dropping it unregisters the doorbell.
pub struct IoEvent {
    vm: Arc<VmFd>,
    fd: EventFd,
    address: u64,
    data: Option<u32>,
}

impl IoEvent {
    /// Registers a doorbell: a guest write to `address` signals `fd`. With `data`, only 32-bit
    /// writes of that value match; with `None`, writes of any size and value match.
    ///
    /// # Errors
    /// [`Error::Kvm`] if the doorbell exists already or KVM's limit is reached; [`Error::Io`] if
    /// `fd` cannot be duplicated.
    pub fn new(
        vm: &Arc<VmFd>,
        fd: &EventFd,
        address: u64,
        data: Option<u32>,
    ) -> Result<Self, Error> {
        let fd = fd.try_clone()?;
        let at = IoEventAddress::Mmio(address);
        let done = match data {
            Some(data) => vm.register_ioevent(&fd, &at, data),
            None => vm.register_ioevent(&fd, &at, NoDatamatch),
        };
        done.map_err(kvm("registering a doorbell (KVM_IOEVENTFD)"))?;
        Ok(Self { vm: Arc::clone(vm), fd, address, data })
    }
}

impl Drop for IoEvent {
    fn drop(&mut self) {
        let at = IoEventAddress::Mmio(self.address);
        // This fails only if the VM is gone.
        let _ = match self.data {
            Some(data) => self.vm.unregister_ioevent(&self.fd, &at, data),
            None => self.vm.unregister_ioevent(&self.fd, &at, NoDatamatch),
        };
    }
}
