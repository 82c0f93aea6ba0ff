//! GICv3: operations as accesses of ICC_* and of the frames (IHI 0069, 12).

use super::generate::Set;
use super::steps::{CPUS, Kind, Operation, Step};
use super::style::{MEMBERS, PRIVATE, SGIS, SPIS, WIRED, own_priority};
use super::wire::{PMR, register};
use super::world::World;
use crate::target::{GICD, GICR};

const IAR: [u8; 2] = [register(8, 0), register(12, 0)];
const EOIR: [u8; 2] = [register(8, 1), register(12, 1)];
const HPPIR: [u8; 2] = [register(8, 2), register(12, 2)];
const BPR: [u8; 2] = [register(8, 3), register(12, 3)];
const AP0: [u8; 2] = [register(8, 4), register(9, 0)];
const DIR: u8 = register(11, 1);
const RPR: u8 = register(11, 3);
const SGI1R: u8 = register(11, 5);
const ASGI1R: u8 = register(11, 6);
const SGI0R: u8 = register(11, 7);
const CTLR: u8 = register(12, 4);
const SRE: u8 = register(12, 5);
const IGRPEN: [u8; 2] = [register(12, 6), register(12, 7)];
/// ICC_CTLR_EL1 without RSS, which depends on the implementation.
const CTLR_MASK: u64 = !(1 << 18);

/// Returns the address of a CPU's RD_base.
pub(super) fn redistributor(cpu: u8) -> u64 {
    GICR + 0x2_0000 * u64::from(cpu)
}

/// Returns the address of the frame with an interrupt's registers: SGI_base of a CPU, or GICD.
fn frame(of: u8, intid: u32) -> u64 {
    if intid < 32 { redistributor(of) + 0x1_0000 } else { GICD }
}

pub(super) fn prologue(world: &mut World) -> Vec<Step> {
    let mut steps = Vec::new();
    for cpu in 0..CPUS as u8 {
        steps.push(Step::write(0, 4, redistributor(cpu) + 0x14, 0));
    }
    steps.push(Step::write(0, 4, GICD, 3));
    // The groups after a reset depend on the implementation.
    steps.extend((1..8).map(|n| Step::write(0, 4, GICD + 0x80 + 4 * n, 0)));
    for of in 0..CPUS as u8 {
        for member in (0..WIRED).filter(|&m| m < PRIVATE || of == 0) {
            steps.push(group(world, 0, of, member));
            steps.push(priority(0, of, member, 0));
            steps.push(bit(0, of, member, 0x100));
        }
    }
    for cpu in 0..CPUS as u8 {
        steps.extend(groups(cpu, [true; 2]));
        steps.push(Step::msr(cpu, PMR, 0xf8));
    }
    if world.style.lpis {
        steps.extend(world.lpis.prologue());
    }
    steps
}

/// Adds checks of the interrupt that the CPU would take next.
pub(super) fn look(cpu: u8, steps: &mut Vec<Step>) {
    for register in [RPR, HPPIR[0], HPPIR[1], AP0[0], AP0[1]] {
        steps.push(Step::mrs(cpu, register).checking());
    }
}

pub(super) fn sweep(by: u8, steps: &mut Vec<Step>) {
    for cpu in 0..CPUS as u8 {
        for register in [PMR, BPR[0], BPR[1], IGRPEN[0], IGRPEN[1], SRE] {
            steps.push(Step::mrs(cpu, register).checking());
        }
        steps.push(Step::mrs(cpu, CTLR).masked(CTLR_MASK).checking());
        for offset in [0x80, 0x100, 0x200, 0x300, 0xc04] {
            steps.push(Step::read(by, 4, frame(cpu, 0) + offset).checking());
        }
    }
    for n in 1..4 {
        for offset in [0x80, 0x100, 0x200, 0x300] {
            steps.push(Step::read(by, 4, GICD + offset + 4 * n).checking());
        }
    }
}

pub(super) fn is_highest_pending(operation: Operation) -> bool {
    operation.kind == Kind::ReadRegister && HPPIR.contains(&operation.register)
}

/// Returns the group that an operation acknowledges, if it is an acknowledge.
pub(super) fn acknowledges(operation: Operation) -> Option<u8> {
    let n = IAR.iter().position(|&iar| iar == operation.register)?;
    (operation.kind == Kind::ReadRegister).then_some(n as u8)
}

pub(super) fn acknowledge(by: u8, group: u8) -> Vec<Step> {
    vec![Step::mrs(by, IAR[usize::from(group)])]
}

pub(super) fn end(by: u8, group: u8, value: u64) -> Vec<Step> {
    vec![Step::msr(by, EOIR[usize::from(group)], value)]
}

pub(super) fn deactivate(by: u8, value: u64) -> Vec<Step> {
    vec![Step::msr(by, DIR, value)]
}

pub(super) fn mask(by: u8, value: u8) -> Vec<Step> {
    vec![Step::msr(by, PMR, value.into()), Step::mrs(by, PMR)]
}

pub(super) fn binary_point(by: u8, group: u8, value: u8) -> Vec<Step> {
    let register = BPR[usize::from(group)];
    vec![Step::msr(by, register, value.into()), Step::mrs(by, register)]
}

