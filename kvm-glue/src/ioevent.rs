//! Doorbells: writes of the guest that ring an eventfd instead of leaving KVM_RUN.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::Error;
use crate::error::kvm;

/// A doorbell, for as long as this lives.
pub struct IoEvent {
    vm: Arc<VmFd>,
    fd: EventFd,
    address: u64,
    data: Option<u32>,
}

impl IoEvent {
    /// Rings `fd` when the guest writes to `address`: anything of any size, or the 32-bit value `data`.
    ///
    /// # Errors
    /// [`Error::Kvm`] if there is such a doorbell already, or too many; [`Error::Io`].
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
        // Fails only if the VM is gone.
        let _ = match self.data {
            Some(data) => self.vm.unregister_ioevent(&self.fd, &at, data),
            None => self.vm.unregister_ioevent(&self.fd, &at, NoDatamatch),
        };
    }
}
