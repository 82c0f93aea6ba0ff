//! A differential test: the register model of this project against QEMU's GICv2 and GICv3, access by access.
//!
//! QEMU is driven through its qtest protocol with its CPUs stopped, so that no guest code is needed; there is one CPU, or three for the ITS.
//! Both sides get the same random but valid operations ([`generate`], [`rules`]), everything that they answer is compared
//! ([`compare`]) but for the bits that the architecture leaves open (`differences.md`), and a difference is cut down to a short
//! reproducer ([`shrink`]).
//!
//! The ITS has operations and rules of its own ([`its`]): commands, and tables in memory.
//!
//! GICv3's CPU interface is system registers, which qtest cannot reach, and GICv2's banks are told apart by the CPU that runs. What CPUs do is
//! compared with a QEMU whose CPUs run a payload that performs the accesses ([`cpus`]).

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
