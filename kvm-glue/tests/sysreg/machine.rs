//! A CPU that executes a dozen instructions, with exceptions, breakpoints and single steps, and a CPU interface that is there or not.

use std::collections::HashMap;
use std::convert::Infallible;

use vgic_kvm::core::gic::SysReg;
use vgic_kvm::sysreg::{Access, Cpu, Debug, Direction, Icc, Physical, Reg, decode};

pub(crate) const NOP: u32 = 0xd503_201f;
pub(crate) const UDF: u32 = 0;
pub(crate) const ERET: u32 = 0xd69f_03e0;
/// The end of a program.
pub(crate) const HLT: u32 = 0xd440_0000;
/// Notes down everything that the guest can see.
pub(crate) const NOTE: u32 = 0xd400_0002;
/// ELR_EL1 goes on to the next instruction: what a handler does that has dealt with an exception.
pub(crate) const NEXT: u32 = 0xd400_0022;
/// BKPT of A32.
pub(crate) const BKPT: u32 = 0xe120_0070;

pub(crate) fn brk(comment: u16) -> u32 {
    0xd420_0000 | u32::from(comment) << 5
}

pub(crate) fn movz(x: u8, value: u16) -> u32 {
    0xd280_0000 | u32::from(value) << 5 | u32::from(x)
}

pub(crate) fn sub_sp(n: u32) -> u32 {
    0xd100_03ff | n << 10
}

pub(crate) fn add_sp(n: u32) -> u32 {
    0x9100_03ff | n << 10
}

/// One less.
pub(crate) fn dec(x: u8) -> u32 {
    0xd100_0400 | u32::from(x) << 5 | u32::from(x)
}

/// A branch by so many instructions, unless the register is zero.
pub(crate) fn cbnz(x: u8, by: i32) -> u32 {
    0xb500_0000 | (by as u32 & 0x7_ffff) << 5 | u32::from(x)
}

/// A branch by so many instructions.
pub(crate) fn b(by: i32) -> u32 {
    5 << 26 | by as u32 & 0x3ff_ffff
}

pub(crate) fn mrs(x: u8, reg: SysReg) -> u32 {
    1 << 21 | msr(reg, x)
}

pub(crate) fn msr(reg: SysReg, x: u8) -> u32 {
    let SysReg { op0, op1, crn, crm, op2 } = reg;
    let fields = [(op0, 19), (op1, 16), (crn, 12), (crm, 8), (op2, 5), (x, 0)];
    fields.iter().fold(0xd500_0000, |word, &(field, shift)| word | u32::from(field) << shift)
}

/// The CPU interface: what was done to it, which is what the next read depends on. Some registers are UNDEFINED.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Device {
    pub(crate) log: Vec<(SysReg, Option<u64>)>,
}

impl Device {
    fn exists(reg: SysReg, direction: Direction) -> bool {
        match (reg.crm, reg.op2) {
            (12, 0) | (11, 3) => direction == Direction::Read,
            (12, 1) | (11, 1 | 5) => direction == Direction::Write,
            (9, 1..) => false,
            _ => true,
        }
    }
}

impl Icc for Device {
    fn read(&mut self, reg: SysReg) -> Option<u64> {
        Self::exists(reg, Direction::Read).then(|| {
            self.log.push((reg, None));
            0x1000 + self.log.len() as u64
        })
    }

    fn write(&mut self, reg: SysReg, value: u64) -> Option<()> {
        Self::exists(reg, Direction::Write).then(|| self.log.push((reg, Some(value))))
    }
}

/// By words.
#[derive(Clone, Default)]
pub(crate) struct Ram(pub(crate) HashMap<u64, u32>);

impl Ram {
    pub(crate) fn load(&mut self, at: u64, words: &[u32]) {
        self.0.extend((at..).step_by(4).zip(words.iter().copied()));
    }

