//! One vCPU: its interface to the engine, its CPU interface, and its view of the frames.

use super::{Access, Frames, Gic, GicBus, Place};
use crate::arch::cpuif::{CpuInterface, Deactivation};
use crate::arch::ids::{Group, Intid, VcpuId};
use crate::arch::lr::ListRegisters;
use crate::engine::{Engine, Error, Flushed, Injector, Vcpu};
use crate::frames::cpu_host::CpuHost;
use crate::frames::gicv2::cpu::{CpuFrame, CpuHostV2, CpuV2};
use crate::frames::gicv3::icc::{self, SysReg};
use crate::frames::gicv3::routing::Flag;
use crate::frames::machine::Machine;
use crate::frames::mmio::{self, MmioError};
use crate::frames::targets::Takes;
use crate::host::line::Thresholds;

/// One vCPU of a [`Gic`], owned by the thread that runs it. It is neither `Clone` nor `Sync`.
///
/// The thread runs this loop:
///
/// 1. [`GicCpu::enter`].
/// 2. Set the vCPU's lines to [`GicCpu::irq_line`] and [`GicCpu::fiq_line`]. If the guest waits for
///    an interrupt and there is none, sleep.
/// 3. Run the guest.
/// 4. Perform the accesses to the CPU interface that caused the exit, through [`GicCpu::read`] and
///    so on.
/// 5. [`GicCpu::exit`].
/// 6. Handle all other causes of the exit.
///
/// Between an entry and the next exit, other vCPUs may wait for this one (see
/// [`Injector::is_pending`]). So work that takes long or takes locks belongs after the exit.
pub struct GicCpu<E: Engine> {
    id: VcpuId,
    vcpu: E::Vcpu,
    cpu: CpuInterface,
    v2: CpuV2,
    /// True between an entry and an exit: the list registers hold the state that the engine
    /// expects.
    entered: bool,
    /// A power-off has begun and is not finished.
    going_off: bool,
    /// The state of the CPU interface that the distributor was last told.
    told: Takes,
    bus: GicBus<E>,
}

impl<E: Engine> GicCpu<E> {
    pub(crate) fn new(gic: &Gic<E>, id: VcpuId) -> Result<Self, Error> {
        let vcpu = gic.engine().vcpu(id)?;
        let cpu = CpuInterface::new(gic.0.lrs).ok_or(Error::Config("lrs"))?;
        Ok(Self {
            id,
            vcpu,
            cpu,
            v2: CpuV2::default(),
            entered: false,
            going_off: false,
            told: Takes::default(),
            bus: gic.bus()?,
        })
    }

    /// The vCPU's number.
    pub fn id(&self) -> VcpuId {
        self.id
    }

    /// The vCPU's handle for the frames and for injecting. Between an entry and an exit, use it
    /// only for injecting.
    pub fn bus(&self) -> &GicBus<E> {
        &self.bus
    }

    /// The vCPU's CPU interface, including the list registers. It is for a host that saves or
    /// restores them, or shows them to a debugger.
    ///
    /// Left in place, it is as the guest sees it. A host may change it only as the guest could
    /// through its registers: the engine knows the contents that it gave the list registers, and
    /// takes any difference for the guest's doing. [`GicCpu::power_off`] resets the CPU interface,
    /// so restore it after [`GicCpu::power_on`].
    pub fn cpu_interface(&mut self) -> &mut CpuInterface {
        &mut self.cpu
    }

    /// Powers the vCPU on. No effect if it is on. A power-off that is in progress
    /// ([`GicCpu::power_off_some`]) is finished first.
    pub fn power_on(&mut self) {
        self.finish_power_off();
        self.vcpu.open();
        self.tell_power(true);
    }

    /// Powers the vCPU off and resets its CPU interface. Interrupts that are pending for it stay
    /// pending. No effect if it is off.
    pub fn power_off(&mut self) {
        while !self.power_off_some() {}
    }

