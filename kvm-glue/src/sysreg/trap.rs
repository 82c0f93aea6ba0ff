//! Handling of a vCPU's debug exits. Accesses to the CPU interface are performed; all other
//! exceptions go to the guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::breakpoints::{Breakpoints, Place};
use super::cpu::{Counted, Cpu, Debug, Icc, Reg};
use super::decode::{Access, Direction, decode};
use super::exception::{First, at_el1, entry_pstate, pstate, vector};
use super::fetch::Fetcher;
use super::walk::Physical;

/// Exception classes, in ESR_EL1 and in the syndrome of an exit.
mod class {
    pub(super) const UNKNOWN: u64 = 0;
    pub(super) const BREAKPOINT: u64 = 0x30;
    pub(super) const STEP: u64 = 0x32;
    pub(super) const BKPT32: u64 = 0x38;
    pub(super) const BRK64: u64 = 0x3c;

    pub(super) const fn of(esr: u64) -> u64 {
        esr >> 26 & 0x3f
    }
}

/// The address bits of VBAR_EL1.
const TABLE: u64 = !0x7ff;

/// The vector table that the VM's guest is known to use. A vCPU that the guest powers on gets
/// breakpoints for it.
#[derive(Debug)]
pub struct Vectors(AtomicU64);

impl Vectors {
    /// No table is known. Tables are aligned, so this is no table's address.
    const NONE: u64 = u64::MAX;

    /// Creates a record of the VM's vector table. No table is known yet.
    pub fn new() -> Self {
        Self(AtomicU64::new(Self::NONE))
    }

    fn get(&self) -> Option<u64> {
        // Relaxed: the address publishes no other memory. A vCPU that another vCPU has powered on,
        // after storing the address, sees the address: the guest's own order goes through the
        // kernel's locks.
        let table = self.0.load(Ordering::Relaxed);
        (table != Self::NONE).then_some(table)
    }

    fn set(&self, table: u64) {
        // Relaxed: as above.
        self.0.store(table, Ordering::Relaxed);
    }
}

impl Default for Vectors {
    fn default() -> Self {
        Self::new()
    }
}

/// The reason for an exit that is not a debug exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitFor {
    /// The guest accessed a frame of the interrupt controller: the distributor, a redistributor, or
    /// an ITS.
    Frame,
    /// The guest accessed any other address.
    Device,
    /// The guest did nothing to cause the exit: a signal, or an output of the timer.
    Nothing,
}

/// The action that a debug exit requires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Handled {
    /// Enter the guest again.
    Done,
    /// Enter the guest again, after telling the VM's other vCPUs. An access has come through a
    /// vector table that is neither the table of this vCPU's previous trapped access nor the one
    /// recorded in [`Vectors`]. Call all other vCPUs out of KVM_RUN, and [start](Traps::start)
    /// those again that are found powered off: the guest, which may be another kernel by now, may
    /// power them on.
    NewTable,
    /// These traps did not cause the exit.
    NotOurs,
}

/// Counts of one vCPU's trap events.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TrapStats {
    /// Accesses that came as an UNDEF.
    pub undefined: u64,
    /// Accesses that had a breakpoint of their own.
    pub direct: u64,
    /// The guest's own exceptions from EL1 for which the first instruction of the vector was
    /// emulated.
    pub passed: u64,
    /// The guest's own exceptions from EL1 for which the first instruction of the vector was
    /// stepped over.
    pub stepped: u64,
    /// BRK and BKPT instructions. Each causes an exit, no matter which program executes it.
    pub brks: u64,
    /// The number of debug exits.
    pub exits: u64,
    /// Calls into the kernel for registers and breakpoints, without KVM_RUN.
    pub calls: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// No traps are set.
    Off,
    /// The vCPU stops after its first instruction.
    First,
    /// The vCPU stops at breakpoints.
    Running,
    /// The vCPU stops after the first instruction of a vector, without breakpoints.
    Step,
}

