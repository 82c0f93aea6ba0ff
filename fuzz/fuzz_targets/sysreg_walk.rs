//! Fuzzes the walk of a guest's translation tables.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vgic_fuzz::sysreg::walk_all(data);
});

#[cfg(not(fuzzing))]
fn main() {}
