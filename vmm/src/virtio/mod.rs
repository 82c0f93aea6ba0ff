//! virtio devices: a thread for each queue.

pub(crate) mod blk;
pub(crate) mod rng;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::Result;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::irq::IrqSender;
use crate::memory::Memory;
use crate::pci::msix::Msix;

/// A request of the driver.
pub(crate) type Chain = DescriptorChain<Memory>;
/// What is behind [`Memory`].
pub(crate) type Backing = GuestMemoryMmap<()>;

/// What makes a device of its kind.
pub(crate) trait Backend: Send + Sync + 'static {
    /// The virtio device number.
    const TYPE: u16;
    /// PCI class, subclass, programming interface.
    const CLASS: [u8; 3];

    /// Number of queues.
    fn queues(&self) -> u16;

    /// Feature bits of its kind.
    fn features(&self) -> u64;

    /// Its configuration structure.
    fn config(&self) -> Vec<u8>;

    /// Serves a request. Returns the number of bytes written for the driver.
    fn serve(&self, chain: Chain, memory: &Backing) -> u32;
}

/// A queue's interrupt.
pub(crate) struct Interrupt {
    pub(crate) msix: Arc<Msix>,
    pub(crate) vector: u16,
    pub(crate) sender: Box<dyn IrqSender>,
}

impl Interrupt {
    fn fire(&self) {
        self.msix.fire(self.vector, &*self.sender);
    }
}

/// A queue's thread, which ends when this is dropped.
pub(crate) struct Worker {
    stop: Arc<AtomicBool>,
    kick: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(crate) fn start<B: Backend>(
        backend: Arc<B>,
        mut queue: Queue,
        memory: Memory,
        kick: EventFd,
        interrupt: Interrupt,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, kicked) = (Arc::clone(&stop), kick.try_clone()?);
        let thread = thread::Builder::new().name("virtio".into()).spawn(move || {
            loop {
                if let Err(e) = drain(&*backend, &mut queue, &memory, &interrupt) {
                    // A driver that breaks the rules gets no more service.
                    eprintln!("vgic-vmm: a virtio queue stops: {e}");
                    return;
                }
                // Acquire: pairs with `drop`.
                if kicked.read().is_err() || stopped.load(Ordering::Acquire) {
                    return;
                }
            }
        })?;
        Ok(Self { stop, kick, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Release: pairs with the thread's look after it was woken.
        self.stop.store(true, Ordering::Release);
        if self.kick.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Serves what is there, until there is nothing.
fn drain<B: Backend>(
    backend: &B,
    queue: &mut Queue,
    memory: &Memory,
    interrupt: &Interrupt,
) -> Result<(), virtio_queue::Error> {
    loop {
        queue.disable_notification(&**memory)?;
        while let Some(chain) = queue.pop_descriptor_chain(Arc::clone(memory)) {
            let head = chain.head_index();
            let written = backend.serve(chain, memory);
            queue.add_used(&**memory, head, written)?;
            if queue.needs_notification(&**memory)? {
                interrupt.fire();
            }
        }
        if !queue.enable_notification(&**memory)? {
            return Ok(());
        }
    }
}
