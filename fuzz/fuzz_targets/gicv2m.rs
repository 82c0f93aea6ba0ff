//! Fuzzes a GICv2m frame.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vgic_fuzz::run(vgic_fuzz::Frame::Gicv2m, data);
});

#[cfg(not(fuzzing))]
fn main() {}
