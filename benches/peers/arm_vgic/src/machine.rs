//! A machine with arm_vgic's GICv3 and ITS, mapped by commands, and with one vCPU.
//!
//! The backend stands for the hardware and the guest: when the CPU interface is saved, the guest
//! has acknowledged and ended the most urgent interrupt in the list registers. That costs almost
//! nothing, so the time is that of arm_vgic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use arm_vgic::{
    CpuInterfaceState, EventId, GicAffinity, GicV3Backend, GicV3BackendError, GicV3Config,
    GicV3Controller, GicV3MmioRegion, GicV3SpiOwnership, GicV3VcpuBinding, GicV3VcpuWake,
    GicVcpuId, GuestMemory, GuestMemoryError, InterruptState, ItsDeviceId, VgicResult,
};
use axvm_types::AccessWidth;

const LRS: usize = 4;
const LPI_BASE: u32 = 8192;
const DEVICE: u32 = 8;
/// Most LPIs of a batch of first injections.
const BATCH: u32 = 256;

const GITS_CTLR: u64 = 0;
const GITS_CBASER: u64 = 0x80;
const GITS_CWRITER: u64 = 0x88;
const QUEUE: u64 = 0x4000_0000;
const QUEUE_BYTES: u64 = 0x10_0000;
const COMMAND_BYTES: u64 = 32;

/// The operation that [`Machine::run`] repeats.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An MSI with its LPI already pending.
    Coalesced,
    /// An MSI with its LPI neither pending nor in a list register.
    First,
    /// MSI, entry, acknowledge, end, exit.
    Cycle,
    /// MSI, entry, acknowledge, end and exit with this number of pending LPIs.
    Pending(u32),
    /// Entry and exit with this number of pending LPIs. The guest takes nothing.
    Entry(u32),
}

/// No INTID.
const NONE: u32 = 0;

/// The guest's side of the list registers.
#[derive(Default)]
struct Guest {
    takes: AtomicBool,
    taken: AtomicU32,
}

impl GicV3Backend for Guest {
    fn load_cpu_interface(
        &self,
        _vcpu: GicVcpuId,
        _state: &CpuInterfaceState,
    ) -> Result<(), GicV3BackendError> {
        Ok(())
    }

    fn save_cpu_interface(
        &self,
        _vcpu: GicVcpuId,
        state: &mut CpuInterfaceState,
    ) -> Result<(), GicV3BackendError> {
        let mut taken = NONE;
        // Relaxed, here and below: only one thread uses the CPU interface.
        if self.takes.load(Ordering::Relaxed) {
            let urgent = state
                .list_registers_mut()
                .iter_mut()
                .filter(|lr| lr.is_some_and(|lr| lr.state() == InterruptState::Pending))
                .min_by_key(|lr| lr.map(|lr| lr.priority()));
            if let Some(lr) = urgent {
                taken = lr.map_or(NONE, |lr| lr.intid().raw());
                *lr = None;
            }
        }
        self.taken.store(taken, Ordering::Relaxed);
        Ok(())
    }
}

/// A wake-up that does nothing: there is no thread to wake.
struct NoWake;

impl GicV3VcpuWake for NoWake {
    fn wake(&self) -> VgicResult {
        Ok(())
    }
}

/// The command queue.
struct Queue(Vec<AtomicU64>);

impl Queue {
    fn put(&self, at: u64, words: [u64; 4]) {
        for (n, word) in words.into_iter().enumerate() {
            // Relaxed: only one thread uses the queue.
            self.0[at as usize / 8 + n].store(word, Ordering::Relaxed);
        }
    }
}

