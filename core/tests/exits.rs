//! A guest that stays in: it leaves only when it is kicked, or when a maintenance interrupt asks
//! for it. An interrupt that waits without either is lost. The test does random operations on one
//! thread, and keeps books of the interrupts that were raised and taken.

mod common;
use common::*;
use vgic_core::engine::*;
use vgic_core::ids::*;
use vgic_core::lr::{ListRegisters, LrState};
struct Rng(u64);
impl Rng {
    fn n(&mut self, k: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 20) % u64::from(k)) as u32
    }
}
const VC: u16 = 3;
const NL: u32 = 5;
const NS: u32 = 6;
#[derive(Clone, Debug)]
struct I {
    intid: u32,
    sent: u64,
    seen: u64,
    taken: u64,
    pend: u64,
    enabled: bool,
    target: usize,
    level: bool,
    line: bool,
    active_on: Option<usize>,
}
struct Sim<E: Engine> {
    m: Machine<E>,
    i: Vec<I>,
    active: Vec<Vec<usize>>,
    kicks: Vec<u64>,
    open: Vec<bool>,
    lpis: Vec<bool>,
    entered: Vec<bool>,
    log: Vec<String>,
    dropped: Vec<Vec<usize>>,
    mode1: bool,
    trapped: u64,
}
fn idx(intid: u32) -> usize {
    if intid >= 8192 { (intid - 8192) as usize } else { (NL + intid - 40) as usize }
}
impl<E: Engine> Sim<E> {
    fn new(lrs: usize) -> Self {
        let mut m = Machine::<E>::new(VC, lrs);
        let mut i = vec![];
        for n in 0..NL {
            m.map(n, 0, 0xa0);
            i.push(I {
                intid: 8192 + n,
                sent: 0,
                seen: 0,
                taken: 0,
                pend: 0,
                enabled: true,
                target: 0,
                level: false,
                line: false,

                active_on: None,
            });
        }
        for n in 0..NS {
            i.push(I {
                intid: 40 + n,
                sent: 0,
                seen: 0,
                taken: 0,
                pend: 0,
                enabled: false,
                target: 0,
                level: false,
                line: false,

                active_on: None,
            });
        }
        Sim {
            m,
            i,
            active: vec![vec![]; VC as usize],
            kicks: vec![0; VC as usize],
            open: vec![true; VC as usize],
            lpis: vec![true; VC as usize],
            entered: vec![false; VC as usize],
            log: vec![],
            dropped: vec![vec![]; VC as usize],
            mode1: false,
            trapped: 0,
        }
    }
    /// Exits and enters, if there is a reason.
    fn service(&mut self, v: usize) -> bool {
        if !self.open[v] {
            self.kicks[v] = self.m.kicks(v);
            return false;
        }
        let k = self.m.kicks(v);
        let reason = k != self.kicks[v] || self.m.cpus[v].maintenance_pending() || !self.entered[v];
        if reason {
            self.kicks[v] = k;
            if self.entered[v] {
                self.m.exit(v);
            }
            self.m.enter(v);
            self.entered[v] = true;
            self.log.push(format!("  v{v} reenters"));
            let mut all = vec![];
            for c in &self.m.cpus {
                for n in 0..c.count() {
                    if c.read(n).state() != LrState::Invalid {
                        all.push(c.read(n).intid());
                    }
                }
            }
            let k = all.len();
            all.sort();
            all.dedup();
            if all.len() != k {
                panic!("in two list registers");
            }
        }
        reason
    }
    fn ack(&mut self, v: usize) -> bool {
        if !self.open[v] || !self.entered[v] {
            return false;
        }
        let id = self.m.cpus[v].iar1();
        if id.0 == SPURIOUS {
            return false;
        }
        let x = idx(id.0);
        self.log.push(format!("  v{v} acks {id}"));
        assert!(self.i[x].active_on.is_none() || id.is_lpi(), "{id} active twice");
        self.i[x].taken += 1;
        if id.is_lpi() && self.i[x].taken > self.i[x].pend {
            panic!("{id} delivered without cause");
        }
        self.i[x].seen = self.i[x].sent;
        self.i[x].active_on = Some(v);
        self.active[v].push(x);
        true
    }
    fn eoi(&mut self, v: usize) -> bool {
        let Some(x) = self.active[v].pop() else { return false };
        if self.i[x].active_on == Some(v) {
            self.i[x].active_on = None;
        }
        if self.i[x].line && self.i[x].level {
            // The handler silences the device.
            self.i[x].line = false;
            self.m.injector.set_level(Wired::Spi(Intid(self.i[x].intid)), false).unwrap();
        }
        self.log.push(format!("  v{v} ends {}", self.i[x].intid));
        let id = Intid(self.i[x].intid);
        let _ = self.m.cpus[v].eoir1(id);
        if self.mode1 && !id.is_lpi() {
            self.i[x].active_on = Some(v);
            self.dropped[v].push(x);
        }
        true
    }
    fn dir(&mut self, v: usize, r: u32) -> bool {
        if self.dropped[v].is_empty() {
            return false;
        }
        let n = r as usize % self.dropped[v].len();
        let x = self.dropped[v].remove(n);
        let id = Intid(self.i[x].intid);
        self.i[x].active_on = None;
        use vgic_core::cpuif::DirOutcome::*;
        match self.m.cpus[v].dir(id) {
            Deactivated(_) => {
                self.log.push(format!("  v{v} dir {id} in LR"));
            }
            Trapped(_) => {
                self.trapped += 1;
                let in_lr = self.m.cpus[v].deactivate(id).is_some();
                self.m.exit(v);
                let by_host = !in_lr && self.m.vcpus[v].deactivate(id);
                self.log.push(format!("  v{v} dir {id} trapped: {in_lr} {by_host}"));
                if !in_lr && !by_host {
                    panic!("{id} cannot be deactivated on {v}");
                }
                self.m.enter(v);
            }
            o => {
                panic!("dir {id} {o:?}");
            }
        }
        true
    }
    fn quiesce(&mut self) {
        for _ in 0..10_000 {
            let mut any = false;
            for v in 0..VC as usize {
                any |= self.service(v);
                while self.ack(v) {
                    any = true;
                }
                any |= self.eoi(v);
                any |= self.service(v);
                any |= self.dir(v, 0);
                any |= self.service(v);
            }
            if !any {
                return;
            }
        }
        panic!("no rest");
    }
    fn check(&self) -> Result<(), String> {
        for x in &self.i {
            let ok = x.enabled && self.open[x.target] && (x.intid < 8192 || self.lpis[x.target]);
            if ok && x.seen != x.sent {
                return Err(format!("lost: {x:?}"));
            }
        }
        Ok(())
    }
    fn step(&mut self, r: &mut Rng) {
        let v = r.n(VC.into()) as usize;
        match r.n(26) {
            24 => {
                let n = r.n(NL);
                self.i[n as usize].seen = self.i[n as usize].sent;
                self.log.push(format!("clear {n}"));
                self.m.msi.clear(DEV, EventId(n)).unwrap();
            }
            25 => {
                let n = r.n(NL);
                let x = &mut self.i[n as usize];
                x.seen = x.sent;
                x.target = v;
                x.enabled = true;
                self.log.push(format!("unmap {n}, map -> {v}"));
                self.m.msi.unmap(DEV, EventId(n)).unwrap();
                if r.n(2) == 0 {
                    self.service(v);
                }
                self.m.map(n, v as u16, 0x80);
            }
            0..=4 => {
                let n = r.n(NL);
                self.i[n as usize].sent += 1;
                let o = self.m.inject(n);
                if o == Injected::Pending {
                    self.i[n as usize].pend += 1;
                }
                self.log.push(format!("inject {n} {o:?}"));
            }
            5..=6 => {
                let n = r.n(NL);
                self.i[n as usize].target = v;
                self.log.push(format!("retarget {n} -> {v}"));
                self.m.msi.retarget(DEV, EventId(n), VcpuId(v as u16)).unwrap();
            }
            7 => {
                let n = r.n(NL);
                let e = r.n(3) != 0;
                let p = (r.n(4) * 0x20 + 0x40) as u8;
                self.i[n as usize].enabled = e;
                self.log.push(format!("config {n} {e} {p:#x}"));
                self.m
                    .msi
                    .set_config(lpi(n), LpiConfig { enabled: e, priority: Priority::new(p) })
                    .unwrap();
            }
            8..=9 => {
                let n = r.n(NS);
                let x = (NL + n) as usize;
                let e = r.n(4) != 0;
                let level = r.n(2) == 0;
                let p = (r.n(4) * 0x20 + 0x40) as u8;
                // A switch of the trigger loses the meaning of a raised line, so the test leaves it
                // out.
                if self.i[x].level != level && (self.i[x].line) {
                    return;
                }
                self.i[x].enabled = e;
                self.i[x].target = v;
                self.i[x].level = level;
                self.log.push(format!("configure {n} {e} {level} {p:#x} -> {v}"));
                self.m
                    .injector
                    .configure(
                        Wired::Spi(Intid(40 + n)),
                        WiredConfig {
                            enabled: e,
                            priority: Priority::new(p),
                            group: Group::Group1,
                            trigger: if level { Trigger::Level } else { Trigger::Edge },
                            target: VcpuId(v as u16),
                        },
                    )
                    .unwrap();
            }
            10..=11 => {
                let n = r.n(NS);
                let x = (NL + n) as usize;
                if self.i[x].level {
                    if !self.i[x].line && self.i[x].active_on.is_none() {
                        self.i[x].line = true;
                        self.i[x].sent += 1;
                        self.log.push(format!("line {n} high"));
                        self.m.injector.set_level(Wired::Spi(Intid(40 + n)), true).unwrap();
                    }
                } else {
                    self.i[x].sent += 1;
                    self.log.push(format!("pulse {n}"));
                    let _ = self.m.injector.pulse(Wired::Spi(Intid(40 + n))).unwrap();
                }
            }
            12 => {
                let on = r.n(2) == 0;
                self.lpis[v] = on;
                self.log.push(format!("lpis v{v} {on}"));
                self.m.injector.set_lpis_enabled(VcpuId(v as u16), on).unwrap();
            }
            13 => {
                if self.open[v] {
                    if r.n(2) == 0 {
                        while !self.active[v].is_empty() {
                            self.eoi(v);
                            self.service(v);
                        }
                        while self.dir(v, 0) {
                            self.service(v);
                        }
                        if self.entered[v] {
                            self.m.exit(v);
                            self.entered[v] = false;
                        }
                        self.log.push(format!("close v{v}"));
                        self.m.vcpus[v].close(&mut self.m.cpus[v]);
                        self.open[v] = false;
                    }
                } else {
                    self.log.push(format!("open v{v}"));
                    self.kicks[v] = self.m.kicks(v);
                    self.m.vcpus[v].open();
                    self.open[v] = true;
                }
            }
            14..=16 => {
                self.ack(v);
            }
            17 => {
                self.eoi(v);
            }
            18 => {
                if r.n(2) == 0 {
                    self.eoi(v);
                } else {
                    let k = r.n(8);
                    self.dir(v, k);
                }
            }
            _ => {
                self.service(v);
            }
        }
    }
}
/// The number of simulations, larger in an optimized build.
const RUNS: u64 = if cfg!(debug_assertions) { 2_000 } else { 40_000 };

fn a_guest_that_stays_in_misses_nothing<E: Engine>() {
    let mut trapped = 0;
    for seed in 1..=RUNS {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for _ in 0..4 {
            rng.n(2);
        }
        let mut sim = Sim::<E>::new(1 + rng.n(4) as usize);
        if seed % 2 == 0 {
            sim.mode1 = true;
            // EOImode 1: EOIR drops the priority, DIR deactivates.
            sim.m.cpus.iter_mut().for_each(|cpu| cpu.set_ctlr(2));
        }
        for _ in 0..4 + rng.n(60) {
            sim.step(&mut rng);
        }
        sim.log.push("--- and now rest".into());
        sim.quiesce();
        trapped += sim.trapped;
        if let Err(error) = sim.check() {
            panic!("seed {seed}: {error}\n{}", sim.log.join("\n"));
        }
    }
    assert!(trapped > 0, "some deactivation was trapped");
}

#[test]
fn lock_free() {
    a_guest_that_stays_in_misses_nothing::<vgic_core::Vgic>();
}

#[cfg(feature = "locked")]
#[test]
fn locked() {
    a_guest_that_stays_in_misses_nothing::<vgic_core::locked::LockedVgic>();
}
