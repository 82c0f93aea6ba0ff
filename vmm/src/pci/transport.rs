//! virtio over PCI (virtio 1.2, 4.1), without the legacy interface and with MSI-X as the only interrupt.
//!
//! Queue notifications are doorbells in the kernel ([`IoEvent`]); each queue has a thread, which sends its own interrupts.
//! Not there: VIRTIO_PCI_CAP_PCI_CFG, which is for firmware that cannot map BARs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_ioctls::VmFd;
use vgic_kvm::ioevent::IoEvent;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::Function;
use super::config::{Config, Identity};
use super::msix::Msix;
use crate::irq::IrqSender;
use crate::memory::Memory;
use crate::virtio::{Backend, Health, Interrupt, Worker};

/// What is where in the BAR.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const BAR_SIZE: u32 = 0x8000;
/// Bytes between the queues' notification addresses.
const NOTIFY_STRIDE: u32 = 4;
/// "No vector".
const NO_VECTOR: u16 = 0xffff;
/// Most entries of a queue.
const QUEUE_SIZE: u16 = 256;

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// The function.
pub(crate) struct VirtioPci<B: Backend> {
    config: Config,
    msix_capability: usize,
    msix: Arc<Msix>,
    backend: Arc<B>,
    memory: Memory,
    vm: Arc<VmFd>,
    /// Makes a thread's handle for interrupts.
    senders: Box<dyn Fn() -> anyhow::Result<Box<dyn IrqSender>> + Send>,
    sender: Box<dyn IrqSender>,
    queues: Vec<Queue>,
    vectors: Vec<u16>,
    health: Arc<Health>,
    selected: u16,
    feature_select: [u32; 2],
    features: u64,
    status: u8,
    /// While the driver runs the device.
    workers: Vec<Worker>,
    doorbells: Vec<IoEvent>,
    kicks: Vec<EventFd>,
}

/// What a function needs of the machine.
pub(crate) struct Place {
    /// Its device number on bus 0.
    pub(crate) number: u8,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) memory: Memory,
    pub(crate) senders: Box<dyn Fn() -> anyhow::Result<Box<dyn IrqSender>> + Send>,
}

