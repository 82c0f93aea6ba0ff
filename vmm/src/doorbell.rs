//! The lab's doorbell: a device that drives interrupt lines, and sends storms of MSIs from threads
//! of the VMM. `lab/guests/DOORBELL.md` specifies it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vgic_kvm::msi::Msi;
use vm_device::MutDeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::accounts::{Accounts, Described};
use crate::irq::{IrqSender, Irqs};
use crate::memory::Memory;

/// The maximum number of interrupt handles: the device's own, and one for each thread of a storm. A
/// storm for which there is no handle is refused.
pub(crate) const SENDERS: usize = 1 + 64;

const ID: u32 = 0x4c41_4244;
const LINE: u64 = 0x04;
const STATUS: u64 = 0x08;
const GO: u64 = 0x40;
const DELIVERED: u64 = 0x44;
/// Registers without an effect of their own: THREADS to SEEN_HI.
const KEPT: std::ops::RangeInclusive<u64> = 0x10..=0x3c;

const RUNNING: u32 = 0;
const IDLE: u32 = 1;
const REFUSED: u32 = 2;
const GAVE_UP: u32 = 3;

/// How long a paced storm waits for the guest.
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_THREADS: u32 = 8;
const MAX_EVENTS: u32 = 65536;

/// The doorbell device.
pub(crate) struct Doorbell {
    registers: [u32; 12],
    lines: Box<dyn IrqSender>,
    /// The lines' levels, by INTID. They are kept because KVM_IRQ_LINE takes an unchanged level as
    /// another edge.
    levels: Box<[bool; 1024]>,
    irqs: Arc<Irqs>,
    memory: Memory,
    accounts: Arc<Accounts>,
    status: Arc<AtomicU32>,
}

/// A storm, as its threads see it.
struct Storm {
    threads: u32,
    events: u32,
    count: u32,
    paced: bool,
    device: u32,
    data: u32,
    address: u64,
    counters: u64,
    seen: u64,
    memory: Memory,
    status: Arc<AtomicU32>,
    /// The number of threads that have not ended.
    left: AtomicU32,
    gave_up: AtomicU64,
}

impl Doorbell {
    pub(crate) fn new(
        irqs: Arc<Irqs>,
        memory: Memory,
        accounts: Arc<Accounts>,
    ) -> anyhow::Result<Self> {
        let (lines, levels) = (irqs.sender()?, Box::new([false; 1024]));
        Ok(Self {
            registers: [0; 12],
            lines,
            levels,
            irqs,
            memory,
            accounts,
            status: Arc::new(AtomicU32::new(IDLE)),
        })
    }

    /// Returns the storm that the registers describe; `None` if it is to be refused.
    fn storm(&self) -> Option<Storm> {
        let [threads, events, count, flags, device, data, address_lo, address_hi, rest @ ..] =
            self.registers;
        let [counters_lo, counters_hi, seen_lo, seen_hi] = rest;
        let wide = |lo: u32, hi: u32| u64::from(lo) | u64::from(hi) << 32;
        let (counters, seen) = (wide(counters_lo, counters_hi), wide(seen_lo, seen_hi));
        let size = u64::from(events) * 8;
        let ram = |at: u64| {
            at.is_multiple_of(8) && self.memory.check_range(GuestAddress(at), size as usize)
        };
        let paced = flags & 1 != 0;
        let valid = (1..=MAX_THREADS).contains(&threads)
            && (threads..=MAX_EVENTS).contains(&events)
            && ram(counters)
            && (!paced || ram(seen));
        valid.then(|| Storm {
            threads,
            events,
            count,
            paced,
            device,
            data,
            address: wide(address_lo, address_hi),
            counters,
            seen,
            memory: self.memory.clone(),
            status: Arc::clone(&self.status),
            left: AtomicU32::new(threads),
            gave_up: AtomicU64::new(0),
        })
    }

    fn go(&mut self) {
        // Acquire: pairs with the last thread's store.
        if self.status.load(Ordering::Acquire) == RUNNING {
            return;
        }
        let prepared = self.storm().and_then(|storm| {
            let senders = (0..storm.threads).map(|_| self.irqs.sender().ok());
            Some((senders.collect::<Option<Vec<_>>>()?, Arc::new(storm)))
        });
        let Some((senders, storm)) = prepared else {
            // Relaxed: only the value matters.
            return self.status.store(REFUSED, Ordering::Relaxed);
        };
        self.status.store(RUNNING, Ordering::Relaxed);
        let Storm { paced, threads, events, .. } = *storm;
        self.accounts.begin(Described { paced, threads, events });
        for (n, sender) in senders.into_iter().enumerate() {
            let (ours, accounts) = (Arc::clone(&storm), Arc::clone(&self.accounts));
            let started = thread::Builder::new().name("storm".into()).spawn(move || {
                accounts.wait_for_begin();
                ours.run(n as u32, &*sender);
            });
            if started.is_err() {
                // The host cannot start another thread.
                storm.give_up();
                storm.thread_ends();
            }
        }
    }
}

