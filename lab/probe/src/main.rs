//! Checks of the lab for the features that the KVM of an arm64 host has for a user-space interrupt
//! controller.
//!
//! `lab-probe lines [COUNT [BUSY]]` raises a vCPU's line COUNT times from another thread, while
//! BUSY threads keep the host's CPUs busy, and counts how often KVM loses it.

#[cfg(target_arch = "aarch64")]
mod lines;

use std::process::ExitCode;

use kvm_ioctls::Kvm;

/// The capabilities, by their numbers in `linux/kvm.h`.
///
/// kvm-ioctls has names only for the capabilities that it has methods for.
const NEEDED: &[(&str, u64)] = &[
    ("irq-lines", 144), // KVM_CAP_ARM_USER_IRQ: the vCPU's lines are driven from outside
    ("psci", 102),      // KVM_CAP_ARM_PSCI_0_2: vCPUs are powered by the kernel
    ("guest-debug", 23), // KVM_CAP_SET_GUEST_DEBUG
    ("breakpoints", 119), // KVM_CAP_GUEST_DEBUG_HW_BPS: ICC_* accesses are caught by one
    ("immediate-exit", 136), // KVM_CAP_IMMEDIATE_EXIT
    ("ioeventfd", 36),  // KVM_CAP_IOEVENTFD
    ("device-control", 89), // KVM_CAP_DEVICE_CTRL: the in-kernel GIC, as a control
];

/// Runs `lab-probe lines`.
#[cfg(target_arch = "aarch64")]
fn lines(arguments: &[String]) -> ExitCode {
    let number = |n: usize, default: u64| match arguments.get(n) {
        Some(word) => word.parse().map_err(|error| format!("{word}: {error}")),
        None => Ok(default),
    };
    match (number(0, 100_000), number(1, 2)) {
        (Ok(count), Ok(busy)) => lines::lines(count, busy as usize),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_arch = "aarch64"))]
fn lines(_: &[String]) -> ExitCode {
    eprintln!("this needs arm64");
    ExitCode::FAILURE
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        None => {}
        Some((word, rest)) if word == "lines" => return lines(rest),
        Some(_) => {
            eprintln!("usage: lab-probe [lines [COUNT [BUSY]]]");
            return ExitCode::FAILURE;
        }
    }
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("FAIL open: /dev/kvm: {error}");
            println!("END 0 passed, 1 failed");
            return ExitCode::FAILURE;
        }
    };
    let (mut passed, mut failed) = (0, 0);
    let mut check = |name: &str, value: i32| {
        if value > 0 {
            passed += 1;
            println!("PASS {name} ({value})");
        } else {
            failed += 1;
            println!("FAIL {name}: this KVM lacks it ({value})");
        }
    };
    check("version", kvm.get_api_version());
    for &(name, number) in NEEDED {
        check(name, kvm.check_extension_raw(number));
    }
    check("vcpus", i32::try_from(kvm.get_nr_vcpus()).unwrap_or(i32::MAX));
    println!("END {passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