impl<B: Backend> VirtioPci<B> {
    pub(crate) fn new(backend: B, place: Place) -> anyhow::Result<Self> {
        let Place { number, vm, memory, senders } = place;
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1040 + B::TYPE,
            revision: 1,
            class: B::CLASS,
            subsystem: 0x40,
        };
        let mut config = Config::new(identity, BAR_SIZE);
        let areas = [(1u8, COMMON, 0x1000u32), (3, ISR, 0x1000), (4, DEVICE, 0x1000)];
        for (kind, offset, length) in areas {
            config.add_capability(9, &area(kind, offset, length, 16, &[]), &[]);
        }
        let stride = NOTIFY_STRIDE.to_le_bytes();
        config.add_capability(9, &area(2, NOTIFY, 0x1000, 20, &stride), &[]);
        let queues = backend.queues();
        // One for the configuration, one for each queue.
        let vectors = queues + 1;
        let mut msix = (vectors - 1).to_le_bytes().to_vec();
        // BAR 0 in the lower bits.
        msix.extend((TABLE as u32).to_le_bytes());
        msix.extend((PENDING as u32).to_le_bytes());
        let msix_capability = config.add_capability(0x11, &msix, &[(3, 0xc0)]);
        let queue = |_| Queue::new(QUEUE_SIZE).map_err(anyhow::Error::from);
        let queues: Vec<_> = (0..queues).map(queue).collect::<anyhow::Result<_>>()?;
        Ok(Self {
            config,
            msix_capability,
            msix: Arc::new(Msix::new(vectors, u32::from(number) << 3)),
            backend: Arc::new(backend),
            memory,
            vm,
            sender: senders()?,
            senders,
            vectors: vec![NO_VECTOR; queues.len()],
            queues,
            health: Arc::new(Health::new(NO_VECTOR)),
            selected: 0,
            feature_select: [0; 2],
            features: 0,
            status: 0,
            workers: Vec::new(),
            doorbells: Vec::new(),
            kicks: Vec::new(),
        })
    }

    fn offered(&self) -> u64 {
        self.backend.features() | VERSION_1 | EVENT_IDX
    }

    /// The device status: what the driver has written, and whether it has to start over.
    fn status(&self) -> u8 {
        self.status | if self.health.needs_reset() { NEEDS_RESET } else { 0 }
    }

    fn queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.selected))
    }

    /// A register of the common configuration (4.1.4.3): its value, by its offset.
    fn common(&mut self, offset: u64) -> u64 {
        let half = |value: u64, select: u32| match select {
            0 => value & 0xffff_ffff,
            1 => value >> 32,
            _ => 0,
        };
        let selected = usize::from(self.selected);
        match offset {
            0x00 => self.feature_select[0].into(),
            0x04 => half(self.offered(), self.feature_select[0]),
            0x08 => self.feature_select[1].into(),
            0x0c => half(self.features, self.feature_select[1]),
            0x10 => self.health.config_vector.load(Ordering::Relaxed).into(),
            0x12 => self.queues.len() as u64,
            0x14 => self.status().into(),
            0x16 => self.selected.into(),
            0x18 => self.queue().map_or(0, |q| q.size().into()),
            0x1a => self.vectors.get(selected).copied().unwrap_or(NO_VECTOR).into(),
            0x1c => self.queue().is_some_and(|q| q.ready()).into(),
            0x1e => self.selected.into(),
            0x20 => self.queue().map_or(0, |q| q.desc_table()),
            0x24 => self.queue().map_or(0, |q| q.desc_table() >> 32),
            0x28 => self.queue().map_or(0, |q| q.avail_ring()),
            0x2c => self.queue().map_or(0, |q| q.avail_ring() >> 32),
            0x30 => self.queue().map_or(0, |q| q.used_ring()),
            0x34 => self.queue().map_or(0, |q| q.used_ring() >> 32),
            _ => 0,
        }
    }

    fn set_common(&mut self, offset: u64, value: u32) {
        let (count, selected) = (self.queues.len(), usize::from(self.selected));
        // A vector that does not exist is refused by showing "no vector" (4.1.5.1.2).
        let vector = if usize::from(value as u16) <= count { value as u16 } else { NO_VECTOR };
        match offset {
            0x00 => self.feature_select[0] = value,
            0x08 => self.feature_select[1] = value,
            0x0c => {
                let old = self.features;
                self.features = match self.feature_select[1] {
                    0 => old & !0xffff_ffff | u64::from(value),
                    1 => old & 0xffff_ffff | u64::from(value) << 32,
                    _ => old,
                } & self.offered();
            }
            // Relaxed, above and here: nothing but the value.
            0x10 => self.health.config_vector.store(vector, Ordering::Relaxed),
            0x14 => self.set_status(value as u8),
            0x16 => self.selected = value as u16,
            0x1a => {
                if let Some(entry) = self.vectors.get_mut(selected) {
                    *entry = vector;
                }
            }
            _ if self.status & DRIVER_OK != 0 => {}
            _ => {
                if let Some(queue) = self.queue() {
                    set_queue(queue, offset, value);
                }
            }
        }
    }

    fn set_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        let starts = value & !self.status & DRIVER_OK != 0;
        self.status |= value;
        if starts && let Err(e) = self.start() {
            eprintln!("vgic-vmm: a virtio device does not start: {e:#}");
            self.status |= NEEDS_RESET;
        }
    }

    /// The driver is ready: each queue gets its doorbell and its thread.
    fn start(&mut self) -> anyhow::Result<()> {
        let (bar, _) = self.config.bar().unwrap_or((0, 0));
        for (n, queue) in self.queues.iter_mut().enumerate() {
            let kick = EventFd::new(0)?;
            if queue.ready() && queue.is_valid(&*self.memory) {
                queue.set_event_idx(self.features & EVENT_IDX != 0);
                let address = bar + NOTIFY + n as u64 * u64::from(NOTIFY_STRIDE);
                self.doorbells.push(IoEvent::new(&self.vm, &kick, address, None)?);
                let interrupt = Interrupt {
                    msix: Arc::clone(&self.msix),
                    vector: self.vectors[n],
                    sender: (self.senders)()?,
                };
                let queue = std::mem::replace(queue, Queue::new(QUEUE_SIZE)?);
                let (backend, memory) = (Arc::clone(&self.backend), Arc::clone(&self.memory));
                let (kick, health) = (kick.try_clone()?, Arc::clone(&self.health));
                let worker = Worker::start(backend, queue, memory, kick, interrupt, health)?;
                self.workers.push(worker);
            }
            self.kicks.push(kick);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.doorbells.clear();
        self.workers.clear();
        self.kicks.clear();
        self.queues.iter_mut().for_each(Queue::reset);
        self.vectors.fill(NO_VECTOR);
        // Another one: no thread has the old one now.
        self.health = Arc::new(Health::new(NO_VECTOR));
        (self.selected, self.feature_select, self.features, self.status) = (0, [0; 2], 0, 0);
    }
}

