//! A differential test: the register model of this project against QEMU's GICv2 and GICv3, access by access.
//!
//! QEMU is driven through its qtest protocol with its CPUs stopped, so that no guest code is needed; there is one CPU, or three for the ITS.
//! Both sides get the same random but valid operations ([`generate`], [`rules`]), everything that they answer is compared
//! ([`compare`]) but for the bits that the architecture leaves open (`differences.md`), and a difference is cut down to a short
//! reproducer ([`shrink`]).
//!
//! The ITS has operations and rules of its own ([`its`]): commands, and tables in memory.
//!
//! GICv3's CPU interface is system registers, which qtest cannot reach: there, only the frames are compared.

#![forbid(unsafe_code)]

pub mod compare;
pub mod generate;
pub mod its;
pub mod ours;
pub mod qtest;
pub mod regs;
pub mod report;
pub mod rules;
pub mod shrink;
pub mod target;