    /// Does a part of [`GicCpu::power_off`], of bounded length however much the vCPU has, and
    /// returns whether all is done.
    ///
    /// The CPU interface keeps its state until all is done, and is reset then. An entry or
    /// [`GicCpu::power_on`] in between finishes the power-off first.
    #[must_use]
    pub fn power_off_some(&mut self) -> bool {
        // This comes first: SPIs that several vCPUs may take then go to another one.
        self.tell_power(false);
        self.going_off = true;
        let done = self.vcpu.close_some(&mut self.cpu);
        self.entered = false;
        if done {
            if let Some(cpu) = CpuInterface::new(self.bus.gic.0.lrs) {
                self.cpu = cpu;
            }
            self.v2 = CpuV2::default();
            self.going_off = false;
            self.tell_takes();
        }
        done
    }

    /// Whether a power-off has begun and is not finished ([`GicCpu::power_off_some`]).
    pub fn is_going_off(&self) -> bool {
        self.going_off
    }

    #[inline]
    fn finish_power_off(&mut self) {
        if self.going_off {
            self.power_off();
        }
    }

    /// Tells the distributor which interrupts this CPU interface would take. An SPI that several
    /// vCPUs may take goes to a vCPU that would take it (`takers`).
    #[inline]
    fn tell_takes(&mut self) {
        let takes = Takes::new(self.cpu.groups_enabled(), self.cpu.pmr() as u8);
        if takes != self.told {
            self.told = takes;
            self.tell_what_it_takes(takes);
        }
    }

    #[cold]
    fn tell_what_it_takes(&self, takes: Takes) {
        let (shared, injector) = (&*self.bus.gic.0, self.bus.injector());
        match &shared.frames {
            Frames::V2 { dist, .. } => dist.set_takes(injector, self.id, takes),
            Frames::V3 { dist, .. } => {
                dist.state().set_takes(&shared.machine, injector, self.id, takes);
            }
        }
    }

    fn tell_power(&self, on: bool) {
        let shared = &*self.bus.gic.0;
        if let Frames::V3 { dist, .. } = &shared.frames {
            let (machine, injector) = (&shared.machine, self.bus.injector());
            dist.state().set_flag(machine, injector, self.id, Flag::On, on);
        }
    }

    /// Call this before the guest is entered: it puts interrupts that have become pending into the
    /// list registers.
    pub fn enter(&mut self) -> Flushed {
        self.finish_power_off();
        self.entered = true;
        // The host may have restored the CPU interface.
        self.tell_takes();
        self.vcpu.flush(&mut self.cpu)
    }

    /// Reads back the guest's changes to the list registers. [`GicCpu::enter`] and accesses to
    /// frames other than GICC also do this.
    pub fn exit(&mut self) {
        self.entered = false;
        self.vcpu.fold(&mut self.cpu);
    }

    /// Performs an access to the CPU interface. After an exit, the list registers do not hold the
    /// state that the engine expects until it has filled them again, so this enters first.
    fn at_cpu_interface<T>(&mut self, access: impl FnOnce(&mut Self) -> T) -> T {
        if self.entered {
            let result = access(self);
            self.tell_takes();
            return result;
        }
        self.enter();
        let result = access(self);
        self.tell_takes();
        self.exit();
        result
    }

    /// Whether an enabled SPI or private interrupt is pending for this vCPU, forwarded or not. Such
    /// an interrupt wakes a sleeping redistributor (WakeRequest; IHI 0069, 11.1). LPIs do not
    /// count.
    ///
    /// A vCPU that the guest has suspended may sleep only while this is false, so the host checks
    /// after each kick. Each call examines every such interrupt.
    pub fn has_wake_request(&mut self) -> bool {
        // This thread waits for other vCPUs, so no thread may have to wait for this vCPU, least of
        // all this thread.
        self.exit();
        let (machine, injector) = (&self.bus.gic.0.machine, self.bus.injector());
        machine.wired(self.id).any(|wired| {
            let config = injector.config(wired);
            let mine = config.is_ok_and(|config| config.enabled && config.target == self.id);
            mine && injector.is_pending(wired) == Ok(true)
        })
    }

    /// Whether something has changed since the last entry, so that the vCPU must enter again before
    /// it goes to sleep.
    pub fn has_mail(&self) -> bool {
        self.vcpu.has_mail()
    }

    /// Whether the CPU interface signals an IRQ.
    pub fn irq_line(&self) -> bool {
        match self.bus.gic.0.frames {
            Frames::V2 { .. } => self.v2.irq_line(&self.cpu),
            Frames::V3 { .. } => self.cpu.irq_line(),
        }
    }

