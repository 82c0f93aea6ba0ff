//! GICv3's system registers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vgic_fuzz::{Frame, run};

fuzz_target!(|data: &[u8]| run(Frame::Icc, data));
