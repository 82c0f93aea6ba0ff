//! The machine that the steps run on, and its invariants.

use std::cell::{RefCell, RefMut};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use vgic_core::Vgic;
use vgic_core::engine::*;
use vgic_core::gic::*;
use vgic_core::ids::*;
use vgic_core::lr::{ListRegisters, Lr, LrState};

use crate::host::{self, Cpu, Host};
use crate::lpis::{LPIS, Lpi, Lpis, PROPERTIES, Registers, Tables, pending_table};
use crate::op::Op;
use crate::{Frame, Report, VCPUS};

const SPIS: u16 = 64;
const LRS: usize = 3;
const GICD: u64 = 0x0800_0000;
const GICC: u64 = 0x0801_0000;
const V2M: u64 = 0x0802_0000;
const GICR: u64 = 0x080a_0000;
const REDIST: u64 = 0x2_0000;
/// Offsets of the clear-pending registers of a distributor and of SGI_base.
const ICPENDR: std::ops::Range<u64> = 0x280..0x300;

/// An interrupt that a vCPU must be given.
struct Candidate {
    /// The INTID as in a list register, without a sender.
    intid: u32,
    priority: Priority,
}

pub(crate) struct Machine {
    frame: Frame,
    v2: bool,
    gic: Gic<Vgic>,
    bus: GicBus<Vgic>,
    cpus: Vec<Cpu>,
    on: [bool; VCPUS as usize],
    /// The value that each vCPU's last acknowledge returned.
    last: [u32; VCPUS as usize],
    tables: Arc<Tables>,
    lpis: Lpis,
    /// Owner and INTID of interrupts made pending by a pulse, and neither acknowledged nor cleared
    /// since.
    pulsed: BTreeSet<(usize, u32)>,
    pub(crate) report: Report,
}

/// Returns the owner vCPU of a private interrupt, or `usize::MAX` for SPIs and LPIs.
fn owner(intid: u32, vcpu: usize) -> usize {
    if Intid(intid).is_private() { vcpu } else { usize::MAX }
}

fn wired(irq: u32, vcpu: usize) -> Wired {
    match irq {
        n @ 0..32 => Wired::Private(VcpuId(vcpu as u16), Intid(n)),
        n => Wired::Spi(Intid(n)),
    }
}

/// Maps any number to the index of a vCPU that exists.
fn index(vcpu: u8) -> usize {
    usize::from(vcpu) % usize::from(VCPUS)
}

