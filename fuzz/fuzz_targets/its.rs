//! Fuzzes an ITS: commands, tables, messages, and memory that changes.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vgic_fuzz::run(vgic_fuzz::Frame::Its, data);
});

#[cfg(not(fuzzing))]
fn main() {}