pub(super) fn modes(by: u8, modes: u16) -> Vec<Step> {
    vec![Step::msr(by, CTLR, modes.into()), Step::mrs(by, CTLR).masked(CTLR_MASK)]
}

/// Writes both group enables. Between the two writes, one group may be on and the other off.
pub(super) fn groups(by: u8, on: [bool; 2]) -> Vec<Step> {
    vec![Step::msr(by, IGRPEN[0], on[0].into()).within(), Step::msr(by, IGRPEN[1], on[1].into())]
}

pub(super) fn forward(by: u8, groups: u8) -> Vec<Step> {
    vec![Step::write(by, 4, GICD, groups.into())]
}

pub(super) fn clear_priorities(by: u8, group: u8) -> Vec<Step> {
    let register = AP0[usize::from(group)];
    vec![Step::msr(by, register, 0), Step::mrs(by, register)]
}

/// Accesses any register of the CPU interface, to compare whether it exists and can be read or
/// written. Returns `None` for a register if the access has side effects.
pub(super) fn any_register(by: u8, n: u8, value: Option<u64>) -> Option<Vec<Step>> {
    let n = register(8 + n / 8 % 5, n % 8);
    let Some(value) = value else {
        let mask = if n == CTLR { CTLR_MASK } else { u64::MAX };
        return (!IAR.contains(&n) && !HPPIR.contains(&n))
            .then(|| vec![Step::mrs(by, n).masked(mask)]);
    };
    let effects = [EOIR, BPR, AP0, IGRPEN].concat();
    let others = [DIR, SGI1R, ASGI1R, SGI0R, CTLR];
    (!effects.contains(&n) && !others.contains(&n)).then(|| vec![Step::msr(by, n, value)])
}

pub(super) fn route(by: u8, intid: u32, to: u8) -> Vec<Step> {
    // The third value of `to` names no CPU, so the interrupt has no target.
    let affinity = if usize::from(to) < CPUS { u64::from(to) } else { 0x0501 };
    vec![Step::write(by, 8, GICD + 0x6000 + 8 * u64::from(intid), affinity)]
}

pub(super) fn sgi(
    world: &World,
    by: u8,
    member: usize,
    targets: u8,
    others: bool,
    by_group: u8,
) -> Option<Vec<Step>> {
    let named = |cpu: u8| if others { cpu != by } else { targets >> cpu & 1 != 0 };
    let all_in_1 = (0..CPUS as u8).all(|cpu| !named(cpu) || world.irq(cpu, member).group1);
    let register = match by_group {
        0 => SGI0R,
        1 => ASGI1R,
        // QEMU does not send an SGI by ICC_SGI1R_EL1 to a target that has it in Group 0.
        _ if !all_in_1 => return None,
        _ => SGI1R,
    };
    let value = u64::from(MEMBERS[member]) << 24 | u64::from(targets) | u64::from(others) << 40;
    Some(vec![Step::msr(by, register, value)])
}

/// Writes only an interrupt's bit, in a register of bits at `offset`.
fn bit(by: u8, of: u8, member: usize, offset: u64) -> Step {
    let intid = MEMBERS[member];
    let address = frame(of, intid) + offset + u64::from(intid / 32 * 4);
    Step::write(by, 4, address, 1 << (intid % 32))
}

fn priority(by: u8, of: u8, member: usize, pick: u8) -> Step {
    let intid = MEMBERS[member];
    let address = frame(of, intid) + 0x400 + u64::from(intid);
    Step::write(by, 1, address, own_priority(member, pick).into())
}

fn neighbours(intid: u32) -> impl Iterator<Item = (u32, usize)> {
    (0..WIRED).map(|m| (MEMBERS[m], m)).filter(move |(n, _)| n / 32 == intid / 32)
}

/// Writes the groups of an interrupt and of the other interrupts in the same register.
fn group(world: &World, by: u8, of: u8, member: usize) -> Step {
    let intid = MEMBERS[member];
    let address = frame(of, intid) + 0x80 + u64::from(intid / 32 * 4);
    let value = neighbours(intid).filter(|&(_, m)| world.irq(of, m).group1);
    Step::write(by, 4, address, value.fold(0, |word, (n, _)| word | 1 << (n % 32)))
}

pub(super) fn set(world: &World, by: u8, of: u8, member: usize, set: Set) -> Option<Vec<Step>> {
    let intid = MEMBERS[member];
    Some(vec![match set {
        Set::Enabled(on) => bit(by, of, member, if on { 0x100 } else { 0x180 }),
        Set::Pending(on) => bit(by, of, member, if on { 0x200 } else { 0x280 }),
        Set::Active(on) => bit(by, of, member, if on { 0x300 } else { 0x380 }),
        Set::Priority(pick) => priority(by, of, member, pick),
        Set::Line(high) => Step::line(by, intid, high),
        Set::Group1(_) => group(world, by, of, member),
        Set::Edge(_) => {
            let address = frame(of, intid) + 0xc00 + u64::from(intid / 16 * 4);
            let here =
                neighbours(intid).filter(|&(n, m)| n / 16 == intid / 16 && world.irq(of, m).edge);
            Step::write(by, 4, address, here.fold(0, |word, (n, _)| word | 2 << (n % 16 * 2)))
        }
    }])
}

const _: () = assert!(SGIS.end < PRIVATE && SPIS.start == PRIVATE);
