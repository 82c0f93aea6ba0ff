//! A vCPU's thread.
//!
//! # The loop
//!
//! Out of the guest: [`GicCpu::enter`] drains the mailbox and fills the list registers; the lines are set to what the CPU interface signals (one
//! KVM_IRQ_LINE if that has changed); [`Lines::enter`] announces that the vCPU is in, and fails if something has come since that would change them. Then
//! KVM_RUN. After it: [`Lines::leave`], the outputs of the timers, and what the guest has exited for.
//!
//! A guest that waits (WFI) sleeps in KVM_RUN, and is called out there as anywhere else.
//!
//! # Power
//!
//! PSCI is the kernel's: CPU_ON, CPU_OFF and CPU_SUSPEND cause no exit, and a vCPU that is off sleeps in KVM_RUN. The engine has to
//! know, and learns it like this:
//!
//! * *On*: with the first exit. Before that the guest cannot have touched its CPU interface, which is off after a reset; so nothing could have been
//!   signaled to it. What has become pending meanwhile is found when the engine's side is powered on.
//! * *Off*: a signal makes KVM_RUN return, and then `KVM_GET_MP_STATE` tells. Others call a vCPU out when they want something from it: that
//!   it hands an interrupt over, or shows what its list registers hold. An interrupt that is merely for it waits, as it does for a vCPU
//!   that is off.
//!
//! A vCPU that the guest turns off and on again between two exits keeps its CPU interface's registers, as with the kernel's own GICv2;
//! guests set them up again.

mod access;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vgic_core::Vgic;
use vgic_core::engine::Kick;
use vgic_core::gic::GicCpu;
use vgic_core::ids::VcpuId;
use vgic_core::line::Thresholds;
use vm_device::bus::MmioAddress;
use vm_device::device_manager::{IoManager, MmioManager};

use access::{Guest, Outcome};

use crate::error::kvm;
use crate::exits;
use crate::lines::{CpuLine, Lines};
use crate::signal::Target;
use crate::stats::RunStats;
use crate::sysreg::kvm::VcpuTraps;
use crate::sysreg::{ExitFor, Handled};
use crate::timer::TimerBridge;
use crate::{Error, KvmGic, arch};

/// What else the guest can access.
pub trait Devices {
    /// Fills `data` from `address`. Returns whether there is a device.
    fn read(&mut self, vcpu: VcpuId, address: u64, data: &mut [u8]) -> bool;

    /// Writes `data` to `address`. Returns whether there is a device.
    fn write(&mut self, vcpu: VcpuId, address: u64, data: &[u8]) -> bool;
}

impl Devices for &IoManager {
    fn read(&mut self, _: VcpuId, address: u64, data: &mut [u8]) -> bool {
        self.mmio_read(MmioAddress(address), data).is_ok()
    }

    fn write(&mut self, _: VcpuId, address: u64, data: &[u8]) -> bool {
        self.mmio_write(MmioAddress(address), data).is_ok()
    }
}

/// Why [`Runner::run`] has returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// [`Stop::stop`] was called.
    Stopped,
    /// The guest asks for an event of the whole machine: `KVM_SYSTEM_EVENT_*`, with its first datum.
    SystemEvent(u32, u64),
    /// The guest could not be entered.
    FailEntry {
        /// The hardware's reason.
        reason: u64,
        /// On which of the host's CPUs.
        cpu: u32,
    },
    /// KVM gives up: `KVM_INTERNAL_ERROR_*`.
    InternalError(u32),
    /// KVM_RUN returned for a reason that is not known here: `KVM_EXIT_*`.
    Unknown(u32),
}

/// Asks a vCPU's thread to return from [`Runner::run`].
#[derive(Clone)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    lines: Arc<Lines>,
    vcpu: VcpuId,
}

impl Stop {
    /// Makes the current, or else the next, call of [`Runner::run`] return.
    ///
    /// A vCPU whose guest reads the active or pending state of an interrupt that another vCPU has waits for that one to leave its guest. A stop ends that
    /// wait, and the read is answered as [`Kick::wait_for_exit`] says: an interrupt that may be active reads as active.
    pub fn stop(&self) {
        // Release: pairs with the looks in `Runner::run` and in `exits`. If they came before this, what follows comes after them.
        self.flag.store(true, Ordering::Release);
        self.lines.kick(self.vcpu);
        self.lines.end_waits();
    }
}

