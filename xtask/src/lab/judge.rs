//! Judges a guest by the output of its checks.
//!
//! A guest prints `PASS name` or `FAIL name: why` for each check, and `END p passed, f failed`
//! after the last one. Without the last line, the guest has not finished, and has failed even if
//! its checks passed.

use super::costs;

/// The output read so far.
#[derive(Default)]
pub(super) struct Judge {
    passed: usize,
    failures: Vec<String>,
    end: Option<(usize, usize)>,
    pub(super) exit: Option<i32>,
    /// A nanosecond is an instruction.
    pub(super) counting: bool,
    /// Counters that the guest or its VMM printed.
    pub(super) counters: Vec<String>,
}

impl Judge {
    pub(super) fn line(&mut self, line: &str) {
        let line = line.trim();
        if line.starts_with("PASS ") {
            self.passed += 1;
        } else if let Some(failure) = line.strip_prefix("FAIL ") {
            self.failures.push(failure.to_owned());
        } else if let Some(counts) = line.strip_prefix("END ") {
            self.end = end(counts);
        } else if line.starts_with("{\"") {
            // A line that is not such a report is shown unchanged.
            let lines = costs::lines(line, self.counting).unwrap_or_else(|| vec![line.to_owned()]);
            self.counters.extend(lines);
        } else if line.starts_with("COUNT ") {
            self.counters.push(line.to_owned());
        }
    }

    /// Returns the number of checks that passed, or the reason why the guest failed.
    pub(super) fn verdict(&self) -> Result<usize, String> {
        if !self.failures.is_empty() {
            return Err(self.failures.join("; "));
        }
        match (self.end, self.exit) {
            (None, Some(137)) => Err("it did not end in time".into()),
            (None, None) => Err("it did not end".into()),
            (None, Some(status)) => {
                Err(format!("it ended early, after {} checks (status {status})", self.passed))
            }
            (Some((passed, 0)), Some(0)) if passed == self.passed && passed > 0 => Ok(passed),
            (Some((_, 0)), None) => Err("all checks passed, but it did not power off".into()),
            (Some((_, 0)), Some(status)) if status != 0 => {
                Err(format!("all checks passed, but it ended with status {status}"))
            }
            (Some((passed, failed)), _) => Err(format!(
                "it counted {passed} passed and {failed} failed, its console shows {}",
                self.passed
            )),
        }
    }
}

/// Parses the numbers of `p passed, f failed`.
fn end(counts: &str) -> Option<(usize, usize)> {
    let (passed, failed) = counts.split_once(" passed, ")?;
    Some((passed.parse().ok()?, failed.strip_suffix(" failed")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::Judge;

    fn judge(lines: &[&str], exit: Option<i32>) -> Result<usize, String> {
        let mut judge = Judge { exit, ..Judge::default() };
        lines.iter().for_each(|line| judge.line(line));
        judge.verdict()
    }

    #[test]
    fn only_a_whole_run_passes() {
        let good = ["PASS a", "hello", "PASS b", "END 2 passed, 0 failed"];
        assert_eq!(judge(&good, Some(0)), Ok(2));
        assert!(judge(&good, None).is_err());
        assert!(judge(&good, Some(1)).is_err());
        assert!(judge(&good[1..], Some(0)).is_err(), "a line is missing");
        assert!(judge(&good[..3], Some(0)).is_err(), "no end");
        assert!(judge(&["END 0 passed, 0 failed"], Some(0)).is_err(), "nothing was checked");
        assert!(judge(&["PASS a", "FAIL b: why", "END 1 passed, 1 failed"], Some(0)).is_err());
    }
}
