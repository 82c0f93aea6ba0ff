//! A register that other state follows from.

use super::{Ordering, fence};

/// Brings other state up to what `wanted` says, until it says the same afterwards: see `frames::gicv3::routing`.
pub(crate) fn converge<T: PartialEq>(wanted: impl Fn() -> T, apply: impl Fn(&T)) {
    let mut want = wanted();
    loop {
        apply(&want);
        // Between `apply` and the second look: see there.
        if !cfg!(mutant = "choice_without_fence") {
            fence(Ordering::SeqCst);
        }
        let now = wanted();
        if now == want || cfg!(mutant = "settled_once") {
            return;
        }
        want = now;
    }
}
