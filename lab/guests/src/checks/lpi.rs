//! LPIs that the guest causes by ITS commands.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::{begin, quiet};
use crate::check::Outcome;
use crate::gic::Gic;
use crate::gicv3::GicV3;
use crate::its::{self, Command, LPI};
use crate::record::{self, bump, nth, settled};
use crate::smp::MAX_CPUS;
use crate::{exceptions, same, smp, timer};

/// The device's number, and its number of events.
const DEVICE: u32 = 0x10;
const EVENTS: u32 = 32;

static HITS: [[AtomicU32; EVENTS as usize]; MAX_CPUS] =
    [const { [const { AtomicU32::new(0) }; EVENTS as usize] }; MAX_CPUS];

/// Returns how often a CPU took the LPI of an event.
fn hits(cpu: usize, event: u32) -> u32 {
    HITS[cpu][event as usize].load(SeqCst)
}

fn hit(iar: u32) {
    if let Some(hits) = HITS[smp::cpu()].get((iar.wrapping_sub(LPI)) as usize) {
        bump(hits);
    }
}

/// Maps event n of the device to LPI n, at CPU n modulo the number of CPUs.
fn set_up() {
    begin::<GicV3>();
    for cpu in 0..smp::cpus() {
        Command::map_collection(cpu as u16, Some(cpu)).run();
    }
    Command::map_device(0, DEVICE, 5, false).run();
    Command::map_device(0, DEVICE, 5, true).run();
    for event in 0..EVENTS {
        its::configure(LPI + event, 0xa0, true);
        let collection = event as usize % smp::cpus();
        Command::map_event(DEVICE, event, LPI + event, collection as u16).run();
        Command::inv(DEVICE, event).run();
        Command::clear(DEVICE, event).run();
    }
    HITS.iter().flatten().for_each(|hits| hits.store(0, SeqCst));
    record::set_hook(hit);
}

/// INT: each event arrives at the CPU of its collection, as often as it was sent.
pub fn int() -> Outcome {
    set_up();
    for round in 1..=3 {
        for event in 0..EVENTS {
            Command::int(DEVICE, event).run();
            let cpu = event as usize % smp::cpus();
            let arrived = timer::within(record::ARRIVES, || hits(cpu, event) == round);
            same!("arrived", arrived, true);
        }
        same!("interrupts", settled(round * EVENTS), round * EVENTS);
    }
    // Send all events with one write to CWRITER.
    its::run(&core::array::from_fn::<_, { EVENTS as usize }, _>(|event| {
        Command::int(DEVICE, event as u32)
    }));
    same!("interrupts of a batch", settled(4 * EVENTS), 4 * EVENTS);
    for event in 0..EVENTS {
        same!("interrupts of the CPU", hits(event as usize % smp::cpus(), event), 4);
    }
    Ok(())
}

/// INV, INVALL, CLEAR: a changed configuration takes effect, also for pending LPIs, and CLEAR
/// removes a pending LPI.
pub fn config() -> Outcome {
    set_up();
    its::configure(LPI, 0xa0, false);
    Command::inv(DEVICE, 0).run();
    Command::int(DEVICE, 0).run();
    same!("interrupts while disabled", quiet(), 0);
    its::configure(LPI, 0xa0, true);
    Command::inv(DEVICE, 0).run();
    same!("interrupts when enabled again", settled(1), 1);

    its::configure(LPI, 0xa0, false);
    Command::inv_all(0).run();
    Command::int(DEVICE, 0).run();
    same!("interrupts while disabled", quiet(), 1);
    its::configure(LPI, 0xa0, true);
    Command::inv_all(0).run();
    same!("interrupts when enabled again", settled(2), 2);

    its::configure(LPI, 0xa0, false);
    Command::inv(DEVICE, 0).run();
    Command::int(DEVICE, 0).run();
    Command::clear(DEVICE, 0).run();
    its::configure(LPI, 0xa0, true);
    Command::inv(DEVICE, 0).run();
    same!("interrupts after a clear", quiet(), 2);

    // The priority changes while the LPI is pending.
    GicV3::set_mask(0x80);
    Command::int(DEVICE, 0).run();
    same!("interrupts below the mask", quiet(), 2);
    its::configure(LPI, 0x40, true);
    Command::inv(DEVICE, 0).run();
    same!("interrupts when made more urgent", settled(3), 3);
    GicV3::set_mask(0xff);
    same!("interrupts of CPU 0", hits(0, 0), 3);
    Ok(())
}

