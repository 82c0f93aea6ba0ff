//! virtio over PCI (virtio 1.2, 4.1), without the legacy interface, and with MSI-X as the only
//! interrupt. A driver that does not enable MSI-X can poll the ISR status.
//!
//! Queue notifications are doorbells in the kernel. Each queue has a thread, which sends its own
//! interrupts.

use std::sync::{Arc, Once};

use anyhow::{Context, ensure};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::Function;
use super::common::{Asked, Common, QUEUE_SIZE, QueueRegisters};
use super::config::{Config, Identity};
use super::msix::Msix;
use crate::irq::IrqSender;
use crate::memory::Memory;
use crate::virtio::{Backend, Interrupt, Worker};

/// The offsets of the areas in the BAR.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const BAR_SIZE: u32 = 0x8000;
/// The distance between the queues' notification addresses, in bytes.
const NOTIFY_STRIDE: u32 = 4;

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// The offsets of the fields of `VIRTIO_PCI_CAP_PCI_CFG` (4.1.4.9) in the capability, and its
/// length.
const WINDOW_BAR: usize = 4;
const WINDOW_OFFSET: usize = 8;
const WINDOW_LENGTH: usize = 12;
const WINDOW_DATA: usize = 16;
const WINDOW_SIZE: u8 = 20;

/// Makes the guest's writes to an address ring an eventfd. The effect ends when the returned value
/// is dropped.
pub(crate) type MakeDoorbell = Box<dyn Fn(&EventFd, u64) -> anyhow::Result<Box<dyn Send>> + Send>;
/// Creates a thread's handle for interrupts.
pub(crate) type MakeSender = Box<dyn Fn() -> anyhow::Result<Box<dyn IrqSender>> + Send>;

/// A virtio device as a PCI function.
pub(crate) struct VirtioPci<B: Backend> {
    config: Config,
    msix_capability: usize,
    /// The offset of the capability that is a window to the BAR.
    window: usize,
    msix: Arc<Msix>,
    backend: Arc<B>,
    memory: Memory,
    make_doorbell: MakeDoorbell,
    make_sender: MakeSender,
    sender: Box<dyn IrqSender>,
    common: Common,
    /// One worker for each enabled queue, in the order of the queues, while the driver runs the
    /// device.
    workers: Vec<Worker>,
    kicks: Vec<(usize, EventFd)>,
    /// Empty if the BAR has no address. A doorbell is missing if the kernel accepts no more. A
    /// notification then comes here as a write to the BAR, and this code writes the eventfd.
    doorbells: Vec<Box<dyn Send>>,
}

/// The function's place in the machine.
pub(crate) struct Place {
    /// The function's device number on bus 0.
    pub(crate) number: u8,
    pub(crate) memory: Memory,
    pub(crate) make_doorbell: MakeDoorbell,
    pub(crate) make_sender: MakeSender,
}

impl<B: Backend> VirtioPci<B> {
    pub(crate) fn new(backend: B, place: Place) -> anyhow::Result<Self> {
        let Place { number, memory, make_doorbell, make_sender } = place;
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
        let fields = (WINDOW_OFFSET..usize::from(WINDOW_SIZE)).chain([WINDOW_BAR]);
        let writable: Vec<(usize, u8)> = fields.map(|at| (at, 0xff)).collect();
        let window = config.add_capability(9, &area(5, 0, 0, WINDOW_SIZE, &[0; 4]), &writable);
        let queues = backend.queues();
        // One vector for the configuration, one for each queue.
        let vectors = queues + 1;
        let mut msix = (vectors - 1).to_le_bytes().to_vec();
        // The lower bits name BAR 0.
        msix.extend((TABLE as u32).to_le_bytes());
        msix.extend((PENDING as u32).to_le_bytes());
        let msix_capability = config.add_capability(0x11, &msix, &[(3, 0xc0)]);
        Ok(Self {
            config,
            msix_capability,
            window,
            msix: Arc::new(Msix::new(vectors, u32::from(number) << 3)),
            common: Common::new(backend.features() | EVENT_IDX, queues),
            backend: Arc::new(backend),
            memory,
            make_doorbell,
            sender: make_sender()?,
            make_sender,
            workers: Vec::new(),
            kicks: Vec::new(),
            doorbells: Vec::new(),
        })
    }

    /// Starts the device: each queue that the driver has enabled gets its thread and its doorbell.
    fn start(&mut self) -> anyhow::Result<()> {
        for (n, registers) in self.common.queues().iter().enumerate() {
            if !registers.enabled {
                continue;
            }
            let mut queue = queue(registers)?;
            ensure!(queue.is_valid(&*self.memory), "the rings of queue {n} are not in memory");
            queue.set_event_idx(self.common.has(EVENT_IDX));
            let (msix, health) = (Arc::clone(&self.msix), Arc::clone(self.common.health()));
            let vector = Arc::clone(&registers.vector);
            let interrupt = Interrupt { msix, health, vector, sender: (self.make_sender)()? };
            let (backend, memory) = (Arc::clone(&self.backend), Arc::clone(&self.memory));
            let kick = EventFd::new(0)?;
            let worker = Worker::start(backend, queue, memory, kick.try_clone()?, interrupt);
            self.workers.push(worker.context("a queue's thread")?);
            self.kicks.push((n, kick));
        }
        self.place_doorbells();
        Ok(())
    }