impl Machine {
    pub(crate) fn new(frame: Frame) -> Self {
        let v2 = matches!(frame, Frame::GicdV2 | Frame::Gicc | Frame::Gicv2m);
        let tables = Arc::new(Tables::default());
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
            // Devices and events are made up, so four bits of each are enough.
            let (lpis, device_bits, event_bits) = (LPIS, 4, 4);
            setup.set_bounds(Config { lpis, device_bits, event_bits, ..Config::default() });
            setup.set_memory(tables.clone()).unwrap();
            // Some targets begin as firmware does, and some as a kernel.
            setup.set_firmware(frame != Frame::Icc).unwrap();
        }
        let gic: Gic<Vgic> = setup.init(Arc::new(Host)).unwrap();
        let bus = gic.bus().unwrap();
        let cpu = |n| Rc::new(RefCell::new(gic.cpu(VcpuId(n)).unwrap()));
        let cpus: Vec<Cpu> = (0..VCPUS).map(cpu).collect();
        host::set_cpus(cpus.clone());
        Self {
            frame,
            v2,
            gic,
            bus,
            cpus,
            on: Default::default(),
            last: [SPURIOUS; VCPUS as usize],
            tables,
            lpis: Lpis::default(),
            pulsed: BTreeSet::new(),
            report: Report::default(),
        }
    }

    fn cpu(&self, vcpu: usize) -> RefMut<'_, GicCpu<Vgic>> {
        self.cpus[vcpu].borrow_mut()
    }

    fn enter(&self, vcpu: usize) -> Flushed {
        host::take_kick(vcpu);
        self.cpu(vcpu).enter()
    }

    /// Whether a vCPU's list registers may be out of date.
    fn is_stale(&self, vcpu: usize) -> bool {
        host::is_kicked(vcpu) || self.cpu(vcpu).has_mail()
    }

    /// Updates the expected state for a guest's write that is about to be performed.
    fn foresee(&mut self, vcpu: usize, address: u64, width: usize, value: u64) {
        if width == 0 || !address.is_multiple_of(width as u64) {
            return;
        }
        if let Some(offset) = address.checked_sub(GICD).filter(|o| ICPENDR.contains(o)) {
            let first = (offset - ICPENDR.start) as u32 / 4 * 32;
            // A banked word belongs to the accessing vCPU.
            self.forget(owner(first, vcpu), first..first + 64);
        }
        if self.v2 {
            return;
        }
        if address == GICD + 0x48 {
            self.forget(usize::MAX, 0..u32::MAX);
        }
        let Some(offset) = address.checked_sub(GICR).filter(|o| *o < REDIST * u64::from(VCPUS))
        else {
            return;
        };
        let (of, offset) = ((offset / REDIST) as usize, offset % REDIST);
        if offset.checked_sub(0x1_0000).is_some_and(|offset| ICPENDR.contains(&offset)) {
            self.forget(of, 0..32);
        }
        let base = GICR + REDIST * of as u64;
        let regs = Registers {
            enabled: self.peek(base) & 1 != 0,
            propbaser: self.peek(base + 0x70) | self.peek(base + 0x74) << 32,
            pendbaser: self.peek(base + 0x78) | self.peek(base + 0x7c) << 32,
        };
        self.lpis.write(&self.tables, &regs, (of, offset), (width, value));
    }

    fn forget(&mut self, owner: usize, intids: std::ops::Range<u32>) {
        self.pulsed.retain(|&(o, intid)| o != owner || !intids.contains(&intid));
    }

    /// Reads a word that has the same value for all vCPUs.
    fn peek(&self, address: u64) -> u64 {
        let mut data = [0; 4];
        self.bus.read(VcpuId(0), address, &mut data).expect("it can be read");
        u32::from_le_bytes(data).into()
    }

    fn access(&mut self, vcpu: usize, address: u64, width: u8, value: u64, write: bool) {
        let width = usize::from(width) % 9;
        let mut data = value.to_le_bytes();
        let data = &mut data[..width];
        if write {
            self.foresee(vcpu, address, width, value);
        }
        let stale = self.is_stale(vcpu);
        let result = if write {
            self.cpu(vcpu).write(address, data)
        } else {
            self.cpu(vcpu).read(address, data)
        };
        // Any result is right, as long as the access returns.
        let acknowledged = result.is_ok() && !write && self.v2 && width == 4;
        if acknowledged && [GICC + 0xc, GICC + 0x20].contains(&address) {
            let value = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
            self.taken(vcpu, value, stale);
        }
    }

    fn word(&mut self, vcpu: usize, address: u64, value: u32, write: bool) -> u32 {
        let mut data = value.to_le_bytes();
        if write {
            self.foresee(vcpu, address, 4, value.into());
        }
        let result = if write {
            self.cpu(vcpu).write(address, &data)
        } else {
            self.cpu(vcpu).read(address, &mut data)
        };
        result.expect("words can be accessed everywhere");
        u32::from_le_bytes(data)
    }

    /// Accounts for the value that an acknowledge register returned.
    fn taken(&mut self, vcpu: usize, value: u32, stale: bool) {
        let intid = if self.v2 { value & 0x3ff } else { value };
        let count = match intid {
            1020..=SPURIOUS => return,
            0..16 => &mut self.report.sgis,
            16..32 => &mut self.report.ppis,
            n if n < 1020 => &mut self.report.spis,
            _ => &mut self.report.lpis,
        };
        *count += 1;
        if Intid(intid).is_lpi() {
            self.lpis.taken(intid, stale);
        }
        self.pulsed.remove(&(owner(intid, vcpu), intid));
        self.last[vcpu] = value;
    }

    fn system(&mut self, vcpu: usize, reg: SysReg, write: Option<u64>) -> Option<u64> {
        let stale = self.is_stale(vcpu);
        if let Some(value) = write {
            return self.cpu(vcpu).icc_write(reg, value).map(|()| 0);
        }
        let value = self.cpu(vcpu).icc_read(reg)?;
        if [SysReg::ICC_IAR0_EL1, SysReg::ICC_IAR1_EL1].contains(&reg) {
            self.taken(vcpu, value as u32, stale);
        }
        Some(value)
    }

    fn iar(&mut self, vcpu: usize, group1: bool) -> u32 {
        if self.v2 {
            let stale = self.is_stale(vcpu);
            let value = self.word(vcpu, GICC + if group1 { 0x20 } else { 0xc }, 0, false);
            self.taken(vcpu, value, stale);
            return value;
        }
        let reg = if group1 { SysReg::ICC_IAR1_EL1 } else { SysReg::ICC_IAR0_EL1 };
        self.system(vcpu, reg, None).expect("an IAR can be read") as u32
    }

    fn eoir(&mut self, vcpu: usize, group1: bool, intid: u32) {
        let active = self.active(vcpu);
        if self.v2 {
            self.word(vcpu, GICC + if group1 { 0x24 } else { 0x10 }, intid, true);
        } else {
            let reg = if group1 { SysReg::ICC_EOIR1_EL1 } else { SysReg::ICC_EOIR0_EL1 };
            self.system(vcpu, reg, Some(intid.into())).expect("an EOIR can be written");
        }
        self.report.ended += active.saturating_sub(self.active(vcpu));
    }

    /// The number of a vCPU's list registers with an active interrupt.
    fn active(&self, vcpu: usize) -> usize {
        self.lrs(vcpu).filter(|lr| lr.state().is_active()).count()
    }

    fn lrs(&self, vcpu: usize) -> impl Iterator<Item = Lr> + use<> {
        let mut cpu = self.cpu(vcpu);
        let lrs: [Lr; LRS] = std::array::from_fn(|n| cpu.cpu_interface().read(n));
        lrs.into_iter().filter(|lr| lr.state() != LrState::Invalid)
    }

    /// Returns the INTID of a list register, without a sender.
    fn intid(&self, lr: Lr) -> u32 {
        if self.v2 { lr.intid().0 & 0x3ff } else { lr.intid().0 }
    }

    /// Performs one step. A vCPU that gets mail from the step must have been kicked.
    pub(crate) fn perform(&mut self, op: Op) {
        let has_mail = |cpu: &Cpu| cpu.borrow().has_mail();
        let before: Vec<bool> = self.cpus.iter().map(has_mail).collect();
        let (waits, acting) = (host::waits(), op.vcpu().map(index));
        let everybody = matches!(op, Op::Check(_));
        self.perform_unwatched(op);
        for (vcpu, had_mail) in before.into_iter().enumerate() {
            // A vCPU that left the guest during the step may have found mail without a kick.
            let own = everybody || acting == Some(vcpu) || host::waits() != waits;
            if !own && !had_mail && has_mail(&self.cpus[vcpu]) {
                assert!(host::is_kicked(vcpu), "vCPU {vcpu} was not kicked");
            }
        }
    }

    fn perform_unwatched(&mut self, op: Op) {
        match op {
            Op::Frame { vcpu, offset, width, value, write } => {
                let (base, size) = match self.frame {
                    Frame::GicdV2 => (GICD, 0x1000),
                    Frame::Gicc => (GICC, 0x2000),
                    Frame::Gicv2m => (V2M, 0x1000),
                    Frame::GicdV3 => (GICD, 0x1_0000),
                    Frame::Gicr => (GICR, REDIST as u32 * u32::from(VCPUS)),
                    Frame::Icc | Frame::Its => return,
                };
                self.access(index(vcpu), base + u64::from(offset % size), width, value, write);
            }
            Op::Elsewhere { vcpu, word, value, write } => {
                self.access(index(vcpu), self.somewhere(word.into()), 4, value.into(), write);
            }
            // `set_level` refuses interrupts that cannot be injected.
            Op::Line { irq, vcpu, high } => {
                let _ = self.bus.injector().set_level(wired(irq.into(), index(vcpu)), high);
            }
            Op::Pulse { irq, vcpu } => {
                let (irq, vcpu) = (u32::from(irq), index(vcpu));
                if self.bus.injector().pulse(wired(irq, vcpu)).is_ok() {
                    self.pulsed.insert((owner(irq, vcpu), irq));
                }
            }
            Op::Enter(vcpu) => _ = self.enter(index(vcpu)),
            Op::Exit(vcpu) => self.cpu(index(vcpu)).exit(),
            Op::Take { vcpu, group } => _ = self.iar(index(vcpu), group),
            Op::End { vcpu, group, intid } => {
                let last = self.last[index(vcpu)];
                self.eoir(index(vcpu), group, intid.map_or(last, u32::from));
            }
            Op::Deactivate { vcpu, intid } if self.v2 => {
                self.word(index(vcpu), GICC + 0x1000, intid.into(), true);
            }
            Op::Deactivate { vcpu, intid } => {
                let written = self.system(index(vcpu), SysReg::ICC_DIR_EL1, Some(intid.into()));
                written.expect("DIR can be written");
            }
            Op::Power { vcpu, on } => self.power(index(vcpu), on),
            Op::System { vcpu, op1, crn, crm, op2, value, write } => {
                let crn = if self.frame == Frame::Icc { 12 - (crn & 1) * 8 } else { crn };
                let reg = SysReg::new(3, op1 & 7, crn & 15, crm & 15, op2 & 7);
                self.system(index(vcpu), reg, write.then_some(value));
            }
            Op::Start(vcpu) => self.start(index(vcpu)),
            Op::Route { irq, vcpu, priority } => self.route(irq.into(), index(vcpu), priority),
            Op::Send { vcpu, sgi, targets } if self.v2 => {
                let value = u32::from(targets) << 16 | u32::from(sgi & 15);
                self.word(index(vcpu), GICD + 0xf00, value, true);
            }
            Op::Send { vcpu, sgi, targets } => {
                let sgi = u32::from(sgi & 15);
                let value = u64::from(sgi) << 24 | u64::from(targets);
                let written = self.system(index(vcpu), SysReg::ICC_SGI1R_EL1, Some(value));
                written.expect("it can be written");
                let named = (0..usize::from(VCPUS)).filter(|n| targets >> n & 1 != 0);
                self.pulsed.extend(named.map(|n| (n, sgi)));
            }
            Op::Serve { vcpu, group } => {
                self.enter(index(vcpu));
                let value = self.iar(index(vcpu), group);
                self.eoir(index(vcpu), group, value);
                self.cpu(index(vcpu)).exit();
            }
            Op::Check(vcpu) => self.check(index(vcpu)),
            Op::Tables { .. } | Op::Lpi { .. } | Op::Property { .. } | Op::Pending { .. }
                if self.v2 => {}
            Op::Tables { vcpu, zero } => self.set_tables(index(vcpu), zero),
            Op::Property { lpi, value } => self.tables.set_property(lpi % LPIS as u8, value),
            Op::Pending { vcpu, value } => self.tables.set_pending(index(vcpu), value),
            Op::Lpi { vcpu, lpi, reg } => {
                let vcpu = index(vcpu);
                let offset = [0x40, 0x40, 0x40, 0x48, 0xa0, 0xa0, 0xb0][usize::from(reg) % 7];
                // Some of these INTIDs do not exist.
                let intid = LPI_BASE + u32::from(lpi) % (LPIS + 4);
                self.word(vcpu, GICR + REDIST * vcpu as u64 + offset, intid, true);
            }
        }
    }

    /// Returns the address of one of the machine's registers.
    fn somewhere(&self, n: u64) -> u64 {
        let redist = GICR + n / 4 % u64::from(VCPUS) * REDIST;
        match (self.v2, n % 4) {
            (true, 0) => GICC + n / 4 % 0x400 * 4,
            (true, 1) => V2M + n / 4 % 0x400 * 4,
            (true, _) => GICD + n / 4 % 0x400 * 4,
            (false, 0) => redist + n / 12 % 0x40 * 4,
            (false, 1) => redist + 0x1_0000 + n / 12 % 0x400 * 4,
            (false, 2) => GICD + 0x6000 + n / 4 % 0x800 * 4,
            (false, _) => GICD + n / 4 % 0x400 * 4,
        }
    }

    fn power(&mut self, vcpu: usize, on: bool) {
        self.on[vcpu] = on;
        if on {
            self.cpu(vcpu).power_on();
        } else {
            self.cpu(vcpu).power_off();
        }
    }

    fn start(&mut self, vcpu: usize) {
        self.power(vcpu, true);
        let wired = if self.v2 {
            self.word(vcpu, GICC + 4, 0xff, true);
            // Enables both groups, and one register to acknowledge both.
            self.word(vcpu, GICC, 7, true);
            GICD
        } else {
            let rd = GICR + REDIST * vcpu as u64;
            self.word(vcpu, rd + 0x14, 0, true);
            let regs = [
                (SysReg::ICC_PMR_EL1, 0xff),
                (SysReg::ICC_IGRPEN0_EL1, 1),
                (SysReg::ICC_IGRPEN1_EL1, 1),
            ];
            for (reg, value) in regs {
                self.system(vcpu, reg, Some(value)).expect("it can be written");
            }
            rd + 0x1_0000
        };
        self.word(vcpu, wired + 0x100, u32::MAX, true);
        self.word(vcpu, wired + 0x80, 0xffff_ff00, true);
        self.word(vcpu, GICD, 3, true);
    }

    fn route(&mut self, irq: u64, route: usize, priority: u8) {
        let n = 32 + irq % u64::from(SPIS);
        let shift = 8 * (n % 4);
        let (word, byte) = (n & !3, 0xff << shift);
        let old = self.word(route, GICD + 0x400 + word, 0, false) & !byte;
        self.word(route, GICD + 0x400 + word, old | u32::from(priority) << shift, true);
        if self.v2 {
            let old = self.word(route, GICD + 0x800 + word, 0, false) & !byte;
            self.word(route, GICD + 0x800 + word, old | 1 << route << shift, true);
        } else {
            self.word(route, GICD + 0x6000 + 8 * n, route as u32, true);
        }
        self.word(route, GICD + 0x100 + n / 32 * 4, 1 << (n % 32), true);
    }

    fn set_tables(&mut self, vcpu: usize, zero: bool) {
        let rd = GICR + REDIST * vcpu as u64;
        let ptz = if zero { 1 << 30 } else { 0 };
        for (offset, value) in [
            (0, 0),
            // 14 bits of INTID.
            (0x70, PROPERTIES as u32 | 13),
            (0x74, 0),
            (0x78, pending_table(vcpu) as u32),
            (0x7c, ptz),
            (0, 1),
        ] {
            self.word(vcpu, rd + offset, value, true);
        }
    }

    /// Checks that no interrupt is in two list registers, of one vCPU or of two.
    pub(crate) fn check_places(&self) {
        let mut seen = Vec::new();
        for vcpu in 0..self.cpus.len() {
            for lr in self.lrs(vcpu) {
                let intid = self.intid(lr);
                let irq = (owner(intid, vcpu), intid);
                assert!(!seen.contains(&irq), "{intid} is in two places");
                seen.push(irq);
            }
        }
    }

    /// Enters and leaves the powered-on vCPUs that were kicked or have mail, and no others, until
    /// there are none.
    fn answer_kicks(&self) {
        for _ in 0..1000 {
            let mut quiet = true;
            for vcpu in (0..self.cpus.len()).filter(|&n| self.on[n]) {
                // A thread that is about to sleep does the same.
                if self.is_stale(vcpu) {
                    quiet = false;
                    self.enter(vcpu);
                    self.cpu(vcpu).exit();
                }
            }
            if quiet {
                return;
            }
        }
        panic!("the vCPUs kick each other without end");
    }

    /// Whether each group is forwarded to a vCPU and enabled at its CPU interface, according to the
    /// registers.
    fn groups(&self, vcpu: usize) -> [bool; 2] {
        let awake = self.v2 || self.peek(GICR + REDIST * vcpu as u64 + 0x14) == 0;
        let dist = self.peek(GICD);
        let cpu = self.cpu(vcpu).cpu_interface().groups_enabled();
        [0, 1].map(|n| self.on[vcpu] && awake && dist >> n & 1 != 0 && cpu[n])
    }

    /// Whether LPIs are forwarded to a vCPU.
    fn lpis_pass(&self, vcpu: usize) -> bool {
        let enabled = || self.peek(GICR + REDIST * vcpu as u64) & 1 != 0;
        !self.v2 && self.groups(vcpu)[1] && enabled()
    }

    /// Returns the interrupts that must be given to a vCPU: pending, enabled, forwarded, not
    /// active. All vCPUs have left the guest.
    fn candidates(&self, vcpu: usize) -> Vec<Candidate> {
        let (groups, injector) = (self.groups(vcpu), self.bus.injector());
        let mut found = Vec::new();
        for intid in 0..32 + u32::from(SPIS) {
            let irq = wired(intid, vcpu);
            let config = injector.config(irq).unwrap();
            let sent = match irq {
                Wired::Private(of, sgi) if sgi.is_sgi() => injector.senders(of, sgi).unwrap() != 0,
                _ => false,
            };
            let pending = sent || injector.is_pending(irq).unwrap();
            let pulsed = self.pulsed.contains(&(owner(intid, vcpu), intid));
            assert!(pending || !pulsed, "{irq:?} is lost: {config:?}");
            let mine = config.enabled && config.target.index() == vcpu;
            if pending && mine && groups[config.group as usize] && !injector.is_active(irq).unwrap()
            {
                found.push(Candidate { intid, priority: config.priority });
            }
        }
        if self.lpis_pass(vcpu) {
            // An LPI counts even while a vCPU has acknowledged it and not ended it: LPIs have no
            // active state.
            let here = |lpi: &&Lpi| lpi.must && lpi.enabled && lpi.target == vcpu;
            let lpis = self.lpis.by_intid.iter().filter(|(_, lpi)| here(lpi));
            found.extend(lpis.map(|(&intid, lpi)| Candidate { intid, priority: lpi.priority }));
        }
        found
    }

    /// Checks that a vCPU is given exactly the interrupts it should be given at its next entry, the
    /// most urgent first.
    pub(crate) fn check(&mut self, vcpu: usize) {
        for cpu in &self.cpus {
            cpu.borrow_mut().exit();
        }
        self.answer_kicks();
        let candidates = self.candidates(vcpu);
        let lpis_pass = self.lpis_pass(vcpu);
        let flushed = self.enter(vcpu);
        let lrs: Vec<Lr> = self.lrs(vcpu).collect();
        let pending: Vec<Lr> =
            lrs.iter().copied().filter(|lr| lr.state() == LrState::Pending).collect();
        for candidate in &candidates {
            let Candidate { intid, priority } = *candidate;
            if let Some(lr) = pending.iter().find(|lr| self.intid(**lr) == intid) {
                assert_eq!(lr.priority(), priority, "{intid} has changed its priority");
                self.report.offered += 1;
                continue;
            }
            let why = format!("{intid} with {priority:?}, as {lrs:?} are");
            assert!(lrs.len() == LRS, "not offered: {why}");
            assert!(flushed.waiting, "forgotten: {why}");
            // T32: active interrupts do not keep a pending one waiting.
            assert!(!pending.is_empty(), "none is pending: {why}");
            let before = |lr: &Lr| lr.priority().level() <= priority.level();
            assert!(pending.iter().all(before), "not the most urgent: {why}");
            self.report.waiting += 1;
        }
        for lr in pending {
            let intid = self.intid(lr);
            let right = match self.lpis.by_intid.get(&intid).filter(|_| !self.v2) {
                Some(lpi) => lpis_pass && lpi.may && lpi.enabled && lpi.target == vcpu,
                None => candidates.iter().any(|candidate| candidate.intid == intid),
            };
            assert!(right, "{intid} is offered, and should not be");
        }
    }

    /// The guest becomes sensible: all interrupts are let through, acknowledged and ended.
    pub(crate) fn drain(&mut self) {
        let irqs = 0..32 + u32::from(SPIS);
        for vcpu in 0..self.cpus.len() {
            for irq in irqs.clone() {
                self.bus.injector().set_level(wired(irq, vcpu), false).unwrap();
            }
            if !self.on[vcpu] {
                self.power(vcpu, true);
            }
            if !self.v2 {
                self.word(0, GICR + REDIST * vcpu as u64 + 0x14, 0, true);
                // Lets through LPIs that were pending before, and those of the pending table.
                self.word(0, GICR + REDIST * vcpu as u64, 1, true);
            }
        }
        self.word(0, GICD, 3, true);
        for vcpu in 0..self.cpus.len() {
            for irq in irqs.clone() {
                self.bus.injector().set_active(wired(irq, vcpu), false).unwrap();
            }
        }
        for vcpu in 0..self.cpus.len() {
            self.enter(vcpu);
            let mut cpu = self.cpu(vcpu);
            let cpu = cpu.cpu_interface();
            cpu.set_ctlr(0);
            cpu.set_bpr0(0);
            cpu.set_bpr1(0);
            cpu.set_ap0r(0, 0).unwrap();
            cpu.set_ap1r(0, 0).unwrap();
            cpu.set_pmr(0xff);
            cpu.set_igrpen0(1);
            cpu.set_igrpen1(1);
        }
        // The guest has changed its CPU interface, so each vCPU is entered once. From then on only
        // vCPUs that were kicked or have mail are entered.
        for vcpu in 0..self.cpus.len() {
            self.serve_all(vcpu);
        }
        for _ in 0..1000 {
            match (0..self.cpus.len()).find(|&vcpu| self.is_stale(vcpu)) {
                Some(vcpu) => self.serve_all(vcpu),
                None => break,
            }
        }
        for vcpu in 0..self.cpus.len() {
            for Candidate { intid, priority } in self.candidates(vcpu) {
                // The lowest priority is never signaled.
                assert!(priority == Priority::LOWEST, "{intid} is lost, priority {priority:?}");
            }
        }
    }

    /// Enters a vCPU, acknowledges and ends all its interrupts, and exits.
    fn serve_all(&mut self, vcpu: usize) {
        loop {
            self.enter(vcpu);
            let (group1, intid) = {
                let mut cpu = self.cpu(vcpu);
                let cpu = cpu.cpu_interface();
                match (cpu.iar1(), cpu.iar0()) {
                    (Intid(SPURIOUS), Intid(SPURIOUS)) => break,
                    (Intid(SPURIOUS), intid) => (false, intid),
                    (intid, other) => {
                        assert_eq!(other, Intid(SPURIOUS), "one was not ended");
                        (true, intid)
                    }
                }
            };
            if intid.is_lpi() && !self.v2 {
                self.lpis.taken(intid.0, false);
            }
            let plain = if self.v2 { intid.0 & 0x3ff } else { intid.0 };
            self.pulsed.remove(&(owner(plain, vcpu), plain));
            self.report.drained += 1;
            let mut cpu = self.cpu(vcpu);
            let cpu = cpu.cpu_interface();
            let _ = if group1 { cpu.eoir1(intid) } else { cpu.eoir0(intid) };
        }
        self.cpu(vcpu).exit();
    }

    /// Drops the machine and returns its report.
    pub(crate) fn finish(mut self) -> Report {
        self.report.waits = host::waits();
        host::set_cpus(Vec::new());
        self.cpus.clear();
        let lpis = self.gic.engine().usage().lpis;
        assert!(lpis <= self.lpis.by_intid.len(), "more LPIs than were ever set");
        self.report
    }
}
