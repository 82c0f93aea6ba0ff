//! A guest and a host that do anything, in any order: what the register frames must stand.
//!
//! The input of a fuzz target is a sequence of steps on a machine of three vCPUs. After each of them no interrupt may be
//! in two places. In the end the guest becomes sensible and serves everything that it is offered; then
//! nothing may be left that should have been offered.

mod op;
pub mod sysreg;

use std::sync::Arc;

use vgic_core::Vgic;
use vgic_core::engine::*;
use vgic_core::gic::*;
use vgic_core::ids::*;
use vgic_core::lr::{ListRegisters, LrState};

use crate::op::{Op, steps};

/// The frame that a target is about; most accesses go there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// GICv2's distributor.
    GicdV2,
    /// GICv2's CPU interface.
    Gicc,
    /// A GICv2m frame.
    Gicv2m,
    /// GICv3's distributor.
    GicdV3,
    /// GICv3's redistributors.
    Gicr,
    /// GICv3's system registers.
    Icc,
}

const VCPUS: u16 = 3;
const SPIS: u16 = 64;
const LRS: usize = 3;
const GICD: u64 = 0x0800_0000;
const GICC: u64 = 0x0801_0000;
const V2M: u64 = 0x0802_0000;
const GICR: u64 = 0x080a_0000;

struct NoKick;
impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

struct Machine {
    bus: GicBus<Vgic>,
    cpus: Vec<GicCpu<Vgic>>,
    v2: bool,
    /// Which vCPUs are in the guest.
    entered: [bool; VCPUS as usize],
    report: Report,
}

impl Machine {
    fn new(frame: Frame) -> Self {
        let v2 = matches!(frame, Frame::GicdV2 | Frame::Gicc | Frame::Gicv2m);
        let mut setup = Setup::new(40);
        setup.create(if v2 { Model::V2 } else { Model::V3 }).unwrap();
        setup.set_spis(SPIS).unwrap();
        setup.set_lrs(LRS).unwrap();
        for n in 0..VCPUS {
            setup.add_vcpu(Affinity(n.into())).unwrap();
        }
        setup.set_distributor(GICD).unwrap();
        if v2 {
            setup.set_cpu_interface(GICC).unwrap();
            setup.add_msi_frame(MsiFrame { base: V2M, first: 64, count: 32 }).unwrap();
        } else {
            setup.add_redistributors(GICR, VCPUS.into()).unwrap();
        }
        let gic: Gic<Vgic> = setup.init(Arc::new(NoKick)).unwrap();
        let bus = gic.bus().unwrap();
        let cpus = (0..VCPUS).map(|n| gic.cpu(VcpuId(n)).unwrap()).collect();
        Self { bus, cpus, v2, entered: [false; VCPUS as usize], report: Report::default() }
    }

    fn wired(irq: u8, vcpu: u8) -> Wired {
        match u32::from(irq) {
            n @ 0..32 => Wired::Private(VcpuId(u16::from(vcpu) % VCPUS), Intid(n)),
            n => Wired::Spi(Intid(n)),
        }
    }

    /// Before what may wait for other vCPUs to leave the guest: their threads would answer a kick, but there is one
    /// thread here, so they have left it already.
    fn leave(&mut self) {
        self.cpus.iter_mut().for_each(GicCpu::exit);
        self.entered = [false; VCPUS as usize];
    }

    fn enter(&mut self, vcpu: u8) {
        self.entered[usize::from(vcpu) % usize::from(VCPUS)] = true;
        self.cpu(vcpu).enter();
    }

    fn exit(&mut self, vcpu: u8) {
        self.entered[usize::from(vcpu) % usize::from(VCPUS)] = false;
        self.cpu(vcpu).exit();
    }

    /// Before a guest uses its CPU interface: it does so in the guest, not between an exit and the next entry.
    fn in_guest(&mut self, vcpu: u8) {
        if !self.entered[usize::from(vcpu) % usize::from(VCPUS)] {
            self.enter(vcpu);
        }
    }

    fn cpu(&mut self, vcpu: u8) -> &mut GicCpu<Vgic> {
        &mut self.cpus[usize::from(vcpu) % usize::from(VCPUS)]
    }

