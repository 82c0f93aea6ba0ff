//! Runs in Linux guests of the lab, and tests whether exceptions of user space reach it as the
//! right signals.
//!
//! A hypervisor that catches its guest's undefined instructions must return the guest's own ones to
//! the guest, with all registers unchanged. `lab-signals` prints `ok NAME` or `bad NAME: why` for
//! each of its cases.

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
mod cases;
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
mod steps;

use std::process::ExitCode;

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [] => cases::all(),
        ["die", case] => cases::die(case),
        ["steps", count] => steps::run(count.parse().unwrap_or(1)),
        ["getpid", count] => cases::getpid(count.parse().unwrap_or(1)),
        _ => Err("usage: lab-signals [steps N | getpid N]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("bad {why}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "aarch64")))]
fn main() -> ExitCode {
    println!("bad platform: this program is for arm64 Linux guests of the lab");
    ExitCode::FAILURE
}
