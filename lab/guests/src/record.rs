//! What interrupts came: counted for each CPU, and in order.
//!
//! Every word here is written by one CPU at a time, so plain loads and stores do, and payloads work with the MMU off, where there are
//! no read-modify-writes.

use core::sync::atomic::{
    AtomicU32, AtomicUsize,
    Ordering::{Acquire, Release, SeqCst},
};

use crate::gic::{Gic, SPURIOUS};
use crate::smp::{self, MAX_CPUS};
use crate::timer;

/// SGIs, PPIs and SPIs are counted by their numbers, and all LPIs in one more.
const COUNTED: usize = 1024;
const LPIS: usize = 1023;
const KEPT: usize = 64;

struct Record {
    counts: [AtomicU32; COUNTED],
    /// The first acknowledges, in order, as the register gave them.
    kept: [AtomicU32; KEPT],
    total: AtomicU32,
    /// Those that were not the timer's.
    messages: AtomicU32,
    ended: AtomicU32,
    spurious: AtomicU32,
}

const NEW: Record = Record {
    counts: [const { AtomicU32::new(0) }; COUNTED],
    kept: [const { AtomicU32::new(0) }; KEPT],
    total: AtomicU32::new(0),
    messages: AtomicU32::new(0),
    ended: AtomicU32::new(0),
    spurious: AtomicU32::new(0),
};
static RECORDS: [Record; MAX_CPUS] = [NEW; MAX_CPUS];
static HOOK: AtomicUsize = AtomicUsize::new(0);
static SPURIOUS_BEFORE: AtomicU32 = AtomicU32::new(0);

/// How long an interrupt may take to arrive, in milliseconds: much more than any takes.
pub const ARRIVES: u64 = 5000;
/// How long is waited for one that must not come.
pub const STAYS_AWAY: u64 = 10;

/// Adds 1 to a word that only this CPU writes.
pub fn bump(word: &AtomicU32) {
    word.store(word.load(Acquire) + 1, Release);
}

/// Called for each interrupt between its acknowledge and its end; its argument is what was acknowledged.
pub type Hook = fn(u32);

/// The handler of all payloads: acknowledges, counts, calls the hook, ends.
pub fn handler<G: Gic>() {
    let iar = G::acknowledge();
    let intid = G::intid(iar);
    let record = &RECORDS[smp::cpu()];
    if (SPURIOUS..8192).contains(&intid) {
        return bump(&record.spurious);
    }
    bump(&record.counts[(intid as usize).min(LPIS)]);
    let total = record.total.load(Acquire);
    if let Some(kept) = record.kept.get(total as usize) {
        kept.store(iar, Release);
    }
    record.total.store(total + 1, Release);
    if intid != timer::INTID {
        bump(&record.messages);
    }
    let hook = HOOK.load(SeqCst);
    if hook != 0 {
        // SAFETY: only `set_hook` stores there.
        let hook: Hook = unsafe { core::mem::transmute(hook) };
        hook(iar);
    }
    G::end(iar);
    bump(&record.ended);
}

pub fn set_hook(hook: Hook) {
    HOOK.store(hook as usize, SeqCst);
}

/// Forgets everything, for all CPUs, while nothing comes.
pub fn clear() {
    HOOK.store(0, SeqCst);
    let spurious = (0..smp::cpus()).map(spurious).sum::<u32>();
    SPURIOUS_BEFORE.store(SPURIOUS_BEFORE.load(Acquire) + spurious, Release);
    for record in RECORDS.iter().take(smp::cpus()) {
        record.counts.iter().for_each(|count| count.store(0, Release));
        record.kept.iter().for_each(|kept| kept.store(0, Release));
        record.total.store(0, Release);
        record.messages.store(0, Release);
        record.ended.store(0, Release);
        record.spurious.store(0, Release);
    }
}

/// How often a CPU had this interrupt.
pub fn count(cpu: usize, intid: u32) -> u32 {
    RECORDS[cpu].counts[(intid as usize).min(LPIS)].load(Acquire)
}

/// How many interrupts of whatever kind a CPU had.
pub fn total(cpu: usize) -> u32 {
    RECORDS[cpu].total.load(Acquire)
}

/// How many interrupts all CPUs had that were not the timer's, which may go on meanwhile.
pub fn messages() -> u32 {
    (0..smp::cpus()).map(|cpu| RECORDS[cpu].messages.load(Acquire)).sum()
}

/// How many interrupts all CPUs had.
pub fn all() -> u32 {
    (0..smp::cpus()).map(total).sum()
}

/// Acknowledges that found nothing.
pub fn spurious(cpu: usize) -> u32 {
    RECORDS[cpu].spurious.load(Acquire)
}

/// Those of all checks.
pub fn all_spurious() -> u32 {
    SPURIOUS_BEFORE.load(Acquire) + (0..smp::cpus()).map(spurious).sum::<u32>()
}

/// What a CPU acknowledged as its n-th since `clear`.
pub fn nth(cpu: usize, n: usize) -> u32 {
    RECORDS[cpu].kept[n].load(Acquire)
}

/// How many interrupts have been ended.
fn ended() -> u32 {
    (0..smp::cpus()).map(|cpu| RECORDS[cpu].ended.load(Acquire)).sum()
}

/// Waits until all CPUs together had `wanted` interrupts, and then a while for one too many; how many they had.
pub fn settled(wanted: u32) -> u32 {
    timer::within(ARRIVES, || all() >= wanted && ended() == all());
    timer::pass(STAYS_AWAY);
    all()
}
