//! Statistics of rounds.

use serde::{Deserialize, Serialize};

/// The least, the median and the greatest of some numbers.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Spread {
    /// The least number.
    pub min: f64,
    /// The median: the mean of the two middle numbers if their number is even.
    pub median: f64,
    /// The greatest number.
    pub max: f64,
}

impl Spread {
    /// Computes the spread of numbers. Returns `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            (sorted[half - 1] + sorted[half]) / 2.0
        } else {
            sorted[half]
        };
        Some(Self { min, median, max })
    }
}

/// Returns the probability that two samples of one distribution are at least as far apart as these:
/// the two-sided Mann-Whitney U test, exact if no two values are equal.
///
/// The test assumes nothing about the distribution, but it assumes that the values are independent.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    // U: the number of pairs in which the first value is the greater one.
    let mut u = 0.0_f64;
    for x in a {
        for y in b {
            u += if x > y {
                1.0
            } else if x == y {
                0.5
            } else {
                0.0
            };
        }
    }
    let (n, m) = (a.len() as f64, b.len() as f64);
    let tied = {
        let mut all: Vec<f64> = a.iter().chain(b).copied().collect();
        all.sort_by(f64::total_cmp);
        let runs = all.chunk_by(|x, y| x == y).map(|run| run.len() as f64);
        runs.map(|t| t * t * t - t).sum::<f64>()
    };
    if tied == 0.0 && a.len() * b.len() <= 2_500 {
        let ways = ways(a.len(), b.len());
        let all: f64 = ways.iter().sum();
        let least = u.min(n * m - u) as usize;
        let tail: f64 = ways[..=least].iter().sum();
        return (2.0 * tail / all).min(1.0);
    }
    // The normal approximation, corrected for ties and for continuity.
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - tied / (total * (total - 1.0)));
    if variance <= 0.0 {
        return 1.0;
    }
    let z = ((u - n * m / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    erfc(z / std::f64::consts::SQRT_2)
}

/// Returns the number of orders of `n` and `m` different numbers for each value of U.
fn ways(n: usize, m: usize) -> Vec<f64> {
    // The greatest number is in the first sample (and greater than all m), or in the second.
    let mut table = vec![vec![vec![1.0_f64]; m + 1]; n + 1];
    for i in 1..=n {
        for j in 1..=m {
            let mut now = vec![0.0; i * j + 1];
            for (u, count) in table[i - 1][j].iter().enumerate() {
                now[u + j] += count;
            }
            for (u, count) in table[i][j - 1].iter().enumerate() {
                now[u] += count;
            }
            table[i][j] = now;
        }
    }
    table[n][m].clone()
}

/// The complementary error function for x >= 0, to seven digits (Abramowitz and Stegun, 7.1.26).
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly = t
        * (0.254_829_592
            + t * (-0.284_496_736
                + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    poly * (-x * x).exp()
}

/// Holm's correction: returns the significant ones of many tests, with a chance of at most `alpha`
/// that any of them is significant by accident.
pub fn holm(p: &[f64], alpha: f64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut significant = vec![false; p.len()];
    for (rank, &test) in order.iter().enumerate() {
        if p[test] > alpha / (p.len() - rank) as f64 {
            break;
        }
        significant[test] = true;
    }
    significant
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert!(Spread::of([]).is_none());
    }

    /// Compares with the tables of the U distribution.
    #[test]
    fn u_is_exact_for_few() {
        let a = [1.0, 2.0, 3.0];
        let b = [4.0, 5.0, 6.0];
        // One of 20 orders, and its mirror image.
        assert!((mann_whitney(&a, &b) - 0.1).abs() < 1e-12);
        assert!((mann_whitney(&b, &a) - 0.1).abs() < 1e-12);
        assert_eq!(mann_whitney(&[1.0, 4.0], &[2.0, 3.0]), 1.0);
        // U = 23 of 10 and 10 is the last value that is significant at 5 %, two-sided.
        let x: Vec<f64> = (0..10).map(f64::from).collect();
        let shifted = |by: f64| x.iter().map(|v| v + by).collect::<Vec<_>>();
        assert!(mann_whitney(&x, &shifted(3.5)) < 0.05);
        assert!(mann_whitney(&x, &shifted(2.5)) > 0.05);
    }

    #[test]
    fn ways_sum_up_to_all_orders() {
        assert_eq!(ways(10, 10).iter().sum::<f64>(), 184_756.0);
        assert_eq!(ways(2, 2), [1.0, 1.0, 2.0, 1.0, 1.0]);
    }

    #[test]
    fn ties_use_the_approximation() {
        let same = [1.0; 12];
        assert_eq!(mann_whitney(&same, &same), 1.0);
        let mut other = [2.0; 12];
        other[0] = 1.0;
        assert!(mann_whitney(&same, &other) < 0.001);
        assert!((erfc(1.0) - 0.157_299_2).abs() < 1e-6);
    }

    #[test]
    fn many_tests_need_smaller_probabilities() {
        assert_eq!(holm(&[0.01, 0.04, 0.03], 0.05), [true, false, false]);
        assert_eq!(holm(&[0.01, 0.02, 0.03], 0.05), [true, true, true]);
        assert!(holm(&[], 0.05).is_empty());
    }
}
