//! The register frames on the lock-free engine against those on the locked engine: the same
//! accesses by two vCPUs must give the same answers and the same lines.
#![cfg(feature = "locked")]

use std::sync::Arc;

use proptest::prelude::*;
use vgic_core::Vgic;
use vgic_core::engine::*;
use vgic_core::gic::*;
use vgic_core::ids::*;
use vgic_core::locked::LockedVgic;

const GICD: u64 = 0x0800_0000;
const GICC: u64 = 0x0801_0000;
const GICR: u64 = 0x080a_0000;
const VCPUS: usize = 2;

struct NoKick; // one thread, and nobody is in the guest
impl Kick for NoKick {
    fn kick(&self, _: VcpuId) {}
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Read(usize, u64),
    Write(usize, u64, u32),
    WriteByte(usize, u64, u8),
    Line(u32, usize, bool),
    /// The guest takes the signaled interrupt, or ends the one that it took last.
    Take(usize),
    End(usize),
    Power(usize, bool),
}

/// The words of a frame with state of INTIDs 0 to 95.
fn distributor(v3: bool) -> impl Strategy<Value = u64> {
    let routers = if v3 { 32..96u64 } else { 0..1 };
    // The groups are left out: an active interrupt cannot be ended properly once its group has
    // changed (IHI 0069, 4.8).
    let banks = [0x100, 0x180, 0x200, 0x280, 0x300, 0x380].map(|base| base + GICD);
    prop_oneof![
        1 => Just(GICD),
        6 => (prop::sample::select(banks.to_vec()), 0..3u64).prop_map(|(base, n)| base + 4 * n),
        3 => (0..24u64).prop_map(|n| GICD + 0x400 + 4 * n),
        3 => (0..24u64).prop_map(|n| GICD + 0x800 + 4 * n),
        1 => (0..6u64).prop_map(|n| GICD + 0xc00 + 4 * n),
        1 => Just(GICD + 0xf00),
        1 => (0..8u64).prop_map(|n| GICD + 0xf10 + 4 * n),
        2 => routers.prop_map(move |n| GICD + if v3 { 0x6000 + 8 * n } else { 0xf00 }),
    ]
}

fn redistributor() -> impl Strategy<Value = u64> {
    let banks = [0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0xc00, 0xc04].to_vec();
    let sgi = prop_oneof![prop::sample::select(banks), (0..8u64).prop_map(|n| 0x400 + 4 * n),]
        .prop_map(|offset| 0x1_0000 + offset);
    (0..VCPUS as u64, prop_oneof![1 => Just(0), 1 => Just(0x14), 8 => sgi])
        .prop_map(|(vcpu, offset)| GICR + 0x2_0000 * vcpu + offset)
}

/// Values with few INTIDs, so that the operations meet.
fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        prop::sample::select(vec![0, 1, 3, 7, 0xffff_ffff, 0x0001_0003, 0x0200_0003, 0x0100_0003]),
        (0..32u32).prop_map(|n| 1 << n),
    ]
}

fn op(v3: bool) -> impl Strategy<Value = Op> {
    // Registers that name an interrupt are left out: see `compare`.
    let gicc = prop::sample::select(vec![0x0, 0x4, 0x8, 0x14, 0x1c, 0xfc]);
    let address = if v3 {
        prop_oneof![distributor(v3), redistributor()].boxed()
    } else {
        prop_oneof![5 => distributor(v3), 1 => gicc.prop_map(|n| GICC + n)].boxed()
    };
    let vcpu = 0..VCPUS;
    prop_oneof![
        3 => (vcpu.clone(), address.clone()).prop_map(|(v, a)| Op::Read(v, a)),
        6 => (vcpu.clone(), address.clone(), value()).prop_map(|(v, a, x)| Op::Write(v, a, x)),
        1 => (vcpu.clone(), address, 0..4u64, any::<u8>()).prop_map(|(v, a, n, x)| Op::WriteByte(v, a + n, x)),
        3 => (16..96u32, vcpu.clone(), any::<bool>()).prop_map(|(n, v, high)| Op::Line(n, v, high)),
        4 => vcpu.clone().prop_map(Op::Take),
        3 => vcpu.clone().prop_map(Op::End),
        1 => (vcpu, prop::bool::weighted(0.8)).prop_map(|(v, on)| Op::Power(v, on)),
    ]
}

