//! virtio devices, with a thread for each queue.

pub(crate) mod blk;
pub(crate) mod rng;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Once};
use std::thread::{self, JoinHandle};

use anyhow::Result;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::irq::IrqSender;
use crate::memory::Memory;
use crate::pci::msix::Msix;

/// A request of the driver.
pub(crate) type Chain = DescriptorChain<Memory>;
/// The type behind [`Memory`].
pub(crate) type Backing = GuestMemoryMmap<()>;

/// The part of a device that depends on its kind.
pub(crate) trait Backend: Send + Sync + 'static {
    /// The virtio device number.
    const TYPE: u16;
    /// PCI class, subclass, programming interface.
    const CLASS: [u8; 3];

    /// Returns the number of queues.
    fn queues(&self) -> u16;

    /// Returns the feature bits of this kind of device.
    fn features(&self) -> u64;

    /// Returns the device's configuration structure.
    fn config(&self) -> Vec<u8>;

    /// Serves a request. Returns the number of bytes written for the driver. A long request ends
    /// soon after `stop` is set, as a reset of the device waits for it.
    fn serve(&self, chain: Chain, memory: &Backing, stop: &AtomicBool) -> u32;
}

/// Bits of the ISR status.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// The state that a device's threads report to its transport.
#[derive(Debug)]
pub(crate) struct Health {
    needs_reset: AtomicBool,
    /// The vector for changes of the configuration. A need for a reset is such a change.
    pub(crate) config_vector: AtomicU16,
    /// The ISR status (virtio 1.2, 4.1.4.5), for drivers that have not enabled MSI-X.
    isr: AtomicU8,
}

impl Health {
    pub(crate) fn new(config_vector: u16) -> Self {
        let config_vector = AtomicU16::new(config_vector);
        Self { needs_reset: AtomicBool::new(false), config_vector, isr: AtomicU8::new(0) }
    }

