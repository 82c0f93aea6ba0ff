//! What becomes of a vCPU's debug exits: accesses to its CPU interface are performed, everything else goes to the guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::breakpoints::{Breakpoints, Place};
use super::cpu::{Counted, Cpu, Debug, Icc, Reg};
use super::decode::{Access, Direction, decode};
use super::exception::{First, at_el1, entry_pstate, pstate, vector};
use super::fetch::Fetcher;
use super::walk::Physical;

/// Exception classes, of ESR_EL1 and of the syndrome of an exit.
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

/// VBAR_EL1 without the bits that are none of an address.
const TABLE: u64 = !0x7ff;

/// The vector table that the VM's guest runs with, as it is known to work: for vCPUs that the guest powers on.
#[derive(Debug)]
pub struct Vectors(AtomicU64);

impl Vectors {
    /// No address of a table.
    const NONE: u64 = u64::MAX;

    /// None is known.
    pub fn new() -> Self {
        Self(AtomicU64::new(Self::NONE))
    }

    fn get(&self) -> Option<u64> {
        // Relaxed: nothing but the address itself is told with it. A vCPU that was powered on by another one, which has told it before, sees it: the
        // guest's own order goes through the kernel's locks.
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

/// What a vCPU has exited for, if that is no debug exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitFor {
    /// An access to a frame of the interrupt controller: the distributor's, a redistributor's, an ITS's.
    Frame,
    /// An access to anything else.
    Device,
    /// Nothing that the guest has done: a signal, an output of the timer.
    Nothing,
}

/// What is to be done after a debug exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Handled {
    /// The guest is to be entered again.
    Done,
    /// So it is; and an access has come through a vector table that this vCPU has had no access from before. All other vCPUs are to be called out of
    /// KVM_RUN, and those that are found powered off are to be [started](Traps::start) again, in case the guest, which may be another
    /// kernel by now, powers them on.
    NewTable,
    /// It is no debug exit that was caused here.
    NotOurs,
}

/// What a vCPU's traps have come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TrapStats {
    /// Accesses that came as an UNDEF.
    pub undefined: u64,
    /// Accesses that had a breakpoint of their own.
    pub direct: u64,
    /// Exceptions of the guest's own, from EL1, whose vector's first instruction was done by hand.
    pub passed: u64,
    /// Those whose vector's first instruction was stepped over.
    pub stepped: u64,
    /// BRKs, which are exits whosever they are.
    pub brks: u64,
    /// Debug exits.
    pub exits: u64,
    /// Calls into the kernel for registers and breakpoints. KVM_RUN is not among them.
    pub calls: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Nothing is set.
    Off,
    /// It stops after its first instruction.
    First,
    /// It stops at breakpoints.
    Running,
    /// It stops after a vector's first instruction, without breakpoints.
    Step,
}

/// The traps of one vCPU. The [module](super) says what they do, and when each of their functions is to be called.
#[derive(Debug)]
pub struct Traps {
    mode: Mode,
    vectors: Arc<Vectors>,
    /// The table that `vectors` was last told of.
    told: Option<u64>,
    breakpoints: Breakpoints,
    fetcher: Fetcher,
    pfr1: Option<u64>,
    stats: TrapStats,
}

impl Traps {
    /// For a vCPU with so many hardware breakpoints. `vectors` is the VM's.
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

    /// What they have come to.
    pub fn stats(&self) -> TrapStats {
        self.stats
    }

    /// The vCPU begins anew: before it is run for the first time, after it was initialised again, and whenever it is found powered off.
    ///
    /// It will stop after its first instruction, so that its vectors are looked for when it runs, and not when it is made.
    ///
    /// # Errors
    /// The vCPU's.
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

    /// The vCPU's debug exceptions are its own again.
    ///
    /// # Errors
    /// The vCPU's.
    pub fn stop<C: Cpu>(&mut self, cpu: &mut C) -> Result<(), C::Error> {
        self.mode = Mode::Off;
        self.stats.calls += 1;
        cpu.set_debug(None)
    }

    /// After each exit that is no debug exit: follows VBAR_EL1, and knows that the guest may have changed its tables.
    ///
    /// # Errors
    /// The vCPU's.
    pub fn follow<C: Cpu>(&mut self, cpu: &mut C, exit: ExitFor) -> Result<(), C::Error> {
        if exit != ExitFor::Nothing {
            self.fetcher.exited();
        }
        // A guest may have others at any time: Linux has, on CPUs whose exceptions have to hide their branches.
        if matches!(self.mode, Mode::Off | Mode::First) {
            return Ok(());
        }
        let mut calls = 0;
        let result = self.look(&mut Counted { cpu, calls: &mut calls });
        self.stats.calls += calls;
        result
    }

    /// A debug exit with this syndrome.
    ///
    /// # Errors
    /// The vCPU's.
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

    /// One instruction was executed, or has caused an exception: in that case the next one is a vector's, and has its breakpoint.
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

    /// An exception from EL1 has come to its vector, at `pc`.
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
            // It is text like any other by now, and what ESR_EL1 and ELR_EL1 hold is of another exception.
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
                    // After any instruction, BTYPE is 0.
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

    /// The access, if that is what the instruction at `elr` is.
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
        // Is it the guest's own, or was it not found? This is rare enough to ask for everything.
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

    /// The guest is about to execute what was an access, at `pc`.
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
            // PSTATE stays. BTYPE is 0: an access is nothing that one may branch to where that matters.
            return cpu.set(Reg::Pc, pc.wrapping_add(4));
        }
        // Whatever it is, the guest is to execute it.
        self.breakpoints.drop_access(pc);
        self.arm(cpu)
    }

    /// Gets the guest past the breakpoint on its vector, at `pc`.
    fn pass<C: Cpu>(
        &mut self,
        cpu: &mut C,
        memory: &(impl Physical + ?Sized),
        pc: u64,
    ) -> Result<(), C::Error> {
        let first = self.fetcher.fetch(cpu, memory, pc)?.and_then(First::decode);
        // The exception was the guest's own, and who knows what it does about it.
        self.fetcher.exited();
        let next = match first {
            Some(First::Room(size)) => {
                // Exceptions to EL1 select SP_EL1.
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

    /// The guest has executed a BRK (or, in AArch32, a BKPT), which would have gone to EL1.
    fn brk<C: Cpu>(
        &mut self,
        cpu: &mut C,
        memory: &(impl Physical + ?Sized),
        syndrome: u64,
    ) -> Result<(), C::Error> {
        self.stats.brks += 1;
        if self.mode != Mode::Running {
            // It was what was stepped over.
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
        // The class is the same from all exception levels, and FAR_EL1 is not written.
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

/// Returns whether there is such a register, to be accessed like this.
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