/// A machine, and the interrupts that its guests have taken.
struct Side<E: Engine> {
    cpus: Vec<GicCpu<E>>,
    device: E::Injector,
    v3: bool,
    taken: [Vec<u32>; VCPUS],
    _gic: Gic<E>,
}

impl<E: Engine> Side<E> {
    fn new(v3: bool) -> Self {
        let mut setup = Setup::new(40);
        setup.create(if v3 { Model::V3 } else { Model::V2 }).unwrap();
        setup.set_spis(64).unwrap();
        for n in 0..VCPUS as u32 {
            setup.add_vcpu(Affinity(n)).unwrap();
        }
        setup.set_distributor(GICD).unwrap();
        if v3 {
            setup.add_redistributors(GICR, VCPUS as u32).unwrap();
        } else {
            setup.set_cpu_interface(GICC).unwrap();
        }
        let gic: Gic<E> = setup.init(Arc::new(NoKick)).unwrap();
        let cpus = (0..VCPUS).map(|n| gic.cpu(VcpuId(n as u16)).unwrap()).collect();
        let device = gic.engine().injector().unwrap();
        let mut side = Self { cpus, device, v3, taken: Default::default(), _gic: gic };
        // Most of the machine is enabled, so that most operations have an effect.
        for v in 0..VCPUS {
            side.power(v, true);
            if v3 {
                let rd = GICR + 0x2_0000 * v as u64;
                side.write(v, rd + 0x14, 0);
                side.write(v, rd + 0x1_0080, 0xaaaa_aaaa);
            } else {
                side.write(v, GICD + 0x80, 0xaaaa_aaaa);
            }
        }
        for n in 1..3 {
            side.write(0, GICD + 0x80 + 4 * n, 0xaaaa_aaaa);
        }
        // Most priorities differ, so that ties are rare.
        for n in 0..96 {
            for v in 0..VCPUS {
                let private = v3 && n < 32;
                let base = if private { GICR + 0x2_0000 * v as u64 + 0x1_0000 } else { GICD };
                side.cpus[v].write(base + 0x400 + n, &[(n % 31 * 8) as u8]).unwrap();
            }
        }
        side.write(0, GICD, 3);
        side
    }

    fn power(&mut self, v: usize, on: bool) {
        if !on {
            self.taken[v].clear();
            return self.cpus[v].power_off();
        }
        self.cpus[v].power_on();
        if self.v3 {
            for (reg, value) in [
                (SysReg::ICC_PMR_EL1, 0xf8),
                (SysReg::ICC_IGRPEN0_EL1, 1),
                (SysReg::ICC_IGRPEN1_EL1, 1),
            ] {
                self.cpus[v].icc_write(reg, value).unwrap();
            }
        } else {
            self.write(v, GICC + 4, 0xf8);
            self.write(v, GICC, 7);
        }
    }

