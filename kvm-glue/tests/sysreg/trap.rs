//! The traps: a guest on a CPU without a CPU interface, trapped, sees what it sees on a CPU that has one.

use std::sync::Arc;

use proptest::prelude::*;
use vgic_kvm::core::gic::SysReg;
use vgic_kvm::sysreg::{ExitFor, Handled, Reg, TrapStats, Traps, Vectors};

use crate::machine::*;

const TEXT: u64 = 0x4000_0000;
const USER: u64 = 0x4010_0000;
const VBAR: u64 = 0x4020_0000;
const STACK: u64 = 0x5000_0000;
/// MMU off; SPAN.
const SCTLR: u64 = 0x30d0_0800;

/// Runs a guest to its end. Returns what came of accesses, and how.
fn run(machine: &mut Machine, breakpoints: usize) -> (Device, TrapStats) {
    if machine.native.is_some() {
        while machine.run() != Stop::End {}
        return (machine.native.clone().unwrap(), TrapStats::default());
    }
    let mut device = Device::default();
    let mut traps = Traps::new(breakpoints, Arc::new(Vectors::new()));
    traps.start(machine).unwrap();
    loop {
        match machine.run() {
            Stop::End => return (device, traps.stats()),
            Stop::Debug(syndrome) => {
                let ram = machine.ram.clone();
                let handled = traps.handle(machine, &mut device, &ram, syndrome).unwrap();
                assert_ne!(handled, Handled::NotOurs, "{syndrome:#x}");
            }
        }
    }
}

/// What a vector begins with. It makes room of 0x150 bytes.
fn vector(kind: usize, x: u8) -> Vec<u32> {
    let first = match kind {
        0 => vec![sub_sp(0x150)],
        1 => vec![NOP, sub_sp(0x150)],
        2 => vec![b(2), HLT, sub_sp(0x150)],
        _ => vec![movz(x, 7), sub_sp(0x150)],
    };
    [first, vec![NOTE, NEXT, add_sp(0x150), ERET]].concat()
}

fn guest(native: bool, text: &[u32], user: &[u32], vectors: usize, pstate: u64) -> Machine {
    let mut machine = Machine::new(native);
    machine.ram.load(TEXT, text);
    machine.ram.load(TEXT + 4 * text.len() as u64, &[HLT]);
    machine.ram.load(USER, user);
    for offset in [0, 0x200, 0x400, 0x600] {
        machine.ram.load(VBAR + offset, &vector(vectors, 2));
    }
    let set = [
        (Reg::Pc, TEXT),
        (Reg::Pstate, pstate),
        (Reg::SpEl1, STACK),
        (Reg::Vbar, VBAR),
        (Reg::Sctlr, SCTLR),
        (Reg::Spsr, 0),
        (Reg::Elr, USER),
    ];
    machine.regs.extend(set);
    machine
}

