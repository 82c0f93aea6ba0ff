//! Random sequences of list-register writes and guest accesses, compared with a model that keeps
//! interrupts as plain values in a list and active priorities as a set, and searches both.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

/// Interrupt numbers to choose from, some of them out of range, special, or with bits above the
/// field.
#[rustfmt::skip]
const INTIDS: &[u32] = &[
    0, 15, 27, 40, 41, 1019, 1020, 1022, 1023, 1024, 5000, 8191, 8192, 8193, 0x1_0028, 0xff_ffff,
    0x0200_0028, u32::MAX,
];

#[derive(Clone, Copy, Debug)]
struct Entry {
    intid: u32,
    priority: u8,
    group: usize,
    pending: bool,
    active: bool,
    hw: Option<u16>,
    eoi: bool,
}

impl Entry {
    fn bits(&self) -> u64 {
        let pintid = self.hw.map_or(u64::from(self.eoi) << 9, u64::from);
        u64::from(self.active) << 63
            | u64::from(self.pending) << 62
            | u64::from(self.hw.is_some()) << 61
            | (self.group as u64) << 60
            | u64::from(self.priority) << 48
            | pintid << 32
            | u64::from(self.intid)
    }

    fn invalid(&self) -> bool {
        !self.pending && !self.active
    }
}

const FREE: Entry =
    Entry { intid: 0, priority: 0, group: 0, pending: false, active: false, hw: None, eoi: false };

struct Model {
    entries: Vec<Entry>,
    /// (group priority, group), ordered so that the first element is the next one to drop.
    active: BTreeSet<(u32, usize)>,
    pmr: u32,
    bpr: [u32; 2],
    enabled: [bool; 2],
    common: bool,
    split: bool,
    eoi_count: u32,
    wanted: Maintenance,
}

impl Model {
    fn new(lrs: usize) -> Self {
        Self {
            entries: vec![FREE; lrs],
            active: BTreeSet::new(),
            pmr: 0,
            bpr: [2, 3],
            enabled: [false; 2],
            common: false,
            split: false,
            eoi_count: 0,
            wanted: Maintenance::default(),
        }
    }

    /// Returns the group priority of a priority: the table of 4.8, expressed as rounding.
    fn group_priority(&self, group: usize, priority: u32) -> u32 {
        let size = match (group, self.common) {
            (1, false) => 1 << self.bpr[1],
            _ => 2 << self.bpr[0],
        };
        priority / size * size
    }

    fn highest(&self) -> Option<usize> {
        (0..self.entries.len())
            .filter(|&n| {
                let e = &self.entries[n];
                e.pending && !e.active && self.enabled[e.group]
            })
            .min_by_key(|&n| (self.entries[n].priority, n))
    }

    fn hppir(&self, group: usize) -> u32 {
        self.highest()
            .map(|n| self.entries[n])
            .filter(|e| e.group == group)
            .map_or(1023, |e| e.intid)
    }

    fn running(&self) -> Option<u32> {
        self.active.first().map(|&(priority, _)| priority)
    }

    fn offered(&self, group: usize) -> Option<usize> {
        let n = self.highest()?;
        let e = self.entries[n];
        let priority = u32::from(e.priority);
        let cut = |p| self.group_priority(group, p);
        let preempts = self.running().is_none_or(|running| cut(priority) < cut(running));
        (e.group == group && priority < self.pmr && preempts).then_some(n)
    }

    fn iar(&mut self, group: usize) -> u32 {
        let Some(n) = self.offered(group) else { return 1023 };
        let priority = self.group_priority(group, self.entries[n].priority.into());
        let e = &mut self.entries[n];
        e.pending = false;
        if !(1020..1024).contains(&e.intid) {
            e.active = e.intid < 8192;
            self.active.insert((priority, group));
        }
        self.entries[n].intid
    }

    fn find(&self, intid: u32) -> Option<usize> {
        self.entries.iter().position(|e| e.active && e.intid == intid)
    }

    fn deactivate(&mut self, intid: u32) -> Option<(u32, Option<u16>)> {
        let n = self.find(intid)?;
        self.entries[n].active = false;
        Some((intid, self.entries[n].hw))
    }

    fn eoir(&mut self, value: u32) -> Option<(u32, Option<u16>)> {
        let intid = value % (1 << 24);
        if (1020..1024).contains(&intid) {
            return None;
        }
        self.active.pop_first()?;
        let is_lpi = intid >= 8192;
        match self.find(intid) {
            None => {
                if !is_lpi && !self.split {
                    self.eoi_count = (self.eoi_count + 1) % 32;
                }
                None
            }
            Some(_) if is_lpi || !self.split => self.deactivate(intid),
            Some(_) => None,
        }
    }

    fn dir(&mut self, value: u32) -> DirOutcome {
        let intid = value % (1 << 24);
        if !self.split || (1020..1024).contains(&intid) || intid >= 8192 {
            DirOutcome::Ignored
        } else if self.wanted.trap_dir {
            DirOutcome::Trapped(Intid(intid))
        } else if let Some((intid, hw)) = self.deactivate(intid) {
            DirOutcome::Deactivated(Deactivation { intid: Intid(intid), hw })
        } else {
            self.eoi_count = (self.eoi_count + 1) % 32;
            DirOutcome::NotPresent
        }
    }

