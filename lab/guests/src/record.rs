//! The record of interrupts: counts for each CPU, and their order.
//!
//! Each word has one writer at a time, so plain loads and stores suffice. Payloads thus also work
//! with the MMU off, where there are no read-modify-writes.

use core::sync::atomic::{
    AtomicU32, AtomicUsize,
    Ordering::{Acquire, Release, SeqCst},
};

use crate::gic::{Gic, SPURIOUS};
use crate::smp::{self, MAX_CPUS};
use crate::timer;

/// SGIs, PPIs and SPIs have a count for each INTID, and all LPIs share one more.
const COUNTED: usize = 1024;
const LPIS: usize = 1023;
const KEPT: usize = 64;

struct Record {
    counts: [AtomicU32; COUNTED],
    /// The first values of the acknowledge register, in order.
    kept: [AtomicU32; KEPT],
    total: AtomicU32,
    /// The number of interrupts that were not the timer's.
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

/// How long an interrupt may take to arrive, in milliseconds, with a large margin.
pub const ARRIVES: u64 = 5000;
/// How long a check waits for an interrupt that must not arrive, in milliseconds.
pub const STAYS_AWAY: u64 = 10;

/// Adds 1 to a word that only this CPU writes.
pub fn bump(word: &AtomicU32) {
    word.store(word.load(Acquire) + 1, Release);
}

/// A function that runs for each interrupt between its acknowledge and its end. The argument is the
/// acknowledged value.
pub type Hook = fn(u32);

/// The interrupt handler of all payloads: acknowledges, counts, calls the hook, and ends the
/// interrupt.
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

/// Clears the records of all CPUs. No interrupt may arrive at the same time.
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

/// Returns how often a CPU took this interrupt.
pub fn count(cpu: usize, intid: u32) -> u32 {
    RECORDS[cpu].counts[(intid as usize).min(LPIS)].load(Acquire)
}

/// Returns the number of interrupts that a CPU took.
pub fn total(cpu: usize) -> u32 {
    RECORDS[cpu].total.load(Acquire)
}

/// Returns the number of interrupts that all CPUs took, without the timer's, which may still
/// arrive.
pub fn messages() -> u32 {
    (0..smp::cpus()).map(|cpu| RECORDS[cpu].messages.load(Acquire)).sum()
}

/// Returns the number of interrupts that all CPUs took.
pub fn all() -> u32 {
    (0..smp::cpus()).map(total).sum()
}

/// Returns the number of acknowledges of a CPU that found no interrupt.
pub fn spurious(cpu: usize) -> u32 {
    RECORDS[cpu].spurious.load(Acquire)
}

/// Returns the number of such acknowledges in all checks so far.
pub fn all_spurious() -> u32 {
    SPURIOUS_BEFORE.load(Acquire) + (0..smp::cpus()).map(spurious).sum::<u32>()
}

/// Returns the n-th acknowledged value of a CPU since `clear`.
pub fn nth(cpu: usize, n: usize) -> u32 {
    RECORDS[cpu].kept[n].load(Acquire)
}

/// Returns the number of ended interrupts.
fn ended() -> u32 {
    (0..smp::cpus()).map(|cpu| RECORDS[cpu].ended.load(Acquire)).sum()
}

/// Waits until all CPUs together have taken `wanted` interrupts, and then for any surplus one.
/// Returns the number of interrupts.
pub fn settled(wanted: u32) -> u32 {
    timer::within(ARRIVES, || all() >= wanted && ended() == all());
    timer::pass(STAYS_AWAY);
    all()
}