fn instruction() -> impl Strategy<Value = u32> {
    let registers = prop::sample::select(vec![
        SysReg::ICC_IAR1_EL1,
        SysReg::ICC_EOIR1_EL1,
        SysReg::ICC_PMR_EL1,
        SysReg::ICC_RPR_EL1,
        SysReg::ICC_CTLR_EL1,
        // AP1R1, which there is not.
        SysReg::new(3, 0, 12, 9, 1),
        // No register of the CPU interface's.
        SysReg::new(3, 0, 15, 0, 0),
    ]);
    let x = prop::sample::select(vec![0, 1, 2, 30, 31_u8]);
    prop_oneof![
        6 => (registers, x, any::<bool>())
            .prop_map(|(reg, x, read)| if read { mrs(x, reg) } else { msr(reg, x) }),
        2 => (0..3u8, any::<u16>()).prop_map(|(x, value)| movz(x, value)),
        1 => any::<u16>().prop_map(brk),
        1 => Just(UDF),
        1 => Just(NOP),
        1 => Just(NOTE),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Of accesses, of its own undefined instructions, of BRKs: the same notes, and the same is done to the CPU interface.
    #[test]
    fn a_guest_sees_no_difference(
        text in prop::collection::vec(instruction(), 1..12),
        times in prop::sample::select(vec![1, 3, 40_u16]),
        vectors in 0..4usize,
        breakpoints in prop::sample::select(vec![1, 2, 3, 4, 6, 16usize]),
        flags in 0..16u64,
        el1t: bool,
        sctlr: [bool; 2],
    ) {
        // With SP_EL0 only where there are enough breakpoints.
        let pstate = flags << 28 | 0x3c0 | if el1t && breakpoints >= 4 { 4 } else { 5 };
        // X5 counts; it is none of those that the text writes.
        let back = -(text.len() as i32) - 2;
        let body = [&[movz(5, times), NOTE][..], &text, &[dec(5), cbnz(5, back)]].concat();
        let machines = [true, false].map(|native| {
            let mut machine = guest(native, &body, &[], vectors, pstate);
            let sctlr = SCTLR & !(u64::from(sctlr[0]) << 23) | u64::from(sctlr[1]) << 44;
            machine.put(Reg::Sctlr, sctlr);
            let (device, stats) = run(&mut machine, breakpoints);
            (machine, device, stats)
        });
        let [(native, device, _), (trapped, same, stats)] = machines;
        prop_assert_eq!(&device, &same);
        prop_assert_eq!(stats.undefined + stats.direct, device.log.len() as u64);
        prop_assert_eq!(stats.calls, trapped.calls);
        prop_assert!(times < 40 || breakpoints < 4 || device.log.is_empty() || stats.direct > 0);
        // What an access leaves in ESR_EL1, ELR_EL1 and SPSR_EL1 is seen outside of handlers only.
        let visible = |machine: &Machine| {
            let mut notes = machine.notes.clone();
            for note in &mut notes {
                if note[0] < VBAR {
                    note[3..6].fill(0);
                }
            }
            notes
        };
        prop_assert_eq!(visible(&native), visible(&trapped));
    }
}

/// At EL0 an access is UNDEFINED wherever there is a CPU interface, and BRKs go to EL1.
#[test]
fn el0_is_not_disturbed() {
    let a64 = [brk(0x1234), mrs(0, SysReg::ICC_IAR1_EL1), UDF, brk(0), movz(0, 1), HLT];
    let a32 = [BKPT, BKPT, HLT];
    for (words, spsr, brks) in [(&a64[..], 0x6000_0c00, 2), (&a32[..], 0x2a00_0010, 2)] {
        let [native, trapped] = [true, false].map(|native| {
            let mut machine = guest(native, &[ERET], words, 0, 0x3c5);
            machine.put(Reg::Spsr, spsr);
            let (device, stats) = run(&mut machine, 6);
            assert!(device.log.is_empty());
            assert_eq!(stats.brks, if native { 0 } else { brks });
            // One debug exit for each BRK, and one for the first instruction.
            assert_eq!(stats.exits, if native { 0 } else { brks + 1 });
            machine
        });
        assert_eq!(native.notes, trapped.notes);
        assert_eq!(native.seen(), trapped.seen());
        assert_eq!(native.at(Reg::Pc), USER + 4 * (words.len() as u64 - 1));
    }
}

/// Exactly what an exception leaves, by the numbers.
#[test]
fn what_a_brk_leaves() {
    let mut machine = guest(false, &[NOP, brk(0xbeef)], &[], 0, 0x9140_0c05);
    machine.put(Reg::Esr, 1);
    let (_, stats) = run(&mut machine, 6);
    assert_eq!((stats.brks, stats.passed, stats.stepped), (1, 1, 0));
    let note = &machine.notes[0];
    // At the vector's second instruction, with room made.
    assert_eq!(note[..3], [VBAR + 0x204, 0x9140_03c5, STACK - 0x150]);
    // NOP has cleared BTYPE.
    assert_eq!(note[3..6], [0xf200_beef, TEXT + 4, 0x9140_0005]);
}

/// Calls into the kernel for each access that came as an UNDEF: eight, one less with XZR.
#[test]
fn what_an_access_costs() {
    let calls = |count: usize, word: u32| {
        let mut machine = guest(false, &vec![word; count], &[], 0, 0x3c5);
        // All at different addresses: none is made often.
        let (_, stats) = run(&mut machine, 6);
        assert_eq!(stats.undefined, count as u64);
        stats.calls
    };
    for (word, cost) in [
        (mrs(3, SysReg::ICC_IAR1_EL1), 8),
        (msr(SysReg::ICC_EOIR1_EL1, 3), 8),
        (mrs(31, SysReg::ICC_IAR1_EL1), 7),
        (msr(SysReg::ICC_EOIR1_EL1, 31), 7),
    ] {
        assert_eq!(calls(40, word) - calls(30, word), 10 * cost);
    }
}

/// A loop, in the upper half of the address space.
struct Loop {
    machine: Machine,
    device: Device,
    traps: Traps,
}

impl Loop {
    const VA: u64 = 0xffff_8000_0000_0000;

    fn new(words: &[u32]) -> Self {
        let mut machine = Machine::new(false);
        // 1 GiB at VA: two levels of tables, then a block. T1SZ 16, 4 KiB, 40 bits.
        machine.ram.store(0x1_0000 + (Self::VA >> 39 & 511) * 8, 0x1_1003);
        machine.ram.store(0x1_1000, 0x4000_0401);
        machine.map = |va| 0x4000_0000 | va & 0x3fff_ffff;
        machine.ram.load(TEXT, words);
        machine.ram.load(TEXT + 4 * words.len() as u64, &[b(-(words.len() as i32))]);
        machine.ram.load(TEXT + 0x1000 + 0x200, &vector(0, 2));
        let set = [
            (Reg::Pc, Self::VA),
            (Reg::Pstate, 0x3c5),
            (Reg::SpEl1, STACK),
            (Reg::Vbar, Self::VA + 0x1000),
            (Reg::Sctlr, SCTLR | 1),
            (Reg::Tcr, 16 << 16 | 2 << 30 | 2 << 32 | 1 << 7),
            (Reg::Ttbr1, 0x1_0000),
        ];
        machine.regs.extend(set);
        let mut traps = Traps::new(6, Arc::new(Vectors::new()));
        traps.start(&mut machine).unwrap();
        Self { machine, device: Device::default(), traps }
    }

    /// Until the next debug exit, which is dealt with.
    fn go(&mut self) -> Handled {
        let Stop::Debug(syndrome) = self.machine.run() else { panic!("no debug exit") };
        let ram = self.machine.ram.clone();
        self.traps.handle(&mut self.machine, &mut self.device, &ram, syndrome).unwrap()
    }

    fn exit(&mut self, exit: ExitFor) {
        self.traps.follow(&mut self.machine, exit).unwrap();
    }

    /// What one more access costs.
    fn cost(&mut self) -> u64 {
        let before = self.machine.calls;
        assert_eq!(self.go(), Handled::Done);
        self.machine.calls - before
    }
}

#[test]
fn accesses_that_are_made_often_are_cheap() {
    let mut guest = Loop::new(&[mrs(0, SysReg::ICC_IAR1_EL1), msr(SysReg::ICC_EOIR1_EL1, 0)]);
    // The first instruction is one, and undefined: it stops at the vector.
    assert_eq!(guest.go(), Handled::Done);
    // Its first access proves the vector table, and needs all registers.
    assert_eq!(guest.go(), Handled::NewTable);
    assert_eq!((guest.cost(), guest.cost()), (8, 8));
    for _ in 0..40 {
        guest.cost();
    }
    let stats = guest.traps.stats();
    assert_eq!(stats.undefined, 32);
    assert_eq!((guest.cost(), guest.cost()), (3, 3));
    assert_eq!(guest.traps.stats().direct, stats.direct + 2);
    // After any other exit that the guest has caused, the tables are asked for once; after any, so are the vectors.
    guest.exit(ExitFor::Device);
    assert_eq!((guest.cost(), guest.cost()), (4, 3));
    guest.exit(ExitFor::Nothing);
    assert_eq!((guest.cost(), guest.cost()), (3, 3));
    let calls = guest.machine.calls;
    guest.exit(ExitFor::Frame);
    assert_eq!(guest.machine.calls, calls + 1);
    assert_eq!((guest.cost(), guest.cost()), (4, 3));
    // No exception, so nothing is clobbered.
    guest.machine.put(Reg::Elr, 0x1234);
    guest.cost();
    assert_eq!(guest.machine.at(Reg::Elr), 0x1234);
    assert!(guest.device.log.chunks(2).all(|pair| matches!(
        pair,
        [(SysReg::ICC_IAR1_EL1, None), (SysReg::ICC_EOIR1_EL1, Some(_))]
            | [(SysReg::ICC_IAR1_EL1, None)]
    )));
}

/// The guest has another vector table, and comes to where the old one was with the registers of its last exception.
#[test]
fn an_old_table_is_text_like_any_other() {
    let mut guest = Loop::new(&[mrs(0, SysReg::ICC_IAR1_EL1)]);
    assert_eq!((guest.go(), guest.go()), (Handled::Done, Handled::NewTable));
    let (performed, old) = (guest.device.log.len(), Loop::VA + 0x1200);
    let set = [
        (Reg::Vbar, Loop::VA + 0x2000),
        (Reg::Pc, old),
        (Reg::Esr, 0),
        (Reg::Elr, Loop::VA),
        (Reg::Spsr, 0x3c5),
    ];
    set.into_iter().for_each(|(reg, value)| guest.machine.put(reg, value));
    assert_eq!(guest.go(), Handled::Done);
    assert_eq!(guest.device.log.len(), performed, "an access is not performed twice");
    assert_eq!(guest.machine.at(Reg::Pc), old);
    // It is not stopped there any more, and accesses come through the new table.
    guest.machine.ram.load(TEXT + 0x2200, &vector(0, 2));
    guest.machine.put(Reg::Pc, Loop::VA);
    assert_eq!(guest.go(), Handled::NewTable);
    assert_eq!(guest.device.log.len(), performed + 1);
}

/// Other tables: the addresses are in another page, with other instructions.
#[test]
fn tables_that_change_are_followed() {
    let with_others = |often: u64, second: u32| {
        let mut guest = Loop::new(&[mrs(0, SysReg::ICC_IAR1_EL1)]);
        (0..=often).for_each(|_| _ = guest.go());
        assert_eq!(guest.device.log.len() as u64, often);
        let machine = &mut guest.machine;
        machine.ram.load(0x8000_0000, &[second, mrs(0, SysReg::ICC_RPR_EL1), HLT]);
        machine.ram.load(0x8000_1200, &vector(0, 2));
        machine.ram.store(0x2_0000 + (Loop::VA >> 39 & 511) * 8, 0x2_1003);
        machine.ram.store(0x2_1000, 0x8000_0401);
        machine.map = |va| 0x8000_0000 | va & 0x3fff_ffff;
        machine.put(Reg::Ttbr1, 0x2_0000);
        guest
    };
    // What the known tables have there is no access, so they are not the right ones.
    let mut guest = with_others(1, UDF);
    guest.machine.put(Reg::Pc, Loop::VA + 4);
    assert_eq!(guest.go(), Handled::Done);
    assert_eq!(guest.device.log[1..], [(SysReg::ICC_RPR_EL1, None)]);
    assert_eq!(guest.machine.run(), Stop::End);

    // What they have there is another access. The guest has exited meanwhile.
    let mut guest = with_others(1, mrs(0, SysReg::ICC_PMR_EL1));
    guest.exit(ExitFor::Device);
    guest.machine.put(Reg::Pc, Loop::VA);
    assert_eq!(guest.go(), Handled::Done);
    assert_eq!(guest.device.log[1..], [(SysReg::ICC_PMR_EL1, None)]);

    // An access with a breakpoint is no access any more, but an undefined instruction of the guest's own.
    let mut guest = with_others(40, UDF);
    guest.exit(ExitFor::Device);
    guest.machine.put(Reg::Pc, Loop::VA);
    assert_eq!((guest.go(), guest.go()), (Handled::Done, Handled::Done));
    assert_eq!(guest.device.log.len(), 40);
    assert_eq!(guest.go(), Handled::Done);
    assert_eq!(guest.machine.run(), Stop::End);
    assert_eq!(guest.device.log[40..], [(SysReg::ICC_RPR_EL1, None)]);
    assert_eq!(guest.machine.notes.len(), 1);
    assert_eq!(guest.machine.notes[0][4], Loop::VA);
}

/// A vCPU that is powered on begins with the vectors that the guest is known to run with.
#[test]
fn a_second_vcpu_knows_the_vectors() {
    let vectors = Arc::new(Vectors::new());
    let text = [mrs(0, SysReg::ICC_IAR1_EL1), HLT];
    let mut first = guest(false, &text, &[], 0, 0x3c5);
    let mut device = Device::default();
    let ram = first.ram.clone();
    let mut traps = Traps::new(6, Arc::clone(&vectors));
    traps.start(&mut first).unwrap();
    let mut results = Vec::new();
    while let Stop::Debug(syndrome) = first.run() {
        results.push(traps.handle(&mut first, &mut device, &ram, syndrome).unwrap());
    }
    assert_eq!(results, [Handled::Done, Handled::NewTable]);

    // The second one sets its vectors up without any exit after that of its first instruction.
    let mut second = guest(false, &text, &[], 0, 0x3c5);
    second.put(Reg::Vbar, 0);
    second.put(Reg::Pc, TEXT - 4);
    second.ram.load(TEXT - 4, &[NOP]);
    let mut traps = Traps::new(6, vectors);
    traps.start(&mut second).unwrap();
    let Stop::Debug(step) = second.run() else { panic!() };
    assert_eq!(traps.handle(&mut second, &mut device, &ram, step), Ok(Handled::Done));
    second.put(Reg::Vbar, VBAR);
    let Stop::Debug(undefined) = second.run() else { panic!() };
    assert_eq!(traps.handle(&mut second, &mut device, &ram, undefined), Ok(Handled::Done));
    assert_eq!(second.run(), Stop::End);
    assert_eq!(device.log.len(), 2);
    assert!(second.notes.is_empty());
}

#[test]
fn vectors_are_followed_at_exits() {
    let mut machine = guest(false, &[NOP, NOP, mrs(0, SysReg::ICC_IAR1_EL1)], &[], 0, 0x3c5);
    machine.put(Reg::Vbar, 0);
    let mut device = Device::default();
    let ram = machine.ram.clone();
    let mut traps = Traps::new(6, Arc::new(Vectors::new()));
    traps.start(&mut machine).unwrap();
    // Not before it has run.
    traps.follow(&mut machine, ExitFor::Frame).unwrap();
    assert_eq!(machine.calls, 1);
    let Stop::Debug(step) = machine.run() else { panic!() };
    assert_eq!(traps.handle(&mut machine, &mut device, &ram, step), Ok(Handled::Done));
    // The guest sets its vectors, and exits for something else.
    machine.put(Reg::Vbar, VBAR);
    traps.follow(&mut machine, ExitFor::Device).unwrap();
    let calls = machine.calls;
    traps.follow(&mut machine, ExitFor::Device).unwrap();
    assert_eq!(machine.calls, calls + 1);
    let Stop::Debug(undefined) = machine.run() else { panic!() };
    assert_eq!(traps.handle(&mut machine, &mut device, &ram, undefined), Ok(Handled::NewTable));
    assert_eq!(device.log.len(), 1);
    // It has its vectors, and may have others at any time.
    for exit in [ExitFor::Device, ExitFor::Frame, ExitFor::Nothing] {
        let calls = machine.calls;
        traps.follow(&mut machine, exit).unwrap();
        assert_eq!(machine.calls, calls + 1);
    }
    traps.stop(&mut machine).unwrap();
    assert_eq!(machine.debug, None);
    assert_eq!(traps.handle(&mut machine, &mut device, &ram, undefined), Ok(Handled::NotOurs));
}