/// The traps of one vCPU. The [module](super) describes them, and says when to call each function.
#[derive(Debug)]
pub struct Traps {
    mode: Mode,
    vectors: Arc<Vectors>,
    /// The table of the last access that came as an UNDEF.
    told: Option<u64>,
    breakpoints: Breakpoints,
    fetcher: Fetcher,
    pfr1: Option<u64>,
    stats: TrapStats,
}

impl Traps {
    /// Creates the traps of a vCPU that has `breakpoints` hardware breakpoints. The VM's vCPUs
    /// share `vectors`.
    pub fn new(breakpoints: usize, vectors: Arc<Vectors>) -> Self {
        Self {
            mode: Mode::Off,
            vectors,
            told: None,
            breakpoints: Breakpoints::new(breakpoints),
            fetcher: Fetcher::default(),
            pfr1: None,
            stats: TrapStats::default(),
        }
    }

    /// Returns the counts of trap events.
    pub fn stats(&self) -> TrapStats {
        self.stats
    }

    /// Starts the traps afresh. Call this before the vCPU is first run, after it is initialized
    /// again, and whenever it is found powered off.
    ///
    /// The vCPU stops after its first instruction, so that its vectors are looked up when it runs,
    /// and not when it is created.
    ///
    /// # Errors
    /// Returns the error of `cpu` if a call on it fails.
    pub fn start<C: Cpu>(&mut self, cpu: &mut C) -> Result<(), C::Error> {
        if self.mode == Mode::First {
            return Ok(());
        }
        self.breakpoints.clear();
        self.fetcher.clear();
        self.told = None;
        self.mode = Mode::First;
        self.stats.calls += 1;
        cpu.set_debug(Some(&Debug { step: true, ..Debug::default() }))
    }

    /// Removes all traps. The guest's debug exceptions are its own again.
    ///
    /// # Errors
    /// Returns the error of `cpu` if a call on it fails.
    pub fn stop<C: Cpu>(&mut self, cpu: &mut C) -> Result<(), C::Error> {
        self.mode = Mode::Off;
        self.stats.calls += 1;
        cpu.set_debug(None)
    }

    /// Handles an exit that is not a debug exit: reads VBAR_EL1, to follow changes of it. If the
    /// guest caused the exit, it may also have changed its translation tables.
    ///
    /// # Errors
    /// Returns the error of `cpu` if a call on it fails.
    pub fn follow<C: Cpu>(&mut self, cpu: &mut C, exit: ExitFor) -> Result<(), C::Error> {
        if exit != ExitFor::Nothing {
            self.fetcher.exited();
        }
        // The guest can change its vectors at any time. Linux does so on CPUs with Spectre-BHB.
        if matches!(self.mode, Mode::Off | Mode::First) {
            return Ok(());
        }
        let mut calls = 0;
        let result = self.look(&mut Counted { cpu, calls: &mut calls });
        self.stats.calls += calls;
        result
    }

    /// Handles a debug exit. `syndrome` is the exit's syndrome.
    ///
    /// # Errors
    /// Returns the error of `cpu` if a call on it fails.
    pub fn handle<C: Cpu>(
        &mut self,
        cpu: &mut C,
        icc: &mut impl Icc,
        memory: &(impl Physical + ?Sized),
        syndrome: u64,
    ) -> Result<Handled, C::Error> {
        self.stats.exits += 1;
        let mut calls = 0;
        let cpu = &mut Counted { cpu, calls: &mut calls };
        let result = match class::of(syndrome) {
            _ if self.mode == Mode::Off => Ok(Handled::NotOurs),
            class::BREAKPOINT => self.breakpoint(cpu, icc, memory),
            class::STEP => self.after_step(cpu).map(|()| Handled::Done),
            class::BRK64 | class::BKPT32 => self.brk(cpu, memory, syndrome).map(|()| Handled::Done),
            _ => Ok(Handled::NotOurs),
        };
        self.stats.calls += calls;
        result
    }

    fn arm<C: Cpu>(&mut self, cpu: &mut C) -> Result<(), C::Error> {
        self.mode = Mode::Running;
        cpu.set_debug(Some(&self.breakpoints.debug()))
    }

