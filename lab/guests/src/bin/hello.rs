//! The smallest payload: starts all CPUs, and counts them.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lab_guests::check::{self, Check, Outcome};
use lab_guests::{fdt, println, same, smp};

static SUM: AtomicU64 = AtomicU64::new(0);

const CHECKS: &[Check] = &[Check::new("cpus", cpus)];

#[unsafe(no_mangle)]
fn payload() -> ! {
    println!("hello from {} CPUs; command line: {}", smp::cpus(), fdt::bootargs());
    smp::start(|_| ());
    check::run(CHECKS)
}

fn cpus() -> Outcome {
    smp::on_each(|cpu| SUM.store(SUM.load(Relaxed) + cpu + 1, Relaxed));
    let cpus = smp::cpus() as u64;
    same!("the sum of the CPUs' numbers", SUM.load(Relaxed), cpus * (cpus + 1) / 2);
    Ok(())
}
