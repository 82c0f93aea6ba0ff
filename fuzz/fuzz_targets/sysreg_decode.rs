//! Fuzzes the decoder of instructions that may access GICv3's CPU interface.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vgic_fuzz::sysreg::decode_all(data);
});

#[cfg(not(fuzzing))]
fn main() {}
