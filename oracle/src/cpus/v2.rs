//! GICv2: operations as accesses of GICC and GICD (IHI 0048B, 4).

use super::generate::Set;
use super::steps::{CPUS, Kind, Operation, Step};
use super::style::{Groups, MEMBERS, PRIVATE, WIRED, own_priority};
use super::world::{Taken, World};
use crate::target::{GICC, GICD};

const CTLR: u64 = GICC;
const PMR: u64 = GICC + 4;
const BPR: u64 = GICC + 8;
const IAR: u64 = GICC + 0xc;
const EOIR: u64 = GICC + 0x10;
const RPR: u64 = GICC + 0x14;
const HPPIR: u64 = GICC + 0x18;
const ABPR: u64 = GICC + 0x1c;
const APR: u64 = GICC + 0xd0;
const DIR: u64 = GICC + 0x1000;
/// GICC_CTLR without the bypass controls.
const CTLR_MASK: u64 = !0x1e0;
const ACK_CTL: u16 = 1 << 2;

fn word(by: u8, address: u64, value: u64) -> Step {
    Step::write(by, 4, address, value)
}

pub(super) fn prologue(world: &mut World) -> Vec<Step> {
    let mut steps = vec![word(0, GICD, 3)];
    for by in 0..CPUS as u8 {
        // QEMU's active priorities outlive a reset.
        steps.extend((0..8).map(|n| word(by, APR + 4 * n, 0)));
        steps.extend([word(by, GICD + 0x100, 0xffff), word(by, BPR, 2), word(by, ABPR, 3)]);
        for member in (0..WIRED).filter(|&m| m < PRIVATE || by == 0) {
            steps.push(group(world, by, member));
            steps.push(priority(by, member, 0));
            steps.push(bit(by, member, 0x100));
            if member >= PRIVATE {
                steps.push(target(by, MEMBERS[member], 1));
            }
        }
        steps.push(word(by, PMR, 0xf8));
        world.cpus[usize::from(by)].modes = ACK_CTL;
        steps.extend(control(world, by));
    }
    steps
}

pub(super) fn look(by: u8, steps: &mut Vec<Step>) {
    steps.push(Step::read(by, 4, RPR).checking());
    // QEMU's GICC_HPPIR does not report the source CPU of an SGI.
    steps.push(Step::read(by, 4, HPPIR).masked(0x3ff).checking());
}

pub(super) fn sweep(_: u8, steps: &mut Vec<Step>) {
    for by in 0..CPUS as u8 {
        steps.extend([PMR, BPR, ABPR].map(|address| Step::read(by, 4, address).checking()));
        steps.push(Step::read(by, 4, CTLR).masked(CTLR_MASK).checking());
        for offset in [0x80, 0x100, 0x200, 0x300, 0xf20, 0xf2c] {
            let words = if offset < 0xf00 { 4 } else { 1 };
            let all = (0..words).map(|n| GICD + offset + 4 * n);
            steps.extend(all.map(|address| Step::read(by, 4, address).checking()));
        }
    }
}

pub(super) fn is_highest_pending(operation: Operation) -> bool {
    operation.kind == Kind::Read && operation.address == HPPIR
}

pub(super) fn acknowledges(operation: Operation) -> Option<u8> {
    (operation.kind == Kind::Read && operation.address == IAR).then_some(0)
}

pub(super) fn acknowledge(by: u8, _group: u8) -> Vec<Step> {
    vec![Step::read(by, 4, IAR)]
}

pub(super) fn end(by: u8, taken: Taken) -> Vec<Step> {
    vec![word(by, EOIR, taken.value)]
}

pub(super) fn deactivate(by: u8, taken: Taken) -> Vec<Step> {
    vec![word(by, DIR, taken.value)]
}

pub(super) fn mask(by: u8, value: u8) -> Vec<Step> {
    vec![word(by, PMR, value.into()), Step::read(by, 4, PMR)]
}

pub(super) fn binary_point(world: &World, by: u8, value: u8) -> Option<Vec<Step>> {
    // Both binary points stay alike, since both groups may be in use. Neither changes between an
    // acknowledge and its end.
    if !world.cpus[usize::from(by)].stack.is_empty() {
        return None;
    }
    let last = if world.style.groups == Groups::Zero { 7 } else { 6 };
    let value = u64::from(value).clamp(2, last);
    Some(vec![word(by, BPR, value).within(), word(by, ABPR, (value + 1).min(7))])
}

