//! A differential test of this project's register model against QEMU's GICv2 and GICv3, access by
//! access.
//!
//! QEMU is driven through its qtest protocol with its CPUs stopped, so that no guest code is
//! needed. The machine has one CPU for GICv2, two for GICv3 and three for the ITS. Both sides get
//! the same random but valid operations ([`generate`], [`rules`]). All answers are compared
//! ([`compare`]), except for the bits that the architecture leaves open (`differences.md`). A
//! difference is cut down to a short reproducer ([`shrink`]).
//!
//! The ITS has operations and rules of its own ([`its`]): commands, and tables in memory.
//!
//! GICv3's CPU interface consists of system registers, which qtest cannot reach. GICv2's banks are
//! selected by the CPU that runs. Therefore the actions of CPUs are compared with a QEMU that runs
//! a payload on its CPUs, and this payload performs the accesses ([`cpus`]).

#![forbid(unsafe_code)]

pub mod compare;
pub mod cpus;
pub mod generate;
pub mod its;
pub mod memory;
pub mod ours;
pub mod qtest;
pub mod regs;
pub mod report;
pub mod rules;
pub mod shrink;
pub mod target;