    /// Whether the CPU interface signals an FIQ.
    pub fn fiq_line(&self) -> bool {
        match self.bus.gic.0.frames {
            Frames::V2 { .. } => self.v2.fiq_line(&self.cpu),
            Frames::V3 { .. } => self.cpu.fiq_line(),
        }
    }

    /// The thresholds that the vCPU's [`LineCell`](crate::host::line::LineCell) needs while the
    /// guest runs with its lines at [`GicCpu::irq_line`] and [`GicCpu::fiq_line`].
    pub fn thresholds(&self) -> Thresholds {
        let fiqs = match self.bus.gic.0.frames {
            Frames::V2 { .. } => self.v2.fiqs(),
            Frames::V3 { .. } => true,
        };
        let (irq, fiq) = (self.irq_line(), self.fiq_line());
        let below = [(Group::Group0, if fiqs { fiq } else { irq }), (Group::Group1, irq)];
        Thresholds {
            below: below.map(|(group, up)| if up { 0 } else { self.cpu.threshold(group) }),
        }
    }

    /// The guest reads `data.len()` bytes at `address`.
    ///
    /// # Errors
    /// [`MmioError`]: the guest gets an external abort.
    pub fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), MmioError> {
        self.access(address, Access::Read(data))
    }

    /// The guest writes `data` at `address`.
    ///
    /// # Errors
    /// [`MmioError`]: the guest gets an external abort.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), MmioError> {
        self.access(address, Access::Write(data))
    }

    fn access(&mut self, address: u64, access: Access<'_>) -> Result<(), MmioError> {
        let found = self.bus.gic.find(address);
        let (place, offset) = found.ok_or(MmioError::Unmapped(address))?;
        let result = if place == Place::Cpu {
            self.at_cpu_interface(|cpu| match access {
                Access::Read(data) => mmio::read(&mut CpuFrame(cpu), &(), offset, data),
                Access::Write(data) => mmio::write(&mut CpuFrame(cpu), &(), offset, data),
            })
        } else {
            // This access may wait for other vCPUs' list registers. During that wait, no thread may
            // have to wait for this vCPU's.
            self.exit();
            self.bus.access_at(self.id, place, offset, access)
        };
        result.map_err(|e| e.at(address))
    }

    /// The guest reads a system register of the CPU interface. Returns `None` if the access is
    /// UNDEFINED: the CPU interface has no such register, the register cannot be read, or the model
    /// has no system registers.
    pub fn icc_read(&mut self, reg: SysReg) -> Option<u64> {
        match self.bus.gic.0.frames {
            Frames::V2 { .. } => None,
            Frames::V3 { .. } => self.at_cpu_interface(|cpu| icc::read(cpu, reg)),
        }
    }

    /// The guest writes a system register of the CPU interface. Returns `None`, and has no effect,
    /// if the access is UNDEFINED.
    pub fn icc_write(&mut self, reg: SysReg, value: u64) -> Option<()> {
        match self.bus.gic.0.frames {
            Frames::V2 { .. } => None,
            Frames::V3 { .. } => self.at_cpu_interface(|cpu| icc::write(cpu, reg, value)),
        }
    }
}

impl<E: Engine> CpuHost for GicCpu<E> {
    type Injector = E::Injector;

    fn id(&self) -> VcpuId {
        self.id
    }

    fn machine(&self) -> &Machine {
        &self.bus.gic.0.machine
    }

    fn injector(&self) -> &E::Injector {
        self.bus.injector()
    }

    fn cpu_interface(&mut self) -> &mut CpuInterface {
        &mut self.cpu
    }

    fn deactivate_here(&mut self, intid: Intid) -> bool {
        // No thread may have to wait for this vCPU while it waits for another.
        self.exit();
        self.vcpu.deactivate(intid)
    }

    fn end_phys(&self, done: Option<Deactivation>) {
        if let Some(pintid) = done.and_then(|done| done.hw) {
            self.bus.gic.0.host.deactivate_phys(pintid);
        }
    }
}

impl<E: Engine> CpuHostV2 for GicCpu<E> {
    fn parts(&mut self) -> (&mut CpuV2, &mut CpuInterface) {
        (&mut self.v2, &mut self.cpu)
    }
}

impl<E: Engine> Drop for GicCpu<E> {
    /// Powers the vCPU off.
    fn drop(&mut self) {
        self.power_off();
    }
}
