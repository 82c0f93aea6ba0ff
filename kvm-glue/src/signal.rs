//! Calling a vCPU's thread out of KVM_RUN: a signal, whose handler also sets `immediate_exit`.
//!
//! The signal alone would be lost if it came just before the thread enters KVM_RUN. `immediate_exit` makes KVM_RUN return at once
//! then; it is cleared before the thread announces that it enters ([`vgic_core::line::LineCell::enter`]), and who calls it
//! out does so after that announcement. A signal that comes late costs one exit, and nothing else.

#![allow(unsafe_code)] // A signal handler, the page that KVM shares with us, and a system call without a wrapper.

use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::Error;

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs. Initialised in place and without a destructor, so that a signal handler
    /// can read it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: set by `Target::new` in this thread, from the vCPU that its runner owns, and taken back before that is dropped.
        // Volatile: the kernel, and the code that this handler interrupts, see the byte as well.
        unsafe { flag.write_volatile(1) };
    }
}

/// The signal: the first real-time one that the C library leaves to us.
fn number() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler, once.
pub(crate) fn install() -> Result<(), Error> {
    static DONE: OnceLock<Result<(), errno::Error>> = OnceLock::new();
    let done = DONE.get_or_init(|| register_signal_handler(number(), handler));
    done.map_err(|source| Error::Signal { number: number(), source })
}

/// The calling thread, as one that runs a vCPU. Not for another thread: the handler finds the vCPU through it.
pub(crate) struct Target {
    tid: libc::pid_t,
    flag: *mut u8,
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Target {
    /// Makes the handler reach `vcpu`, which is to outlive the target.
    pub(crate) fn new(vcpu: &mut VcpuFd) -> Result<Self, Error> {
        Self::claim(&raw mut vcpu.get_kvm_run().immediate_exit)
    }

    /// The handler has one vCPU in a thread: calls for another one would be lost.
    pub(crate) fn claim(flag: *mut u8) -> Result<Self, Error> {
        if !IMMEDIATE_EXIT.get().is_null() {
            return Err(Error::ThreadInUse);
        }
        IMMEDIATE_EXIT.set(flag);
        // SAFETY: no arguments, and it cannot fail.
        let tid = unsafe { libc::gettid() };
        Ok(Self { tid, flag, _not_send: std::marker::PhantomData })
    }

    /// The thread's number.
    pub(crate) fn tid(&self) -> libc::pid_t {
        self.tid
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // In the thread that made it, as it does not leave that.
        if IMMEDIATE_EXIT.get() == self.flag {
            IMMEDIATE_EXIT.set(ptr::null_mut());
        }
    }
}

/// Sends the signal to a thread of this process. A thread that has ended is none, and one that runs no vCPU takes no notice.
pub(crate) fn send(tid: libc::pid_t) {
    // SAFETY: three integers; the handler is installed, so that the signal ends nobody.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, number()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_one_vcpu() {
        let mut flags = [0u8; 2];
        let [a, b] = &mut flags;
        let first = Target::claim(a).unwrap();
        assert!(matches!(Target::claim(b), Err(Error::ThreadInUse)));
        assert!(std::thread::spawn(|| Target::claim(&mut 0).is_ok()).join().unwrap());
        install().unwrap();
        // To itself: it has come before the call returns.
        send(first.tid());
        drop(first);
        let second = Target::claim(b).unwrap();
        let tid = second.tid();
        send(tid);
        drop(second);
        // Nobody's.
        send(tid);
        assert_eq!(flags, [1, 1]);
    }
}