impl GuestMemory for Queue {
    fn read(&self, address: u64, destination: &mut [u8]) -> Result<(), GuestMemoryError> {
        let first = (address - QUEUE) as usize / 8;
        for (word, bytes) in self.0[first..].iter().zip(destination.chunks_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        Ok(())
    }
}

/// One machine.
pub struct Machine {
    controller: GicV3Controller,
    vcpu: GicV3VcpuBinding,
    guest: Arc<Guest>,
    kind: Kind,
    lpis: u32,
    next: u32,
}

impl Machine {
    /// Creates a machine with `lpis` LPIs of one device.
    pub fn new(lpis: u32, kind: Kind) -> Result<Self> {
        let region = |base, size| GicV3MmioRegion::new(base, size);
        let config = GicV3Config::new(
            GicV3SpiOwnership::AllGuestOwned,
            region(0x0800_0000, 0x1_0000)?,
            region(0x080a_0000, 0x2_0000)?,
            0x2_0000,
            1,
        )?
        .with_spi_count(32)?
        .with_list_register_count(LRS)?
        .with_its(region(0x0808_0000, 0x2_0000)?)?
        .with_its_command_budget(1 << 20)?;
        let queue = Arc::new(Queue((0..QUEUE_BYTES / 8).map(|_| AtomicU64::new(0)).collect()));
        let guest = Arc::new(Guest { takes: AtomicBool::new(true), ..Guest::default() });
        let controller = GicV3Controller::new_with_guest_memory(
            config,
            Arc::<Guest>::clone(&guest),
            Some(Arc::<Queue>::clone(&queue) as Arc<dyn GuestMemory>),
        )?;
        let id = GicVcpuId::new(0);
        let vcpu = controller.attach_vcpu(id, GicAffinity::new(0, 0, 0, 0), Arc::new(NoWake))?;
        controller.write_redistributor(id, 0, AccessWidth::Dword, 1)?;
        let pages = QUEUE_BYTES / 0x1000 - 1;
        controller.write_its(GITS_CBASER, AccessWidth::Qword, QUEUE | pages)?;
        controller.write_its(GITS_CTLR, AccessWidth::Dword, 1)?;
        let (valid, device) = (1 << 63, u64::from(DEVICE) << 32);
        let mut commands = vec![[0x08 | device, 16, valid, 0], [0x09, 0, valid, 0]];
        for n in 0..lpis {
            commands.push([0x0a | device, u64::from(n) | u64::from(LPI_BASE + n) << 32, 0, 0]);
        }
        let mut end = 0;
        for some in commands.chunks(1024) {
            for &command in some {
                queue.put(end, command);
                end = (end + COMMAND_BYTES) % QUEUE_BYTES;
            }
            controller.write_its(GITS_CWRITER, AccessWidth::Qword, end)?;
        }
        for n in 0..lpis {
            controller.configure_msi_input(ItsDeviceId::new(DEVICE), EventId::new(n))?;
        }
        let machine = Self { controller, vcpu, guest, kind, lpis, next: 1 };
        let pending = match kind {
            Kind::Coalesced => lpis,
            Kind::Pending(pending) | Kind::Entry(pending) => pending,
            Kind::First | Kind::Cycle => 0,
        };
        for n in 0..pending {
            machine.send(n)?;
        }
        machine.guest.takes.store(!matches!(kind, Kind::Entry(_)), Ordering::Relaxed);
        Ok(machine)
    }

    /// Does nothing: the queue belongs to the guest, and is not arm_vgic's memory. Its size does
    /// not depend on the number of LPIs, so a difference does not contain it.
    pub fn forget_queue(&self) {}

    fn send(&self, event: u32) -> VgicResult {
        self.controller.signal_msi(ItsDeviceId::new(DEVICE), EventId::new(event))
    }

    /// Returns a random LPI, from the same generator as in the engines' benchmarks.
    fn pick(&mut self) -> u32 {
        self.next ^= self.next << 13;
        self.next ^= self.next >> 17;
        self.next ^= self.next << 5;
        ((u64::from(self.next) * u64::from(self.lpis)) >> 32) as u32
    }

