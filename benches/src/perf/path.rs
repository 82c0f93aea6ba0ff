//! What is measured.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cost::time_of;

/// Does some calls, and says how long they took: those parts of them that count.
pub type Kernel = Box<dyn FnMut(u32) -> Result<Duration>>;

/// What is done, whoever does it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Key {
    /// Paths of one group share a section of the report.
    pub group: String,
    /// In words.
    pub what: String,
    /// How many LPIs, vCPUs ... there are, if it is measured for several numbers.
    pub at: Option<u64>,
    /// Of what, for example "mapped".
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

/// A number with commas.
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

/// Something of which the time is taken.
pub struct Path {
    /// What it does.
    pub key: Key,
    /// Who does it.
    pub who: &'static str,
    /// Makes everything that is needed, ready to be measured.
    pub make: Box<dyn Fn() -> Result<Kernel>>,
}

/// Collects paths of one group.
pub struct Group {
    name: &'static str,
    /// What has been added.
    pub paths: Vec<Path>,
}

impl Group {
    /// Without paths.
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

/// A kernel that only repeats `f`.
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