    fn apr(&self, group: usize) -> u32 {
        self.active.iter().filter(|a| a.1 == group).map(|a| 1 << (a.0 / 8)).sum()
    }

    fn set_apr(&mut self, group: usize, value: u32) {
        self.active.retain(|a| a.1 != group);
        self.active.extend((0..32).filter(|n| value >> n & 1 == 1).map(|n| (n * 8, group)));
    }

    fn eisr(&self) -> u32 {
        let asks = |e: &Entry| e.invalid() && e.eoi && e.hw.is_none();
        (0..).zip(&self.entries).filter(|(_, e)| asks(e)).map(|(n, _)| 1 << n).sum()
    }

    fn misr(&self) -> u32 {
        let valid = self.entries.iter().filter(|e| !e.invalid()).count();
        let pending = self.entries.iter().filter(|e| e.pending && !e.active).count();
        let conditions = [
            (self.eisr() != 0, 1),
            (self.wanted.underflow && valid < 2, 2),
            (self.wanted.not_present && self.eoi_count > 0, 4),
            (self.wanted.group_enabled[0] && self.enabled[0], 16),
            (self.wanted.group_enabled[1] && self.enabled[1], 64),
            (self.wanted.no_pending && pending == 0, 8),
        ];
        conditions.iter().filter(|c| c.0).map(|c| c.1).sum()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, Entry),
    /// The engine sets or clears the pending bit of a list register.
    Repend(usize, bool),
    Iar(usize),
    Eoir(usize, u32),
    /// A write to EOIR for the interrupt in this list register, through the register of its own
    /// group.
    EoirEntry(usize),
    Dir(u32),
    Deactivate(u32),
    Pmr(u32),
    Bpr(usize, u32),
    Ctlr(u32),
    Igrpen(usize, u32),
    Apr(usize, u32),
    Want(Maintenance),
    TakeEoiCount,
}

fn intid() -> impl Strategy<Value = u32> {
    prop_oneof![4 => proptest::sample::select(INTIDS), 1 => any::<u32>()]
}

/// Few distinct values, so that ties and equal group priorities are common.
fn priority() -> impl Strategy<Value = u8> {
    let few = proptest::sample::select(&[0x00_u8, 0x20, 0x28, 0x40, 0x80, 0xf8][..]);
    prop_oneof![2 => few, 1 => any::<u8>()]
}

fn entry() -> impl Strategy<Value = Entry> {
    let state = prop_oneof![4 => Just((true, false)), 1 => any::<(bool, bool)>()];
    let hw = proptest::option::weighted(0.2, 0..0x2000_u16);
    (intid(), priority(), 0..2_usize, state, hw, any::<bool>()).prop_map(
        |(intid, priority, group, (pending, active), hw, eoi)| Entry {
            // Only the implemented bits. A separate test covers the unimplemented ones.
            intid: intid & 0xff_ffff,
            priority: priority & 0xf8,
            group,
            pending,
            active,
            hw,
            eoi: eoi && hw.is_none(),
        },
    )
}

fn op(lrs: usize) -> impl Strategy<Value = Op> {
    let want =
        any::<[bool; 6]>().prop_map(|[underflow, no_pending, not_present, trap_dir, g0, g1]| {
            Maintenance { underflow, no_pending, not_present, trap_dir, group_enabled: [g0, g1] }
        });
    prop_oneof![
        8 => (0..lrs, entry()).prop_map(|(n, e)| Op::Write(n, e)),
        2 => (0..lrs, any::<bool>()).prop_map(|(n, p)| Op::Repend(n, p)),
        12 => (0..2_usize).prop_map(Op::Iar),
        3 => (0..2_usize, intid()).prop_map(|(g, i)| Op::Eoir(g, i)),
        8 => (0..lrs).prop_map(Op::EoirEntry),
        4 => intid().prop_map(Op::Dir),
        1 => intid().prop_map(Op::Deactivate),
        1 => prop_oneof![Just(0xff_u32), any::<u32>()].prop_map(Op::Pmr),
        1 => (0..2_usize, prop_oneof![0..8_u32, any::<u32>()]).prop_map(|(g, v)| Op::Bpr(g, v)),
        1 => any::<u32>().prop_map(Op::Ctlr),
        1 => (0..2_usize, prop_oneof![3 => Just(1_u32), 1 => any::<u32>()])
            .prop_map(|(g, v)| Op::Igrpen(g, v)),
        1 => (0..2_usize, prop_oneof![Just(0_u32), any::<u32>()]).prop_map(|(g, v)| Op::Apr(g, v)),
        1 => want.prop_map(Op::Want),
        1 => Just(Op::TakeEoiCount),
    ]
}

fn pair(d: Option<Deactivation>) -> Option<(u32, Option<u16>)> {
    d.map(|d| (d.intid.0, d.hw))
}

