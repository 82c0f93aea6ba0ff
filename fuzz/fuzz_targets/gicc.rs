//! Fuzzes GICv2's CPU interface.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vgic_fuzz::run(vgic_fuzz::Frame::Gicc, data);
});

#[cfg(not(fuzzing))]
fn main() {}
