//! A path that can be measured.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cost::time_of;

/// Performs some calls, and returns the time of those parts that count.
pub type Kernel = Box<dyn FnMut(u32) -> Result<Duration>>;

/// An operation, independent of its implementation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Key {
    /// The group. Paths of one group share a section of the report.
    pub group: String,
    /// The operation in words.
    pub what: String,
    /// The number of LPIs, vCPUs and so on, if the path is measured for several numbers.
    pub at: Option<u64>,
    /// The unit of `at`, for example "mapped".
    pub of: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        match self.at {
            Some(at) => write!(f, ", {} {}", thousands(at), self.of),
            None => Ok(()),
        }
    }
}

/// Formats a number with commas.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// An operation of one implementation.
pub struct Path {
    /// The operation.
    pub key: Key,
    /// The implementation.
    pub who: &'static str,
    /// Sets up all that the operation needs, ready for measuring.
    pub make: Box<dyn Fn() -> Result<Kernel>>,
}

/// Collects the paths of one group.
pub struct Group {
    name: &'static str,
    /// The paths added so far.
    pub paths: Vec<Path>,
}

impl Group {
    /// Creates a group without paths.
    pub fn new(name: &'static str) -> Self {
        Self { name, paths: Vec::new() }
    }

    /// Adds a path.
    pub fn add(
        &mut self,
        who: &'static str,
        what: impl Into<String>,
        at: Option<(u64, &str)>,
        make: impl Fn() -> Result<Kernel> + 'static,
    ) {
        let key = Key {
            group: self.name.to_owned(),
            what: what.into(),
            at: at.map(|(n, _)| n),
            of: at.map_or_else(String::new, |(_, of)| of.to_owned()),
        };
        self.paths.push(Path { key, who, make: Box::new(make) });
    }
}

/// Returns a kernel that only repeats `f`.
pub fn repeat(mut f: impl FnMut() + 'static) -> Result<Kernel> {
    Ok(Box::new(move |calls| Ok(time_of(calls, &mut f))))
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn commas() {
        for (n, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (65_536, "65,536")] {
            assert_eq!(thousands(n), text);
        }
    }
}