    fn access(&mut self, vcpu: u8, address: u64, width: u8, value: u64, write: bool) {
        self.in_guest(vcpu);
        let width = usize::from(width) % 9;
        let mut data = value.to_le_bytes();
        // Whatever comes of it is right, as long as something does.
        let _ = if write {
            self.cpu(vcpu).write(address, &data[..width])
        } else {
            self.cpu(vcpu).read(address, &mut data[..width])
        };
        self.after(vcpu, address);
    }

    /// A distributor or redistributor access is an exit of its own.
    fn after(&mut self, vcpu: u8, address: u64) {
        if !self.v2 || !(GICC..GICC + 0x2000).contains(&address) || address == GICC + 0x1000 {
            self.exit(vcpu);
        }
    }

    fn word(&mut self, vcpu: u8, address: u64, value: u32, write: bool) -> u32 {
        self.in_guest(vcpu);
        let mut data = value.to_le_bytes();
        let result = if write {
            self.cpu(vcpu).write(address, &data)
        } else {
            self.cpu(vcpu).read(address, &mut data)
        };
        self.after(vcpu, address);
        result.expect("words can be accessed everywhere");
        u32::from_le_bytes(data)
    }

    fn iar(&mut self, vcpu: u8, group1: bool) -> u32 {
        let intid = if self.v2 {
            self.word(vcpu, GICC + if group1 { 0x20 } else { 0xc }, 0, false)
        } else {
            self.in_guest(vcpu);
            let reg = if group1 { SysReg::ICC_IAR1_EL1 } else { SysReg::ICC_IAR0_EL1 };
            self.cpu(vcpu).icc_read(reg).expect("an IAR can be read") as u32
        };
        if !(1020..=SPURIOUS).contains(&intid) {
            self.report.taken += 1;
        }
        intid
    }

    fn eoir(&mut self, vcpu: u8, group1: bool, intid: u32) {
        if self.v2 {
            self.word(vcpu, GICC + if group1 { 0x24 } else { 0x10 }, intid, true);
            return;
        }
        self.in_guest(vcpu);
        let reg = if group1 { SysReg::ICC_EOIR1_EL1 } else { SysReg::ICC_EOIR0_EL1 };
        self.cpu(vcpu).icc_write(reg, intid.into()).expect("an EOIR can be written");
    }