/// This thread is the one that a vCPU's calls go to, for as long as this lives.
struct Attached {
    lines: Arc<Lines>,
    id: VcpuId,
}

impl Attached {
    fn new(
        lines: &Arc<Lines>,
        id: VcpuId,
        target: &Target,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, Error> {
        // Whoever had the vCPU before, and whatever was told to KVM by others: from here on it is known.
        lines.lower(id).map_err(|source| Error::CpuLine { vcpu: id, source })?;
        lines.attach(id, target.tid());
        exits::stop_with(Some(Arc::clone(stop)));
        Ok(Self { lines: Arc::clone(lines), id })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        exits::stop_with(None);
        self.lines.attach(self.id, 0);
        self.lines.leave(self.id);
        // Whoever runs the vCPU next gets it without our interrupts. If KVM refuses, there is nobody to tell.
        let _ = self.lines.lower(self.id);
    }
}

/// A vCPU, with its side of the interrupt controller. Stays in the thread that made it.
pub struct Runner {
    /// First: no signal to this thread any more, then nothing that could cause one.
    attached: Attached,
    cpu: GicCpu<Vgic>,
    /// Both before the vCPU that they point to.
    target: Target,
    outputs: arch::Outputs,
    vcpu: VcpuFd,
    lines: Arc<Lines>,
    timer: TimerBridge,
    stop: Arc<AtomicBool>,
    cpu_interface: Option<u64>,
    /// Of a GICv3.
    traps: Option<VcpuTraps>,
    on: bool,
    /// What KVM was told of its lines.
    irq: bool,
    fiq: bool,
    stats: RunStats,
}

/// Pieces of left-over work of redistributors before the guest is entered all the same: enough for 2^24 LPIs. A piece may wait for
/// another vCPU, which may be stopped; from then on there is one piece at each entry, until all is done.
const MOST_PIECES: u32 = 1 << 15;

impl Runner {
    pub(crate) fn new(
        gic: &KvmGic,
        mut cpu: GicCpu<Vgic>,
        mut vcpu: VcpuFd,
        on: bool,
    ) -> Result<Self, (Error, VcpuFd)> {
        let (id, lines) = (cpu.id(), Arc::clone(gic.lines()));
        let target = match Target::new(&mut vcpu, lines.signal()) {
            Ok(target) => target,
            Err(e) => return Err((e, vcpu)),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let attached = match Attached::new(&lines, id, &target, &stop) {
            Ok(attached) => attached,
            Err(e) => {
                drop(target);
                return Err((e, vcpu));
            }
        };
        let outputs = arch::Outputs::new(&mut vcpu);
        let mut timer = TimerBridge::new(gic.ppis());
        if let Err(e) = timer.set(id, outputs.levels(), cpu.bus().injector()) {
            drop((attached, target));
            return Err((e.into(), vcpu));
        }
        if on {
            cpu.power_on();
        }
        Ok(Self {
            attached,
            cpu,
            target,
            outputs,
            vcpu,
            lines,
            timer,
            stop,
            cpu_interface: gic.cpu_interface(),
            traps: gic.traps(),
            on,
            irq: false,
            fiq: false,
            stats: RunStats::default(),
        })
    }

    /// Which vCPU this is.
    pub fn id(&self) -> VcpuId {
        self.cpu.id()
    }

    /// A handle to stop it.
    pub fn stopper(&self) -> Stop {
        Stop { flag: Arc::clone(&self.stop), lines: Arc::clone(&self.lines), vcpu: self.cpu.id() }
    }

    /// What it has done.
    pub fn stats(&self) -> RunStats {
        let mut stats = self.stats;
        if let Some(traps) = self.traps.as_ref().map(VcpuTraps::stats) {
            stats.sysreg_exits = traps.undefined + traps.direct;
            stats.other_debug_exits = traps.exits - stats.sysreg_exits;
            stats.trap_calls = traps.calls;
        }
        stats
    }

    /// KVM's vCPU, to read or write its registers. Not to be changed for another one: what the runner has of it points into it.
    ///
    /// ```compile_fail
    /// # fn f(runner: &mut vgic_kvm::Runner, other: kvm_ioctls::VcpuFd) {
    /// std::mem::replace(runner.vcpu(), other);
    /// # }
    /// ```
    pub fn vcpu(&self) -> &VcpuFd {
        &self.vcpu
    }

    /// The interrupt controller's side of it.
    pub fn cpu(&mut self) -> &mut GicCpu<Vgic> {
        &mut self.cpu
    }

    /// Ends it, powers its side of the interrupt controller off, and gives KVM's vCPU back.
    pub fn detach(self) -> VcpuFd {
        let Self { attached, cpu, target, vcpu, traps, .. } = self;
        if let Some(mut traps) = traps {
            // A vCPU that will not be run here again: there is nobody to tell.
            let _ = traps.stop(&vcpu);
        }
        drop(attached);
        drop(target);
        drop(cpu);
        vcpu
    }

    /// Runs the guest until something happens that is not dealt with here. What is neither the interrupt controller's nor one of the
    /// `devices` becomes an external abort.
    ///
    /// # Errors
    /// [`Error::Kvm`].
    pub fn run(&mut self, devices: &mut impl Devices) -> Result<Exit, Error> {
        let result = self.run_until(devices);
        // However it ends: nobody is to wait for what the list registers hold.
        self.cpu.exit();
        result
    }

    fn run_until(&mut self, devices: &mut impl Devices) -> Result<Exit, Error> {
        if let Some(traps) = &mut self.traps {
            traps.start_once(&self.vcpu)?;
        }
        let mut pieces = 0;
        loop {
            self.vcpu.set_kvm_immediate_exit(0);
            // What comes from here on, a stop included, makes `enter` fail or calls the vCPU out; a stop that came before is seen here, even
            // if there is always something that keeps `enter` from succeeding.
            let kicked = self.lines.look(self.cpu.id());
            // AcqRel: pairs with `Stop::stop`. Cleared, so that the vCPU can be run again; the load spares most turns the write.
            if self.stop.load(Ordering::Relaxed) && self.stop.swap(false, Ordering::AcqRel) {
                return Ok(Exit::Stopped);
            }
            if kicked {
                self.follow_power()?;
            }
            if self.cpu.is_going_off() {
                // In pieces: a stop is seen in between.
                let _ = self.cpu.power_off_some();
                continue;
            }
            if !self.go_on_with_lpis() {
                pieces = 0;
            } else if pieces < MOST_PIECES {
                // The rest before the guest: it may wait for what is found to be pending. A stop is seen in between.
                pieces += 1;
                if self.on {
                    // Takes in this vCPU's mail: an unmapped LPI in it may be what a piece waits for.
                    self.cpu.enter();
                }
                continue;
            }
            if !self.enter() {
                continue;
            }
            let ran = self.vcpu.run();
            let kicked = self.lines.leave(self.cpu.id());
            self.stats.exits += 1;
            // Before the access that it exited for, which may ask.
            let levels = self.outputs.levels();
            let injector = self.cpu.bus().injector();
            let changed = self.timer.update(self.cpu.id(), levels, injector)?;
            self.stats.timer_changes += u64::from(changed);
            let exit = match ran {
                Ok(VcpuExit::MmioRead(address, data)) => {
                    let mut guest = Guest {
                        cpu: &mut self.cpu,
                        on: &mut self.on,
                        stats: &mut self.stats,
                        cpu_interface: self.cpu_interface,
                        line: self.irq,
                    };
                    guest.read(address, data, devices)
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    let mut guest = Guest {
                        cpu: &mut self.cpu,
                        on: &mut self.on,
                        stats: &mut self.stats,
                        cpu_interface: self.cpu_interface,
                        line: self.irq,
                    };
                    guest.write(address, data, devices)
                }
                Ok(VcpuExit::Debug(exit)) if self.traps.is_some() => {
                    self.trapped(arch::syndrome(&exit))?;
                    continue;
                }
                Ok(VcpuExit::SystemEvent(event, data)) => {
                    let datum = data.first().copied().unwrap_or(0);
                    return Ok(Exit::SystemEvent(event, datum));
                }
                Ok(VcpuExit::Intr) => self.interrupted(kicked)?,
                Err(e) if [libc::EINTR, libc::EAGAIN].contains(&e.errno()) => {
                    self.interrupted(kicked)?
                }
                Ok(VcpuExit::FailEntry(reason, cpu)) => return Ok(Exit::FailEntry { reason, cpu }),
                Ok(VcpuExit::InternalError) => {
                    return Ok(Exit::InternalError(arch::suberror(&mut self.vcpu)));
                }
                Ok(_) => {
                    let reason = self.vcpu.get_kvm_run().exit_reason;
                    return Ok(Exit::Unknown(reason));
                }
                Err(e) => return Err(kvm("running a vCPU")(e)),
            };
            if exit == Outcome::Abort {
                self.stats.aborts += 1;
                arch::inject_abort(&self.vcpu).map_err(kvm("injecting an external abort"))?;
            }
            if let Some(traps) = &mut self.traps {
                let exit = match exit {
                    Outcome::Frame => ExitFor::Frame,
                    Outcome::Device | Outcome::Abort => ExitFor::Device,
                    Outcome::Nothing => ExitFor::Nothing,
                };
                traps.follow(&self.vcpu, exit)?;
            }
        }
    }

    /// Does a part of what a redistributor has left to do, if any has: a guest need not come back to its registers for that. Returns
    /// whether there is more.
    fn go_on_with_lpis(&mut self) -> bool {
        let Some(of) = self.lines.take_lpis_left() else { return false };
        // That takes locks: nobody is to wait for this vCPU meanwhile.
        self.cpu.exit();
        if self.cpu.bus().work(of) {
            self.lines.lpis_left(of);
        }
        true
    }

    /// Offers the guest what there is; after [`Lines::look`]. Returns whether it may be entered.
    fn enter(&mut self) -> bool {
        let id = self.cpu.id();
        if !self.on {
            return self.lines.enter(id, Thresholds::default());
        }
        self.cpu.enter();
        self.set_lines(self.cpu.irq_line(), self.cpu.fiq_line());
        self.lines.enter(id, self.cpu.thresholds())
    }

    /// Tells KVM the levels of the vCPU's lines that have changed.
    fn set_lines(&mut self, irq: bool, fiq: bool) {
        let lines = [(CpuLine::Irq, irq, &mut self.irq), (CpuLine::Fiq, fiq, &mut self.fiq)];
        for (line, level, told) in lines {
            if level != *told {
                self.lines.set(self.cpu.id(), line, level);
                *told = level;
            }
        }
    }

    /// A debug exit: of a GICv3, an access to the CPU interface, or something that the guest is to get.
    fn trapped(&mut self, syndrome: u64) -> Result<(), Error> {
        let Some(traps) = &mut self.traps else { return Ok(()) };
        let mut guest = Guest {
            cpu: &mut self.cpu,
            on: &mut self.on,
            stats: &mut self.stats,
            cpu_interface: None,
            line: self.irq,
        };
        guest.prepare();
        match traps.handle(&self.vcpu, &mut guest, syndrome)? {
            Handled::Done => {}
            Handled::NewTable => {
                let others = (0..self.lines.vcpus()).map(VcpuId).filter(|&id| id != self.cpu.id());
                others.for_each(|id| self.lines.kick(id));
            }
            Handled::NotOurs => self.stats.unknown_debug_exits += 1,
        }
        Ok(())
    }

    /// KVM_RUN has returned for a signal or an output of the timer.
    fn interrupted(&mut self, kicked: bool) -> Result<Outcome, Error> {
        self.stats.interrupted_exits += 1;
        if kicked || !self.on {
            self.follow_power()?;
        }
        Ok(Outcome::Nothing)
    }

    /// It has been kicked, or may be on by now.
    fn follow_power(&mut self) -> Result<(), Error> {
        // Who has kicked waits for this.
        self.cpu.exit();
        self.stats.power_queries += 1;
        let off = arch::is_off(&self.vcpu).map_err(kvm("asking for a vCPU's power state"))?;
        if off && self.on {
            self.set_lines(false, false);
            let _ = self.cpu.power_off_some();
            self.on = false;
            if let Some(traps) = &mut self.traps {
                traps.start(&self.vcpu)?;
            }
        } else if !off && !self.on {
            self.cpu.power_on();
            self.on = true;
        }
        Ok(())
    }
}
