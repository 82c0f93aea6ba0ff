//! Records the version of the compiler that builds the benchmarks: figures cannot be repeated
//! without it.

use std::env;
use std::process::Command;

fn main() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output();
    let version = version.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    println!("cargo::rustc-env=VGIC_RUSTC_VERSION={version}");
    println!("cargo::rerun-if-changed=build.rs");
}