pub(super) fn control(world: &World, by: u8) -> Vec<Step> {
    let cpu = &world.cpus[usize::from(by)];
    let groups = u64::from(cpu.groups[0]) | u64::from(cpu.groups[1]) << 1;
    let value = u64::from(cpu.modes) | groups;
    vec![word(by, CTLR, value), Step::read(by, 4, CTLR).masked(CTLR_MASK)]
}

pub(super) fn forward(_world: &World, by: u8, groups: u8) -> Option<Vec<Step>> {
    matches!(groups, 0 | 3).then(|| vec![word(by, GICD, groups.into())])
}

fn target(by: u8, intid: u32, targets: u8) -> Step {
    Step::write(by, 1, GICD + 0x800 + u64::from(intid), targets.into())
}

pub(super) fn route(world: &mut World, by: u8, member: usize, to: u8) -> Option<Vec<Step>> {
    let taken = world.is_taken(by, member);
    let irq = world.irq_mut(by, member);
    // QEMU forgets an interrupt that has no target, or that is pending or active when it moves.
    if usize::from(to) >= CPUS {
        return None;
    }
    if irq.pending || irq.line || irq.active || taken {
        return None;
    }
    irq.route = to;
    Some(vec![target(by, MEMBERS[member], 1 << to)])
}

pub(super) fn sgi(by: u8, intid: u32, targets: u8, others: bool) -> Vec<Step> {
    let filter = if others { 1 } else { 0 };
    let value = filter << 24 | u64::from(targets & 3) << 16 | u64::from(intid);
    vec![word(by, GICD + 0xf00, value)]
}

fn bit(by: u8, member: usize, offset: u64) -> Step {
    let intid = MEMBERS[member];
    word(by, GICD + offset + u64::from(intid / 32 * 4), 1 << (intid % 32))
}

fn priority(by: u8, member: usize, pick: u8) -> Step {
    let address = GICD + 0x400 + u64::from(MEMBERS[member]);
    Step::write(by, 1, address, own_priority(member, pick).into())
}

fn neighbours(intid: u32) -> impl Iterator<Item = (u32, usize)> {
    (0..WIRED).map(|m| (MEMBERS[m], m)).filter(move |(n, _)| n / 32 == intid / 32)
}

/// Writes the groups of an interrupt and of the other interrupts in the same register.
fn group(world: &World, by: u8, member: usize) -> Step {
    let intid = MEMBERS[member];
    let value = neighbours(intid).filter(|&(_, m)| world.irq(by, m).group1);
    let value = value.fold(0, |word, (n, _)| word | 1 << (n % 32));
    word(by, GICD + 0x80 + u64::from(intid / 32 * 4), value)
}

pub(super) fn set(world: &World, by: u8, from: u8, member: usize, set: Set) -> Option<Vec<Step>> {
    let intid = MEMBERS[member];
    let (sgi, private) = (intid < 16, member < PRIVATE);
    Some(vec![match set {
        // Whether SGIs can be disabled is IMPLEMENTATION DEFINED (IHI 0048B, 4.3.5).
        Set::Enabled(_) if sgi => return None,
        Set::Enabled(on) => bit(by, member, if on { 0x100 } else { 0x180 }),
        // Makes the SGI pending from one CPU, or takes this back.
        Set::Pending(on) if sgi => {
            let offset = if on { 0xf20 } else { 0xf10 };
            Step::write(by, 1, GICD + offset + u64::from(intid), 1 << from)
        }
        // QEMU does not bank these bits.
        Set::Pending(_) | Set::Edge(_) if private => return None,
        Set::Pending(on) => bit(by, member, if on { 0x200 } else { 0x280 }),
        Set::Active(on) => bit(by, member, if on { 0x300 } else { 0x380 }),
        Set::Priority(pick) => priority(by, member, pick),
        Set::Line(high) => Step::line(by, intid, high),
        Set::Group1(_) => group(world, by, member),
        Set::Edge(_) => {
            let here =
                neighbours(intid).filter(|&(n, m)| n / 16 == intid / 16 && world.irq(by, m).edge);
            let value = here.fold(0, |word, (n, _)| word | 2 << (n % 16 * 2));
            word(by, GICD + 0xc00 + u64::from(intid / 16 * 4), value)
        }
    }])
}