/// Checks the priorities among LPIs.
pub fn order() -> Outcome {
    set_up();
    let rank = |event: u32| event * 5 % 16;
    for event in 0..16 {
        Command::move_event(DEVICE, event, 0).run();
        its::configure(LPI + event, (rank(event) * 16) as u8, true);
        Command::inv(DEVICE, event).run();
    }
    exceptions::mask();
    for event in 0..16 {
        Command::int(DEVICE, event).run();
    }
    exceptions::unmask();
    same!("interrupts", settled(16), 16);
    for n in 0..16 {
        same!("the level of the n-th", rank(nth(0, n) - LPI), n);
    }
    Ok(())
}

/// MOVI, MOVALL, MAPC: LPIs go to another CPU, including pending ones.
pub fn moves() -> Outcome {
    if smp::cpus() < 2 {
        return Ok(());
    }
    set_up();
    Command::move_event(DEVICE, 0, 1).run();
    Command::int(DEVICE, 0).run();
    same!("interrupts", settled(1), 1);
    same!("interrupts of CPU 1", hits(1, 0), 1);
    // Move the event to and fro as fast as possible.
    for round in 0..50 {
        let to = round % 2;
        Command::move_event(DEVICE, 0, to).run();
        Command::int(DEVICE, 0).run();
        let wanted = u32::from(round / 2 + 1 + to);
        let arrived = timer::within(record::ARRIVES, || hits(to.into(), 0) == wanted);
        same!("arrived", arrived, true);
    }
    same!("interrupts", quiet(), 51);

    // The LPI is pending at CPU 0, which does not take it.
    set_up();
    for round in 1..=10 {
        Command::move_event(DEVICE, 0, 0).run();
        exceptions::mask();
        Command::int(DEVICE, 0).run();
        timer::pass((round % 2).into());
        Command::move_event(DEVICE, 0, 1).run();
        let arrived = timer::within(record::ARRIVES, || hits(1, 0) == round);
        exceptions::unmask();
        same!("arrived", arrived, true);
    }
    same!("interrupts", quiet(), 10);

    // Move all of CPU 0's pending LPIs.
    set_up();
    exceptions::mask();
    let mine = || (0..EVENTS).filter(|event| *event as usize % smp::cpus() == 0);
    mine().for_each(|event| Command::int(DEVICE, event).run());
    timer::pass(1);
    its::run(&[Command::move_all(0, 1), Command::sync(0), Command::sync(1)]);
    let count = mine().count() as u32;
    let arrived = timer::within(record::ARRIVES, || record::total(1) == count);
    exceptions::unmask();
    same!("arrived", arrived, true);
    same!("interrupts", settled(count), count);
    for event in mine() {
        same!("interrupts of CPU 1", hits(1, event), 1);
    }

    // The collection gets another CPU.
    set_up();
    Command::map_collection(0, Some(1)).run();
    mine().for_each(|event| Command::int(DEVICE, event).run());
    same!("interrupts", settled(count), count);
    same!("interrupts of CPU 1", record::total(1), count);
    Command::map_collection(0, Some(0)).run();
    Ok(())
}