    /// Returns whether a queue has stopped, so that the driver has to reset the device.
    pub(crate) fn needs_reset(&self) -> bool {
        // Acquire: pairs with `fail`.
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Tells the driver that it has to reset the device (2.1.2).
    pub(crate) fn fail(&self, msix: &Msix, sender: &dyn IrqSender) {
        // Release: pairs with `needs_reset`, which the driver reads after the interrupt.
        self.needs_reset.store(true, Ordering::Release);
        // AcqRel: pairs with `take_isr`.
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        // Relaxed: only the value matters.
        msix.fire(self.config_vector.load(Ordering::Relaxed), sender);
    }

    /// Reads and clears the ISR status.
    pub(crate) fn take_isr(&self) -> u8 {
        // AcqRel: pairs with the writes that set bits, so that the driver sees the events that they
        // announce.
        self.isr.swap(0, Ordering::AcqRel)
    }
}

/// A queue's interrupt.
pub(crate) struct Interrupt {
    pub(crate) msix: Arc<Msix>,
    pub(crate) health: Arc<Health>,
    /// The driver may change it at any time.
    pub(crate) vector: Arc<AtomicU16>,
    pub(crate) sender: Box<dyn IrqSender>,
}

impl Interrupt {
    fn fire(&self) {
        // Relaxed: only the value matters.
        let vector = self.vector.load(Ordering::Relaxed);
        if !self.msix.fire(vector, &*self.sender) {
            // AcqRel: pairs with `Health::take_isr`.
            self.health.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        }
    }
}

/// If a queue's thread panics, its queue is no longer served. The driver is told, as for any other
/// failure.
impl Drop for Interrupt {
    fn drop(&mut self) {
        if thread::panicking() {
            self.health.fail(&self.msix, &*self.sender);
        }
    }
}

/// A queue's thread. Dropping this ends the thread.
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
                if let Err(e) = drain(&*backend, &mut queue, &memory, &interrupt, &stopped) {
                    // A driver that breaks the rules gets no more service. Print it once only, as a
                    // guest can cause it again and again.
                    static SAID: Once = Once::new();
                    SAID.call_once(|| eprintln!("vgic-vmm: a virtio queue stops: {e}"));
                    interrupt.health.fail(&interrupt.msix, &*interrupt.sender);
                    return;
                }
                // Acquire: pairs with `drop`.
                if stopped.load(Ordering::Acquire) || kicked.read().is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { stop, kick, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Release: pairs with the thread's loads of `stop`, one of which follows its wake-up.
        self.stop.store(true, Ordering::Release);
        if self.kick.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// Serves requests until there are none, or until `stop` is set, as a driver can make requests
/// without end.
fn drain<B: Backend>(
    backend: &B,
    queue: &mut Queue,
    memory: &Memory,
    interrupt: &Interrupt,
    stop: &AtomicBool,
) -> Result<(), Error> {
    // Whether the ring's index says that there is a request.
    let mut more = false;
    // Acquire, here and below: pairs with `Worker::drop`.
    while !stop.load(Ordering::Acquire) {
        queue.disable_notification(&**memory)?;
        // `pop_descriptor_chain` is not used: it treats an impossible index as no request.
        while let Some(chain) = queue.iter(Arc::clone(memory))?.next() {
            more = false;
            let head = chain.head_index();
            let written = backend.serve(chain, memory, stop);
            queue.add_used(&**memory, head, written)?;
            if queue.needs_notification(&**memory)? {
                interrupt.fire();
            }
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
        }
        if more {
            // The request cannot be read, and a retry would not end.
            return Err(Error::InvalidAvailRingIndex);
        }
        more = queue.enable_notification(&**memory)?;
        if !more {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use vgic_kvm::msi::Msi;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::{map, memory};

    const DESCRIPTORS: u64 = map::RAM;
    const AVAIL: u64 = map::RAM + 0x1000;
    const USED: u64 = map::RAM + 0x2000;
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Takes requests, and may put the same one into the ring again before it completes it.
    struct Sink {
        memory: Memory,
        endless: bool,
        panics: bool,
    }

    impl Backend for Sink {
        const TYPE: u16 = 4;
        const CLASS: [u8; 3] = [0xff, 0, 0];

        fn queues(&self) -> u16 {
            1
        }

        fn features(&self) -> u64 {
            0
        }

        fn config(&self) -> Vec<u8> {
            Vec::new()
        }

        fn serve(&self, _: Chain, _: &Backing, _: &AtomicBool) -> u32 {
            assert!(!self.panics, "as it is to be in this test");
            if self.endless {
                let at = GuestAddress(AVAIL + 2);
                let index: u16 = self.memory.read_obj(at).unwrap();
                self.memory.write_obj(index.wrapping_add(1), at).unwrap();
            }
            0
        }
    }

    struct Nobody;
    impl IrqSender for Nobody {
        fn msi(&self, _: &Msi) -> bool {
            true
        }

        fn line(&self, _: u32, _: bool) -> bool {
            true
        }
    }

    /// Starts a worker on a queue of 16 entries with `index` as the index in the ring.
    fn worker(index: u16, endless: bool, panics: bool) -> (Worker, Arc<Health>, Memory) {
        let memory = memory::new(4).unwrap();
        let mut queue = Queue::new(16).unwrap();
        queue.set_size(16);
        queue.set_desc_table_address(Some(DESCRIPTORS as u32), None);
        queue.set_avail_ring_address(Some(AVAIL as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_ready(true);
        memory.write_obj(index, GuestAddress(AVAIL + 2)).unwrap();
        let health = Arc::new(Health::new(0xffff));
        let interrupt = Interrupt {
            msix: Arc::new(Msix::new(2, 8)),
            health: Arc::clone(&health),
            vector: Arc::new(AtomicU16::new(0)),
            sender: Box::new(Nobody),
        };
        let worker = Worker::start(
            Arc::new(Sink { memory: Arc::clone(&memory), endless, panics }),
            queue,
            Arc::clone(&memory),
            EventFd::new(0).unwrap(),
            interrupt,
        );
        (worker.unwrap(), health, memory)
    }

    /// Drops the worker, and returns whether that ends in time.
    fn ends(worker: Worker) -> bool {
        let (done, ended) = channel();
        thread::spawn(move || {
            drop(worker);
            let _ = done.send(());
        });
        ended.recv_timeout(PATIENCE).is_ok()
    }

    fn wait(done: impl Fn() -> bool) {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < PATIENCE, "nothing happens");
            thread::yield_now();
        }
    }

    #[test]
    fn an_index_that_cannot_be_stops_the_queue() {
        let (worker, health, _) = worker(300, false, false);
        wait(|| health.needs_reset());
        assert!(ends(worker), "the queue's thread goes on");
    }

    #[test]
    fn a_thread_that_panics_is_a_failure_that_is_told() {
        let (worker, health, _) = worker(1, false, true);
        wait(|| health.needs_reset());
        assert_eq!(health.take_isr(), ISR_CONFIG);
        assert!(ends(worker));
    }

    #[test]
    fn a_driver_that_never_ends_does_not_keep_the_thread() {
        let (worker, health, memory) = worker(1, true, false);
        wait(|| memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap() > 100);
        assert!(ends(worker), "the queue's thread goes on");
        assert!(!health.needs_reset());
    }
}
