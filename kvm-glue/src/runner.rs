//! The run loop of a vCPU's thread.
//!
//! # The loop
//!
//! While the vCPU is out of the guest, [`GicCpu::enter`] drains the mailbox and fills the list
//! registers. Then the lines are set to the levels that the CPU interface signals (one
//! `KVM_IRQ_LINE` for each line that has changed). [`Lines::enter`] announces that the vCPU is in
//! the guest; it fails if an event has arrived since that would change the lines. Then `KVM_RUN`.
//! After it come [`Lines::leave`], the outputs of the timers, and the access or event that the
//! guest exited for.
//!
//! A guest that waits (WFI) sleeps in `KVM_RUN`, and a signal takes it out there like anywhere
//! else.
//!
//! # Power
//!
//! PSCI belongs to the kernel: CPU_ON, CPU_OFF and CPU_SUSPEND cause no exit, and a vCPU that is
//! off sleeps in `KVM_RUN`. The engine has to know the power state, and learns it as follows:
//!
//! * *On*: with the first exit. Before that exit the guest cannot have accessed its CPU interface,
//!   which is off after a reset; so no interrupt could have been signaled to it. Interrupts that
//!   became pending in the meantime are found when the engine's side is powered on.
//! * *Off*: a signal makes `KVM_RUN` return, and then `KVM_GET_MP_STATE` gives the state. Other
//!   threads kick a vCPU when they need it to hand an interrupt over, or to report the state of its
//!   list registers. An interrupt that is only pending for the vCPU waits, as it does for any
//!   vCPU that is off.
//!
//! A vCPU that the guest turns off and on again between two exits keeps its CPU interface's
//! registers, as with the kernel's own GICv2. Guests set them up again.

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

/// The devices that the guest can access besides the interrupt controller.
pub trait Devices {
    /// Fills `data` from `address`. Returns whether a device is there.
    fn read(&mut self, vcpu: VcpuId, address: u64, data: &mut [u8]) -> bool;

    /// Writes `data` to `address`. Returns whether a device is there.
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

/// The reason that [`Runner::run`] has returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// [`Stop::stop`] was called.
    Stopped,
    /// The guest requests an event of the whole machine: `KVM_SYSTEM_EVENT_*`, with the event's
    /// first datum.
    SystemEvent(u32, u64),
    /// The guest could not be entered.
    FailEntry {
        /// The hardware's reason.
        reason: u64,
        /// The number of the host CPU.
        cpu: u32,
    },
    /// KVM reports an internal error: `KVM_INTERNAL_ERROR_*`.
    InternalError(u32),
    /// `KVM_RUN` returned for a reason that this crate does not know: `KVM_EXIT_*`.
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
    /// Makes the current call of [`Runner::run`] return, or the next one if none is running.
    ///
    /// A guest's read of the active or pending state of an interrupt in another vCPU's list
    /// registers waits for that vCPU to leave its guest. A stop ends such a wait. The read is then
    /// answered as [`Kick::wait_for_exit`] says: an interrupt that may be active reads as active.
    pub fn stop(&self) {
        // Release: pairs with the loads in `Runner::run` and in `exits`. If those checks came
        // before this store, the calls below come after the checks.
        self.flag.store(true, Ordering::Release);
        self.lines.kick(self.vcpu);
        self.lines.end_waits();
    }
}

/// Directs a vCPU's signals to this thread for as long as the value lives.
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
        // From here on the lines' levels are known, regardless of an earlier runner of the vCPU and
        // of other callers of KVM.
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
        // The next runner of the vCPU must not inherit this one's lines. An error of KVM has no one
        // to be reported to.
        let _ = self.lines.lower(self.id);
    }
}

/// A vCPU, with its side of the interrupt controller. A runner stays in the thread that created it.
pub struct Runner {
    /// Dropped first, so that no signal goes to this thread any more. The next is `cpu`, the reason
    /// for such signals.
    attached: Attached,
    cpu: GicCpu<Vgic>,
    /// `target` and `outputs` are dropped before the vCPU that they point into.
    target: Target,
    outputs: arch::Outputs,
    vcpu: VcpuFd,
    lines: Arc<Lines>,
    timer: TimerBridge,
    stop: Arc<AtomicBool>,
    cpu_interface: Option<u64>,
    /// `Some` for a GICv3.
    traps: Option<VcpuTraps>,
    on: bool,
    /// The levels of the vCPU's lines that KVM was last told.
    irq: bool,
    fiq: bool,
    stats: RunStats,
}