    fn look<C: Cpu>(&mut self, cpu: &mut C) -> Result<(), C::Error> {
        let table = cpu.get(Reg::Vbar)? & TABLE;
        if self.breakpoints.add_table(table) && self.mode == Mode::Running {
            self.arm(cpu)?;
        }
        Ok(())
    }

    /// Handles the stop after one instruction. If that instruction caused an exception instead, the
    /// next instruction is a vector's, and has its breakpoint.
    fn after_step<C: Cpu>(&mut self, cpu: &mut C) -> Result<(), C::Error> {
        if self.mode == Mode::First {
            self.look(cpu)?;
            if let Some(table) = self.vectors.get() {
                self.breakpoints.add_table(table);
            }
        }
        self.arm(cpu)
    }

    fn breakpoint<C: Cpu>(
        &mut self,
        cpu: &mut C,
        icc: &mut impl Icc,
        memory: &(impl Physical + ?Sized),
    ) -> Result<Handled, C::Error> {
        let pc = cpu.get(Reg::Pc)?;
        match self.breakpoints.find(pc) {
            Some(Place::Vector(table)) => self.at_vector(cpu, icc, memory, table, pc),
            Some(Place::Access) => self.at_access(cpu, icc, memory, pc).map(|()| Handled::Done),
            None => self.arm(cpu).map(|()| Handled::Done),
        }
    }

    /// Handles an exception from EL1 that has come to its vector, at `pc`.
    fn at_vector<C: Cpu>(
        &mut self,
        cpu: &mut C,
        icc: &mut impl Icc,
        memory: &(impl Physical + ?Sized),
        table: u64,
        pc: u64,
    ) -> Result<Handled, C::Error> {
        let now = cpu.get(Reg::Vbar)? & TABLE;
        if now != table {
            // The old vector is ordinary text by now, and ESR_EL1 and ELR_EL1 describe another
            // exception.
            self.breakpoints.drop_table(table);
            self.breakpoints.add_table(now);
            return self.arm(cpu).map(|()| Handled::Done);
        }
        if class::of(cpu.get(Reg::Esr)?) == class::UNKNOWN {
            let elr = cpu.get(Reg::Elr)?;
            if let Some(access) = self.undefined(cpu, memory, elr)? {
                let spsr = cpu.get(Reg::Spsr)?;
                if at_el1(spsr) && perform(cpu, icc, access)? {
                    cpu.set(Reg::Pc, elr.wrapping_add(4))?;
                    // BTYPE is 0 after any instruction.
                    cpu.set(Reg::Pstate, spsr & !(pstate::BTYPE | pstate::SS))?;
                    self.stats.undefined += 1;
                    if self.breakpoints.prove(table) | self.breakpoints.count(elr) {
                        self.arm(cpu)?;
                    }
                    return Ok(self.tell(table));
                }
            }
        }
        self.pass(cpu, memory, pc)?;
        Ok(Handled::Done)
    }

    /// Returns the access at `elr`. `None`: the instruction there is not an access.
    fn undefined<C: Cpu>(
        &mut self,
        cpu: &mut C,
        memory: &(impl Physical + ?Sized),
        elr: u64,
    ) -> Result<Option<Access>, C::Error> {
        let found = self.fetcher.fetch(cpu, memory, elr)?.and_then(decode);
        if found.is_some() {
            return Ok(found);
        }
        // Either the exception is the guest's own, or outdated registers led to the wrong
        // instruction. This is rare enough to read all of them again.
        self.fetcher.clear();
        Ok(self.fetcher.fetch(cpu, memory, elr)?.and_then(decode))
    }

    fn tell(&mut self, table: u64) -> Handled {
        if self.told == Some(table) {
            return Handled::Done;
        }
        self.told = Some(table);
        if self.vectors.get() == Some(table) {
            return Handled::Done;
        }
        self.vectors.set(table);
        Handled::NewTable
    }

