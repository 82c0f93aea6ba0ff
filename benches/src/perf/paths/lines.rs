//! The cost of the cache lines of a full cycle, without the operations on them.
//!
//! The memory has the engine's layout, allocation and size: routes, the slots that they lead to,
//! pending words, and interrupts. A step loads one of each, for an LPI chosen at random as in a
//! full cycle: the route first, then the lines that it leads to, all at the same time, and only
//! then the next route. That is the least that these lines can cost: in a full cycle each
//! read-modify-write waits for the one before it.

use std::hint::black_box;

use anyhow::Result;

use crate::perf::path::{Kernel, repeat};
use crate::perf::paths::Shipped;

type Route = <Shipped as vgic_core::engine::Engine>::Route;

/// Pending words of a block, each on lines of its own. `BLOCK` is the number of interrupts of a
/// block (`vgic_core::bitmap`).
const WORDS: usize = 16;
const BLOCK: usize = 32 * WORDS;

#[repr(align(64))]
struct Interrupt([usize; 8]);

#[repr(align(128))]
#[derive(Clone, Copy)]
struct PendingWord(usize);

/// An object of a route's size, with the links in its first and last words.
#[repr(C)]
struct Way {
    slot: usize,
    interrupt: Box<Interrupt>,
    _rest: [usize; size_of::<Route>() / 8 - 3],
    word: usize,
}

/// Loads each line of an LPI chosen at random.
pub(super) fn loads(lpis: u32) -> Result<Kernel> {
    let lpis = lpis as usize;
    let way = |n| Way {
        slot: n,
        interrupt: Box::new(Interrupt([0; 8])),
        _rest: Default::default(),
        word: n / BLOCK * WORDS + n % WORDS,
    };
    let ways: Vec<Way> = (0..lpis).map(way).collect();
    // Written one by one: memory that was never written is one page of zeros.
    let slots: Vec<usize> = (0..lpis).map(|_| black_box(0)).collect();
    let words = vec![PendingWord(0); lpis.div_ceil(BLOCK) * WORDS];
    let (ways, slots, words) = black_box((ways, slots, words));
    let mut next = 1_u32;
    repeat(move || {
        next ^= next << 13;
        next ^= next >> 17;
        next ^= next << 5;
        let way = &ways[((u64::from(next) * lpis as u64) >> 32) as usize];
        // Always zero, but the compiler does not know it, so the next choice waits for the loads.
        let zero = slots[way.slot] | words[way.word].0 | way.interrupt.0[0];
        next ^= zero as u32;
    })
}