/// The body of a virtio capability (4.1.4) for a part of BAR 0.
fn area(kind: u8, offset: u64, length: u32, size: u8, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![size, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(rest);
    body
}

/// A register of a queue.
fn set_queue(queue: &mut Queue, offset: u64, value: u32) {
    match offset {
        0x18 => queue.set_size(value as u16),
        0x1c => queue.set_ready(value & 1 != 0),
        0x20 => queue.set_desc_table_address(Some(value), None),
        0x24 => queue.set_desc_table_address(None, Some(value)),
        0x28 => queue.set_avail_ring_address(Some(value), None),
        0x2c => queue.set_avail_ring_address(None, Some(value)),
        0x30 => queue.set_used_ring_address(Some(value), None),
        0x34 => queue.set_used_ring_address(None, Some(value)),
        _ => {}
    }
}

impl<B: Backend> Function for VirtioPci<B> {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        let control = self.msix_capability + 2;
        if offset < control + 2 && control < offset + data.len() {
            self.msix.control(self.config.u16(control), &*self.sender);
        }
    }

    fn bar(&self) -> Option<(u64, u64)> {
        self.config.bar()
    }

    fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            ..ISR => {
                let value = self.common(offset);
                data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
            }
            // With MSI-X there is nothing to tell.
            ISR..DEVICE => {}
            DEVICE..NOTIFY => {
                let config = self.backend.config();
                let from = config.get((offset - DEVICE) as usize..).unwrap_or(&[]);
                data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
            TABLE..PENDING => self.msix.read_table(offset - TABLE, data),
            PENDING.. => self.msix.read_pending(offset - PENDING, data),
            _ => {}
        }
    }

    fn bar_write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            ..ISR => {
                // 64-bit fields may be written at once.
                for (n, bytes) in data.chunks(4).enumerate() {
                    let mut word = [0; 4];
                    word[..bytes.len()].copy_from_slice(bytes);
                    self.set_common(offset + 4 * n as u64, u32::from_le_bytes(word));
                }
            }
            // The kernel rings the doorbell, except before the driver is ready, or if the BAR has been moved.
            NOTIFY..TABLE => {
                let queue = (offset - NOTIFY) / u64::from(NOTIFY_STRIDE);
                if let Some(kick) = self.kicks.get(queue as usize) {
                    let _ = kick.write(1);
                }
            }
            TABLE..PENDING => self.msix.write_table(offset - TABLE, data, &*self.sender),
            _ => {}
        }
    }
}
