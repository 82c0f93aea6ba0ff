//! Fuzzes GICv3's redistributors.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vgic_fuzz::run(vgic_fuzz::Frame::Gicr, data);
});

#[cfg(not(fuzzing))]
fn main() {}
