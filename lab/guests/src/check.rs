//! Checks: a payload is a list of them, each passes or says why not.

use crate::{fdt, println, psci};

/// Why a check failed: where, and two numbers that differ.
pub struct Failure {
    pub what: &'static str,
    pub line: u32,
    pub got: u64,
    pub wanted: u64,
}

pub type Outcome = Result<(), Failure>;

/// Fails the check unless both are equal.
#[macro_export]
macro_rules! same {
    ($what:literal, $got:expr, $wanted:expr) => {{
        let (got, wanted) = ($got as u64, $wanted as u64);
        if got != wanted {
            return Err($crate::check::Failure { what: $what, line: line!(), got, wanted });
        }
    }};
}

/// One check: its name, and whether it needs something that only our VMM has.
pub struct Check {
    pub name: &'static str,
    pub run: fn() -> Outcome,
    /// Only run if the command line's `tests=` names it.
    pub by_name_only: bool,
}

/// Runs the checks that the command line asks for, all without `tests=a,b`; then ends the machine.
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
            None => !check.by_name_only,
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
    println!("END {passed} passed, {failed} failed");
    psci::system_off()
}
