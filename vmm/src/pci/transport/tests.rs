use std::sync::Mutex;
use std::time::{Duration, Instant};

use vgic_kvm::msi::Msi;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::doorbell::lock;
use crate::{map, memory};

const DESCRIPTORS: u64 = map::RAM;
const AVAIL: u64 = map::RAM + 0x1000;
const USED: u64 = map::RAM + 0x2000;
const BAR0: usize = 0x10;
const COMMAND: usize = 4;

/// A device that accepts requests of any form.
struct Sink;

impl Backend for Sink {
    const TYPE: u16 = 4;
    const CLASS: [u8; 3] = [0xff, 0, 0];

    fn queues(&self) -> u16 {
        2
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        vec![1, 2, 3, 4, 5]
    }

    fn serve(
        &self,
        _: DescriptorChain<Memory>,
        _: &GuestMemoryMmap<()>,
        _: &std::sync::atomic::AtomicBool,
    ) -> u32 {
        7
    }
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Msi>>>);

impl IrqSender for Recorder {
    fn msi(&self, msi: &Msi) -> bool {
        lock(&self.0).push(*msi);
        true
    }

    fn line(&self, _: u32, _: bool) -> bool {
        true
    }
}

/// The addresses of the doorbells.
type Bells = Arc<Mutex<Vec<u64>>>;

struct Bell(Bells, u64);

impl Drop for Bell {
    fn drop(&mut self) {
        lock(&self.0).retain(|at| *at != self.1);
    }
}

struct World {
    device: VirtioPci<Sink>,
    memory: Memory,
    sent: Recorder,
    bells: Bells,
}

fn world() -> World {
    let (memory, sent, bells) = (memory::new(4).unwrap(), Recorder::default(), Bells::default());
    let (sender, made) = (sent.clone(), Arc::clone(&bells));
    let place = Place {
        number: 3,
        memory: Arc::clone(&memory),
        make_doorbell: Box::new(move |_, at| {
            lock(&made).push(at);
            Ok(Box::new(Bell(Arc::clone(&made), at)))
        }),
        make_sender: Box::new(move || Ok(Box::new(sender.clone()))),
    };
    World { device: VirtioPci::new(Sink, place).unwrap(), memory, sent, bells }
}

impl World {
    fn put(&mut self, offset: u64, data: &[u8]) {
        self.device.bar_write(offset, data);
    }

    fn get<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0xa5; N];
        self.device.bar_read(offset, &mut data);
        data
    }

    fn config_u32(&mut self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.device.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Returns the offsets of the capabilities with this number, in the order of the list.
    fn capabilities(&mut self, id: u8) -> Vec<usize> {
        let mut found = Vec::new();
        let mut at = self.config_u32(0x34) as usize & 0xff;
        while at != 0 {
            let [this, next, ..] = self.config_u32(at).to_le_bytes();
            if this == id {
                found.push(at);
            }
            at = next.into();
        }
        found
    }

    /// Describes and enables queue 1 correctly, and starts the device.
    fn start(&mut self, used: u64) -> u8 {
        self.put(0x14, &[3]);
        self.put(0x08, &[1, 0, 0, 0]);
        self.put(0x0c, &[1, 0, 0, 0]);
        self.put(0x14, &[0xb]);
        self.put(0x16, &[1, 0]);
        self.put(0x18, &[16, 0]);
        self.put(0x20, &DESCRIPTORS.to_le_bytes());
        self.put(0x28, &AVAIL.to_le_bytes());
        self.put(0x30, &used.to_le_bytes());
        self.put(0x1a, &[2, 0]);
        self.put(0x1c, &[1, 0]);
        self.put(0x14, &[0xf]);
        self.get::<1>(0x14)[0]
    }

    /// Makes one more request, and notifies the device through user space.
    fn request(&mut self) {
        let (index, memory) = (GuestAddress(AVAIL + 2), Arc::clone(&self.memory));
        let n: u16 = memory.read_obj(index).unwrap();
        memory.write_obj(1u64, GuestAddress(DESCRIPTORS)).unwrap();
        memory.write_obj(n + 1, index).unwrap();
        self.put(NOTIFY + 4, &[1, 0]);
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    fn wait(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < Duration::from_secs(20), "nothing happens");
            std::thread::yield_now();
        }
    }
}

