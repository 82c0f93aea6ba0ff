//! Calling a vCPU's thread out of KVM_RUN: a signal, whose handler also sets `immediate_exit`.
//!
//! The signal alone would be lost if it came just before the thread enters KVM_RUN. `immediate_exit` makes KVM_RUN return at once
//! then; it is cleared before the thread announces that it enters ([`vgic_core::line::LineCell::enter`]), and who calls it
//! out does so after that announcement. A signal that comes late costs one exit, and nothing else.

#![allow(unsafe_code)] // A signal handler, the page that KVM shares with us, and a system call without a wrapper.

use std::cell::Cell;
use std::{io, ptr, thread};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

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

/// The signal, unless a VMM has chosen another one: the first real-time one that the C library leaves to us.
pub(crate) fn default() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler. A second time changes nothing.
pub(crate) fn install(number: libc::c_int) -> Result<(), Error> {
    register_signal_handler(number, handler).map_err(|source| Error::Signal { number, source })
}

/// The calling thread, as one that runs a vCPU. Not for another thread: the handler finds the vCPU through it.
pub(crate) struct Target {
    tid: libc::pid_t,
    flag: *mut u8,
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Target {
    /// Makes the handler reach `vcpu`, which is to outlive the target.
    pub(crate) fn new(vcpu: &mut VcpuFd, number: libc::c_int) -> Result<Self, Error> {
        Self::claim(&raw mut vcpu.get_kvm_run().immediate_exit, number)
    }

    /// The handler has one vCPU in a thread: calls for another one would be lost.
    pub(crate) fn claim(flag: *mut u8, number: libc::c_int) -> Result<Self, Error> {
        if !IMMEDIATE_EXIT.get().is_null() {
            return Err(Error::ThreadInUse);
        }
        // A thread has the mask of the one that made it, which may take its signals otherwise.
        unblock_signal(number).map_err(Error::SignalMask)?;
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
pub(crate) fn send(tid: libc::pid_t, number: libc::c_int) {
    // SAFETY: three integers; the handler is installed, so that the signal ends nobody.
    while unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, number) } != 0
        && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
    {
        // As many real-time signals wait as this user may have (RLIMIT_SIGPENDING); those of vCPUs go as their threads run.
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
        // As a thread may be that was made by one that does so.
        vmm_sys_util::signal::block_signal(default()).unwrap();
        let first = Target::claim(a, default()).unwrap();
        assert!(matches!(Target::claim(b, default()), Err(Error::ThreadInUse)));
        assert!(std::thread::spawn(|| Target::claim(&mut 0, default()).is_ok()).join().unwrap());
        install(default()).unwrap();
        install(default()).unwrap();
        // To itself: it has come before the call returns.
        send(first.tid(), default());
        drop(first);
        let second = Target::claim(b, default()).unwrap();
        let tid = second.tid();
        send(tid, default());
        drop(second);
        // Nobody's.
        send(tid, default());
        assert_eq!(flags, [1, 1]);
    }
}
