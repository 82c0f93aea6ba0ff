//! State that is derived from a register.

use super::{Ordering, fence};

/// Applies the value of `wanted` to the derived state, and repeats this until `wanted` returns the
/// same value afterwards: see `frames::gicv3::routing`.
pub(crate) fn converge<T: PartialEq>(wanted: impl Fn() -> T, apply: impl Fn(&T)) {
    let mut want = wanted();
    loop {
        apply(&want);
        // The fence between `apply` and the re-check: see `frames::gicv3::routing`.
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