/// DISCARD, and MAPD without its valid bit: no LPI arrives until the event is mapped again.
pub fn unmap() -> Outcome {
    set_up();
    Command::discard(DEVICE, 0).run();
    Command::int(DEVICE, 0).run();
    same!("interrupts of a discarded event", quiet(), 0);
    Command::map_event(DEVICE, 0, LPI, 0).run();
    Command::int(DEVICE, 0).run();
    same!("interrupts of it mapped again", settled(1), 1);

    // An event that is discarded while its LPI is pending is no longer pending.
    for round in 0..10 {
        exceptions::mask();
        Command::int(DEVICE, 0).run();
        timer::pass(round % 2);
        Command::discard(DEVICE, 0).run();
        Command::map_event(DEVICE, 0, LPI, 0).run();
        timer::pass(1);
        exceptions::unmask();
        same!("interrupts of what was discarded", quiet(), 1);
    }
    // Map the same LPI to another event.
    Command::discard(DEVICE, 0).run();
    Command::discard(DEVICE, 1).run();
    Command::map_event(DEVICE, 1, LPI, 0).run();
    Command::int(DEVICE, 1).run();
    same!("interrupts of another event", settled(2), 2);
    same!("its number", hits(0, 0), 2);

    Command::map_device(0, DEVICE, 5, false).run();
    Command::int(DEVICE, 2).run();
    same!("interrupts of an unmapped device", quiet(), 2);
    set_up();
    Command::int(DEVICE, 2).run();
    same!("interrupts of it mapped again", settled(1), 1);

    // Events and devices that do not exist have no effect, and the queue continues.
    its::run(&[Command::int(DEVICE + 1, 0), Command::int(DEVICE, EVENTS), Command::int(DEVICE, 3)]);
    same!("interrupts of what exists", settled(2), 2);
    // MAPI uses the event's number as the LPI's, so a valid one would take a device of 14 bits.
    // This device has its own table.
    Command::map_device(1, DEVICE + 8, 10, true).run();
    Command::map_same(DEVICE + 8, 5, 0).run();
    Command::int(DEVICE + 8, 5).run();
    same!("interrupts of an event that is no LPI", quiet(), 2);
    Command::map_device(1, DEVICE + 8, 10, false).run();
    Ok(())
}

static AGAIN: AtomicU32 = AtomicU32::new(0);

/// An LPI has no active state. It may become pending while it is handled, arrives again after its
/// end, and needs no deactivation.
pub fn again() -> Outcome {
    for split in [false, true] {
        set_up();
        GicV3::set_split_end(split);
        AGAIN.store(4, SeqCst);
        record::set_hook(|iar| {
            hit(iar);
            let left = AGAIN.load(SeqCst);
            if left > 0 {
                AGAIN.store(left - 1, SeqCst);
                Command::int(DEVICE, 0).run();
                exceptions::unmask();
                timer::pass(2);
                exceptions::mask();
            }
        });
        // Masked, since the handler issues commands too.
        exceptions::masked(|| Command::int(DEVICE, 0).run());
        same!("interrupts", settled(5), 5);
        same!("interrupts of CPU 0", hits(0, 0), 5);
        same!("priority after it", GicV3::running_priority() & 0xff, 0xff);
    }
    GicV3::set_split_end(false);
    Ok(())
}

static COUNTERS: [AtomicU32; EVENTS as usize] = [const { AtomicU32::new(0) }; EVENTS as usize];
static SEEN: [AtomicU32; EVENTS as usize] = [const { AtomicU32::new(0) }; EVENTS as usize];

/// Issues more commands than the queue has room for, including moves. Nothing may be lost.
pub fn stress() -> Outcome {
    set_up();
    COUNTERS.iter().chain(&SEEN).for_each(|counter| counter.store(0, SeqCst));
    record::set_hook(|iar| {
        let event = (iar - LPI) as usize;
        SEEN[event].store(COUNTERS[event].load(SeqCst), SeqCst);
    });
    for round in 1..=2500 {
        let event = round % EVENTS;
        COUNTERS[event as usize].store(round, SeqCst);
        if round % 4 == 0 {
            let to = (round / 4) as usize % smp::cpus();
            its::run(&[Command::move_event(DEVICE, event, to as u16), Command::int(DEVICE, event)]);
        } else {
            Command::int(DEVICE, event).run();
        }
    }
    let seen = timer::within(record::ARRIVES, || {
        COUNTERS.iter().zip(&SEEN).all(|(counter, seen)| counter.load(SeqCst) == seen.load(SeqCst))
    });
    same!("all was seen", seen, true);
    Ok(())
}
