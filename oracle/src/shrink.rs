//! Cuts a failing sequence down to operations that are all needed.

use anyhow::Result;

/// Removes parts of `items` as long as the rest still fails: halves first, single items last.
/// `items` itself must fail. After `limit` trials it returns the items that are left.
///
/// # Errors
/// The errors of `fails`.
pub fn shrink<T: Clone>(
    items: Vec<T>,
    limit: usize,
    mut fails: impl FnMut(&[T]) -> Result<bool>,
) -> Result<Vec<T>> {
    let mut items = items;
    let mut trials = 0;
    let mut size = items.len().div_ceil(2);
    while size > 0 {
        let mut removed = false;
        // Starts at the end, since later items are less often needed by the rest.
        let mut end = items.len();
        while end > 0 {
            if trials == limit {
                return Ok(items);
            }
            trials += 1;
            let start = end.saturating_sub(size);
            let less = [&items[..start], &items[end..]].concat();
            if fails(&less)? {
                items = less;
                removed = true;
            }
            end = start;
        }
        size = match size {
            // Repeats until no single item can be removed: one removal may make another possible.
            1 if removed => 1,
            _ => size / 2,
        };
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_stays() {
        let needed = [17, 430, 431, 999];
        let all: Vec<u32> = (0..1000).collect();
        let fails = |items: &[u32]| Ok(needed.iter().all(|n| items.contains(n)));
        assert_eq!(shrink(all, usize::MAX, fails).unwrap(), needed);
    }

    #[test]
    fn order_is_kept_and_dependences_are_followed() {
        // 2 needs 3, and 5 needs 2. Once 5 is removed, nothing needs 2.
        let fails = |items: &[u32]| {
            let has = |n| items.contains(&n);
            Ok(has(9) && (!has(2) || has(3)) && (!has(5) || has(2)))
        };
        assert_eq!(shrink(vec![3, 2, 5, 9], usize::MAX, fails).unwrap(), [9]);
    }

    #[test]
    fn trials_are_bounded_and_errors_passed_on() {
        let mut trials = 0;
        let kept = shrink((0..64).collect(), 10, |_: &[u32]| {
            trials += 1;
            Ok(false)
        });
        assert_eq!((kept.unwrap().len(), trials), (64, 10));
        assert!(shrink(vec![1], 10, |_| anyhow::bail!("no")).is_err());
    }
}
