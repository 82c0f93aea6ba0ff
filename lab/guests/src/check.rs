//! Checks. A payload is a list of them, and each passes or reports why it failed.

use crate::{doorbell, fdt, println, psci, record};

/// The reason of a failure: a description, and two numbers that differ.
pub struct Failure {
    pub what: &'static str,
    pub line: u32,
    pub got: u64,
    pub wanted: u64,
}

pub type Outcome = Result<(), Failure>;

/// Fails the check unless both values are equal.
#[macro_export]
macro_rules! same {
    ($what:literal, $got:expr, $wanted:expr) => {{
        let (got, wanted) = ($got as u64, $wanted as u64);
        if got != wanted {
            return Err($crate::check::Failure { what: $what, line: line!(), got, wanted });
        }
    }};
}

/// A check: its name, its function, and its needs.
pub struct Check {
    name: &'static str,
    run: fn() -> Outcome,
    doorbell: bool,
    its: bool,
}

impl Check {
    pub const fn new(name: &'static str, run: fn() -> Outcome) -> Self {
        Self { name, run, doorbell: false, its: false }
    }
    /// Creates a check that needs the lab doorbell.
    pub const fn with_doorbell(name: &'static str, run: fn() -> Outcome) -> Self {
        Self { name, run, doorbell: true, its: false }
    }
    /// Creates a check that needs an ITS.
    pub const fn with_its(name: &'static str, run: fn() -> Outcome) -> Self {
        Self { name, run, doorbell: false, its: true }
    }
    /// Creates a check that needs the lab doorbell and an ITS.
    pub const fn with_both(name: &'static str, run: fn() -> Outcome) -> Self {
        Self { name, run, doorbell: true, its: true }
    }

    /// Returns whether the machine meets the check's needs, and the command line does not skip it.
    fn applies(&self) -> bool {
        let left_out =
            fdt::value("skip").is_some_and(|names| names.split(',').any(|name| name == self.name));
        !left_out && (!self.doorbell || doorbell::present()) && (!self.its || !fdt::word("its=off"))
    }
}

/// Runs the checks that apply, or those of `tests=a,b` on the command line, and ends the machine.
pub fn run(checks: &[Check]) -> ! {
    let wanted = fdt::value("tests");
    let (mut passed, mut failed) = (0, 0);
    if let Some(names) = wanted {
        for name in names.split(',') {
            if !checks.iter().any(|check| check.name == name) {
                println!("FAIL {name}: there is no such check");
                failed += 1;
            }
        }
    }
    for check in checks {
        let run = match wanted {
            Some(names) => names.split(',').any(|name| name == check.name),
            None => check.applies(),
        };
        if !run {
            continue;
        }
        println!("check {}", check.name);
        match (check.run)() {
            Ok(()) => {
                println!("PASS {}", check.name);
                passed += 1;
            }
            Err(Failure { what, line, got, wanted }) => {
                println!("FAIL {}: {what}: {got:#x}, not {wanted:#x} (line {line})", check.name);
                failed += 1;
            }
        }
    }
    println!("COUNT spurious={}", record::all_spurious());
    println!("END {passed} passed, {failed} failed");
    psci::system_off()
}
