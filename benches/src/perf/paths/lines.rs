//! What the cache lines of a full cycle cost without what is done to them.
//!
//! Memory that is laid out as the engine's is, allocated in the same way, and as large: routes, the slots that they lead to, pending words, and
//! interrupts. A step loads one of each, for an LPI chosen at random as a full cycle does: the route first, then the slot and the pending word, then the interrupt, and
//! only then the next route, since read-modify-writes wait for what was before them.

use std::hint::black_box;

use anyhow::Result;

use crate::perf::path::{Kernel, repeat};
use crate::perf::paths::Shipped;

type Route = <Shipped as vgic_core::engine::Engine>::Route;

/// Words of a route.
const ROUTE: usize = size_of::<Route>() / 8;
/// Pending words of a block, each on lines of its own, and interrupts of a block (`vgic_core::bitmap`).
const WORDS: usize = 16;
const BLOCK: usize = 32 * WORDS;

#[repr(align(64))]
struct Interrupt([u64; 8]);

#[repr(align(128))]
#[derive(Clone, Copy)]
struct PendingWord(usize);

/// One load of each line of an LPI chosen at random, one after another.
pub(super) fn loads(lpis: u32) -> Result<Kernel> {
    let lpis = lpis as usize;
    let interrupts: Vec<Box<Interrupt>> = (0..lpis).map(|_| Box::new(Interrupt([0; 8]))).collect();
    let interrupts: Vec<&'static Interrupt> =
        interrupts.into_iter().map(|line| &*Box::leak(line)).collect();
    let routes: Vec<[usize; ROUTE]> = (0..lpis)
        .map(|n| {
            let mut route = [0; ROUTE];
            (route[0], route[ROUTE - 1]) = (n, n / BLOCK * WORDS + n % WORDS);
            route
        })
        .collect();
    let words = vec![PendingWord(0); lpis.div_ceil(BLOCK) * WORDS];
    let (routes, slots, words) = black_box((routes, interrupts, words));
    let mut next = 1_u32;
    repeat(move || {
        next ^= next << 13;
        next ^= next >> 17;
        next ^= next << 5;
        let route = &routes[((u64::from(next) * lpis as u64) >> 32) as usize];
        let (interrupt, word) = (slots[route[0]], words[route[ROUTE - 1]]);
        // Zeros, of which the compiler does not know: each load waits for those before it.
        next ^= interrupt.0[word.0] as u32;
    })
}
