//! Takes a vCPU's thread out of `KVM_RUN` with a signal. The signal's handler also sets
//! `immediate_exit`.
//!
//! A signal alone would be lost if it arrived just before the thread enters `KVM_RUN`. With
//! `immediate_exit` set, `KVM_RUN` returns at once. The vCPU's thread clears `immediate_exit`
//! before it announces its entry ([`vgic_core::line::LineCell::enter`]), and a caller sends its
//! signal only after that announcement. A signal that arrives late costs one exit and has no other
//! effect.

#![allow(unsafe_code)] // A signal handler, the page shared with KVM, and a raw system call.

use std::cell::Cell;
use std::{io, ptr, thread};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use crate::Error;

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs. It is initialized in place and
    /// has no destructor, so a signal handler can read it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `Target::claim` set the pointer in this thread, from the vCPU that this thread's
        // runner owns, and `Target::drop` clears it before the vCPU is dropped. Volatile: the
        // kernel and the code that this handler interrupts access the byte as well.
        unsafe { flag.write_volatile(1) };
    }
}

/// Returns the default signal, used unless the VMM has chosen another one: the first real-time
/// signal that the C library leaves free.
pub(crate) fn default() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler. Installing it again has no effect.
pub(crate) fn install(number: libc::c_int) -> Result<(), Error> {
    register_signal_handler(number, handler).map_err(|source| Error::Signal { number, source })
}

/// The calling thread, registered as one that runs a vCPU. It must not move to another thread,
/// because the handler finds the vCPU through thread-local state.
pub(crate) struct Target {
    tid: libc::pid_t,
    flag: *mut u8,
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Target {
    /// Makes the handler reach `vcpu`, which must outlive the target.
    pub(crate) fn new(vcpu: &mut VcpuFd, number: libc::c_int) -> Result<Self, Error> {
        Self::claim(&raw mut vcpu.get_kvm_run().immediate_exit, number)
    }

    /// Registers `flag` with the handler. A thread has room for one vCPU; signals meant for a
    /// second one would be lost.
    pub(crate) fn claim(flag: *mut u8, number: libc::c_int) -> Result<Self, Error> {
        if !IMMEDIATE_EXIT.get().is_null() {
            return Err(Error::ThreadInUse);
        }
        // A thread inherits the signal mask of its creator, and the creator may block this signal
        // to receive it by other means.
        unblock_signal(number).map_err(Error::SignalMask)?;
        IMMEDIATE_EXIT.set(flag);
        // SAFETY: the call takes no arguments and cannot fail.
        let tid = unsafe { libc::gettid() };
        Ok(Self { tid, flag, _not_send: std::marker::PhantomData })
    }

    /// Returns the thread's ID.
    pub(crate) fn tid(&self) -> libc::pid_t {
        self.tid
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // This runs in the thread that created the target, since a target is not `Send`.
        if IMMEDIATE_EXIT.get() == self.flag {
            IMMEDIATE_EXIT.set(ptr::null_mut());
        }
    }
}

/// Sends the signal to a thread of this process. It has no effect on a thread that has ended, or on
/// one that runs no vCPU.
pub(crate) fn send(tid: libc::pid_t, number: libc::c_int) {
    // SAFETY: three integers; the handler is installed, so the signal terminates no process.
    while unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, number) } != 0
        && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
    {
        // The number of queued real-time signals has reached this user's limit
        // (`RLIMIT_SIGPENDING`). Signals to vCPUs are consumed as their threads run.
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_one_vcpu() {
        let mut flags = [0u8; 2];
        let [a, b] = &mut flags;
        // A thread that blocks the signal creates threads that block it as well.
        vmm_sys_util::signal::block_signal(default()).unwrap();
        let first = Target::claim(a, default()).unwrap();
        assert!(matches!(Target::claim(b, default()), Err(Error::ThreadInUse)));
        assert!(std::thread::spawn(|| Target::claim(&mut 0, default()).is_ok()).join().unwrap());
        install(default()).unwrap();
        install(default()).unwrap();
        // A signal to the calling thread is delivered before the call returns.
        send(first.tid(), default());
        drop(first);
        let second = Target::claim(b, default()).unwrap();
        let tid = second.tid();
        send(tid, default());
        drop(second);
        // No target is registered now.
        send(tid, default());
        assert_eq!(flags, [1, 1]);
    }
}
