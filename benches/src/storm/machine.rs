//! The machine that the figures were taken on.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// The properties of the machine that this program can find out.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// CPUs that this process may use.
    pub cpus: usize,
    /// `model name` of /proc/cpuinfo; empty if there is none, as on arm64.
    pub model: String,
    /// Architecture and operating system.
    pub target: String,
    /// Kernel release, empty if unknown.
    pub kernel: String,
    /// The compiler that built this program.
    pub compiler: &'static str,
    /// Whether optimisation was on: figures without it mean nothing.
    pub optimised: bool,
    /// Date and time in UTC (ISO 8601).
    pub date: String,
}

impl Machine {
    /// Describes this machine, now.
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            model: field(&read("/proc/cpuinfo"), "model name"),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            compiler: env!("VGIC_RUSTC_VERSION"),
            optimised: !cfg!(debug_assertions),
            date: iso_8601(now),
        }
    }

    /// Returns a short description.
    pub fn words(&self) -> String {
        let model = if self.model.is_empty() { &self.target } else { &self.model };
        format!("{model}, {} CPU{}", self.cpus, if self.cpus == 1 { "" } else { "s" })
    }
}

/// Returns the value of the first line of the form `name : value`.
fn field(text: &str, name: &str) -> String {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map_or_else(String::new, |(_, value)| value.trim().to_owned())
}

/// Formats seconds since 1970 as a date and time.
fn iso_8601(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // In years that begin in March the leap day is at the end, and 400 of them have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let day = day - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
        ] {
            assert_eq!(iso_8601(seconds), date);
        }
    }

    #[test]
    fn fields() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\nmodel name\t: another\n";
        assert_eq!(field(text, "model name"), "A CPU: fast");
        assert_eq!(field(text, "model"), "");
    }
}
