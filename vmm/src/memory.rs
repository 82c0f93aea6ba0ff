//! The guest's memory.

use std::sync::Arc;

use anyhow::{Context, Result};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::map;

/// A handle to the guest's memory.
pub(crate) type Memory = Arc<GuestMemoryMmap<()>>;

/// Allocates `mib` MiB of memory.
pub(crate) fn new(mib: u64) -> Result<Memory> {
    let size = usize::try_from(mib << 20).context("too much memory")?;
    let ranges = [(GuestAddress(map::RAM), size)];
    Ok(Arc::new(GuestMemoryMmap::from_ranges(&ranges).context("allocating the guest's memory")?))
}

/// Registers the memory with a VM.
#[allow(unsafe_code)] // The kernel is told where our memory is.
pub(crate) fn register(vm: &VmFd, memory: &Memory) -> Result<()> {
    for (slot, region) in memory.iter().enumerate() {
        let host = memory.get_host_address(region.start_addr())?;
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the mapping is as long as the region says. Each thread that runs a vCPU has a
        // handle (`vcpu::Shared`) that it drops after its vCPU, and each thread that serves a queue
        // has one too, so the mapping exists for as long as the kernel may use it for the guest.
        // The guest may change this memory at any time; vm-memory's volatile accesses are made for
        // that.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    }
    Ok(())
}