    fn perform(&mut self, frame: Frame, op: Op, last: &mut [u32; VCPUS as usize]) {
        match op {
            Op::Frame { vcpu, offset, width, value, write } => {
                let (base, size) = match frame {
                    Frame::GicdV2 => (GICD, 0x1000),
                    Frame::Gicc => (GICC, 0x2000),
                    Frame::Gicv2m => (V2M, 0x1000),
                    Frame::GicdV3 => (GICD, 0x1_0000),
                    Frame::Gicr => (GICR, 0x2_0000 * u32::from(VCPUS)),
                    Frame::Icc => return,
                };
                self.access(vcpu, base + u64::from(offset % size), width, value, write);
            }
            Op::Elsewhere { vcpu, word, value, write } => {
                let n = u64::from(word);
                let address = match (self.v2, n % 4) {
                    (true, 0) => GICC + n / 4 % 0x400 * 4,
                    (true, 1) => V2M + n / 4 % 0x400 * 4,
                    (true, _) => GICD + n / 4 % 0x400 * 4,
                    // Where the registers are: the rest is reserved.
                    (false, 0) => GICR + n % u64::from(VCPUS) * 0x2_0000 + n / 12 % 0x40 * 4,
                    (false, 1) => {
                        GICR + n % u64::from(VCPUS) * 0x2_0000 + 0x1_0000 + n / 12 % 0x400 * 4
                    }
                    (false, 2) => GICD + 0x6000 + n / 4 % 0x800 * 4,
                    (false, _) => GICD + n / 4 % 0x400 * 4,
                };
                self.word(vcpu, address, value, write);
            }
            // What cannot be injected is refused.
            Op::Line { irq, vcpu, high } => {
                let _ = self.bus.injector().set_level(Self::wired(irq, vcpu), high);
            }
            Op::Pulse { irq, vcpu } => {
                let _ = self.bus.injector().pulse(Self::wired(irq, vcpu));
            }
            Op::Enter(vcpu) => {
                self.enter(vcpu);
            }
            Op::Exit(vcpu) => self.exit(vcpu),
            Op::Take { vcpu, group } => {
                last[usize::from(vcpu) % usize::from(VCPUS)] = self.iar(vcpu, group);
            }
            Op::End { vcpu, group, intid } => {
                let last = last[usize::from(vcpu) % usize::from(VCPUS)];
                self.eoir(vcpu, group, intid.map_or(last, u32::from));
            }
            Op::Deactivate { vcpu, intid } => {
                self.leave();
                if self.v2 {
                    self.word(vcpu, GICC + 0x1000, intid.into(), true);
                } else {
                    self.in_guest(vcpu);
                    let reg = SysReg::ICC_DIR_EL1;
                    self.cpu(vcpu).icc_write(reg, intid.into()).expect("DIR can be written");
                }
            }
            Op::Power { vcpu, on: true } => self.cpu(vcpu).power_on(),
            Op::Power { vcpu, on: false } => {
                self.exit(vcpu);
                self.cpu(vcpu).power_off();
            }
            Op::System { vcpu, op1, crn, crm, op2, value, write } => {
                let crn = if frame == Frame::Icc { 12 - (crn & 1) * 8 } else { crn };
                let reg = SysReg::new(3, op1 & 7, crn & 15, crm & 15, op2 & 7);
                if reg == SysReg::ICC_DIR_EL1 {
                    self.leave();
                }
                self.in_guest(vcpu);
                let _ = if write {
                    self.cpu(vcpu).icc_write(reg, value)
                } else {
                    self.cpu(vcpu).icc_read(reg).map(drop)
                };
            }
            Op::Start(vcpu) => self.start(vcpu),
            Op::Route { irq, vcpu, priority } => {
                let n = 32 + u64::from(irq) % u64::from(SPIS);
                let route = u32::from(vcpu) % u32::from(VCPUS);
                let shift = 8 * (n % 4);
                let (word, byte) = (n & !3, 0xff << shift);
                let old = self.word(vcpu, GICD + 0x400 + word, 0, false) & !byte;
                self.word(vcpu, GICD + 0x400 + word, old | u32::from(priority) << shift, true);
                if self.v2 {
                    let old = self.word(vcpu, GICD + 0x800 + word, 0, false) & !byte;
                    self.word(vcpu, GICD + 0x800 + word, old | 1 << route << shift, true);
                } else {
                    self.word(vcpu, GICD + 0x6000 + 8 * n, route, true);
                }
                self.word(vcpu, GICD + 0x100 + n / 32 * 4, 1 << (n % 32), true);
            }
            Op::Send { vcpu, sgi, targets } if self.v2 => {
                let value = u32::from(targets) << 16 | u32::from(sgi & 15);
                self.word(vcpu, GICD + 0xf00, value, true);
            }
            Op::Send { vcpu, sgi, targets } => {
                let value = u64::from(sgi & 15) << 24 | u64::from(targets);
                self.cpu(vcpu).icc_write(SysReg::ICC_SGI1R_EL1, value).expect("it can be written");
            }
            Op::Serve { vcpu, group } => {
                self.enter(vcpu);
                let intid = self.iar(vcpu, group);
                self.eoir(vcpu, group, intid);
                self.exit(vcpu);
            }
        }
    }

    fn start(&mut self, vcpu: u8) {
        self.cpu(vcpu).power_on();
        let wired = if self.v2 {
            self.word(vcpu, GICC + 4, 0xff, true);
            // Both groups, and one register to acknowledge them.
            self.word(vcpu, GICC, 7, true);
            GICD
        } else {
            let rd = GICR + 0x2_0000 * (u64::from(vcpu) % u64::from(VCPUS));
            self.word(vcpu, rd + 0x14, 0, true);
            let regs = [
                (SysReg::ICC_PMR_EL1, 0xff),
                (SysReg::ICC_IGRPEN0_EL1, 1),
                (SysReg::ICC_IGRPEN1_EL1, 1),
            ];
            for (reg, value) in regs {
                self.cpu(vcpu).icc_write(reg, value).expect("it can be written");
            }
            rd + 0x1_0000
        };
        self.word(vcpu, wired + 0x100, u32::MAX, true);
        self.word(vcpu, wired + 0x80, 0xffff_ff00, true);
        self.word(vcpu, GICD, 3, true);
    }