    /// Handles a stop at `pc`, before an instruction that was an access when its breakpoint was
    /// set.
    fn at_access<C: Cpu>(
        &mut self,
        cpu: &mut C,
        icc: &mut impl Icc,
        memory: &(impl Physical + ?Sized),
        pc: u64,
    ) -> Result<(), C::Error> {
        let access = self.fetcher.fetch(cpu, memory, pc)?.and_then(decode);
        if let Some(access) = access
            && perform(cpu, icc, access)?
        {
            self.stats.direct += 1;
            // PSTATE does not change. BTYPE is 0: where BTYPE is checked, an access is no valid
            // branch target.
            return cpu.set(Reg::Pc, pc.wrapping_add(4));
        }
        // The guest executes the instruction: it is no access, or an UNDEFINED one.
        self.breakpoints.drop_access(pc);
        self.arm(cpu)
    }

    /// Moves the guest past the breakpoint on its vector, at `pc`.
    fn pass<C: Cpu>(
        &mut self,
        cpu: &mut C,
        memory: &(impl Physical + ?Sized),
        pc: u64,
    ) -> Result<(), C::Error> {
        let first = self.fetcher.fetch(cpu, memory, pc)?.and_then(First::decode);
        // The exception was the guest's own, and its handler may do anything, such as change the
        // tables.
        self.fetcher.exited();
        let next = match first {
            Some(First::Room(size)) => {
                // An exception to EL1 selects SP_EL1.
                let sp = cpu.get(Reg::SpEl1)?;
                cpu.set(Reg::SpEl1, sp.wrapping_sub(size))?;
                pc.wrapping_add(4)
            }
            Some(First::Branch(by)) => pc.wrapping_add(by),
            Some(First::Nothing) => pc.wrapping_add(4),
            None => {
                self.stats.stepped += 1;
                self.mode = Mode::Step;
                return cpu.set_debug(Some(&Debug { step: true, ..Debug::default() }));
            }
        };
        self.stats.passed += 1;
        cpu.set(Reg::Pc, next)
    }

    /// Delivers a BRK (in AArch32, a BKPT) that the guest executed and that would have gone to EL1.
    fn brk<C: Cpu>(
        &mut self,
        cpu: &mut C,
        memory: &(impl Physical + ?Sized),
        syndrome: u64,
    ) -> Result<(), C::Error> {
        self.stats.brks += 1;
        if self.mode != Mode::Running {
            // The BRK was the instruction to step over.
            self.after_step(cpu)?;
        }
        let (pc, old) = (cpu.get(Reg::Pc)?, cpu.get(Reg::Pstate)? & !pstate::SS);
        let (sctlr, table) = (cpu.get(Reg::Sctlr)?, cpu.get(Reg::Vbar)? & TABLE);
        let pfr1 = match self.pfr1 {
            Some(pfr1) => pfr1,
            None => *self.pfr1.insert(cpu.get(Reg::Pfr1)?),
        };
        if self.breakpoints.add_table(table) {
            self.arm(cpu)?;
        }
        // The exception class is the same from all exception levels, and FAR_EL1 is not written.
        cpu.set(Reg::Esr, syndrome)?;
        cpu.set(Reg::Elr, pc)?;
        cpu.set(Reg::Spsr, old)?;
        cpu.set(Reg::Pstate, entry_pstate(old, sctlr, pfr1))?;
        let pc = table.wrapping_add(vector(old));
        cpu.set(Reg::Pc, pc)?;
        if matches!(self.breakpoints.find(pc), Some(Place::Vector(_))) {
            self.pass(cpu, memory, pc)?;
        }
        Ok(())
    }
}

/// Performs the access. Returns whether the register exists and allows this kind of access.
fn perform<C: Cpu>(cpu: &mut C, icc: &mut impl Icc, access: Access) -> Result<bool, C::Error> {
    match access.direction {
        Direction::Read => {
            let Some(value) = icc.read(access.reg) else { return Ok(false) };
            if let Some(n) = access.rt.number() {
                cpu.set(Reg::X(n), value)?;
            }
            Ok(true)
        }
        Direction::Write => {
            let value = match access.rt.number() {
                Some(n) => cpu.get(Reg::X(n))?,
                None => 0,
            };
            Ok(icc.write(access.reg, value).is_some())
        }
    }
}