impl Storm {
    /// Runs thread `n` of the storm.
    fn run(&self, n: u32, sender: &dyn IrqSender) {
        for i in (0..self.count).filter(|i| i % self.events % self.threads == n) {
            if !self.send(i % self.events, sender) {
                self.give_up();
                break;
            }
        }
        self.thread_ends();
    }

    fn give_up(&self) {
        // Relaxed: read after the AcqRel below.
        self.gave_up.store(1, Ordering::Relaxed);
    }

    fn thread_ends(&self) {
        // AcqRel: the last thread sees the others' writes, and the guest that reads STATUS sees all
        // of them.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let gave_up = self.gave_up.load(Ordering::Relaxed) != 0;
            self.status.store(if gave_up { GAVE_UP } else { IDLE }, Ordering::Release);
        }
    }

    fn load(&self, base: u64, event: u32, order: Ordering) -> Option<u64> {
        self.memory.load(GuestAddress(base + u64::from(event) * 8), order).ok()
    }

    fn send(&self, event: u32, sender: &dyn IrqSender) -> bool {
        // Relaxed: this thread is the counter's only writer.
        let Some(counter) = self.load(self.counters, event, Ordering::Relaxed) else {
            return false;
        };
        if self.paced && !self.wait(event, counter) {
            return false;
        }
        let at = GuestAddress(self.counters + u64::from(event) * 8);
        // Release: the handler sees this store after it has acknowledged the interrupt.
        if self.memory.store(counter.wrapping_add(1), at, Ordering::Release).is_err() {
            return false;
        }
        let data = self.data.wrapping_add(event);
        sender.msi(&Msi { address: self.address, data, device: self.device });
        true
    }

    /// Waits until the guest has seen a counter's value.
    fn wait(&self, event: u32, value: u64) -> bool {
        let begin = Instant::now();
        let mut tries = 0u32;
        while self.load(self.seen, event, Ordering::Acquire) != Some(value) {
            tries += 1;
            if tries > 100 {
                thread::yield_now();
                if begin.elapsed() > PATIENCE {
                    return false;
                }
            }
        }
        true
    }
}

impl MutDeviceMmio for Doorbell {
    fn mmio_read(&mut self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        let value = match offset {
            _ if data.len() != 4 || !offset.is_multiple_of(4) => 0,
            0 => ID,
            // Acquire: pairs with the last thread's store.
            STATUS => self.status.load(Ordering::Acquire),
            _ if KEPT.contains(&offset) => self.registers[((offset - 0x10) / 4) as usize],
            _ => 0,
        };
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn mmio_write(&mut self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let Ok(data) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(data);
        match offset {
            LINE => {
                let (intid, level) = (value & 0x3ff, value >> 31 != 0);
                if std::mem::replace(&mut self.levels[intid as usize], level) != level {
                    self.lines.line(intid, level);
                }
            }
            GO => self.go(),
            DELIVERED => self.accounts.end(value),
            _ if KEPT.contains(&offset) && offset.is_multiple_of(4) => {
                self.registers[((offset - 0x10) / 4) as usize] = value;
            }
            _ => {}
        }
    }
}

/// The doorbell as a device on a bus.
pub(crate) type Shared = Mutex<Doorbell>;

/// Locks a mutex, even a poisoned one: the devices of this VMM stay usable if a holder panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::map;

    struct Nobody;
    impl IrqSender for Nobody {
        fn msi(&self, _: &Msi) -> bool {
            true
        }

        fn line(&self, _: u32, _: bool) -> bool {
            true
        }
    }

    #[test]
    fn a_counter_that_the_guest_has_set_to_its_end_goes_on_at_0() {
        let memory = crate::memory::new(4).unwrap();
        let at = GuestAddress(map::RAM);
        memory.write_obj(u64::MAX, at).unwrap();
        let storm = Storm {
            threads: 1,
            events: 1,
            count: 1,
            paced: false,
            device: 0,
            data: 0,
            address: 0,
            counters: map::RAM,
            seen: 0,
            memory: Arc::clone(&memory),
            status: Arc::new(AtomicU32::new(RUNNING)),
            left: AtomicU32::new(1),
            gave_up: AtomicU64::new(0),
        };
        storm.run(0, &Nobody);
        assert_eq!(memory.read_obj::<u64>(at).unwrap(), 0);
        assert_eq!(storm.status.load(Ordering::Relaxed), IDLE);
    }
}