    fn stop(&mut self) {
        self.doorbells.clear();
        self.workers.clear();
        self.kicks.clear();
    }

    /// Registers the doorbells of the served queues with the kernel, at the BAR's present address.
    fn place_doorbells(&mut self) {
        self.doorbells.clear();
        let Some((bar, _)) = self.config.bar() else { return };
        for (n, kick) in &self.kicks {
            let address = bar + NOTIFY + *n as u64 * u64::from(NOTIFY_STRIDE);
            // The address may also be in another function's BAR. If no doorbell is made, the bus
            // decides which function gets the guest's write.
            self.doorbells.extend((self.make_doorbell)(kick, address));
        }
    }

    fn asked(&mut self, asked: Asked) {
        match asked {
            Asked::Nothing => {}
            Asked::Start => {
                if let Err(e) = self.start() {
                    // Print it once only, as a guest can cause it again and again.
                    static SAID: Once = Once::new();
                    SAID.call_once(|| eprintln!("vgic-vmm: a virtio device does not start: {e:#}"));
                    self.stop();
                    self.common.health().fail(&self.msix, &*self.sender);
                }
            }
            Asked::Reset => {
                self.stop();
                self.common.reset();
                self.msix.clear_pending();
            }
        }
    }

    /// Returns the offset in the BAR and the length that the window shows, if the driver has set it
    /// up correctly.
    fn shown(&self) -> Option<(u64, usize)> {
        let word = |at| u64::from(self.config.u32(self.window + at));
        let (offset, length) = (word(WINDOW_OFFSET), word(WINDOW_LENGTH));
        let bar = word(WINDOW_BAR) & 0xff;
        let valid = bar == 0
            && [1, 2, 4].contains(&length)
            && offset.is_multiple_of(length)
            && offset < BAR_SIZE.into();
        valid.then_some((offset, length as usize))
    }

    /// Returns whether an access to configuration space touches the window's data.
    fn touches_window(&self, offset: usize, len: usize) -> bool {
        let data = self.window + WINDOW_DATA;
        offset < data + 4 && data < offset + len
    }
}

/// Creates a queue as the driver has described it.
fn queue(registers: &QueueRegisters) -> anyhow::Result<Queue> {
    let mut queue = Queue::new(QUEUE_SIZE)?;
    let halves = |at: u64| (Some(at as u32), Some((at >> 32) as u32));
    let [(desc, desc_high), (avail, avail_high), (used, used_high)] = registers.rings.map(halves);
    queue.set_size(registers.size);
    queue.set_desc_table_address(desc, desc_high);
    queue.set_avail_ring_address(avail, avail_high);
    queue.set_used_ring_address(used, used_high);
    queue.set_ready(true);
    Ok(queue)
}

/// Returns the body of a virtio capability (4.1.4) for a part of BAR 0.
fn area(kind: u8, offset: u64, length: u32, size: u8, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![size, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(rest);
    body
}

impl<B: Backend> Function for VirtioPci<B> {
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        if self.touches_window(offset, data.len())
            && let Some((at, length)) = self.shown()
        {
            let mut bytes = [0; 4];
            self.bar_read(at, &mut bytes[..length]);
            self.config.put(self.window + WINDOW_DATA, &bytes);
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) {
        let bar = self.config.bar();
        self.config.write(offset, data);
        if self.config.bar() != bar {
            self.place_doorbells();
        }
        let control = self.msix_capability + 2;
        if offset < control + 2 && control < offset + data.len() {
            self.msix.set_control(self.config.u16(control), &*self.sender);
        }
        if self.touches_window(offset, data.len())
            && let Some((at, length)) = self.shown()
        {
            let bytes = self.config.u32(self.window + WINDOW_DATA).to_le_bytes();
            self.bar_write(at, &bytes[..length]);
        }
    }

    fn bar(&self) -> Option<(u64, u64)> {
        self.config.bar()
    }

    fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            ..ISR => self.common.read(offset, data),
            ISR => data.iter_mut().take(1).for_each(|byte| *byte = self.common.health().take_isr()),
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
                let asked = self.common.write(offset, data);
                self.asked(asked);
            }
            // A write arrives here only if the kernel does not have the doorbell.
            NOTIFY..TABLE => {
                let queue = ((offset - NOTIFY) / u64::from(NOTIFY_STRIDE)) as usize;
                if let Some((_, kick)) = self.kicks.iter().find(|(n, _)| *n == queue) {
                    let _ = kick.write(1);
                }
            }
            TABLE..PENDING => self.msix.write_table(offset - TABLE, data, &*self.sender),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
