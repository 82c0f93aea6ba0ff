//! `sysreg-probe`: a bare-metal guest on KVM whose accesses to GICv3's CPU interface are trapped, and what it sees. Runs on an
//! arm64 host with KVM; see `cargo xtask lab run`.
//!
//! Each guest is run twice: with the traps, and without, as a vCPU without a debugger runs. In the second run it makes no accesses, but has
//! the same exceptions of its own: what it has noted of them must be the same, to the bit.

#[cfg(target_arch = "aarch64")]
mod probe;

#[cfg(target_arch = "aarch64")]
fn main() -> std::process::ExitCode {
    probe::main()
}

#[cfg(not(target_arch = "aarch64"))]
fn main() {
    eprintln!("sysreg-probe runs on arm64 hosts only");
}