    pub(crate) fn store(&mut self, at: u64, value: u64) {
        self.load(at, &[value as u32, (value >> 32) as u32]);
    }
}

impl Physical for Ram {
    fn word(&self, address: u64) -> Option<[u8; 4]> {
        self.0.get(&address).map(|word| word.to_le_bytes())
    }

    fn double_word(&self, address: u64) -> Option<[u8; 8]> {
        let halves = [self.word(address)?, self.word(address + 4)?];
        halves.concat().try_into().ok()
    }
}

/// Why [`Machine::run`] has returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// [`HLT`].
    End,
    /// A debug exception, with its syndrome.
    Debug(u64),
}

pub(crate) struct Machine {
    pub(crate) regs: HashMap<Reg, u64>,
    pub(crate) ram: Ram,
    /// With a CPU interface of its own.
    pub(crate) native: Option<Device>,
    /// From guest virtual addresses to physical ones, for what is executed.
    pub(crate) map: fn(u64) -> u64,
    pub(crate) debug: Option<Debug>,
    /// What [`NOTE`] has noted.
    pub(crate) notes: Vec<Vec<u64>>,
    /// The host's accesses.
    pub(crate) calls: u64,
}

const SEEN: [Reg; 10] = [
    Reg::Pc,
    Reg::Pstate,
    Reg::SpEl1,
    Reg::Esr,
    Reg::Elr,
    Reg::Spsr,
    Reg::X(0),
    Reg::X(1),
    Reg::X(2),
    Reg::X(30),
];

impl Machine {
    pub(crate) fn new(native: bool) -> Self {
        Self {
            regs: HashMap::new(),
            ram: Ram::default(),
            native: native.then(Device::default),
            map: |va| va,
            debug: None,
            notes: Vec::new(),
            calls: 0,
        }
    }

    pub(crate) fn at(&self, reg: Reg) -> u64 {
        self.regs.get(&reg).copied().unwrap_or(0)
    }

    pub(crate) fn put(&mut self, reg: Reg, value: u64) {
        self.regs.insert(reg, value);
    }

    /// Everything that the guest can see, without what every exception overwrites.
    pub(crate) fn seen(&self) -> Vec<u64> {
        SEEN.map(|reg| self.at(reg)).to_vec()
    }

    /// The manual's AArch64.TakeException to EL1, as far as this CPU has it: PSTATE.PAN, SSBS and DIT; no MTE.
    fn exception(&mut self, esr: u64, elr: u64) {
        let (old, sctlr) = (self.at(Reg::Pstate), self.at(Reg::Sctlr));
        let mut new = 0b0101 | 0b1111 << 6 | old & (0b1111 << 28 | 1 << 24 | 1 << 22);
        if sctlr >> 23 & 1 == 0 {
            new |= 1 << 22;
        }
        new |= (sctlr >> 44 & 1) << 12;
        let offset = match old & 0b11111 {
            0b00101 => 0x200,
            0b00100 => 0x000,
            0b00000 => 0x400,
            _ => 0x600,
        };
        let set = [
            (Reg::Esr, esr),
            (Reg::Elr, elr),
            (Reg::Spsr, old),
            (Reg::Pstate, new),
            (Reg::Pc, self.at(Reg::Vbar) + offset),
        ];
        self.regs.extend(set);
    }