    /// Performs an entry and exit, and returns the INTID that the guest has taken.
    fn visit(&self) -> Result<u32> {
        self.vcpu.load()?;
        self.vcpu.save()?;
        Ok(self.guest.taken.load(Ordering::Relaxed))
    }

    /// Delivers each LPI once.
    pub fn each_once(&mut self) -> Result<()> {
        for n in 0..self.lpis {
            self.send(n)?;
            ensure!(self.visit()? == LPI_BASE + n, "LPI {n} is not delivered");
        }
        Ok(())
    }

    /// Performs some calls, and returns their time.
    pub fn run(&mut self, calls: u32) -> Result<Duration> {
        if self.kind == Kind::First {
            return self.first(calls);
        }
        let start = Instant::now();
        for _ in 0..calls {
            match self.kind {
                Kind::Coalesced => {
                    let n = self.pick();
                    self.send(n)?;
                }
                Kind::First => {}
                Kind::Cycle => {
                    let n = self.pick();
                    self.send(n)?;
                    ensure!(self.visit()? == LPI_BASE + n, "another LPI than was sent");
                }
                Kind::Pending(_) => {
                    let taken = self.visit()?;
                    ensure!(taken != NONE, "nothing is taken");
                    self.send(taken - LPI_BASE)?;
                }
                Kind::Entry(_) => {
                    self.visit()?;
                }
            }
        }
        Ok(start.elapsed())
    }

    /// Returns the time of batches of injections. Their deliveries are not timed.
    fn first(&mut self, calls: u32) -> Result<Duration> {
        let batch = self.lpis.min(BATCH);
        let (mut time, mut left) = (Duration::ZERO, calls);
        while left > 0 {
            let now = batch.min(left);
            let from = self.pick();
            let start = Instant::now();
            for n in 0..now {
                self.send((from + n) % self.lpis)?;
            }
            time += start.elapsed();
            while self.visit()? != NONE {}
            left -= now;
        }
        Ok(time)
    }
}

/// Returns the LPIs delivered per second with two threads. One injects the LPIs in turn, each when
/// its last injection has been taken; the other one is the vCPU.
pub fn deliver(lpis: u32, time: Duration) -> Result<u64> {
    let machine = Machine::new(lpis, Kind::Cycle)?;
    let seen: Vec<AtomicBool> = (0..lpis).map(|_| AtomicBool::new(true)).collect();
    let over = AtomicBool::new(false);
    let controller = machine.controller.clone();
    let (seen, over) = (&seen[..], &over);
    let start = Instant::now();
    let delivered = thread::scope(|scope| -> Result<u64> {
        let injector = scope.spawn(move || -> VgicResult {
            loop {
                for n in 0..lpis {
                    // Acquire: pairs with the vCPU's Release.
                    while !seen[n as usize].load(Ordering::Acquire) {
                        if over.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        thread::yield_now();
                    }
                    seen[n as usize].store(false, Ordering::Relaxed);
                    controller.signal_msi(ItsDeviceId::new(DEVICE), EventId::new(n))?;
                }
                if over.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
        });
        let mut delivered = 0;
        let mut lost = 0;
        while start.elapsed() < time {
            let taken = machine.visit()?;
            if taken != NONE {
                // Release: pairs with the injector's Acquire.
                seen[(taken - LPI_BASE) as usize].store(true, Ordering::Release);
                delivered += 1;
                lost = 0;
            } else {
                lost += 1;
                // arm_vgic loses an MSI that comes between the guest's acknowledge and the end of
                // the exit. The injector continues without it.
                if lost > 1000 {
                    seen.iter().for_each(|seen| seen.store(true, Ordering::Release));
                    lost = 0;
                }
                thread::yield_now();
            }
        }
        over.store(true, Ordering::Relaxed);
        injector.join().expect("the injector does not panic")?;
        Ok(delivered)
    })?;
    Ok((delivered as f64 / start.elapsed().as_secs_f64()) as u64)
}