fn step(cpu: &mut CpuInterface, model: &mut Model, op: &Op) -> Result<(), TestCaseError> {
    match *op {
        Op::Write(n, entry) => {
            cpu.write(n, Lr::from_bits(entry.bits()));
            model.entries[n] = entry;
        }
        Op::Repend(n, pending) => {
            let bit = 1 << 62;
            let lr = cpu.read(n).bits();
            cpu.write(n, Lr::from_bits(if pending { lr | bit } else { lr & !bit }));
            model.entries[n].pending = pending;
        }
        Op::Iar(0) => prop_assert_eq!(cpu.iar0().0, model.iar(0)),
        Op::Iar(_) => prop_assert_eq!(cpu.iar1().0, model.iar(1)),
        Op::Eoir(0, value) => prop_assert_eq!(pair(cpu.eoir0(Intid(value))), model.eoir(value)),
        Op::Eoir(_, value) => prop_assert_eq!(pair(cpu.eoir1(Intid(value))), model.eoir(value)),
        Op::EoirEntry(n) => {
            let Entry { intid, group, .. } = model.entries[n];
            return step(cpu, model, &Op::Eoir(group, intid));
        }
        Op::Dir(value) => prop_assert_eq!(cpu.dir(Intid(value)), model.dir(value)),
        Op::Deactivate(intid) => {
            prop_assert_eq!(pair(cpu.deactivate(Intid(intid))), model.deactivate(intid));
        }
        Op::Pmr(value) => {
            cpu.set_pmr(value);
            model.pmr = value % 256 / 8 * 8;
        }
        Op::Bpr(0, value) => {
            cpu.set_bpr0(value);
            model.bpr[0] = (value % 8).max(2);
        }
        Op::Bpr(_, value) => {
            cpu.set_bpr1(value);
            if !model.common {
                model.bpr[1] = (value % 8).max(3);
            }
        }
        Op::Ctlr(value) => {
            cpu.set_ctlr(value);
            (model.common, model.split) = (value % 2 == 1, value / 2 % 2 == 1);
        }
        Op::Igrpen(group, value) => {
            if group == 0 {
                cpu.set_igrpen0(value)
            } else {
                cpu.set_igrpen1(value)
            }
            model.enabled[group] = value % 2 == 1;
        }
        Op::Apr(group, value) => {
            if group == 0 {
                cpu.set_ap0r(0, value)
            } else {
                cpu.set_ap1r(0, value)
            };
            model.set_apr(group, value);
        }
        Op::Want(wanted) => {
            cpu.set_maintenance(wanted);
            model.wanted = wanted;
        }
        Op::TakeEoiCount => {
            prop_assert_eq!(cpu.take_eoi_count(), core::mem::take(&mut model.eoi_count));
        }
    }
    Ok(())
}

fn compare(cpu: &CpuInterface, model: &Model) -> Result<(), TestCaseError> {
    for (n, entry) in model.entries.iter().enumerate() {
        prop_assert_eq!(cpu.read(n).bits(), entry.bits(), "list register {}", n);
    }
    prop_assert_eq!(cpu.ap0r(0), Some(model.apr(0)));
    prop_assert_eq!(cpu.ap1r(0), Some(model.apr(1)));
    prop_assert_eq!(cpu.rpr(), model.running().unwrap_or(0xff));
    prop_assert_eq!(cpu.hppir0().0, model.hppir(0));
    prop_assert_eq!(cpu.hppir1().0, model.hppir(1));
    prop_assert_eq!(cpu.fiq_line(), model.offered(0).is_some());
    prop_assert_eq!(cpu.irq_line(), model.offered(1).is_some());
    prop_assert_eq!(u32::from(cpu.eisr()), model.eisr());
    prop_assert_eq!(cpu.misr().bits(), model.misr());
    prop_assert_eq!(cpu.maintenance_pending(), model.misr() != 0);
    prop_assert_eq!(cpu.pmr(), model.pmr);
    prop_assert_eq!(cpu.bpr0(), model.bpr[0]);
    let bpr1 = if model.common { (model.bpr[0] + 1).min(7) } else { model.bpr[1] };
    prop_assert_eq!(cpu.bpr1(), bpr1);
    let ctlr = 0x8c00 + u32::from(model.common) + 2 * u32::from(model.split);
    prop_assert_eq!(cpu.ctlr(), ctlr);
    Ok(())
}

fn run(lrs: usize) -> impl Strategy<Value = (usize, Vec<Op>)> {
    proptest::collection::vec(op(lrs), 1..120).prop_map(move |ops| (lrs, ops))
}

proptest! {
    #[test]
    fn agrees_with_the_model((lrs, ops) in (1..=16_usize).prop_flat_map(run)) {
        let mut cpu = CpuInterface::new(lrs).unwrap();
        let mut model = Model::new(lrs);
        // Set the interface up as a guest does. The random operations may undo any of this.
        for op in [Op::Pmr(0xff), Op::Igrpen(0, 1), Op::Igrpen(1, 1)].iter().chain(&ops) {
            step(&mut cpu, &mut model, op)?;
            compare(&cpu, &model)?;
        }
    }
}