    /// No interrupt is in two list registers, of one vCPU or of two.
    fn check_places(&mut self) {
        let mut seen = Vec::new();
        for (n, cpu) in self.cpus.iter_mut().enumerate() {
            let lrs = cpu.cpu_interface();
            for lr in (0..LRS).map(|i| lrs.read(i)).filter(|lr| lr.state() != LrState::Invalid) {
                // Of an SGI of GICv2, without its sender.
                let intid = if self.v2 { lr.intid().0 & 0x3ff } else { lr.intid().0 };
                let owner = if Intid(intid).is_private() { n } else { usize::MAX };
                assert!(!seen.contains(&(owner, intid)), "{intid} is in two places");
                seen.push((owner, intid));
            }
        }
    }

    /// The guest becomes sensible: everything is let through, taken and ended.
    fn drain(&mut self) {
        let irqs = 0..32 + SPIS as u8;
        for vcpu in 0..VCPUS as u8 {
            for irq in irqs.clone() {
                let wired = Self::wired(irq, vcpu);
                self.bus.injector().set_level(wired, false).unwrap();
            }
            // From a CPU interface without a past.
            self.cpu(vcpu).power_off();
            self.cpu(vcpu).power_on();
        }
        for irq in irqs.clone() {
            for vcpu in 0..VCPUS as u8 {
                let wired = Self::wired(irq, vcpu);
                self.bus.injector().set_active(wired, false).unwrap();
            }
        }
        for vcpu in 0..VCPUS {
            self.bus.injector().update_gates(VcpuId(vcpu), |_| Gates::OPEN).unwrap();
            let cpu = self.cpus[usize::from(vcpu)].cpu_interface();
            cpu.set_pmr(0xff);
            cpu.set_igrpen0(1);
            cpu.set_igrpen1(1);
        }
        let mut quiet = 0;
        while quiet < 2 {
            quiet += 1;
            for cpu in &mut self.cpus {
                cpu.enter();
                let lrs = cpu.cpu_interface();
                loop {
                    let (group1, intid) = match (lrs.iar1(), lrs.iar0()) {
                        (Intid(SPURIOUS), Intid(SPURIOUS)) => break,
                        (Intid(SPURIOUS), intid) => (false, intid),
                        (intid, other) => {
                            assert_eq!(other, Intid(SPURIOUS), "one was not ended");
                            (true, intid)
                        }
                    };
                    let _ = if group1 { lrs.eoir1(intid) } else { lrs.eoir0(intid) };
                    quiet = 0;
                    self.report.drained += 1;
                }
                cpu.exit();
            }
        }
        for irq in irqs {
            for vcpu in 0..VCPUS as u8 {
                let wired = Self::wired(irq, vcpu);
                let injector = self.bus.injector();
                let config = injector.config(wired).unwrap();
                // The lowest priority is never signaled.
                if config.enabled && config.priority != Priority::LOWEST {
                    let pending = injector.is_pending(wired).unwrap();
                    assert!(!pending, "{wired:?} is lost: {config:?}");
                    if let Wired::Private(vcpu, sgi) = wired
                        && sgi.is_sgi()
                    {
                        let senders = injector.senders(vcpu, sgi).unwrap();
                        assert_eq!(senders, 0, "{wired:?} is lost: {config:?}");
                    }
                }
            }
        }
    }
}

/// What a run has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Steps that were made.
    pub steps: usize,
    /// Interrupts that were taken before the guest became sensible.
    pub taken: usize,
    /// Those that were taken after.
    pub drained: usize,
}

/// The steps of an input, to be read.
pub fn explain(data: &[u8]) -> impl Iterator<Item = String> {
    steps(data).map(|op| format!("{op:x?}"))
}

/// Runs one input.
///
/// # Panics
/// On whatever must not be.
pub fn run(frame: Frame, data: &[u8]) -> Report {
    let mut machine = Machine::new(frame);
    let mut last = [SPURIOUS; VCPUS as usize];
    for op in steps(data) {
        let frame_access = matches!(
            op,
            Op::Frame { .. }
                | Op::Elsewhere { .. }
                | Op::Start(_)
                | Op::Route { .. }
                | Op::Send { .. }
        );
        if frame_access {
            machine.leave();
        }
        machine.perform(frame, op, &mut last);
        machine.check_places();
        machine.report.steps += 1;
    }
    machine.drain();
    machine.report
}