    /// Until something is to be told. A guest that goes on for too long has lost its way.
    pub(crate) fn run(&mut self) -> Stop {
        for _ in 0..100_000 {
            let (pc, old) = (self.at(Reg::Pc), self.at(Reg::Pstate));
            let el1 = old & 0b11100 == 0b00100;
            let debug = self.debug.unwrap_or_default();
            if el1 && debug.breakpoints.contains(&Some(pc)) {
                return Stop::Debug(0xc200_0022);
            }
            let word = self.ram.word((self.map)(pc)).map_or(UDF, u32::from_le_bytes);
            let mut next = pc + 4;
            match word {
                HLT => return Stop::End,
                NOTE if el1 => {
                    let seen = self.seen();
                    self.notes.push(seen);
                }
                NEXT if el1 => self.put(Reg::Elr, self.at(Reg::Elr) + 4),
                ERET if el1 => {
                    // Software step is inactive, or the host's: SS is not the guest's.
                    self.put(Reg::Pstate, self.at(Reg::Spsr) & !(1 << 21));
                    next = self.at(Reg::Elr);
                }
                BKPT if old & 1 << 4 != 0 => {
                    if self.debug.is_some() {
                        return Stop::Debug(0xe200_0000);
                    }
                    self.exception(0xe200_0000, pc);
                    continue;
                }
                word if word & 0xffe0_001f == 0xd420_0000 => {
                    let esr = 0xf200_0000 | u64::from(word >> 5 & 0xffff);
                    if self.debug.is_some() {
                        return Stop::Debug(esr);
                    }
                    self.exception(esr, pc);
                    continue;
                }
                NOP => {}
                word if word & 0xffe0_0000 == 0xd280_0000 => {
                    self.put(Reg::X((word & 31) as u8), u64::from(word >> 5 & 0xffff));
                }
                word if word & 0xffc0_03ff == 0xd100_03ff => {
                    self.put(Reg::SpEl1, self.at(Reg::SpEl1) - u64::from(word >> 10 & 0xfff));
                }
                word if word & 0xffc0_03ff == 0x9100_03ff => {
                    self.put(Reg::SpEl1, self.at(Reg::SpEl1) + u64::from(word >> 10 & 0xfff));
                }
                word if word & 0xffff_fc00 == 0xd100_0400 && word & 31 == word >> 5 & 31 => {
                    let x = Reg::X((word & 31) as u8);
                    self.put(x, self.at(x) - 1);
                }
                word if word & 0xff00_0000 == 0xb500_0000 => {
                    if self.at(Reg::X((word & 31) as u8)) != 0 {
                        let by = i64::from((word << 8) as i32 >> 13);
                        next = pc.wrapping_add_signed(by * 4);
                    }
                }
                word if word >> 26 == 5 => {
                    let by = i64::from((word << 6) as i32 >> 6);
                    next = pc.wrapping_add_signed(by * 4);
                }
                word => {
                    let done = el1.then(|| decode(word)).flatten().and_then(|a| self.icc(a));
                    if done.is_none() {
                        self.exception(0x0200_0000, pc);
                        next = self.at(Reg::Pc);
                    }
                }
            }
            self.put(Reg::Pc, next);
            if word != ERET && next == pc + 4 {
                self.put(Reg::Pstate, self.at(Reg::Pstate) & !(3 << 10));
            }
            if debug.step {
                return Stop::Debug(0xca00_0022);
            }
        }
        panic!("lost at {:#x}", self.at(Reg::Pc));
    }

    fn icc(&mut self, access: Access) -> Option<()> {
        let x = access.rt.number().map(Reg::X);
        let value = x.map_or(0, |x| self.at(x));
        let device = self.native.as_mut()?;
        match access.direction {
            Direction::Read => {
                let value = device.read(access.reg)?;
                if let Some(x) = x {
                    self.put(x, value);
                }
            }
            Direction::Write => device.write(access.reg, value)?,
        }
        Some(())
    }
}

impl Cpu for Machine {
    type Error = Infallible;

    fn get(&mut self, reg: Reg) -> Result<u64, Infallible> {
        self.calls += 1;
        Ok(self.at(reg))
    }

    fn set(&mut self, reg: Reg, value: u64) -> Result<(), Infallible> {
        self.calls += 1;
        self.put(reg, value);
        Ok(())
    }

    fn set_debug(&mut self, debug: Option<&Debug>) -> Result<(), Infallible> {
        self.calls += 1;
        self.debug = debug.copied();
        Ok(())
    }
}