#[test]
fn requests_are_served_and_told_by_the_vector_of_the_moment() {
    let mut world = world();
    let msix = world.capabilities(0x11)[0];
    world.device.config_write(msix + 2, &[0, 0x80]);
    for (vector, data) in [(1u64, 80u8), (2, 81)] {
        world.put(TABLE + 16 * vector, &[0x40, 0, 2, 8, 0, 0, 0, 0]);
        world.put(TABLE + 16 * vector + 8, &[data, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(world.start(USED), 0xf);
    assert_eq!(world.get::<2>(0x1c), [1, 0], "enabled is what it stays");
    world.request();
    world.wait(|world| lock(&world.sent.0).len() == 1);
    let msi = |data| Msi { address: 0x0802_0040, data, device: 24 };
    assert_eq!(*lock(&world.sent.0), [msi(81)]);
    // Change the vector while the queue is served.
    world.put(0x1a, &[1, 0]);
    world.request();
    world.wait(|world| lock(&world.sent.0).len() == 2);
    assert_eq!(lock(&world.sent.0)[1], msi(80));
    world.put(0x1a, &[0xff, 0xff]);
    world.request();
    world.wait(|world| world.used() == 3);
    assert_eq!(world.get::<1>(ISR), [0], "it has MSI-X");
    world.put(0x14, &[0]);
    assert_eq!(world.get::<1>(0x14), [0]);
    world.put(0x16, &[1, 0]);
    assert_eq!(world.get::<4>(0x18), [0, 1, 0, 0], "its first size");
    assert_eq!(world.get::<2>(0x1a), [0xff, 0xff]);
    assert_eq!(lock(&world.sent.0).len(), 2, "no vector, no message");
    // Make another request.
    world.memory.write_obj(0u32, GuestAddress(AVAIL)).unwrap();
    world.memory.write_obj(0u32, GuestAddress(USED)).unwrap();
    assert_eq!(world.start(USED), 0xf);
    world.request();
    world.wait(|world| world.used() == 1);
}

#[test]
fn without_msix_the_isr_status_tells() {
    let mut world = world();
    assert_eq!(world.start(USED), 0xf);
    world.request();
    world.wait(|world| world.get::<1>(ISR) == [1]);
    assert_eq!(world.get::<1>(ISR), [0], "a read clears it");
    assert!(lock(&world.sent.0).is_empty());
    // There is no INTx, so no interrupt pin.
    assert_eq!(world.config_u32(0x3c) >> 8 & 0xff, 0);
}

#[test]
fn rings_that_are_nowhere_need_a_reset() {
    let mut world = world();
    assert_eq!(world.start(0x1000), 0x4f);
    assert_eq!(world.get::<1>(ISR), [2]);
    assert!(world.device.workers.is_empty());
    world.put(0x14, &[0]);
    assert_eq!(world.start(USED), 0xf);
}

#[test]
fn doorbells_are_where_the_bar_is() {
    let mut world = world();
    let bells = Arc::clone(&world.bells);
    let bells = || lock(&bells).clone();
    assert_eq!(world.start(USED), 0xf);
    assert!(bells().is_empty(), "the BAR is nowhere");
    world.device.config_write(BAR0, &0x1000_8000u32.to_le_bytes());
    assert!(bells().is_empty());
    world.device.config_write(COMMAND, &[6, 0]);
    assert_eq!(bells(), [0x1000_8000 + NOTIFY + 4]);
    world.device.config_write(BAR0, &0x1001_0000u32.to_le_bytes());
    assert_eq!(bells(), [0x1001_0000 + NOTIFY + 4]);
    world.device.config_write(COMMAND, &[4, 0]);
    assert!(bells().is_empty());
    world.device.config_write(COMMAND, &[6, 0]);
    world.put(0x14, &[0]);
    assert!(bells().is_empty());
}

#[test]
fn capabilities_say_where_things_are() {
    let mut world = world();
    let all = world.capabilities(9);
    let fields = all.iter().map(|&at| {
        let [head, _, offset, length] = [0, 4, 8, 12].map(|n| world.config_u32(at + n));
        (head >> 24, head >> 16 & 0xff, offset, length)
    });
    let fields: Vec<_> = fields.collect();
    let areas = [(1, 16, COMMON), (3, 16, ISR), (4, 16, DEVICE), (2, 20, NOTIFY)];
    let expected: Vec<_> =
        areas.iter().map(|&(kind, size, at)| (kind, size, at as u32, 0x1000)).collect();
    assert_eq!(fields[..4], expected);
    assert_eq!((fields[4].0, fields[4].1), (5, 20));
    let msix = world.capabilities(0x11)[0];
    let [control, table, pending] = [0, 4, 8].map(|n| world.config_u32(msix + n));
    assert_eq!((control >> 16, table, pending), (2, TABLE as u32, PENDING as u32));
    // Read the size of the BAR.
    world.device.config_write(BAR0, &[0xff; 4]);
    assert_eq!(world.config_u32(BAR0), !(BAR_SIZE - 1));
    assert_eq!(world.config_u32(BAR0 + 4), 0, "no other BAR");
}

#[test]
fn the_window_shows_the_bar() {
    let mut world = world();
    let window = world.capabilities(9)[4];
    let show = |world: &mut World, bar: u8, offset: u32, length: u32| {
        world.device.config_write(window + WINDOW_BAR, &[bar]);
        world.device.config_write(window + WINDOW_OFFSET, &offset.to_le_bytes());
        world.device.config_write(window + WINDOW_LENGTH, &length.to_le_bytes());
    };
    show(&mut world, 0, DEVICE as u32, 4);
    assert_eq!(world.config_u32(window + WINDOW_DATA), 0x0403_0201);
    show(&mut world, 0, 0x12, 2);
    assert_eq!(world.config_u32(window + WINDOW_DATA), 2);
    show(&mut world, 0, 0x14, 1);
    world.device.config_write(window + WINDOW_DATA, &[3]);
    assert_eq!(world.get::<1>(0x14), [3]);
    for (bar, offset, length) in [(1, 0x14, 1), (0, 0x14, 3), (0, 0x15, 4), (0, BAR_SIZE, 4)] {
        show(&mut world, bar, offset, length);
        world.device.config_write(window + WINDOW_DATA, &[0xb; 4]);
        assert_eq!(world.get::<1>(0x14), [3], "{bar} {offset:#x} {length}");
        assert_eq!(world.config_u32(window + WINDOW_DATA), 0x0b0b_0b0b);
    }
}

#[test]
fn no_access_is_too_odd() {
    let mut world = world();
    assert_eq!(world.start(USED), 0xf);
    for offset in (0..u64::from(BAR_SIZE)).filter(|at| at & 0xfff < 0x60 || at & 0xfff > 0xff0) {
        for len in [1, 2, 4, 8] {
            let mut data = [0xff; 8];
            world.device.bar_read(offset, &mut data[..len]);
            world.device.bar_write(offset, &[0x5a; 8][..len]);
        }
    }
    for offset in 0..0x110 {
        for len in [1, 2, 4, 8] {
            let mut data = [0; 8];
            world.device.config_read(offset, &mut data[..len]);
            world.device.config_write(offset, &[0xff; 8][..len]);
        }
    }
    world.put(0x14, &[0]);
    assert_eq!(world.get::<1>(0x14), [0]);
}