    fn read(&mut self, v: usize, address: u64) -> u32 {
        let mut data = [0; 4];
        self.cpus[v].read(address, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn write(&mut self, v: usize, address: u64, value: u32) {
        self.cpus[v].write(address, &value.to_le_bytes()).unwrap();
    }

    fn take(&mut self, v: usize) -> u32 {
        let intid = if !self.v3 {
            self.read(v, GICC + 0xc)
        } else {
            let mut read = |reg| self.cpus[v].icc_read(reg).unwrap() as u32;
            match read(SysReg::ICC_IAR1_EL1) {
                SPURIOUS => read(SysReg::ICC_IAR0_EL1),
                intid => intid | 1 << 31,
            }
        };
        if intid & 0x3ff < 1020 {
            self.taken[v].push(intid);
        }
        intid
    }

    /// Returns whether two interrupts of one priority are pending for one vCPU.
    fn has_ties(&self) -> bool {
        (0..VCPUS as u16).map(VcpuId).any(|v| {
            let private = (0..32).map(|n| Wired::Private(v, Intid(n)));
            let all = private.chain((32..96).map(|n| Wired::Spi(Intid(n))));
            let mut seen = 0u32;
            let mut again = |priority: Priority| {
                let bit = 1 << priority.level();
                let again = seen & bit != 0;
                seen |= bit;
                again
            };
            let pending = all.filter(|&w| self.device.is_pending(w).unwrap());
            let configs = pending.map(|w| self.device.config(w).unwrap());
            configs.filter(|c| c.enabled && c.target == v).any(|c| again(c.priority))
        })
    }

    fn end(&mut self, v: usize) {
        let Some(intid) = self.taken[v].pop() else { return };
        if self.v3 {
            let group1 = intid >> 31 != 0;
            let reg = if group1 { SysReg::ICC_EOIR1_EL1 } else { SysReg::ICC_EOIR0_EL1 };
            self.cpus[v].icc_write(reg, u64::from(intid & 0xff_ffff)).unwrap();
        } else {
            self.write(v, GICC + 0x10, intid);
        }
    }

    /// Performs one operation, and enters every vCPU. Returns the value and the lines that the
    /// guest can see.
    fn perform(&mut self, op: Op) -> (u32, [[bool; 2]; VCPUS]) {
        let mut seen = 0;
        match op {
            Op::Read(v, address) => seen = self.read(v, address),
            Op::Write(v, address, value) => self.write(v, address, value),
            Op::WriteByte(v, address, value) => self.cpus[v].write(address, &[value]).unwrap(),
            Op::Line(intid, v, high) => {
                let intid = Intid(intid);
                let private = Wired::Private(VcpuId(v as u16), intid);
                let wired = if intid.is_private() { private } else { Wired::Spi(intid) };
                self.device.set_level(wired, high).unwrap();
            }
            Op::Take(v) => seen = self.take(v),
            Op::End(v) => self.end(v),
            Op::Power(v, on) => self.power(v, on),
        }
        for _ in 0..3 {
            for cpu in &mut self.cpus {
                cpu.enter();
                cpu.exit();
            }
        }
        let lines = [0, 1].map(|v| {
            self.cpus[v].enter();
            let lines = [self.cpus[v].irq_line(), self.cpus[v].fiq_line()];
            self.cpus[v].exit();
            lines
        });
        (seen, lines)
    }
}

fn compare(v3: bool, ops: &[Op]) -> Result<(), TestCaseError> {
    let (mut a, mut b) = (Side::<Vgic>::new(v3), Side::<LockedVgic>::new(v3));
    for (i, &op) in ops.iter().enumerate() {
        let tied = a.has_ties();
        let (seen, expected) = (a.perform(op), b.perform(op));
        if seen != expected && (tied || a.has_ties()) {
            // The order of interrupts of one priority is IMPLEMENTATION DEFINED (IHI 0069, 4.8).
            return Ok(());
        }
        prop_assert_eq!(seen, expected, "operation {}: {:x?}", i, op);
        // Each engine chooses for itself which active interrupts have no list register. An end of
        // one of them may be counted for another.
        let mut waiting = false;
        for cpu in &mut a.cpus {
            waiting |= cpu.enter().waiting;
            cpu.exit();
        }
        if waiting {
            return Ok(());
        }
    }
    Ok(())
}

fn tries() -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => default.cases,
        None if cfg!(debug_assertions) => 100,
        None => 1000,
    };
    ProptestConfig { cases, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(tries())]

    #[test]
    fn gicv2(ops in prop::collection::vec(op(false), 1..120)) {
        compare(false, &ops)?;
    }

    #[test]
    fn gicv3(ops in prop::collection::vec(op(true), 1..120)) {
        compare(true, &ops)?;
    }
}
