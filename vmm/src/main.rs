//! The reference VMM of vgic-kvm: small, for arm64 guests on KVM, with the address map of QEMU's
//! `virt` machine.
//!
//! On a host that is not arm64 it builds, and reports that it cannot run.

mod accounts;
mod args;
mod boot;
mod console;
mod doorbell;
mod fdt;
mod irq;
mod kernel_gic;
mod map;
mod memory;
mod output;
mod pci;
mod pl011;
mod stats;
mod vcpu;
mod virtio;
mod vm;

use std::io::Write;
use std::process::exit;

use clap::Parser;

use args::{Args, Command, Stats};
use vcpu::End;

fn main() {
    free_in_small_steps();
    let Command::Run(run) = Args::parse().command;
    let status = match vm::run(&run) {
        Ok((end, report)) => {
            if run.stats == Some(Stats::Json)
                && let Ok(line) = serde_json::to_string(&report)
            {
                println!("{line}");
            }
            i32::from(!matches!(end, End::Off | End::Reset))
        }
        Err(e) => {
            eprintln!("vgic-vmm: {e:#}");
            2
        }
    };
    let _ = std::io::stdout().flush();
    // `exit` does not wait for threads that read input, or that sleep in the kernel as vCPUs that
    // are off.
    exit(status);
}

/// Makes the heap join each small chunk when it is freed.
///
/// By default glibc joins all of them at once in a later call. That can add milliseconds to one
/// guest access after the guest has unmapped many LPIs.
#[allow(unsafe_code)] // A call into C.
fn free_in_small_steps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: changes a parameter of the allocator, before there is another thread.
    unsafe {
        // If the call fails, the default stays, which is slower at worst.
        let _ = libc::mallopt(libc::M_MXFAST, 0);
    }
}
