//! Seeds one bug into a model's build, on request only.
//!
//! Each model in `loom-tests` has mutants: `cfg(mutant = "NAME")` bugs that must make it fail
//! (`cargo xtask loom --mutants`). The cfg comes from `VGIC_MUTANT`, through here, rather than from
//! `RUSTFLAGS`, so that it reaches this crate alone and loom is not compiled anew for every mutant.
//! Without the variable this does nothing.

use std::env;

fn main() {
    println!("cargo:rerun-if-env-changed=VGIC_MUTANT");
    let Ok(name) = env::var("VGIC_MUTANT") else { return };
    // No build that could be shipped may have a seeded bug, whatever the environment holds.
    let model =
        ["CARGO_CFG_LOOM", "CARGO_CFG_SHUTTLE"].map(env::var_os).iter().any(Option::is_some);
    assert!(model, "VGIC_MUTANT is for builds with --cfg loom or --cfg shuttle");
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    assert!(!name.is_empty() && name.chars().all(valid), "VGIC_MUTANT={name:?} is not a name");
    println!("cargo:rustc-cfg=mutant=\"{name}\"");
}
