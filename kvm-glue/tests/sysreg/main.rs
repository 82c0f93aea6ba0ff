//! GICv3's system registers on stock KVM: the decoder, the walker and the traps, without KVM.

mod decode;
mod machine;
mod reference;
mod trap;
mod walk;
