//! What the cache lines of a full cycle cost without what is done to them.
//!
//! Memory that is laid out as the engine's is, allocated in the same way, and as large: routes, the slots that they lead to, pending words, and
//! interrupts. A step loads one of each, for an LPI chosen at random as a full cycle does: the route first, then what it leads to, all at the same time, and only then the
//! next route. That is the least that these lines can cost: in a full cycle each read-modify-write waits for the one before it.

use std::hint::black_box;

use anyhow::Result;

use crate::perf::path::{Kernel, repeat};
use crate::perf::paths::Shipped;

type Route = <Shipped as vgic_core::engine::Engine>::Route;

/// Pending words of a block, each on lines of its own, and interrupts of a block (`vgic_core::bitmap`).
const WORDS: usize = 16;
const BLOCK: usize = 32 * WORDS;

#[repr(align(64))]
struct Interrupt([usize; 8]);

#[repr(align(128))]
#[derive(Clone, Copy)]
struct PendingWord(usize);

/// As large as a route, with what leads on in its first and last words.
#[repr(C)]
struct Way {
    slot: usize,
    interrupt: Box<Interrupt>,
    _rest: [usize; size_of::<Route>() / 8 - 3],
    word: usize,
}

/// One load of each line of an LPI chosen at random.
pub(super) fn loads(lpis: u32) -> Result<Kernel> {
    let lpis = lpis as usize;
    let way = |n| Way {
        slot: n,
        interrupt: Box::new(Interrupt([0; 8])),
        _rest: Default::default(),
        word: n / BLOCK * WORDS + n % WORDS,
    };
    let ways: Vec<Way> = (0..lpis).map(way).collect();
    // Written, one by one: memory that never was is one page of zeros.
    let slots: Vec<usize> = (0..lpis).map(|_| black_box(0)).collect();
    let words = vec![PendingWord(0); lpis.div_ceil(BLOCK) * WORDS];
    let (ways, slots, words) = black_box((ways, slots, words));
    let mut next = 1_u32;
    repeat(move || {
        next ^= next << 13;
        next ^= next >> 17;
        next ^= next << 5;
        let way = &ways[((u64::from(next) * lpis as u64) >> 32) as usize];
        // Zeros, of which the compiler does not know: the next choice waits for them.
        let zero = slots[way.slot] | words[way.word].0 | way.interrupt.0[0];
        next ^= zero as u32;
    })
}
