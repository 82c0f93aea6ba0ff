#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub use vgic_core as core;