/// The number of pieces of left-over redistributor work before the guest is entered regardless:
/// enough for 2^24 LPIs. A piece may wait for another vCPU, which may be stopped. After this many
/// pieces, each entry does one piece until all work is done.
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

    /// Returns the vCPU's ID.
    pub fn id(&self) -> VcpuId {
        self.cpu.id()
    }

    /// Returns a handle that stops the runner.
    pub fn stopper(&self) -> Stop {
        Stop { flag: Arc::clone(&self.stop), lines: Arc::clone(&self.lines), vcpu: self.cpu.id() }
    }

    /// Returns the counts so far.
    pub fn stats(&self) -> RunStats {
        let mut stats = self.stats;
        if let Some(traps) = self.traps.as_ref().map(VcpuTraps::stats) {
            stats.sysreg_exits = traps.undefined + traps.direct;
            stats.other_debug_exits = traps.exits - stats.sysreg_exits;
            stats.trap_calls = traps.calls;
        }
        stats
    }

    /// Returns KVM's vCPU, for access to its registers. The reference is shared, since the vCPU
    /// must not be replaced: the runner has pointers into it.
    ///
    /// ```compile_fail
    /// # fn f(runner: &mut vgic_kvm::Runner, other: kvm_ioctls::VcpuFd) {
    /// std::mem::replace(runner.vcpu(), other);
    /// # }
    /// ```
    pub fn vcpu(&self) -> &VcpuFd {
        &self.vcpu
    }

    /// Returns the vCPU's side of the interrupt controller.
    pub fn cpu(&mut self) -> &mut GicCpu<Vgic> {
        &mut self.cpu
    }

    /// Ends the runner, powers its side of the interrupt controller off, and returns KVM's vCPU.
    pub fn detach(self) -> VcpuFd {
        let Self { attached, cpu, target, vcpu, traps, .. } = self;
        if let Some(mut traps) = traps {
            // An error is ignored: this runner will not run the vCPU again.
            let _ = traps.stop(&vcpu);
        }
        drop(attached);
        drop(target);
        drop(cpu);
        vcpu
    }

    /// Runs the guest until an event that the runner does not handle. An access that neither the
    /// interrupt controller nor one of the `devices` accepts becomes an external abort.
    ///
    /// # Errors
    /// [`Error::Kvm`].
    pub fn run(&mut self, devices: &mut impl Devices) -> Result<Exit, Error> {
        let result = self.run_until(devices);
        // On every return: no other thread should wait for this vCPU's list registers.
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
            // From this call on, an event that needs the vCPU, such as a stop, makes `enter` fail
            // or takes the vCPU out of the guest. A stop before this call is seen below, even if a
            // stream of events keeps `enter` from succeeding.
            let kicked = self.lines.look(self.cpu.id());
            // AcqRel: pairs with `Stop::stop`. The flag is cleared so that the vCPU can be run
            // again. The load spares most turns the write.
            if self.stop.load(Ordering::Relaxed) && self.stop.swap(false, Ordering::AcqRel) {
                return Ok(Exit::Stopped);
            }
            if kicked {
                self.follow_power()?;
            }
            if self.cpu.is_going_off() {
                // In pieces, so that a stop is seen in between.
                let _ = self.cpu.power_off_some();
                continue;
            }
            if !self.go_on_with_lpis() {
                pieces = 0;
            } else if pieces < MOST_PIECES {
                // The remaining work is done before the guest runs: the guest may wait for LPIs
                // that this work makes pending. A stop is seen in between.
                pieces += 1;
                if self.on {
                    // Drains this vCPU's mailbox: an unmapped LPI in it may be the one that a piece
                    // waits for.
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
            // Before the access that the vCPU exited for, which may read these levels.
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

    /// Does a part of the work that a redistributor has left, if any has some, so that the guest
    /// need not access the registers again for it. Returns whether a part was done, and more may be
    /// left.
    fn go_on_with_lpis(&mut self) -> bool {
        let Some(of) = self.lines.take_lpis_left() else { return false };
        // The work takes locks; no other thread should wait for this vCPU in the meantime.
        self.cpu.exit();
        if self.cpu.bus().work(of) {
            self.lines.lpis_left(of);
        }
        true
    }

    /// Fills the list registers, sets the lines, and announces the entry. To be called after
    /// [`Lines::look`]. Returns whether the guest may be entered.
    fn enter(&mut self) -> bool {
        let id = self.cpu.id();
        if !self.on {
            return self.lines.enter(id, Thresholds::default());
        }
        self.cpu.enter();
        self.set_lines(self.cpu.irq_line(), self.cpu.fiq_line());
        self.lines.enter(id, self.cpu.thresholds())
    }

    /// Tells KVM the levels of those lines that have changed.
    fn set_lines(&mut self, irq: bool, fiq: bool) {
        let lines = [(CpuLine::Irq, irq, &mut self.irq), (CpuLine::Fiq, fiq, &mut self.fiq)];
        for (line, level, told) in lines {
            if level != *told {
                self.lines.set(self.cpu.id(), line, level);
                *told = level;
            }
        }
    }

    /// Handles a debug exit of a GICv3's vCPU: an access to the CPU interface, or an exception that
    /// the guest should get.
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

    /// Handles a return of `KVM_RUN` for a signal, or for an output of a timer or the PMU.
    fn interrupted(&mut self, kicked: bool) -> Result<Outcome, Error> {
        self.stats.interrupted_exits += 1;
        if kicked || !self.on {
            self.follow_power()?;
        }
        Ok(Outcome::Nothing)
    }

    /// Updates the vCPU's power state after a kick, or while the vCPU was last known to be off.
    fn follow_power(&mut self) -> Result<(), Error> {
        // The thread that has kicked this vCPU may wait for this.
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
